"""One of several networks that are trained in parallel and compared."""

from __future__ import annotations

import math
from collections.abc import Mapping
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
        parent: The segment that it continues from.
        trial: Its trial, until it is finished.
        segment: Its segment, after the trial is finished. A sibling that an earlier process
            finished only has a segment.
        state: The state of its training.
        scores: The score of each epoch so far.
        train_losses: The training loss of each epoch so far.
        metrics: The other metrics of the last epoch, by name.
        metric_curves: The other metrics of each epoch so far, by name.
        fitness: Its fitness; NaN until its training is complete.
        violation: The sum of its violated constraints, at the end of its last rung.
        error: The error message if it failed.
        is_pruned: Whether the error is that the user's code pruned it.
    """

    branch: int
    parent: Segment | None = None
    trial: BufferedTrial | None = None
    segment: Segment | None = None
    state: State | None = None
    scores: list[float] = field(default_factory=list)
    train_losses: list[float] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    metric_curves: dict[str, list[float | None]] = field(default_factory=dict)
    fitness: float = math.nan
    violation: float = 0.0
    error: str | None = None
    is_pruned: bool = False

    def add_metrics(self, metrics: Mapping[str, float]) -> None:
        """Add the metrics of the epoch whose score was added last; :obj:`None` if not finite."""
        self.metrics = {k: v for k, v in metrics.items() if math.isfinite(v)}
        for name in {**self.metric_curves, **metrics}:
            curve = self.metric_curves.setdefault(name, [])
            curve += [None] * (len(self.scores) - 1 - len(curve))
            curve.append(float(f"{self.metrics[name]:.6g}") if name in self.metrics else None)

    @property
    def birth(self) -> int:
        """Epochs that its lineage was trained for before its own training."""
        return 0 if self.parent is None else self.parent.end

    @property
    def is_failed(self) -> bool:
        """Whether it failed."""
        if self.segment is not None:
            return self.segment.state == TrialState.FAIL
        return self.error is not None

    def costs(self, sign: int) -> dict[int, float]:
        """Its scores by lineage epoch, beginning with the parent's last, oriented for pruners.

        Args:
            sign: 1 if the study minimizes, -1 if it maximizes.
        """
        scores = self.scores if self.segment is None else self.segment.scores
        by_epoch = {} if self.parent is None else last_score_of(self.parent)
        by_epoch |= dict(enumerate(scores, start=self.birth + 1))
        return {epoch: sign * score for epoch, score in by_epoch.items()}

    def survives(self, age: int) -> bool:
        """Whether it is compared after ``age`` epochs: neither failed nor pruned before."""
        if self.segment is None:
            return self.error is None
        if self.segment.state == TrialState.COMPLETE:
            return True
        # It was compared at the rung at which it was pruned, and until it failed.
        scores = self.segment.scores
        return len(scores) >= age and (age == 0 or math.isfinite(scores[age - 1]))


def last_score_of(parent: Segment) -> dict[int, float]:
    """The parent's last score, by the lineage epoch at which a child's curve starts."""
    return {parent.end: parent.last_score}
