"""What an epoch and a segment of training measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from optuna_miha._history.scalars import as_float


@dataclass(frozen=True, kw_only=True)
class EpochResult:
    """What one epoch of training yielded; a custom trainer makes one per epoch.

    Numbers may be NumPy's, or tensors of one element; they are kept as floats.

    Args:
        value: The monitored value on the validation data, in the study's own direction.
        train_loss: Mean training loss over the epoch, or NaN where it is not known.
        metrics: Further figures by name; those of the last epoch go into the trial.
        ema_value: The monitored value of the averaged weights; filled in by :func:`optimize`.

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
        """The averaged weights' value where there is one, else ``value``; it decides."""
        return self.value if self.ema_value is None else self.ema_value


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The scores of one segment, oriented so that lower is better.

    Args:
        costs: One cost per epoch; the score, or its negative where the study maximizes.
        birth: Epochs that the lineage had behind it before the first of ``costs``.
        birth_cost: The parent's cost at birth; NaN for a segment without a parent.
    """

    costs: tuple[float, ...]
    birth: int = 0
    birth_cost: float = math.nan
