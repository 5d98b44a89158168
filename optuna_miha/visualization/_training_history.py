"""The trunk's loss, and the change that every cycle made."""

from __future__ import annotations

import math
from typing import Any

import optuna

from optuna_miha._search.mutation import NO_CHANGE
from optuna_miha.visualization._phase_bands import STRIP, add_phases
from optuna_miha.visualization._run_view import RunView, change, read_run_view
from optuna_miha.visualization._style import (
    BLUE,
    GREY,
    HEIGHT,
    LEFT,
    LINE,
    SMALL,
    VERMILION,
    WIDTH,
    blank_figure,
    escape,
    length,
    sentence,
    value_scale,
)

_RIGHT = 150
_LABEL = 34
"""Characters of a change; the hover text has the whole of it."""

_SPACING = 19
"""Pixels between the labels of two changes, at least."""

_MANY = 40
"""Births above which their dots would hide the curve."""

_GAP = 0.08
"""Between the panels, as a share of the height."""


def plot_training_history(study: optuna.Study, *, target_name: str | None = None) -> Any:
    """The trunk's loss over its lineage, cycle by cycle, with the change that each made.

    The figure of the article on MIHA. Above is the monitored value, below the training loss,
    which has a scale of its own where label smoothing, dropout or the loss itself change.
    Every dot is the birth of a branch that won; a change is named above it as far as there is
    room, and in any case where the cursor points.

    Args:
        study: A study with a run of :func:`~optuna_miha.optimize`, be it over or not.
        target_name: What is monitored, for the axis; :obj:`None`: ``"validation loss"`` where
            the study minimizes, or its metric name if it has one.

    Returns:
        A plotly ``Figure``.

    Raises:
        ImportError: If plotly is not installed.
        TypeError: If ``study`` is not a study.
        ValueError: If the study holds no run.

    Reference:
        Sarafanov and Kovalchuk, *One more approach to optimize neural networks*.
    """
    view = read_run_view(study, target_name)
    end = view.trunk[-1].end
    width = WIDTH - LEFT - _RIGHT
    labels = _labels(view, spacing=_SPACING * end / width)
    longest = max((length(text) for _, text in labels), default=0)
    room = STRIP + (16 + round(longest * 0.72 * 6) if labels else 0)
    figure = blank_figure("Training history", height=HEIGHT + room, top=46 + room, right=_RIGHT)
    figure.update_xaxes(title_text="lineage epoch", range=[0, end])

    losses = _losses(view)
    bottom = 0.36 if losses else 0.0
    values = [value for s in view.trunk for value in view.course(s)[1]]
    figure.update_layout(
        xaxis={"anchor": "y2" if losses else "y"},
        yaxis={
            "domain": [bottom + (_GAP / 2 if losses else 0), 1],
            "title": {"text": escape(view.label)},
            **value_scale(values, is_loss=view.is_loss),
        },
    )
    if losses:
        finite = [loss for _, loss, _ in losses if loss is not None]
        figure.update_layout(
            yaxis2={
                "anchor": "x",
                "domain": [0, bottom - _GAP / 2],
                "title": {"text": "training loss"},
                **value_scale(finite, is_loss=True),
            }
        )
    _add_curve(figure, view)
    if losses:
        figure.add_scatter(
            x=[epoch for epoch, _, _ in losses],
            y=[loss for _, loss, _ in losses],
            hovertext=[text for _, _, text in losses],
            hovertemplate="%{hovertext}<br>epoch %{x}: %{y:.5g}<extra></extra>",
            name="training",
            mode="lines",
            line={"color": LINE, "width": 2},
            yaxis="y2",
        )
    _add_births(figure, view)
    add_phases(figure, view, width)
    figure.update_layout(
        annotations=[
            *figure.layout.annotations,
            *(
                {
                    "text": text,
                    "x": epoch,
                    "xref": "x",
                    "xanchor": "left",
                    "y": 1,
                    "yref": "paper",
                    "yanchor": "bottom",
                    "yshift": STRIP,
                    "textangle": -45,
                    "showarrow": False,
                    "font": {"size": SMALL - 1},
                }
                for epoch, text in labels
            ),
        ]
    )
    return figure


def _labels(view: RunView, spacing: float) -> list[tuple[int, str]]:
    """Lineage epoch and text of the changes that won, as many as can stand side by side."""
    labels: list[tuple[int, str]] = []
    for segment in view.trunk:
        if segment.role not in ("startup", "branch") or segment.mutation == NO_CHANGE:
            continue
        if not labels or segment.birth - labels[-1][0] >= spacing:
            labels.append((segment.birth, sentence(segment.mutation, most=_LABEL)))
    return labels


def _losses(view: RunView) -> list[tuple[int, float | None, str]]:
    """Lineage epoch, training loss and hover text; empty if no loss is known."""
    losses = [
        (epoch, loss if loss is not None and math.isfinite(loss) else None, view.hover(segment))
        for segment in view.trunk
        for epoch, loss in enumerate(segment.train_losses, start=segment.birth + 1)
    ]
    return losses if any(loss is not None for _, loss, _ in losses) else []


def _add_curve(figure: Any, view: RunView) -> None:
    points = [
        (epoch, value, view.hover(segment))
        for segment in view.trunk
        for epoch, value in enumerate(segment.scores, start=segment.birth + 1)
    ]
    figure.add_scatter(
        x=[epoch for epoch, _, _ in points],
        y=[value for _, value, _ in points],
        hovertext=[text for _, _, text in points],
        hovertemplate="%{hovertext}<br>epoch %{x}: %{y:.5g}<extra></extra>",
        name="validation",
        mode="lines",
        line={"color": BLUE, "width": 3},
    )


def _add_births(figure: Any, view: RunView) -> None:
    """A dot where a branch that won was born."""
    born = [s for s in view.trunk if s.role == "branch" and view.course(s)[0]]
    for name, symbol, colour, is_control in (
        ("control won", "circle-open", GREY, True),
        ("change won", "circle", VERMILION, False),
    ):
        chosen = [s for s in born if (s.mutation == NO_CHANGE) == is_control]
        if not chosen:
            continue
        figure.add_scatter(
            x=[s.birth for s in chosen],
            y=[view.course(s)[1][0] for s in chosen],
            hovertext=[
                f"cycle {s.cycle}, trial {s.number}<br>{sentence(change(s))}" for s in chosen
            ],
            hovertemplate="%{hovertext}<extra></extra>",
            name=f"{name} ({len(chosen)})",
            mode="markers",
            marker={"symbol": symbol, "size": 9 if len(born) <= _MANY else 6, "color": colour},
        )
