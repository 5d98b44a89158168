"""What a ``train_step`` returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class StepOutput:
    """The loss of a batch, with the outputs and targets that metrics are computed from.

    A ``train_step`` may return one, or the tuple ``(loss, outputs, targets)``, in place of the
    loss alone. Outputs and targets are used in validation only.

    Args:
        loss: The loss, a scalar.
        outputs: The outputs of the network.
        targets: The targets.
    """

    loss: Tensor
    outputs: Any
    targets: Any


def loss_of(result: Any) -> Any:
    """Return the loss in the result of a ``train_step``."""
    if isinstance(result, Tensor):
        return result
    found = step_output(result)
    return result if found is None else found.loss


def step_output(result: Any) -> StepOutput | None:
    """Return loss, outputs and targets; :obj:`None` if a ``train_step`` returned no outputs."""
    if isinstance(result, tuple) and len(result) == 3:
        return StepOutput(*result)
    return result if isinstance(result, StepOutput) else None
