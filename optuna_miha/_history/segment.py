"""One segment of training, read from its trial."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, TypeAlias

from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.trial import FrozenTrial, TrialState

from optuna_miha._history import attributes
from optuna_miha._history.attribute_reader import AttributeReader
from optuna_miha._history.curve import Curve
from optuna_miha.exceptions import RecordError

Role: TypeAlias = Literal["startup", "trunk", "branch", "restart", "final"]

ROLES: tuple[Role, ...] = ("startup", "branch", "trunk", "restart", "final")
"""All roles, in the order in which they occur within a cycle."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Consecutive epochs of training with one set of hyperparameters: one finished trial.

    Args:
        number: Number of the trial.
        role: ``startup``, ``trunk``, ``branch``, ``restart`` or ``final``.
        cycle: Its cycle; 0 before the first population.
        branch: Its branch index among its siblings.
        parent: Number of the trial whose checkpoint it started from; :obj:`None` if it started
            from the initial weights.
        birth: Epochs that its lineage had trained before it.
        trained: Epochs that it trained itself.
        params: Its hyperparameters.
        distributions: Their distributions, by name.
        mutation: Description of the changes against the parent.
        scores: The reported value of each epoch that it trained.
        train_losses: The training loss of each epoch.
        value: The lowest validation value of the segment (the highest if the study maximizes);
            :obj:`None` unless ``state`` is ``COMPLETE``.
        fitness: The fitness by which siblings are compared; NaN if it failed.
        state: ``COMPLETE``, ``PRUNED`` or ``FAIL``.
        checkpoint: ``{"id": …, "sha256": …, "best_epoch": …}`` or :obj:`None`. A large one also
            has ``"n_bytes"``.
        averaged_score: The value of the average of its final weights and those of a sibling, if
            this average replaced its weights; otherwise :obj:`None`.
        member: The file with its best weights, which an ensemble can use, and their validation
            value: ``{"id": …, "sha256": …, "value": …}`` or :obj:`None`.
        violation: The sum of the violated constraints of its trial; 0.0 if it is feasible.
        metrics: The other metrics of each epoch by name, with six significant digits;
            :obj:`None` where one is not finite.
        by_step: Whether it was annealed by the step. Its children then continue from its best
            weights.
    """

    number: int
    role: Role
    cycle: int
    branch: int
    parent: int | None
    birth: int
    trained: int
    params: dict[str, Any]
    distributions: dict[str, BaseDistribution]
    mutation: str
    scores: tuple[float, ...]
    train_losses: tuple[float, ...]
    value: float | None
    fitness: float
    state: TrialState
    checkpoint: dict[str, Any] | None
    averaged_score: float | None = None
    member: dict[str, Any] | None = None
    violation: float = 0.0
    metrics: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)
    by_step: bool = False

    def __repr__(self) -> str:
        """The segment in one line; the attributes have the rest."""
        outcome = self.state.name.lower() if self.value is None else f"value {self.value:.6g}"
        change = textwrap.shorten(self.mutation, 60, placeholder=" …")
        return (
            f"Segment(trial {self.number}: {self.role} of {self.cycle_name}, epochs "
            f"{self.birth}-{self.end}, {outcome}, {change})"
        )

    @property
    def cycle_name(self) -> str:
        """Its cycle in texts for people, such as ``"round 2"``."""
        return cycle_name(self.cycle, by_step=self.by_step)

    @property
    def end(self) -> int:
        """Epochs that its lineage has trained at the end of the segment."""
        return self.birth + self.trained

    @property
    def position(self) -> tuple[int, int, int]:
        """Its position in the course of the run, a key to sort segments by."""
        return position_of(self.role, self.cycle, self.branch)

    @property
    def is_diverged(self) -> bool:
        """Whether its last value is infinite or NaN."""
        return bool(self.scores) and not math.isfinite(self.scores[-1])

    @property
    def last_score(self) -> float:
        """The value of the weights from which its children start."""
        if self.by_step and self.value is not None:
            return self.value
        return self.scores[-1] if self.averaged_score is None else self.averaged_score


def role_name(role: str) -> str:
    """The name of a role in texts for people."""
    return {"startup": "start-up race", "final": "final phase"}.get(role, role)


def place_of(segment: Segment) -> str:
    """Role and cycle of a segment, such as ``"branch of round 2"``."""
    is_in_cycle = segment.role in ("branch", "trunk") and segment.cycle > 0
    return role_name(segment.role) + (f" of {segment.cycle_name}" if is_in_cycle else "")


def cycle_name(cycle: int, *, by_step: bool) -> str:
    """The name of a cycle in texts for people.

    Args:
        cycle: Its number.
        by_step: Whether its segments are annealed by the step, which makes it a round.
    """
    return f"{'round' if by_step else 'cycle'} {cycle}"


def position_of(role: Role, cycle: int, branch: int) -> tuple[int, int, int]:
    """The position in the course of the run, a key to sort by."""
    return cycle, ROLES.index(role), branch


def make_curve(scores: Sequence[float], sign: int, birth: int, parent: Segment | None) -> Curve:
    """Create a curve, in which lower is better, from scores.

    Args:
        scores: One per epoch.
        sign: 1 if the study minimizes, -1 if it maximizes.
        birth: Epochs that the lineage had trained before the first score.
        parent: The segment that it continues, if any.
    """
    birth_cost = sign * parent.last_score if parent is not None else math.nan
    return Curve(costs=tuple(sign * score for score in scores), birth=birth, birth_cost=birth_cost)


def segment_of(trial: FrozenTrial) -> Segment | None:
    """Read a segment from its trial.

    Returns:
        The segment; :obj:`None` if the trial is not finished, if the user added it, or if its
        process died.

    Raises:
        RecordError: If an attribute was not written by a run.
    """
    attrs = trial.user_attrs
    if (
        attributes.ROLE not in attrs
        or attributes.TRAINED not in attrs
        or not trial.state.is_finished()
    ):
        return None
    if trial.state == TrialState.FAIL and attributes.ERROR not in attrs:
        return None
    read = AttributeReader(f"trial {trial.number}", attrs | trial.system_attrs)
    role = attrs[attributes.ROLE]
    if role not in ROLES:
        raise read.error(attributes.ROLE, f"one of {', '.join(ROLES)}", role)
    birth, trained = read.integer(attributes.BIRTH), read.integer(attributes.TRAINED)
    scores = tuple(v for step, v in sorted(trial.intermediate_values.items()) if step > birth)
    is_complete = trial.state == TrialState.COMPLETE
    # A segment that an exception ended may have started an epoch that it did not report.
    max_trained = len(scores) + (attributes.ERROR in attrs)
    if not len(scores) <= trained <= max_trained or (is_complete and not scores):
        raise read.error(
            attributes.TRAINED, "the number of reported epochs, and at least 1", trained
        )
    if is_complete and not _is_finite(trial.value):
        raise RecordError(
            f"The value of trial {trial.number} must be a finite number, got {trial.value!r}: it "
            "was not written by a run. Restore the original value, or start a study with another "
            "name."
        )
    checkpoint, member = read.file(attributes.CHECKPOINT), read.file(attributes.MEMBER)
    if checkpoint is not None:
        AttributeReader(f"trial {trial.number}, {attributes.CHECKPOINT!r}", checkpoint).integer(
            "best_epoch"
        )
    if member is not None:
        read.number_in(attributes.MEMBER, "value")
    fitness = read.number(attributes.FITNESS)
    return Segment(
        number=trial.number,
        role=role,
        # Every cycle has at least one trial.
        cycle=read.integer(attributes.CYCLE, maximum=max(trial.number, 0) + 1),
        branch=read.integer(attributes.BRANCH),
        parent=None if attrs.get(attributes.PARENT) is None else read.integer(attributes.PARENT),
        birth=birth,
        trained=trained,
        params=trial.params,
        distributions=_interned(trial.distributions),
        mutation=read.text(attributes.MUTATION, ""),
        scores=scores,
        train_losses=read.numbers(attributes.TRAIN_LOSS),
        value=trial.value if is_complete else None,
        fitness=math.nan if fitness is None else fitness,
        state=trial.state,
        checkpoint=checkpoint,
        averaged_score=read.number_in(attributes.AVERAGED, "value"),
        member=member,
        violation=_violation(trial),
        metrics=read.curves(attributes.METRIC_CURVES),
        by_step=attrs.get(attributes.BY_STEP) is True,
    )


def _interned(distributions: Mapping[str, BaseDistribution]) -> dict[str, BaseDistribution]:
    """One object for all equal distributions, which would otherwise use most of the memory."""
    return _parse(tuple((name, distribution_to_json(d)) for name, d in distributions.items()))


@lru_cache(maxsize=256)
def _parse(distributions: tuple[tuple[str, str], ...]) -> dict[str, BaseDistribution]:
    return {name: json_to_distribution(text) for name, text in distributions}


def _violation(trial: FrozenTrial) -> float:
    try:
        return violation_of(trial.constraints)
    except TypeError:
        raise RecordError(
            f"The constraints of trial {trial.number} must be numbers, got "
            f"{trial.constraints!r:.100}: a sampler did not write them. Restore the original "
            "values, or start a study with another name."
        ) from None


def violation_of(constraints: Mapping[str, float]) -> float:
    """The sum of the violated constraints, which Optuna defines as those above zero."""
    return math.fsum(value for value in constraints.values() if value > 0)


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
