"""What a run compared: branches, candidates of the race and restarts, each with its reference."""

from __future__ import annotations

import math
from dataclasses import dataclass

import optuna
from optuna.trial import TrialState

from optuna_miha._history import attributes
from optuna_miha._history.lineage import Lineage
from optuna_miha._history.segment import Segment
from optuna_miha._search.control import control_of, is_initial, is_without_effect
from optuna_miha._search.mutation import NO_CHANGE
from optuna_miha._search.space import kind_of
from optuna_miha.visualization._run_view import RunView

RACE, CONTROL, CROSSOVER, SEVERAL = "start-up race", "control", "crossover", "several at once"
"""Kinds beside those of single parameters."""

NO_EFFECT = "no effect"
"""The outcome of a branch that equals its control bit for bit."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A segment with changed hyperparameters, and its gain over the segment without the change.

    Args:
        segment: The segment.
        kind: What it changed: the kind of a parameter, or one of the other kinds.
        outcome: ``"won"``, ``"lost"``, ``"pruned"``, ``"failed"`` or :data:`NO_EFFECT`.
        reference: What it is compared with.
        gain: :obj:`None` if it failed before it could be compared, or had no effect.
    """

    segment: Segment
    kind: str
    outcome: str
    reference: str
    gain: float | None


def has_attempts(lineage: Lineage) -> bool:
    """Whether a run has finished a branch, or has several candidates or restarts to compare."""
    roles = [segment.role for segment in lineage]
    return "branch" in roles or roles.count("startup") > 1 or roles.count("restart") > 1


def read_attempts(study: optuna.Study, view: RunView, *, is_relative: bool) -> list[Attempt]:
    """The attempts of a run, without the segments that they are compared with.

    Args:
        study: The study.
        view: The run in it.
        is_relative: Whether gains are in per cent of the reference.
    """
    trials = study.get_trials(deepcopy=False)
    crossed = {t.number for t in trials if attributes.CROSSOVER in t.user_attrs}
    attempts = []
    for segment in view.lineage:
        if segment.role not in ("startup", "branch", "restart"):
            continue
        name, reference = _reference(view.lineage, segment)
        if reference is segment:
            continue
        gain = None if reference is None else _gain(view, segment, reference, is_relative)
        is_idle = is_without_effect(view.lineage, segment)
        attempts.append(
            Attempt(
                segment=segment,
                kind=_kind(segment, reference, is_crossed=segment.number in crossed),
                outcome=NO_EFFECT if is_idle else _outcome(view, segment),
                reference=name,
                gain=None if is_idle else gain,
            )
        )
    return attempts


def _reference(lineage: Lineage, segment: Segment) -> tuple[str, Segment | None]:
    """What a segment is compared with, by name; the segment itself if it is a reference."""
    if segment.role == "startup":
        candidates = lineage.group("startup", 0).values()
        return "initial configuration", next((s for s in candidates if is_initial(s)), None)
    if segment.role == "restart":
        restarts = (s for s in lineage if s.role == "restart")
        return "first restart", min(restarts, key=lambda s: s.position)
    control = control_of(lineage, segment.cycle)
    # In a round, the control has a higher learning rate than its parent.
    return ("parent", lineage.parent(segment)) if control is None else ("control", control)


def _gain(view: RunView, segment: Segment, reference: Segment, is_relative: bool) -> float | None:
    if segment.role == "restart":
        # Complete trainings, of which the best weights count. The last one may be longer.
        is_equal = segment.trained == reference.trained
        score, expected = (segment.value, reference.value) if is_equal else (None, None)
    else:
        is_parent = reference.number == segment.parent
        age = len(segment.scores)
        age = age if is_parent else min(age, len(reference.scores))
        score = segment.scores[age - 1] if age else None
        expected = (
            reference.last_score if is_parent else reference.scores[age - 1] if age else None
        )
    if score is None or expected is None:
        return None
    gain = view.lineage.sign * (expected - score)
    gain = 100 * gain / expected if is_relative and expected else gain
    return gain if math.isfinite(gain) else None


def _kind(segment: Segment, reference: Segment | None, *, is_crossed: bool) -> str:
    before = {} if reference is None else reference.params
    changed = {n for n, value in segment.params.items() if before.get(n) != value}
    kinds = {kind_of(name) for name in changed}
    if segment.role == "startup":
        return RACE
    if (segment.role == "branch" and segment.mutation == NO_CHANGE) or not kinds:
        return CONTROL
    if is_crossed:
        return CROSSOVER
    if "optimizer" in kinds:  # A new optimizer changes learning rate and momentum as well.
        return "optimizer" if kinds <= {"optimizer", "lr", "momentum"} else SEVERAL
    return kinds.pop() if len(kinds) == 1 else SEVERAL


def _outcome(view: RunView, segment: Segment) -> str:
    if view.has_won(segment):
        return "won"
    return {TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}.get(segment.state, "lost")
