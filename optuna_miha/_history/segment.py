"""One segment of training, as its trial has it on record."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
"""All roles, in their order within a cycle."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One stretch of training of one network: one finished trial.

    Args:
        number: Number of the trial.
        role: ``startup``, ``trunk``, ``branch``, ``restart`` or ``final``.
        cycle: The cycle that it belongs to; 0 before the first.
        branch: Its place among its siblings.
        parent: Number of the trial whose checkpoint it started from; :obj:`None` at the root.
        birth: Epochs that its lineage had trained before it.
        trained: Epochs that it trained itself.
        params: Its hyperparameters.
        distributions: Their distributions, by name.
        mutation: What was changed against the parent, in words.
        scores: The reported value of each epoch that it trained.
        train_losses: The training loss of each epoch.
        value: The lowest (highest) validation value of the segment; :obj:`None` unless
            ``state`` is ``COMPLETE``.
        fitness: What siblings are compared by; NaN if it failed.
        state: ``COMPLETE``, ``PRUNED`` or ``FAIL``.
        checkpoint: ``{"id": …, "sha256": …, "best_epoch": …}`` or :obj:`None`.
        averaged_score: The value of its weights averaged with those of a sibling, where these
            took the place of its own when it was over; :obj:`None` where none did.
        member: The file of its best weights, which an ensemble may want, and their validation
            value: ``{"id": …, "sha256": …, "value": …}`` or :obj:`None`.
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

    @property
    def end(self) -> int:
        """Epochs that the lineage has behind it when the segment is over."""
        return self.birth + self.trained

    @property
    def position(self) -> tuple[int, int, int]:
        """Orders segments by the course of the run."""
        return position_of(self.role, self.cycle, self.branch)

    @property
    def is_diverged(self) -> bool:
        """Whether it ended in a value that is not a finite number."""
        return bool(self.scores) and not math.isfinite(self.scores[-1])

    @property
    def last_score(self) -> float:
        """The value of the weights that those after it start from."""
        return self.scores[-1] if self.averaged_score is None else self.averaged_score


def position_of(role: Role, cycle: int, branch: int) -> tuple[int, int, int]:
    """Orders what is trained by its place in the course of the run."""
    return cycle, ROLES.index(role), branch


def make_curve(scores: Sequence[float], sign: int, birth: int, parent: Segment | None) -> Curve:
    """Orient ``scores`` so that lower is better.

    Args:
        scores: One per epoch.
        sign: 1 where the study minimizes, -1 where it maximizes.
        birth: Lineage epochs before the first score.
        parent: The segment that came before.
    """
    birth_cost = sign * parent.last_score if parent is not None else math.nan
    return Curve(costs=tuple(sign * score for score in scores), birth=birth, birth_cost=birth_cost)


def segment_of(trial: FrozenTrial) -> Segment | None:
    """Read a segment from its trial; :obj:`None` if the trial is not the record of one.

    A trial whose process died, or which the user added, is not.

    Raises:
        RecordError: If an attribute is not what a run writes there.
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
    read = AttributeReader(f"trial {trial.number}", attrs)
    role = attrs[attributes.ROLE]
    if role not in ROLES:
        raise read.error(attributes.ROLE, f"one of {', '.join(ROLES)}", role)
    birth, trained = read.integer(attributes.BIRTH), read.integer(attributes.TRAINED)
    scores = tuple(v for step, v in sorted(trial.intermediate_values.items()) if step > birth)
    # Of a segment that failed, the last epoch may have been begun and not reported.
    most = len(scores) + (trial.state == TrialState.FAIL)
    if not len(scores) <= trained <= most or (trial.state == TrialState.COMPLETE and not scores):
        raise read.error(
            attributes.TRAINED, "as many epochs as were reported, one at least", trained
        )
    if trial.state == TrialState.COMPLETE and not _is_finite(trial.value):
        raise RecordError(
            f"The value of trial {trial.number} must be a finite number, got {trial.value!r}: "
            "something other than a run wrote it. Put back what was there, or start a study of "
            "another name."
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
        # Every cycle leaves a trial.
        cycle=read.integer(attributes.CYCLE, most=max(trial.number, 0) + 1),
        branch=read.integer(attributes.BRANCH),
        parent=None if attrs.get(attributes.PARENT) is None else read.integer(attributes.PARENT),
        birth=birth,
        trained=trained,
        params=trial.params,
        distributions=_shared(trial.distributions),
        mutation=read.text(attributes.MUTATION, ""),
        scores=scores,
        train_losses=read.numbers(attributes.TRAIN_LOSS),
        value=trial.value if trial.state == TrialState.COMPLETE else None,
        fitness=math.nan if fitness is None else fitness,
        state=trial.state,
        checkpoint=checkpoint,
        averaged_score=read.number_in(attributes.AVERAGED, "value"),
        member=member,
    )


def _shared(distributions: Mapping[str, BaseDistribution]) -> dict[str, BaseDistribution]:
    """Equal distributions as one object: one for each segment would be most of its record."""
    return _parsed(tuple((name, distribution_to_json(d)) for name, d in distributions.items()))


@lru_cache(maxsize=256)
def _parsed(distributions: tuple[tuple[str, str], ...]) -> dict[str, BaseDistribution]:
    return {name: json_to_distribution(text) for name, text in distributions}


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
