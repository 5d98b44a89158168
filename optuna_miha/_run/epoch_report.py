"""What a callback learns about an epoch of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from optuna_miha._history.segment import Role


@dataclass(frozen=True, kw_only=True)
class EpochReport:
    """One epoch of a run, as the ``epoch_callbacks`` of :func:`optimize` get it.

    Args:
        number: Number of the trial.
        role: ``startup``, ``trunk``, ``branch``, ``restart`` or ``final``.
        cycle: The cycle; 0 before the first population.
        branch: The branch index among the siblings.
        epoch: The lineage epoch: epochs that the network was trained for, with its ancestors.
        params: The hyperparameters of the trial.
        value: The reported value, that of the average of the weights if there is one.
        train_loss: The training loss; NaN if it is unknown.
        metrics: The other metrics by name.
    """

    number: int
    role: Role
    cycle: int
    branch: int
    epoch: int
    params: Mapping[str, Any]
    value: float
    train_loss: float = math.nan
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """A name of the trial for logs and folders, such as ``"trial-0017-branch-003-2"``."""
        return f"trial-{self.number:04d}-{self.role}-{self.cycle:03d}-{self.branch}"


EpochCallback: TypeAlias = Callable[[EpochReport], object]
