"""The record of a run: segments of training, as they lie in the study's trials."""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias

from optuna.distributions import (
    BaseDistribution,
    distribution_to_json,
    json_to_distribution,
)
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from optuna_miha._attributes import Attributes
from optuna_miha._curve import Curve
from optuna_miha.exceptions import RecordError

Role: TypeAlias = Literal["startup", "trunk", "branch", "restart", "final"]

_ORDER: tuple[Role, ...] = ("startup", "branch", "trunk", "restart", "final")
"""Of the roles within a cycle."""

PREFIX = "miha:"

# Attributes of a trial. Those of its birth are set when it is enqueued, the others before it
# ends, because a finished trial accepts none.
ROLE = "miha:role"
CYCLE = "miha:cycle"
BRANCH = "miha:branch"
PARENT = "miha:parent"
BIRTH = "miha:epoch"
END = "miha:end"
SEED = "miha:seed"
MUTATION = "miha:mutation"
TRAINED = "miha:trained"
FITNESS = "miha:fitness"
TRAIN_LOSS = "miha:train_loss"
METRICS = "miha:metrics"
CHECKPOINT = "miha:checkpoint"
MEMBER = "miha:member"
ERROR = "miha:error"
GUEST = "miha:guest"  # A trial that the user enqueued.
CROSSOVER = "miha:crossover"  # The numbers of the two trials whose changes it carries.
AVERAGED = "miha:averaged"  # The sibling whose weights it took a half of, and their value.

# Attributes of the study.
PLAN = "miha:plan"
STRETCHES = "miha:stretches"
INITIAL = "miha:initial_params"
SPACE = "miha:space"
RUN_SEED = "miha:seed"
VERSIONS = "miha:versions"
SPENT = "miha:spent"  # For whoever looks at the study; the run itself counts its trials.
CHECKPOINT_DIR = "miha:checkpoint_dir"
FORMAT = "miha:format"
LEASE = "miha:lease"
KEEP = "miha:keep"  # Which checkpoints the last call was told to keep.
RUN = "miha:run"  # A part of the names of the run's files, which tells them from another run's.
LOST = "miha:lost"  # Numbers of trials whose checkpoints are lost, and of all that came of them.

