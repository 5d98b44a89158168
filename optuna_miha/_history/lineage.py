"""The record of a run: which segment of training came of which."""

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
"""Segments whose best weights are kept for an ensemble."""


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
        self.sign = sign_of(direction)
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
        rank = cost, *position_of(role, cycle, branch)
        return self._best is None or rank < self._rank(self._best)

    def _rank(self, segment: Segment) -> tuple[float, int, int, int]:
        """The earlier segment where values tie.

        Not by trial numbers: the order in which siblings are written may depend on the clock.
        """
        return self.cost(segment), *segment.position

    def _member_rank(self, segment: Segment) -> tuple[float, int, int, int]:
        assert segment.member is not None
        return self.sign * segment.member["value"], *segment.position

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
            reader = AttributeReader(f"trial {segment.number}", {})
            raise reader.error(attributes.BIRTH, "0 where there is no parent", segment.birth)
        return
    parent = lineage.get(segment.parent)
    if parent is None or parent.value is None or parent.end != segment.birth:
        requirement = (
            f"the number of a complete segment that ends after epoch {segment.birth}, where this "
            "one begins"
        )
        raise AttributeReader(f"trial {segment.number}", {}).error(
            attributes.PARENT, requirement, segment.parent
        )


def sign_of(direction: StudyDirection) -> int:
    """1 where a study minimizes, -1 where it maximizes: a value times it is a cost."""
    return -1 if direction == StudyDirection.MAXIMIZE else 1


def ranking(fitness: Mapping[int, float]) -> list[int]:
    """Branches by their fitness, the largest first, and the lowest index where they tie.

    Those of NaN fitness are left out.
    """
    able = [branch for branch, value in fitness.items() if not math.isnan(value)]
    return sorted(able, key=lambda branch: (-fitness[branch], branch))
