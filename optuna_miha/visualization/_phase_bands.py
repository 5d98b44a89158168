"""Bands and labels that mark the phases along the axis of lineage epochs."""

from __future__ import annotations

from typing import Any

from optuna_miha.visualization._run_view import RunView
from optuna_miha.visualization._style import BAND, SMALL

STRIP_HEIGHT = 20
"""Height of the labels above the plot area, in pixels."""

_CHARACTER_WIDTH = 7
"""Width of a character, in pixels."""

_LABEL_STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
"""Candidate distances between numbered cycles, if there is no room to number each."""

_KINDS = ("cycle ", "round ")
"""How the labels of cycles begin."""


def phase_spans(view: RunView) -> list[tuple[str, int, int]]:
    """Label, first and last lineage epoch of every phase of the trunk.

    A cycle consists of the branch that won and the trunk segments after it.
    """
    spans: list[tuple[str, int, int]] = []
    for segment in view.trunk:
        if segment.role == "startup":
            label = "race"
        elif segment.role in ("final", "restart"):
            label = segment.role
        else:
            label = segment.cycle_name if segment.cycle else "run-up"
        if spans and spans[-1][0] == label:
            spans[-1] = (label, spans[-1][1], segment.end)
        else:
            spans.append((label, segment.birth, segment.end))
    return spans


def add_phases(figure: Any, view: RunView, width: float) -> None:
    """Shade every other phase, and label phases above the plot area where there is room.

    Args:
        figure: The figure.
        view: The run.
        width: Width of the plot area, in pixels.
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
        for text, x in _labels(spans, epoch_width=width / spans[-1][2])
    ]
    if any(label["text"].isdigit() for label in labels):
        kind = next(label for label, *_ in spans if label.startswith(_KINDS)).split()[0]
        labels.append(
            {"text": kind, "x": 0, "xref": "paper", "xanchor": "right", "xshift": -4}
            | {"font": {"size": SMALL - 1}}
        )
    # Assigned, because plotly takes long to merge long lists.
    figure.layout.shapes = [*figure.layout.shapes, *shapes]
    figure.layout.annotations = [
        *figure.layout.annotations,
        *({**label, **common} for label in labels),
    ]


def _labels(spans: list[tuple[str, int, int]], epoch_width: float) -> list[tuple[str, float]]:
    """Text and centre of the labels; cycles too narrow for their label show only numbers.

    Args:
        spans: The phases.
        epoch_width: Width of an epoch, in pixels.
    """
    cycles = [(label, end - start) for label, start, end in spans if label.startswith(_KINDS)]
    is_narrow = any(len(label) * _CHARACTER_WIDTH > n * epoch_width for label, n in cycles)
    mean_width = sum(n for _, n in cycles) * epoch_width / max(len(cycles), 1)
    number_width = (len(str(len(cycles))) + 1.5) * _CHARACTER_WIDTH
    step = next((k for k in _LABEL_STEPS if k * mean_width >= number_width), _LABEL_STEPS[-1])
    labels = []
    for label, start, end in spans:
        text = label
        if is_narrow and label.startswith(_KINDS):
            text = label.split()[1]
            if int(text) % step:
                continue
        elif len(label) * _CHARACTER_WIDTH > (end - start) * epoch_width:
            continue
        labels.append((text, (start + end) / 2))
    return labels
