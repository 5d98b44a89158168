"""The gains of branches over their control, by kind of mutation."""

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
from optuna_miha._search.control import control_of, is_without_effect
from optuna_miha._search.mutation import NO_CHANGE
from optuna_miha._search.space import kind_of
from optuna_miha.visualization._run_view import RunView, describe_change, read_run_view
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
    format_mutation,
    length,
    number,
    shorten,
)

_CONTROL, _CROSSOVER, _SEVERAL = "control", "crossover", "several at once"
_NO_EFFECT = "no effect"

_ROW_HEIGHT = 58
"""Height of a kind, in pixels."""

_MIN_GAINS = 4
"""Number of gains from which quartiles and an error are shown."""

_JITTER = 0.24
"""Maximum vertical offset of points of the same kind, as a fraction of the row."""

_SHOWN_QUANTILE, _MANY_GAINS = 0.98, 20
"""Share of the gains that the positive axis shows, and the number of gains from which it applies.
With fewer gains the axis shows all of them."""

_MAX_LOSS_RATIO = 3
"""Maximum length of the negative axis relative to the positive one. Losses are unbounded, and a
longer axis would compress the gains."""

# From back to front.
_MARKERS = {
    "pruned": {"symbol": "x", "color": GREY, "size": 6},
    "lost": {"symbol": "circle-open", "color": ORANGE, "size": 8},
    "won": {"symbol": "circle", "color": BLUE, "size": 9},
}


@dataclass(frozen=True, kw_only=True)
class _Branch:
    """A branch and the gain of its mutation."""

    segment: Segment
    kind: str
    outcome: str
    reference: str
    gain: float | None
    """:obj:`None` if the branch failed before it could be compared, or had no effect."""


