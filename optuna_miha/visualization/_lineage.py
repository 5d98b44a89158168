"""The tree of trunk and branches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.trial import TrialState

from optuna_miha._history.segment import Segment
from optuna_miha.visualization._best_epoch import add_best
from optuna_miha.visualization._run_view import RunView, read_run_view
from optuna_miha.visualization._style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    blank_figure,
    escape,
    value_scale,
)

# Both from back to front.
_LOSER_LINES: Mapping[str, dict[str, Any]] = {
    "pruned": {"color": GREY, "width": 1, "dash": "dot"},
    "failed": {"color": VERMILION, "width": 1, "dash": "dot"},
    "start-up race, lost": {"color": PURPLE, "width": 1.2},
    "branch, lost": {"color": ORANGE, "width": 1.2},
    "restart, lost": {"color": SKY, "width": 1.2},
}
_WINNER_COLOURS = {
    "start-up race, won": PURPLE,
    "branch, won": ORANGE,
    "trunk": BLUE,
    "restart, won": SKY,
    "final phase": GREEN,
}
_MANY_LOSERS = 5
"""Number of lost restarts, of losers of the race or of one round, above which they are faded, so
that they hide no other segment."""

_FADED = 0.35
"""Opacity of faded lines."""

_LOST = ("start-up race, lost", "branch, lost", "restart, lost")

_END_SYMBOLS = {"pruned": "x", "failed": "triangle-down"}
"""Markers at the last epoch of segments that did not train to their end."""

_MANY_SEGMENTS = 150
"""Number of segments above which winners and markers are drawn smaller, to hide less."""

_HOVER_TEMPLATE = "%{hovertext}<br>epoch %{x}: %{y:.5g}<extra></extra>"


@dataclass
class _LineGroup:
    """Segments that are drawn alike, as one trace with gaps."""

    x: list[int | None] = field(default_factory=list)
    y: list[float | None] = field(default_factory=list)
    hover: list[str] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    count: int = 0
    in_cycle: Counter[int] = field(default_factory=Counter)

    @property
    def crowd(self) -> int:
        """The largest number of segments that are drawn beside each other.

        Restarts all begin with the initial weights, branches with those of their cycle.
        """
        return max(self.in_cycle.values())

    def add(self, segment: Segment, epochs: list[int], values: list[float], hover: str) -> None:
        self.count += 1
        self.in_cycle[segment.cycle if segment.role == "branch" else 0] += 1
        if not epochs:  # The segment failed before its first value.
            return
        self.x += [*epochs, None]
        self.y += [*values, None]
        self.hover += [hover] * (len(epochs) + 1)
        self.ends.append(len(self.x) - 2)


def plot_lineage(study: optuna.Study, *, target_name: str | None = None) -> Any:
    """Plot the tree of trunk and branches over lineage epochs.

    Each line is a segment of training, that is, a trial. It starts at the end of its parent; in a
    round, with the best weights of its parent, whose value it starts at.
    Segments that the run continued are thick. The value axis cuts off outliers, so that
    a diverged segment does not flatten the others; zoom out to see it.

    A star marks the best epoch. The curves usually show the values of averaged weights, by which
    branches are selected. If the weights of the best epoch are not averaged, a dotted line
    connects the star to its curve.

    Args:
        study: A study with a finished or unfinished run of :func:`~optuna_miha.optimize`.
        target_name: Name of the monitored value, for the axis; :obj:`None`: the metric name of
            the study, or else ``"validation loss"`` if the study minimizes.

    Returns:
        A plotly ``Figure``.

    Raises:
        ImportError: If plotly is not installed.
        TypeError: If ``study`` is not a study.
        ValueError: If the study contains no run.
    """
    view = read_run_view(study, target_name)
    figure = blank_figure("Lineage")
    width, size = (3.5, 7) if len(view.lineage) <= _MANY_SEGMENTS else (2, 4)
    winner_lines = {k: {"color": c, "width": width} for k, c in _WINNER_COLOURS.items()}
    styles = {**_LOSER_LINES, **winner_lines}
    groups = {name: _LineGroup() for name in styles}
    values: dict[bool, list[float]] = {True: [], False: []}  # Of winners and of all others.
    for segment in view.lineage:
        epochs, curve = view.curve(segment)
        groups[_group_of(view, segment)].add(segment, epochs, curve, view.hover(segment))
        values[view.has_won(segment)] += curve
        if segment.value is not None:  # Not among the scores, if those are of averaged weights.
            values[False].append(segment.value)
    for name, group in groups.items():
        if not group.count:
            continue
        figure.add_scatter(
            x=group.x,
            y=group.y,
            hovertext=group.hover,
            mode="lines",
            line=styles[name],
            name=f"{name} ({group.count})",
            opacity=_FADED if name in _LOST and group.crowd > _MANY_LOSERS else 1,
            legendgroup=name,
            showlegend=name not in _END_SYMBOLS,
            hovertemplate=_HOVER_TEMPLATE,
        )
        if name in _END_SYMBOLS:
            marker = {"symbol": _END_SYMBOLS[name], "size": size, "color": styles[name]["color"]}
            figure.add_scatter(
                x=[group.x[k] for k in group.ends],
                y=[group.y[k] for k in group.ends],
                hovertext=[group.hover[k] for k in group.ends],
                mode="markers",
                marker=marker,
                name=f"{name} ({group.count})",
                legendgroup=name,
                hovertemplate=_HOVER_TEMPLATE,
            )
    add_best(figure, view)
    end = max(segment.end for segment in view.lineage)
    figure.update_xaxes(title_text="lineage epoch", range=[-0.01 * end, 1.02 * end])
    axis = value_scale(values[True], values[False], is_loss=view.is_loss)
    figure.update_yaxes(title_text=escape(view.label), **axis)
    return figure


def _group_of(view: RunView, segment: Segment) -> str:
    if segment.state == TrialState.PRUNED:
        return "pruned"
    if segment.state == TrialState.FAIL:
        return "failed"
    if segment.role in ("trunk", "final"):
        return "trunk" if segment.role == "trunk" else "final phase"
    name = {"startup": "start-up race"}.get(segment.role, segment.role)
    return f"{name}, {'won' if view.has_won(segment) else 'lost'}"
