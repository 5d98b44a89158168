"""The measurements of an epoch and of a segment of training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from optuna_miha._history.scalars import as_float


@dataclass(frozen=True, kw_only=True)
class EpochResult:
    """The result of one epoch of training. A custom trainer yields one per epoch.

    Numbers may be Python floats, NumPy scalars or tensors of one element. They are stored as
    Python floats.

    Args:
        value: The monitored value on the validation data, in the direction of the study.
        train_loss: Mean training loss over the epoch; NaN if it is unknown.
        metrics: Further metrics by name; those of the last epoch are stored in the trial.
        ema_value: The monitored value of the averaged weights; set by :func:`optimize`.

    Raises:
        TypeError: If one of them is not a number.
    """

    value: float
    train_loss: float = math.nan
    metrics: Mapping[str, float] = field(default_factory=dict)
    ema_value: float | None = None

    def __post_init__(self) -> None:
        for name in ("value", "train_loss", "ema_value"):
            value = getattr(self, name)
            if value is not None or name != "ema_value":
                object.__setattr__(self, name, as_float(value, f"`{name}` of an EpochResult"))
        metrics = {k: as_float(v, f"The metric {k!r}") for k, v in self.metrics.items()}
        object.__setattr__(self, "metrics", metrics)

    @property
    def score(self) -> float:
        """The value that decisions use: ``ema_value`` if there is one, otherwise ``value``."""
        return self.value if self.ema_value is None else self.ema_value


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The scores of one segment, oriented so that lower is better.

    Args:
        costs: One cost per epoch: the score, or its negative if the study maximizes.
        birth: Epochs that the lineage had trained before the first of ``costs``.
        birth_cost: The parent's cost at birth; NaN for a segment without a parent.
    """

    costs: tuple[float, ...]
    birth: int = 0
    birth_cost: float = math.nan