def plot_mutation_gains(study: optuna.Study, *, target_name: str | None = None) -> Any:
    """Plot the gains of branches over their control, for each kind of mutation.

    The kind of a mutation is the part of the parameter's name before its first dot. A branch is
    compared with the control of its population, or with its parent if there is no control, at
    the last epoch that both trained; a pruned branch is compared at the epoch at which it was
    pruned. Gains differ from Optuna's parameter importances, because the hyperparameters change
    during training.

    Each point is a branch; the bar of a kind spans the middle half of its gains, and its mark is
    the median, which its label repeats with its standard error. Points beyond the axis are drawn
    at its end; the hover text shows their values.
    ``n won of m`` counts the branches that became the trunk; for the control, these are the
    cycles in which no mutation won. A branch that equals its control bit for bit had no effect: it
    is counted separately, and is not a gain of zero.

    Args:
        study: A study with a finished or unfinished run of :func:`~optuna_miha.optimize`.
        target_name: Name of the monitored value, for the axis; :obj:`None`: the metric name of
            the study, or else ``"validation loss"`` if the study minimizes.

    Returns:
        A plotly ``Figure``.

    Raises:
        ImportError: If plotly is not installed.
        TypeError: If ``study`` is not a study.
        ValueError: If the study contains no run, or no finished branch.
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
            f"The run must have finished a branch, got {len(view.lineage)} segments and no "
            f"branch in {study.study_name!r}: resume the run, or use a plan with cycles."
        )
    kinds = sorted({b.kind for b in branches}, key=lambda kind: _rank(kind, branches))
    height = 66 + _ROW_HEIGHT * len(kinds) + BOTTOM
    figure = blank_figure("Gains of mutations", height=height, right=140)
    low, high = _limits(branches)
    pad = 0.04 * (high - low)
    for row, kind in enumerate(kinds):
        _add_quartiles(figure, row, [b.gain for b in branches if b.kind == kind], low, high)
    for outcome in _MARKERS:
        _add_points(figure, outcome, branches, kinds, low, high, "%" if is_relative else "")
    references = {b.reference for b in branches if b.kind != _CONTROL} or {"control"}
    reference = " or ".join(sorted(references))
    comparative = "less" if view.is_loss else "more"
    unit = " (%)" if is_relative else ""
    figure.update_xaxes(
        title_text=f"gain: {comparative} {escape(view.label)} than the {reference}{unit}",
        range=[low - pad, high + pad],
        zeroline=True,
        zerolinecolor=LINE,
        zerolinewidth=1.5,
    )
    labels = [_label(kind, branches, "\u202f%" if is_relative else "") for kind in kinds]
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
    control = control_of(view.lineage, segment.cycle)
    # In a round, the control has a higher learning rate than its parent.
    start = control or parent
    before = {} if start is None else start.params
    changed = {n for n, value in segment.params.items() if before.get(n) != value}
    kinds = {kind_of(name) for name in changed}
    if segment.mutation == NO_CHANGE or not kinds:
        kind = _CONTROL
    elif is_crossed:
        kind = _CROSSOVER
    elif "optimizer" in kinds:  # A new optimizer changes learning rate and momentum as well.
        kind = "optimizer" if kinds <= {"optimizer", "lr", "momentum"} else _SEVERAL
    else:
        kind = kinds.pop() if len(kinds) == 1 else _SEVERAL
    outcome = {TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}.get(segment.state, "lost")
    if view.has_won(segment):
        outcome = "won"
    reference, gain = _gain(view, segment, parent, control, is_relative=is_relative)
    if is_without_effect(view.lineage, segment):
        outcome, gain = _NO_EFFECT, None
    return _Branch(segment=segment, kind=kind, outcome=outcome, reference=reference, gain=gain)


def _gain(
    view: RunView,
    segment: Segment,
    parent: Segment | None,
    control: Segment | None,
    *,
    is_relative: bool,
) -> tuple[str, float | None]:
    """The name of the segment that a branch is compared with, and the gain over it."""
    if control is segment:
        return "control", None
    if control is not None:
        age = min(len(control.scores), len(segment.scores))
        name, expected = "control", control.scores[age - 1] if age else math.nan
    else:
        age = len(segment.scores)
        name, expected = "parent", parent.last_score if parent is not None else math.nan
    score = segment.scores[age - 1] if age else math.nan
    gain = view.lineage.sign * (expected - score)
    gain = 100 * gain / expected if is_relative and expected else gain
    return name, gain if math.isfinite(gain) else None


def _rank(kind: str, branches: Sequence[_Branch]) -> tuple[bool, float]:
    """Sort key of a kind: the control at the bottom, then by median gain."""
    gains = [b.gain for b in branches if b.kind == kind and b.gain is not None]
    return kind != _CONTROL, float(np.median(gains)) if gains else -math.inf


def _limits(branches: Sequence[_Branch]) -> tuple[float, float]:
    """Limits of the gain axis, which includes zero, most gains and moderate losses.

    Pruned branches are ignored if there are others, because their losses are large.
    """
    known = [(b.gain, b.outcome) for b in branches if b.gain is not None]
    gains = [gain for gain, outcome in known if outcome != "pruned"] or [g for g, _ in known]
    if not gains:
        return -1.0, 1.0
    quantile = _SHOWN_QUANTILE if len(gains) >= _MANY_GAINS else 1.0
    high = max(float(np.quantile(gains, quantile)), 0.0)
    max_loss = _MAX_LOSS_RATIO * max(high, float(np.median(np.abs(gains))))
    low = max(min(*gains, 0.0), -max_loss)
    return (low, high) if low < high else (-1.0, 1.0)


def _label(kind: str, branches: Sequence[_Branch], unit: str) -> str:
    of_kind = [b for b in branches if b.kind == kind]
    won = sum(b.outcome == "won" for b in of_kind)
    n_idle = sum(b.outcome == _NO_EFFECT for b in of_kind)
    idle = f", {n_idle} without effect" if n_idle else ""
    gains = [b.gain for b in of_kind if b.gain is not None]
    error = f", {_median_text(gains)}{unit}" if len(gains) >= _MIN_GAINS else ""
    return f"{escape(shorten(kind, 28))}<br>{won} won of {len(of_kind)}{idle}{error}"


def _median_text(gains: Sequence[float]) -> str:
    """The median of some gains and its standard error, which few outliers do not change."""
    first, median, third = np.quantile(gains, [0.25, 0.5, 0.75])
    # For normal gains: sqrt(pi / 2) times the standard deviation, which is the range / 1.349.
    error = 0.929 * (third - first) / math.sqrt(len(gains))
    n_digits = max(0, -math.floor(math.log10(error))) if error > 0 else 1
    return f"{median:+.{n_digits}f} ± {error:.{n_digits}f}"


def _add_quartiles(
    figure: Any, row: int, gains_or_none: Sequence[float | None], low: float, high: float
) -> None:
    gains = [gain for gain in gains_or_none if gain is not None]
    if len(gains) < _MIN_GAINS:  # Quartiles add nothing to so few points.
        return
    first, median, third = np.clip(np.quantile(gains, [0.25, 0.5, 0.75]), low, high)
    common: dict[str, Any] = {"mode": "lines", "hoverinfo": "skip", "showlegend": False}
    figure.add_scatter(
        x=[first, third],
        y=[row, row],
        line={"color": SKY, "width": 16},
        opacity=0.35,
        **common,
    )
    figure.add_scatter(
        x=[median, median],
        y=[row - 0.3, row + 0.3],
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
    for side, symbol in (("", None), ("<", "triangle-left"), (">", "triangle-right")):
        on_side = [b for b in chosen if _side(b.gain, low, high) == side]
        if not on_side:
            continue
        figure.add_scatter(
            x=[min(max(b.gain or 0.0, low - pad), high + pad) for b in on_side],
            y=[kinds.index(b.kind) + _jitter(b) for b in on_side],
            hovertext=[_hover(b, unit) for b in on_side],
            hovertemplate="%{hovertext}<extra></extra>",
            name=f"{outcome} ({len(chosen)})",
            legendgroup=outcome,
            showlegend=symbol is None or len(on_side) == len(chosen),
            mode="markers",
            marker=_MARKERS[outcome] | ({} if symbol is None else {"symbol": symbol}),
        )


def _side(gain: float | None, low: float, high: float) -> str:
    """``"<"`` or ``">"`` if a gain lies beyond that end of the axis, else an empty string."""
    assert gain is not None
    return "<" if gain < low else ">" if gain > high else ""


def _jitter(branch: _Branch) -> float:
    """A reproducible vertical offset: multiples of the golden ratio are spread evenly."""
    return _JITTER * (2 * (branch.segment.number * 0.618034 % 1) - 1)


def _hover(branch: _Branch, unit: str) -> str:
    segment = branch.segment
    return (
        f"trial {segment.number}, {segment.cycle_name}<br>"
        f"{format_mutation(describe_change(segment))}<br>"
        f"gain over the {branch.reference}: {number(branch.gain)} {unit}"
    )