LIBRARY_SIZE = 60
"""Segments whose best weights are kept for an ensemble."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One stretch of training of one network: one finished trial.

    Args:
        number: Number of the trial.
        role: ``startup``, ``trunk``, ``branch`` or ``final``.
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
    def is_diverged(self) -> bool:
        """Whether it ended in a value that is not a finite number."""
        return bool(self.scores) and not math.isfinite(self.scores[-1])

    @property
    def last_score(self) -> float:
        """The value of the weights that those after it start from."""
        return self.scores[-1] if self.averaged_score is None else self.averaged_score


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
    if ROLE not in attrs or TRAINED not in attrs or not trial.state.is_finished():
        return None
    if trial.state == TrialState.FAIL and ERROR not in attrs:
        return None
    read = Attributes(f"trial {trial.number}", attrs)
    role = attrs[ROLE]
    if role not in _ORDER:
        raise read.error(ROLE, f"one of {', '.join(_ORDER)}", role)
    birth, trained = read.integer(BIRTH), read.integer(TRAINED)
    scores = tuple(v for step, v in sorted(trial.intermediate_values.items()) if step > birth)
    # Of a segment that failed, the last epoch may have been begun and not reported.
    most = len(scores) + (trial.state == TrialState.FAIL)
    if not len(scores) <= trained <= most or (trial.state == TrialState.COMPLETE and not scores):
        raise read.error(TRAINED, "as many epochs as were reported, one at least", trained)
    if trial.state == TrialState.COMPLETE and not _is_finite(trial.value):
        raise RecordError(
            f"The value of trial {trial.number} must be a finite number, got {trial.value!r}: "
            "something other than a run wrote it. Put back what was there, or start a study of "
            "another name."
        )
    checkpoint, member = read.file(CHECKPOINT), read.file(MEMBER)
    if checkpoint is not None:
        Attributes(f"trial {trial.number}, {CHECKPOINT!r}", checkpoint).integer("best_epoch")
    if member is not None:
        read.figure(MEMBER, "value")
    fitness = read.number(FITNESS)
    return Segment(
        number=trial.number,
        role=role,
        # Every cycle leaves a trial.
        cycle=read.integer(CYCLE, most=max(trial.number, 0) + 1),
        branch=read.integer(BRANCH),
        parent=None if attrs.get(PARENT) is None else read.integer(PARENT),
        birth=birth,
        trained=trained,
        params=trial.params,
        distributions=_shared(trial.distributions),
        mutation=read.text(MUTATION, ""),
        scores=scores,
        train_losses=read.numbers(TRAIN_LOSS),
        value=trial.value if trial.state == TrialState.COMPLETE else None,
        fitness=math.nan if fitness is None else fitness,
        state=trial.state,
        checkpoint=checkpoint,
        averaged_score=read.figure(AVERAGED, "value"),
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


class Lineage:
    """All segments of a run, in the order of their trials.

    Args:
        direction: The study's direction.
        segments: The segments so far.

    Attributes:
        sign: 1 where the study minimizes, -1 where it maximizes.
        spent: Epochs trained so far, those of pruned and failed segments included.
    """

    def __init__(self, direction: StudyDirection, segments: Iterable[Segment] = ()) -> None:
        self.sign = -1 if direction == StudyDirection.MAXIMIZE else 1
        self.spent = 0
        self._segments: dict[int, Segment] = {}
        self._groups: dict[tuple[Role, int], dict[int, Segment]] = {}
        self._best: Segment | None = None
        self._library: list[Segment] = []
        for segment in segments:
            self.add(segment)

    @classmethod
    def from_trials(
        cls,
        direction: StudyDirection,
        trials: Iterable[FrozenTrial],
        lost: Iterable[int] = (),
    ) -> Lineage:
        """Rebuild the record from a study's trials.

        Args:
            direction: The study's direction.
            trials: Its trials.
            lost: Numbers of those to leave out.

        Raises:
            RecordError: If an attribute is not what a run writes there, or a segment does not
                begin where its parent ends.
        """
        out = frozenset(lost)
        segments = (segment_of(trial) for trial in trials)
        lineage = cls(direction, (s for s in segments if s is not None and s.number not in out))
        for segment in lineage:
            _check_parent(lineage, segment)
        return lineage

    def __iter__(self) -> Iterator[Segment]:
        return iter(self._segments.values())

    def __len__(self) -> int:
        return len(self._segments)

    def __getitem__(self, number: int) -> Segment:
        return self._segments[number]

    def get(self, number: int) -> Segment | None:
        """The segment of a trial; :obj:`None` if there is none."""
        return self._segments.get(number)

    def add(self, segment: Segment) -> None:
        """Record a finished segment."""
        self._segments[segment.number] = segment
        self._groups.setdefault((segment.role, segment.cycle), {})[segment.branch] = segment
        self.spent += segment.trained
        if segment.value is not None and (
            self._best is None or self._rank(segment) < self._rank(self._best)
        ):
            self._best = segment
        if segment.member is not None:
            insort(self._library, segment, key=self._member_rank)
            del self._library[LIBRARY_SIZE:]

    def group(self, role: Role, cycle: int) -> dict[int, Segment]:
        """The siblings of one role and cycle, by their branch index."""
        return self._groups.get((role, cycle), {})

    def winner(self, role: Role, cycle: int) -> Segment | None:
        """The fittest of the complete siblings; :obj:`None` if there is none."""
        return next(iter(self.ranking(role, cycle)), None)

    def ranking(self, role: Role, cycle: int) -> list[Segment]:
        """The complete siblings, the fittest first."""
        group = self.group(role, cycle)
        complete = {b: s.fitness for b, s in group.items() if s.state == TrialState.COMPLETE}
        return [group[branch] for branch in ranking(complete)]

    def parent(self, segment: Segment) -> Segment | None:
        """The segment that ``segment`` continues."""
        return None if segment.parent is None else self._segments[segment.parent]

    def best(self) -> Segment | None:
        """The complete segment with the best value: the trial that ``study.best_trial`` is."""
        return self._best

    def best_before(self, cycle: int) -> Segment | None:
        """The same among the segments of earlier cycles."""
        earlier = [s for s in self if s.cycle < cycle and s.value is not None]
        return min(earlier, key=self._rank, default=None)

    def would_lead(self, cost: float, role: Role, cycle: int, branch: int) -> bool:
        """Whether a segment of this cost and place would be the best."""
        rank = cost, *_place(role, cycle, branch)
        return self._best is None or rank < self._rank(self._best)

    def _rank(self, segment: Segment) -> tuple[float, int, int, int]:
        """The earlier segment where values tie.

        Not by trial numbers: the order in which siblings are written may depend on the clock.
        """
        return self.cost(segment), *_place(segment.role, segment.cycle, segment.branch)

    def _member_rank(self, segment: Segment) -> tuple[float, int, int, int]:
        assert segment.member is not None
        cost = self.sign * segment.member["value"]
        return cost, *_place(segment.role, segment.cycle, segment.branch)

    def library(self) -> list[Segment]:
        """The segments with the best weights that were kept, pruned ones included, best first."""
        return list(self._library)

    def cost(self, segment: Segment) -> float:
        """The segment's value, oriented so that lower is better; infinite if it has none."""
        return math.inf if segment.value is None else self.sign * segment.value

    def ancestry(self, segment: Segment) -> list[Segment]:
        """``segment`` and what it descends from, the oldest first."""
        path = [segment]
        while (parent := self.parent(path[-1])) is not None:
            path.append(parent)
        return path[::-1]


def _check_parent(lineage: Lineage, segment: Segment) -> None:
    """Refuse a parent that is none. A circle of them is impossible then.

    Every complete segment trained an epoch at least, so that ends grow from parent to child.
    """
    if segment.parent is None:
        if segment.birth != 0:
            attributes = Attributes(f"trial {segment.number}", {})
            raise attributes.error(BIRTH, "0 where there is no parent", segment.birth)
        return
    parent = lineage.get(segment.parent)
    if parent is None or parent.value is None or parent.end != segment.birth:
        requirement = (
            f"the number of a complete segment that ends after epoch {segment.birth}, where this "
            "one begins"
        )
        raise Attributes(f"trial {segment.number}", {}).error(PARENT, requirement, segment.parent)


def _place(role: Role, cycle: int, branch: int) -> tuple[int, int, int]:
    """Orders segments by their place in the run."""
    return cycle, _ORDER.index(role), branch


def ranking(fitness: Mapping[int, float]) -> list[int]:
    """Branches by their fitness, the largest first, and the lowest index where they tie.

    Those of NaN fitness are left out.
    """
    able = [branch for branch, value in fitness.items() if not math.isnan(value)]
    return sorted(able, key=lambda branch: (-fitness[branch], branch))


def fittest(fitness: Mapping[int, float]) -> int | None:
    """The first of the :func:`ranking`; :obj:`None` if that is empty."""
    return next(iter(ranking(fitness)), None)
