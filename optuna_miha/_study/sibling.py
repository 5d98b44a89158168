"""One of several networks that train side by side and compete."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from optuna.trial import TrialState

from optuna_miha._history.segment import Segment
from optuna_miha._study.buffered_trial import BufferedTrial
from optuna_miha._training.state import State


@dataclass(eq=False)
class Sibling:
    """A network in training (``trial``), or one whose training has ended (``segment``).

    Args:
        branch: Its branch index.
        parent: The segment that it started from.
        trial: Its trial, until that is finished.
        segment: Its segment, afterwards; siblings that an earlier process finished have only it.
        state: The state of its training.
        scores: The score of each epoch so far.
        train_losses: The training loss of each epoch so far.
        metrics: The other metrics of the last epoch, by name.
        fitness: Its fitness, once it trained to its end.
        error: Why it failed.
    """

    branch: int
    parent: Segment | None = None
    trial: BufferedTrial | None = None
    segment: Segment | None = None
    state: State | None = None
    scores: list[float] = field(default_factory=list)
    train_losses: list[float] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    fitness: float = math.nan
    error: str | None = None

    @property
    def birth(self) -> int:
        """Epochs that its lineage was trained for before it."""
        return 0 if self.parent is None else self.parent.end

    @property
    def is_failed(self) -> bool:
        """Whether it failed."""
        if self.segment is not None:
            return self.segment.state == TrialState.FAIL
        return self.error is not None

    def costs(self, sign: int) -> dict[int, float]:
        """Its scores by lineage epoch, the parent's at birth included, as pruners see them.

        Args:
            sign: 1 where the study minimizes, -1 where it maximizes.
        """
        scores = self.scores if self.segment is None else self.segment.scores
        by_epoch = {} if self.parent is None else last_score_of(self.parent)
        by_epoch |= dict(enumerate(scores, start=self.birth + 1))
        return {epoch: sign * score for epoch, score in by_epoch.items()}

    def survives(self, age: int) -> bool:
        """Whether it competes after ``age`` epochs."""
        if self.segment is None:
            return self.error is None
        if self.segment.state == TrialState.PRUNED:
            # At the rung after which it was pruned, it competed.
            return len(self.segment.scores) >= age
        return self.segment.state == TrialState.COMPLETE


def last_score_of(parent: Segment) -> dict[int, float]:
    """The parent's last score by the epoch of birth, from which a curve starts."""
    return {parent.end: parent.last_score}
