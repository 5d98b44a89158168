"""Race, cycles and final phase, marked along the axis of lineage epochs."""

from __future__ import annotations

from typing import Any

from optuna_miha.visualization._run_view import RunView
from optuna_miha.visualization._style import BAND, SMALL

STRIP = 20
"""Height of the labels above the data, in pixels."""

_CHARACTER = 7
"""Width of a character, in pixels."""

_STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
"""Of the cycles that are numbered, where there are many."""


def phase_spans(view: RunView) -> list[tuple[str, int, int]]:
    """Label, first and last lineage epoch of every phase of the trunk.

    A cycle is a branch and what the trunk trained alone after it.
    """
    spans: list[tuple[str, int, int]] = []
    for segment in view.trunk:
        if segment.role == "startup":
            label = "race"
        elif segment.role in ("final", "restart"):
            label = "final" if segment.role == "final" else "new training"
        else:
            label = f"cycle {segment.cycle}" if segment.cycle else "run-up"
        if spans and spans[-1][0] == label:
            spans[-1] = (label, spans[-1][1], segment.end)
        else:
            spans.append((label, segment.birth, segment.end))
    return spans


def add_phases(figure: Any, view: RunView, width: float) -> None:
    """Shade every other phase, and name each above the data where there is room.

    Args:
        figure: The figure.
        view: The run.
        width: Of the data, in pixels.
    """
    spans = phase_spans(view)
    shapes = [
        {
            "type": "rect",
            "xref": "x",
            "yref": "paper",
            "x0": start,
            "x1": end,
            "y0": 0,
            "y1": 1,
            "fillcolor": BAND,
            "line": {"width": 0},
            "layer": "below",
        }
        for _, start, end in spans[::2]
    ]
    common = {"y": 1, "yref": "paper", "yanchor": "bottom", "showarrow": False}
    labels: list[dict[str, Any]] = [
        {"text": text, "x": x, "xref": "x", "xanchor": "center", "font": {"size": SMALL - 1}}
        for text, x in _labels(spans, pixels=width / spans[-1][2])
    ]
    if any(label["text"].isdigit() for label in labels):
        labels.append(
            {"text": "cycle", "x": 0, "xref": "paper", "xanchor": "right", "xshift": -4}
            | {"font": {"size": SMALL - 1}}
        )
    figure.update_layout(
        shapes=[*figure.layout.shapes, *shapes],
        annotations=[*figure.layout.annotations, *({**label, **common} for label in labels)],
    )


def _labels(spans: list[tuple[str, int, int]], pixels: float) -> list[tuple[str, float]]:
    """Text and middle of the phases' labels: cycles by their numbers where they are short.

    Args:
        spans: The phases.
        pixels: Of an epoch.
    """
    cycles = [(label, end - start) for label, start, end in spans if label.startswith("cycle")]
    is_short = any(len(label) * _CHARACTER > n * pixels for label, n in cycles)
    usual = sum(n for _, n in cycles) * pixels / max(len(cycles), 1)
    widest = (len(str(len(cycles))) + 1.5) * _CHARACTER
    step = next((k for k in _STEPS if k * usual >= widest), _STEPS[-1])
    labels = []
    for label, start, end in spans:
        text = label
        if is_short and label.startswith("cycle"):
            text = label.removeprefix("cycle ")
            if int(text) % step:
                continue
        elif len(label) * _CHARACTER > (end - start) * pixels:
            continue
        labels.append((text, (start + end) / 2))
    return labels
