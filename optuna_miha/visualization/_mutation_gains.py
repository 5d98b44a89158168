"""The gains of mutations over their control, by kind."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna

from optuna_miha._history.segment import place_of
from optuna_miha._search.control import control_of
from optuna_miha.visualization._attempts import (
    CONTROL,
    NO_EFFECT,
    Attempt,
    has_attempts,
    read_attempts,
)
from optuna_miha.visualization._run_view import RunView, describe_change, read_run_view
from optuna_miha.visualization._style import (
    BLUE,
    BOTTOM,
    GREY,
    INK,
    LINE,
    ORANGE,
    SKY,
    SMALL,
    blank_figure,
    escape,
    format_mutation,
    length,
    number,
    shorten,
)

_LINE_HEIGHT = 15
"""Height of a line of text, in pixels."""

_TOP = 76 + _LINE_HEIGHT
"""Margin above the plot area, with the title and two lines below it, in pixels."""

_ROW_HEIGHT = 58
"""Height of a kind, in pixels."""

_MIN_GAINS = 4
"""Number of gains from which quartiles and an error are shown."""

_JITTER = 0.24
"""Maximum vertical offset of points of the same kind, as a fraction of the row."""

_SHOWN_QUANTILE, _MANY_GAINS = 0.98, 20
"""Share of the gains that the positive axis shows, and the number of gains from which it applies.
With fewer gains the axis shows all of them."""

_LEAST_HALF_WIDTH = 1.0
"""Least extent of the axis to both sides, in per cent. A smaller difference is noise."""

_MAX_LOSS_RATIO = 3
"""Maximum length of the negative axis relative to the positive one. Losses are unbounded, and a
longer axis would compress the gains."""

# From back to front.
_MARKERS = {
    "pruned": {"symbol": "x", "color": GREY, "size": 6},
    "lost": {"symbol": "circle-open", "color": ORANGE, "size": 8},
    "won": {"symbol": "circle", "color": BLUE, "size": 9},
}


def plot_mutation_gains(study: optuna.Study, *, target_name: str | None = None) -> Any:
    """Plot the gains of mutations over their control, for each kind of mutation.

    The kind of a mutation is the part of the parameter's name before its first dot. A branch is
    compared with the control of its population, or with its parent if there is no control, at
    the last epoch that both trained; a pruned branch is compared at the epoch at which it was
    pruned. Candidates of the start-up race change several parameters at once, and are compared
    with the initial configuration in the same way. Restarts are compared with the first one, by
    the value of their best weights; a restart of another length has no gain. Gains differ from
    Optuna's parameter importances, because the hyperparameters change during training.

    Each point is a mutation. The label of a kind counts the mutations and those that became the
    trunk, and shows their gain: the range of two or three of them; from four on the median with
    its standard error, which the figure marks together with the middle half of the gains. Points
    beyond the axis are drawn at its end; the hover text shows their values. A branch that equals
    its control bit for bit had no effect: it is counted separately, and is not a gain of zero. The
    lines below the title count what was compared, and the rounds or cycles in which no mutation
    won.

    Args:
        study: A study with a finished or unfinished run of :func:`~optuna_miha.optimize`.
        target_name: Name of the monitored value, for the axis; :obj:`None`: the metric name of
            the study, or else ``"validation loss"`` if the study minimizes.

    Returns:
        A plotly ``Figure``.

    Raises:
        ImportError: If plotly is not installed.
        TypeError: If ``study`` is not a study.
        ValueError: If the study contains no run, or nothing to compare.
    """
    view = read_run_view(study, target_name)
    if not has_attempts(view.lineage):
        raise ValueError(
            f"The run must have finished a branch, got {len(view.lineage)} segments and no "
            f"branch in {study.study_name!r}: resume the run, or use a plan with rounds or cycles."
        )
    is_relative = view.is_loss and all(
        score > 0 or math.isnan(score) for s in view.lineage for score in s.scores
    )
    attempts = read_attempts(study, view, is_relative=is_relative)
    shown = {a.kind for a in attempts if a.gain is not None or a.outcome == NO_EFFECT}
    kinds = sorted(shown, key=lambda kind: _rank(kind, attempts))
    references = sorted({a.reference for a in attempts if a.gain is not None}) or ["control"]
    # A report on a phone has no room for more references in one line.
    gap, bottom = (" ", BOTTOM) if len(references) == 1 else ("<br>", BOTTOM + _LINE_HEIGHT)
    height = _TOP + _ROW_HEIGHT * max(1, len(kinds)) + bottom
    figure = blank_figure("Gains of mutations", height=height, top=_TOP, right=140)
    low, high = _limits(attempts, least=_LEAST_HALF_WIDTH if is_relative else 0.0)
    pad = 0.04 * (high - low)
    for row, kind in enumerate(kinds):
        _add_quartiles(figure, row, [a.gain for a in attempts if a.kind == kind], low, high)
    unit = "\u202f%" if is_relative else ""
    for outcome in _MARKERS:
        _add_points(figure, outcome, attempts, kinds, low, high, " %" if is_relative else "")
    comparative = "less" if view.is_loss else "more"
    figure.update_xaxes(
        title_text=f"gain: {comparative} {escape(view.label)} than{gap}the "
        f"{' or '.join(references)}{' (%)' if is_relative else ''}",
        range=[low - pad, high + pad],
        zeroline=True,
        zerolinecolor=LINE,
        zerolinewidth=1.5,
    )
    labels = [_label(kind, attempts, unit) for kind in kinds]
    figure.update_yaxes(
        range=[-0.6, len(kinds) - 0.4],
        tickvals=list(range(len(kinds))),
        ticktext=labels,
        ticks="",
        showline=False,
    )
    figure.add_annotation(
        text=_counts(view, attempts),
        x=0,
        y=1,
        xref="paper",
        yref="paper",
        xanchor="left",
        yanchor="bottom",
        yshift=6,
        align="left",
        showarrow=False,
        font={"size": SMALL},
    )
    left = 20 + round(7.2 * max(map(length, labels), default=0))
    figure.update_layout(margin={"l": left, "b": bottom})
    return figure


def _counts(view: RunView, attempts: Sequence[Attempt]) -> str:
    """What was compared, how often no mutation won, and whether gains have errors."""
    lineage = view.lineage
    roles = [segment.role for segment in lineage]
    populations = {s.cycle: s.by_step for s in lineage if s.role == "branch"}
    kind = "round" if any(populations.values()) else "cycle"
    parts, remarks = [], []
    if "startup" in roles:
        parts.append(f"a race of {roles.count('startup')}")
    if populations:
        n_mutations = sum(a.segment.role == "branch" for a in attempts)
        cycles = _counted(len(populations), kind)
        controls = [control_of(lineage, cycle) for cycle in populations]
        n_won = sum(control is not None and view.has_won(control) for control in controls)
        parts.append(f"{_counted(n_mutations, 'mutation')} in {cycles}")
        if any(controls):
            remarks.append(f"the control won {n_won} of {cycles}")
    if "restart" in roles:
        parts.append(_counted(roles.count("restart"), "restart"))
    kinds = [a.kind for a in attempts if a.gain is not None]
    if all(kinds.count(kind) < _MIN_GAINS for kind in kinds):
        remarks.append("too few for errors")
    lines = [", ".join(parts), "; ".join(remarks)]
    return "<br>".join(f"{line[:1].upper()}{line[1:]}" for line in lines if line)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _rank(kind: str, attempts: Sequence[Attempt]) -> tuple[bool, float, str]:
    """Sort key of a kind: mutations without a change at the bottom, then by median gain."""
    gains = [a.gain for a in attempts if a.kind == kind and a.gain is not None]
    return kind != CONTROL, float(np.median(gains)) if gains else -math.inf, kind


def _limits(attempts: Sequence[Attempt], *, least: float) -> tuple[float, float]:
    """Limits of the gain axis, which includes zero, most gains and moderate losses.

    Pruned mutations are ignored if there are enough others, because their losses are large.

    Args:
        attempts: The attempts.
        least: Least distance of the limits from zero.
    """
    known = [(a.gain, a.outcome) for a in attempts if a.gain is not None]
    gains = [gain for gain, outcome in known if outcome != "pruned"]
    if len(gains) < _MIN_GAINS:
        gains = [gain for gain, _ in known]
    if not gains:
        return -1.0, 1.0
    quantile = _SHOWN_QUANTILE if len(gains) >= _MANY_GAINS else 1.0
    high = max(float(np.quantile(gains, quantile)), least)
    max_loss = _MAX_LOSS_RATIO * max(high, float(np.median(np.abs(gains))))
    low = max(min(*gains, -least), -max_loss)
    return (low, high) if low < high else (-1.0, 1.0)


def _label(kind: str, attempts: Sequence[Attempt], unit: str) -> str:
    of_kind = [a for a in attempts if a.kind == kind]
    won = sum(a.outcome == "won" for a in of_kind)
    n_idle = sum(a.outcome == NO_EFFECT for a in of_kind)
    idle = f", {n_idle} without effect" if n_idle else ""
    gains = sorted(a.gain for a in of_kind if a.gain is not None)
    text = f", {_gain_text(gains)}{unit}" if gains else ""
    return f"{escape(shorten(kind, 28))}<br>{won} won of {len(of_kind)}{idle}{text}"


def _gain_text(gains: Sequence[float]) -> str:
    """One gain, the range of a few, or the median with its error, which outliers hardly change."""
    if len(gains) < _MIN_GAINS:
        return " to ".join(dict.fromkeys(_signed(gain) for gain in (gains[0], gains[-1])))
    first, median, third = np.quantile(gains, [0.25, 0.5, 0.75])
    # For normal gains: sqrt(pi / 2) times the standard deviation, which is the range / 1.349.
    error = 0.929 * (third - first) / math.sqrt(len(gains))
    n_digits = max(0, -math.floor(math.log10(error))) if error > 0 else 1
    return f"{round(median, n_digits) + 0.0:+.{n_digits}f} ± {error:.{n_digits}f}"


def _signed(gain: float) -> str:
    """A gain with two significant digits and no exponent, such as ``+0.059`` or ``-1400``."""
    n_digits = 1 - math.floor(math.log10(abs(gain))) if gain else 0
    return f"{round(gain, n_digits):+.{max(0, n_digits)}f}"


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
    attempts: Sequence[Attempt],
    kinds: Sequence[str],
    low: float,
    high: float,
    unit: str,
) -> None:
    chosen = [a for a in attempts if a.outcome == outcome and a.gain is not None]
    if not chosen:
        return
    pad = 0.02 * (high - low)
    for side, symbol in (("", None), ("<", "triangle-left"), (">", "triangle-right")):
        on_side = [a for a in chosen if _side(a.gain, low, high) == side]
        if not on_side:
            continue
        figure.add_scatter(
            x=[min(max(a.gain or 0.0, low - pad), high + pad) for a in on_side],
            y=[kinds.index(a.kind) + _jitter(a) for a in on_side],
            hovertext=[_hover(a, unit) for a in on_side],
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


def _jitter(attempt: Attempt) -> float:
    """A reproducible vertical offset: multiples of the golden ratio are spread evenly."""
    return _JITTER * (2 * (attempt.segment.number * 0.618034 % 1) - 1)


def _hover(attempt: Attempt, unit: str) -> str:
    segment = attempt.segment
    return (
        f"trial {segment.number}, {place_of(segment)}<br>"
        f"{format_mutation(describe_change(segment))}<br>"
        f"gain over the {attempt.reference}: {number(attempt.gain)}{unit}"
    )
