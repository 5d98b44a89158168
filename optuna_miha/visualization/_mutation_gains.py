"""Which kind of mutation won how much."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState

from optuna_miha._history import attributes
from optuna_miha._history.segment import Segment
from optuna_miha._search.mutation import NO_CHANGE
from optuna_miha._search.space import kind_of
from optuna_miha.visualization._run_view import RunView, change, read_run_view
from optuna_miha.visualization._style import (
    BLUE,
    BOTTOM,
    GREY,
    INK,
    LINE,
    ORANGE,
    SKY,
    blank_figure,
    escape,
    length,
    number,
    sentence,
    shorten,
)

_CROSSOVER, _SEVERAL = "crossover", "several at once"

_ROW = 58
"""Height of a kind, in pixels."""

_SPREAD = 0.24
"""How far points of one kind are apart from its middle, to be told apart."""

_USUAL, _MANY = 0.98, 20
"""Share of the gains that the axis shows at its good end, where there are many."""

_REACH = 3
"""How much farther the axis goes to its bad end, at most: a mutation can lose any amount, and what
it can gain would not be seen beside that."""

# From the lowest to the topmost.
_LOOKS = {
    "pruned": {"symbol": "x", "color": GREY, "size": 6},
    "lost": {"symbol": "circle-open", "color": ORANGE, "size": 8},
    "won": {"symbol": "circle", "color": BLUE, "size": 9},
}


@dataclass(frozen=True, kw_only=True)
class _Branch:
    """A branch and what its change gained."""

    segment: Segment
    kind: str
    outcome: str
    reference: str
    gain: float | None
    """:obj:`None` if it failed before it could be compared."""


def plot_mutation_gains(study: optuna.Study, *, target_name: str | None = None) -> Any:
    """How much the branches of every kind of mutation gained over their control.

    A kind is the part of a parameter's name before its first dot. A branch is compared with the
    control of its population, or with its parent where there is none, at the last epoch that
    both trained, so that a pruned one is judged by what it had shown. What the hyperparameters
    are worth in themselves, as Optuna's importances have it, is another question: here they
    change in mid-training.

    A point is a branch; the bar spans the middle half of a kind, its mark is the median. Points
    beyond the axis are drawn at its end; the hover text has their values. ``n won of m`` counts
    the branches that became the trunk; the control's are the cycles in which no change paid.

    Args:
        study: A study with a run of :func:`~optuna_miha.optimize`, be it over or not.
        target_name: What is monitored, for the axis; :obj:`None`: ``"validation loss"`` where
            the study minimizes, or its metric name if it has one.

    Returns:
        A plotly ``Figure``.

    Raises:
        ImportError: If plotly is not installed.
        TypeError: If ``study`` is not a study.
        ValueError: If the study holds no run, or one without a finished branch.
    """
    view = read_run_view(study, target_name)
    crossed = {
        t.number for t in study.get_trials(deepcopy=False) if attributes.CROSSOVER in t.user_attrs
    }
    is_relative = view.is_loss and all(
        score > 0 or math.isnan(score) for s in view.lineage for score in s.scores
    )
    branches = [
        _branch(view, s, is_crossed=s.number in crossed, is_relative=is_relative)
        for s in view.lineage
        if s.role == "branch"
    ]
    if not branches:
        raise ValueError(
            f"The run must have finished a branch, got {len(view.lineage)} segments and none in "
            f"{study.study_name!r}: let it go on, or give it a plan with cycles."
        )
    kinds = sorted({b.kind for b in branches}, key=lambda kind: _rank(kind, branches))
    height = 66 + _ROW * len(kinds) + BOTTOM
    figure = blank_figure("Gains of mutations", height=height, right=140)
    low, high = _limits(branches)
    pad = 0.04 * (high - low)
    for place, kind in enumerate(kinds):
        _add_quartiles(figure, place, [b.gain for b in branches if b.kind == kind], low, high)
    for outcome in _LOOKS:
        _add_points(figure, outcome, branches, kinds, low, high, "%" if is_relative else "")
    references = {b.reference for b in branches if b.kind != NO_CHANGE} or {"control"}
    over = " or ".join(sorted(references))
    how = "less" if view.is_loss else "more"
    unit = " (%)" if is_relative else ""
    figure.update_xaxes(
        title_text=f"gain: {how} {escape(view.label)} than the {over}{unit}",
        range=[low - pad, high + pad],
        zeroline=True,
        zerolinecolor=LINE,
        zerolinewidth=1.5,
    )
    labels = [_label(kind, branches) for kind in kinds]
    figure.update_yaxes(
        range=[-0.6, len(kinds) - 0.4],
        tickvals=list(range(len(kinds))),
        ticktext=labels,
        ticks="",
        showline=False,
    )
    longest = max(length(label) for label in labels)
    figure.update_layout(margin_l=20 + round(7.2 * longest))
    return figure


def _branch(view: RunView, segment: Segment, *, is_crossed: bool, is_relative: bool) -> _Branch:
    parent = view.lineage.parent(segment)
    before = {} if parent is None else parent.params
    changed = {n for n, value in segment.params.items() if before.get(n) != value}
    kinds = {kind_of(name) for name in changed}
    if segment.mutation == NO_CHANGE or not kinds:
        kind = NO_CHANGE
    elif is_crossed:
        kind = _CROSSOVER
    elif "optimizer" in kinds:  # Learning rate and momentum go with it.
        kind = "optimizer" if kinds <= {"optimizer", "lr", "momentum"} else _SEVERAL
    else:
        kind = kinds.pop() if len(kinds) == 1 else _SEVERAL
    outcome = {TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}.get(segment.state, "lost")
    if view.has_won(segment):
        outcome = "won"
    reference, gain = _gain(view, segment, parent, is_relative=is_relative)
    return _Branch(segment=segment, kind=kind, outcome=outcome, reference=reference, gain=gain)


def _gain(
    view: RunView, segment: Segment, parent: Segment | None, *, is_relative: bool
) -> tuple[str, float | None]:
    """What the branch is compared with, and by how much it is better."""
    siblings = view.lineage.group("branch", segment.cycle).values()
    control = next((s for s in siblings if s.mutation == NO_CHANGE and s.scores), None)
    if control is segment:
        return "control", None
    if control is not None:
        age = min(len(control.scores), len(segment.scores))
        name, theirs = "control", control.scores[age - 1] if age else math.nan
    else:
        age = len(segment.scores)
        name, theirs = "parent", parent.last_score if parent is not None else math.nan
    ours = segment.scores[age - 1] if age else math.nan
    gain = view.lineage.sign * (theirs - ours)
    gain = 100 * gain / theirs if is_relative and theirs else gain
    return name, gain if math.isfinite(gain) else None


def _rank(kind: str, branches: Sequence[_Branch]) -> tuple[bool, float]:
    """The control at the bottom, then by the median gain."""
    gains = [b.gain for b in branches if b.kind == kind and b.gain is not None]
    return kind != NO_CHANGE, float(np.median(gains)) if gains else -math.inf


def _limits(branches: Sequence[_Branch]) -> tuple[float, float]:
    """From where to where points are drawn in their place: zero, gains, and moderate losses.

    Those of pruned branches do not count where there are others: they are cut for being far off.
    """
    every = [(b.gain, b.outcome) for b in branches if b.gain is not None]
    gains = [gain for gain, outcome in every if outcome != "pruned"] or [g for g, _ in every]
    if not gains:
        return -1.0, 1.0
    high = max(float(np.quantile(gains, _USUAL if len(gains) >= _MANY else 1.0)), 0.0)
    reach = _REACH * max(high, float(np.median(np.abs(gains))))
    low = max(min(*gains, 0.0), -reach)
    return (low, high) if low < high else (-1.0, 1.0)


def _label(kind: str, branches: Sequence[_Branch]) -> str:
    own = [b for b in branches if b.kind == kind]
    won = sum(b.outcome == "won" for b in own)
    return f"{escape(shorten(kind, 28))}<br>{won} won of {len(own)}"


def _add_quartiles(
    figure: Any, place: int, found: Sequence[float | None], low: float, high: float
) -> None:
    gains = [gain for gain in found if gain is not None]
    if len(gains) < 4:  # The points say it all.
        return
    first, median, third = np.clip(np.quantile(gains, [0.25, 0.5, 0.75]), low, high)
    common: dict[str, Any] = {"mode": "lines", "hoverinfo": "skip", "showlegend": False}
    figure.add_scatter(
        x=[first, third],
        y=[place, place],
        line={"color": SKY, "width": 16},
        opacity=0.35,
        **common,
    )
    figure.add_scatter(
        x=[median, median],
        y=[place - 0.3, place + 0.3],
        line={"color": INK, "width": 2},
        **common,
    )


def _add_points(
    figure: Any,
    outcome: str,
    branches: Sequence[_Branch],
    kinds: Sequence[str],
    low: float,
    high: float,
    unit: str,
) -> None:
    chosen = [b for b in branches if b.outcome == outcome and b.gain is not None]
    if not chosen:
        return
    pad = 0.02 * (high - low)
    for where, symbol in (("", None), ("<", "triangle-left"), (">", "triangle-right")):
        placed = [b for b in chosen if _side(b.gain, low, high) == where]
        if not placed:
            continue
        figure.add_scatter(
            x=[min(max(b.gain or 0.0, low - pad), high + pad) for b in placed],
            y=[kinds.index(b.kind) + _shift(b) for b in placed],
            hovertext=[_hover(b, unit) for b in placed],
            hovertemplate="%{hovertext}<extra></extra>",
            name=f"{outcome} ({len(chosen)})",
            legendgroup=outcome,
            showlegend=symbol is None or len(placed) == len(chosen),
            mode="markers",
            marker=_LOOKS[outcome] | ({} if symbol is None else {"symbol": symbol}),
        )


def _side(gain: float | None, low: float, high: float) -> str:
    """On which side of the axis a gain lies beyond."""
    assert gain is not None
    return "<" if gain < low else ">" if gain > high else ""


def _shift(branch: _Branch) -> float:
    """Multiples of the golden ratio spread evenly, and the same in every picture."""
    return _SPREAD * (2 * (branch.segment.number * 0.618034 % 1) - 1)


def _hover(branch: _Branch, unit: str) -> str:
    segment = branch.segment
    return (
        f"trial {segment.number}, cycle {segment.cycle}<br>{sentence(change(segment))}<br>"
        f"gain over the {branch.reference}: {number(branch.gain)} {unit}"
    )
