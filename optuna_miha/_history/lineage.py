"""The history of a run as a tree of segments."""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Iterable, Iterator, Mapping

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from optuna_miha._history import attributes
from optuna_miha._history.attribute_reader import AttributeReader
from optuna_miha._history.segment import Role, Segment, position_of, segment_of

LIBRARY_SIZE = 60
"""Maximum number of segments whose best weights are kept for an ensemble."""


class Lineage:
    """All segments of a run, in the order of their trials.

    Args:
        direction: The study's direction.
        segments: The segments so far.

    Attributes:
        sign: 1 if the study minimizes, -1 if it maximizes.
        spent: Epochs trained so far, including those of pruned and failed segments.
    """

    def __init__(self, direction: StudyDirection, segments: Iterable[Segment] = ()) -> None:
        self.sign = sign_of(direction)
        self.spent = 0
        self._segments: dict[int, Segment] = {}
        self._groups: dict[tuple[Role, int], dict[int, Segment]] = {}
        self._best: Segment | None = None
        self._library: list[Segment] = []
        self._parents: set[int] = set()
        for segment in segments:
            self.add(segment)

    @classmethod
    def from_trials(
        cls,
        direction: StudyDirection,
        trials: Iterable[FrozenTrial],
        lost: Iterable[int] = (),
    ) -> Lineage:
        """Read the history from the trials of a study.

        Args:
            direction: The study's direction.
            trials: Its trials.
            lost: Numbers of the trials to leave out.

        Raises:
            RecordError: If an attribute was not written by a run, or a segment does not begin
                where its parent ends.
        """
        skipped = frozenset(lost)
        segments = (segment_of(trial) for trial in trials)
        lineage = cls(
            direction, (s for s in segments if s is not None and s.number not in skipped)
        )
        for segment in lineage:
            _check_parent(lineage, segment)
        return lineage

    def __repr__(self) -> str:
        best = "none" if self._best is None else f"trial {self._best.number}"
        return f"Lineage({len(self)} segments, {self.spent} epochs trained, best: {best})"

    def __iter__(self) -> Iterator[Segment]:
        return iter(self._segments.values())

    def __len__(self) -> int:
        return len(self._segments)

    def __getitem__(self, number: int) -> Segment:
        return self._segments[number]

    def get(self, number: int) -> Segment | None:
        """The segment of the trial ``number``; :obj:`None` if there is none."""
        return self._segments.get(number)

    def add(self, segment: Segment) -> None:
        """Add a finished segment."""
        self._segments[segment.number] = segment
        self._groups.setdefault((segment.role, segment.cycle), {})[segment.branch] = segment
        self.spent += segment.trained
        if segment.parent is not None:
            self._parents.add(segment.parent)
        if segment.value is not None and (
            self._best is None or self._rank(segment) < self._rank(self._best)
        ):
            self._best = segment
        if segment.member is not None:
            insort(self._library, segment, key=self._member_rank)
            del self._library[LIBRARY_SIZE:]

    def group(self, role: Role, cycle: int) -> dict[int, Segment]:
        """The siblings of one role and cycle, by branch index."""
        return self._groups.get((role, cycle), {})

    def winner(self, role: Role, cycle: int) -> Segment | None:
        """The fittest complete sibling, feasible ones first; :obj:`None` if there is none."""
        return next(iter(self.ranking(role, cycle)), None)

    def continued(self, role: Role, cycle: int) -> Segment | None:
        """The complete sibling that the run continued; :obj:`None` if there is none.

        A cycle continues the fittest. The final phase and an extension of the run continue the
        segment with the best value, which may be another sibling if no cycle continued the
        fittest. A round continues the branch with the best value. As long as no sibling is
        continued, it is the one that would be.
        """
        ranked = self.ranking(role, cycle)
        siblings = self.group(role, cycle).values()
        # A segment with the best value may have no fitness.
        others = [s for s in siblings if s.state == TrialState.COMPLETE and s not in ranked]
        parents = (s for s in (*ranked, *others) if s.number in self._parents)
        is_round = role == "branch" and any(s.by_step for s in ranked)
        next_parent = min(ranked, key=self._rank) if is_round else next(iter(ranked), None)
        return next(parents, next_parent)

    def ranking(self, role: Role, cycle: int) -> list[Segment]:
        """The complete siblings with a fitness, in the order of :func:`ranking`."""
        group = self.group(role, cycle)
        complete = {b: s for b, s in group.items() if s.state == TrialState.COMPLETE}
        fitness = {b: (s.violation, s.fitness) for b, s in complete.items()}
        return [group[branch] for branch in ranking(fitness)]

    def parent(self, segment: Segment) -> Segment | None:
        """The segment that ``segment`` continues."""
        return None if segment.parent is None else self._segments[segment.parent]

    def best(self) -> Segment | None:
        """The complete segment with the best value, whose trial is ``study.best_trial``.

        A feasible one, unless there is none: then one of the lowest violation.
        """
        return self._best

    def best_before(self, cycle: int) -> Segment | None:
        """The complete segment with the best value among those of earlier cycles."""
        earlier = [s for s in self if s.cycle < cycle and s.value is not None]
        return min(earlier, key=self._rank, default=None)

    def would_be_best(
        self, violation: float, cost: float, role: Role, cycle: int, branch: int
    ) -> bool:
        """Whether a segment with this violation, cost and position would be the best."""
        rank = violation, cost, *position_of(role, cycle, branch)
        return self._best is None or rank < self._rank(self._best)

    def _rank(self, segment: Segment) -> tuple[float, float, int, int, int]:
        """The key by which segments are compared: violation, cost, then position in the run.

        Trial numbers do not break ties, because the order in which siblings are written may
        depend on time.
        """
        return segment.violation, self.cost(segment), *segment.position

    def _member_rank(self, segment: Segment) -> tuple[float, float, int, int, int]:
        assert segment.member is not None
        return segment.violation, self.sign * segment.member["value"], *segment.position

    def library(self) -> list[Segment]:
        """The segments whose best weights are kept, including pruned ones, the best first.

        Infeasible ones are left out if there is a feasible one.
        """
        return [s for s in self._library if not s.violation] or list(self._library)

    def cost(self, segment: Segment) -> float:
        """The segment's value, oriented so that lower is better; infinity without a value."""
        return math.inf if segment.value is None else self.sign * segment.value

    def ancestry(self, segment: Segment) -> list[Segment]:
        """``segment`` and its ancestors, the oldest first."""
        path = [segment]
        while (parent := self.parent(path[-1])) is not None:
            path.append(parent)
        return path[::-1]


