"""The tree of trunk and branches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState

from optuna_miha._history.segment import Segment
from optuna_miha.visualization._run_view import RunView, read_run_view
from optuna_miha.visualization._style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    blank_figure,
    escape,
    number,
    value_scale,
)

# From the lowest to the topmost.
_THIN: Mapping[str, dict[str, Any]] = {
    "pruned": {"color": GREY, "width": 1, "dash": "dot"},
    "failed": {"color": VERMILION, "width": 1, "dash": "dot"},
    "start-up race, lost": {"color": PURPLE, "width": 1.2},
    "branch, lost": {"color": ORANGE, "width": 1.2},
    "new training, lost": {"color": SKY, "width": 1.2},
}
_THICK = {
    "start-up race, won": PURPLE,
    "branch, won": ORANGE,
    "trunk": BLUE,
    "new training, won": SKY,
    "final phase": GREEN,
}
_ENDS = {"pruned": "x", "failed": "triangle-down"}
"""The mark at the end of what did not train to its end."""

_MANY = 150
"""Segments above which thick lines and large marks would hide what is around them."""

_HOVER = "%{hovertext}<br>epoch %{x}: %{y:.5g}<extra></extra>"


@dataclass
class _Lines:
    """The lines of one class, joined to one with gaps."""

    x: list[int | None] = field(default_factory=list)
    y: list[float | None] = field(default_factory=list)
    hover: list[str] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    count: int = 0

    def add(self, epochs: list[int], values: list[float], hover: str) -> None:
        self.count += 1
        if not epochs:  # It failed before its first value.
            return
        self.x += [*epochs, None]
        self.y += [*values, None]
        self.hover += [hover] * (len(epochs) + 1)
        self.ends.append(len(self.x) - 2)


def plot_lineage(study: optuna.Study, *, target_name: str | None = None) -> Any:
    """The tree of trunk and branches over the epochs of their lineage.

    Every line is a segment of training, a trial; it starts where its parent ended. What was
    chosen among its siblings is thick. The axis is cut above what nearly all segments stay
    below, so that a diverged one does not flatten the others; zoom out to see it.

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
    """
    view = read_run_view(study, target_name)
    figure = blank_figure("Lineage")
    width, size = (3.5, 7) if len(view.lineage) <= _MANY else (2, 4)
    looks = {**_THIN, **{k: {"color": c, "width": width} for k, c in _THICK.items()}}
    classes = {name: _Lines() for name in looks}
    values: dict[bool, list[float]] = {True: [], False: []}  # Of winners and of all others.
    for segment in view.lineage:
        epochs, course = view.course(segment)
        classes[_class_of(view, segment)].add(epochs, course, view.hover(segment))
        values[view.has_won(segment)] += course
        if segment.value is not None:  # Of the weights themselves, where these were better.
            values[False].append(segment.value)
    for name, lines in classes.items():
        if not lines.count:
            continue
        figure.add_scatter(
            x=lines.x,
            y=lines.y,
            hovertext=lines.hover,
            mode="lines",
            line=looks[name],
            name=f"{name} ({lines.count})",
            legendgroup=name,
            showlegend=name not in _ENDS,
            hovertemplate=_HOVER,
        )
        if name in _ENDS:
            figure.add_scatter(
                x=[lines.x[k] for k in lines.ends],
                y=[lines.y[k] for k in lines.ends],
                hovertext=[lines.hover[k] for k in lines.ends],
                mode="markers",
                marker={"symbol": _ENDS[name], "size": size, "color": looks[name]["color"]},
                name=f"{name} ({lines.count})",
                legendgroup=name,
                hovertemplate=_HOVER,
            )
    _add_best(figure, view)
    end = max(segment.end for segment in view.lineage)
    figure.update_xaxes(title_text="lineage epoch", range=[-0.01 * end, 1.02 * end])
    axis = value_scale(values[True], values[False], is_loss=view.is_loss)
    figure.update_yaxes(title_text=escape(view.label), **axis)
    return figure


def _class_of(view: RunView, segment: Segment) -> str:
    if segment.state == TrialState.PRUNED:
        return "pruned"
    if segment.state == TrialState.FAIL:
        return "failed"
    if segment.role in ("trunk", "final"):
        return "trunk" if segment.role == "trunk" else "final phase"
    name = {"startup": "start-up race", "restart": "new training"}.get(segment.role, "branch")
    return f"{name}, {'won' if view.has_won(segment) else 'lost'}"


def _add_best(figure: Any, view: RunView) -> None:
    best = view.lineage.best()
    if best is None:
        return
    if best.checkpoint is not None:
        epoch = best.checkpoint["best_epoch"]
    else:
        epoch = best.birth + 1 + int(np.argmin(view.lineage.sign * np.array(best.scores)))
    figure.add_scatter(
        x=[epoch],
        y=[best.value],
        name=f"best: {number(best.value)}",
        mode="markers",
        marker={"symbol": "star", "size": 14, "color": BLACK},
        hovertemplate=f"{view.hover(best)}<br>epoch %{{x}}: %{{y:.5g}}<extra></extra>",
    )