def _check_parent(lineage: Lineage, segment: Segment) -> None:
    """Check that the parent is a complete segment that ends where ``segment`` begins.

    This also excludes circles, because every complete segment trained at least one epoch, so that
    a child always ends later than its parent.
    """
    if segment.parent is None:
        if segment.birth != 0:
            reader = AttributeReader(f"trial {segment.number}", {})
            raise reader.error(attributes.BIRTH, "0 if there is no parent", segment.birth)
        return
    parent = lineage.get(segment.parent)
    if parent is None or parent.value is None or parent.end != segment.birth:
        requirement = (
            f"the number of a complete segment that ends after epoch {segment.birth}, at which "
            "this one begins"
        )
        raise AttributeReader(f"trial {segment.number}", {}).error(
            attributes.PARENT, requirement, segment.parent
        )


def sign_of(direction: StudyDirection) -> int:
    """The factor that turns a value into a cost: 1 to minimize, -1 to maximize."""
    return -1 if direction == StudyDirection.MAXIMIZE else 1


def ranking(fitness: Mapping[int, tuple[float, float]]) -> list[int]:
    """Branch indices, the fittest first; the lower index first in a tie.

    Feasible branches precede infeasible ones, and these are sorted by their violation first.
    Branches whose fitness is NaN are left out.

    Args:
        fitness: Violation and fitness by branch index.
    """
    comparable = [branch for branch, (_, value) in fitness.items() if not math.isnan(value)]
    return sorted(comparable, key=lambda branch: (fitness[branch][0], -fitness[branch][1], branch))
