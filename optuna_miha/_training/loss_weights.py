"""How the losses of batches combine into the loss of all of their samples."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optuna_miha._model.recipe import LossFn

_CLASSIFYING = (nn.CrossEntropyLoss, nn.NLLLoss)
_ELEMENTWISE = (
    nn.BCELoss,
    nn.BCEWithLogitsLoss,
    nn.HuberLoss,
    nn.L1Loss,
    nn.MSELoss,
    nn.PoissonNLLLoss,
    nn.SmoothL1Loss,
    nn.SoftMarginLoss,
)
_CLASSIFYING_FUNCTIONS = (F.cross_entropy, F.nll_loss)
_ELEMENTWISE_FUNCTIONS = (
    F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits,
    F.huber_loss,
    F.l1_loss,
    F.mse_loss,
    F.poisson_nll_loss,
    F.smooth_l1_loss,
    F.soft_margin_loss,
)


class LossWeights:
    """The weight of each batch in the loss of all samples.

    A loss of torch with ``reduction="mean"`` divides by the number of targets, or by the sum of
    their class weights without those of ``ignore_index``. So the mean over batches, weighted by
    this divisor, is what the loss says of all samples at once. The batches of any other function
    are weighted by their number of samples.

    Args:
        loss_fn: The loss. :obj:`None`: the loss of a batch has been computed by other means.

    Attributes:
        is_sum: Whether the loss is a sum, so that those of the batches are added.
    """

    def __init__(self, loss_fn: LossFn | None) -> None:
        settings = {} if loss_fn is None else _settings_of(loss_fn)
        self.is_sum = settings.get("reduction") == "sum"
        self._kind = settings.get("kind")
        self._class_weights: Tensor | None = settings.get("weight")
        self._ignored: int | None = settings.get("ignore_index")
        self._unit: float | None = None

    def without_ignored(self, targets: Tensor) -> LossWeights:
        """Forget ``ignore_index`` if none of all targets has it, to save time in each step."""
        if self._ignored is not None and not (targets == self._ignored).any():
            self._ignored = None
        return self

    def weight(self, target: Any, length: int) -> float | Tensor:
        """Return the weight of a batch: its number of samples if all samples are alike.

        Args:
            target: The targets of the batch.
            length: The number of samples in it.
        """
        if self.is_sum or self._kind is None or not isinstance(target, Tensor):
            return length
        n_targets = target.numel()
        if self._unit is None:  # Targets of a sample, for example its pixels.
            self._unit = n_targets / length or 1.0
        is_index = self._kind == "classifying" and not target.is_floating_point()
        if not is_index or (self._class_weights is None and self._ignored is None):
            return n_targets / self._unit
        counts = torch.ones_like(target) if self._ignored is None else target != self._ignored
        if self._class_weights is not None:
            classes = torch.where(counts.bool(), target, 0)
            counts = self._class_weights.to(target.device)[classes] * counts
        return counts.sum() / self._unit

    def weighted(self, loss: Tensor, weight: float | Tensor) -> Tensor:
        """Return what a batch adds to the sum over all batches."""
        if self.is_sum:
            return loss
        if isinstance(weight, Tensor):  # Torch gives NaN if all targets are ignored.
            return torch.where(weight == 0, torch.zeros_like(loss), loss * weight)
        return loss * weight

    def combine(self, losses: Iterable[Tensor], weights: Iterable[float | Tensor]) -> float:
        """Compute the loss of all samples from those of batches; NaN if no target counts."""
        # Read all losses at once: reading each would synchronize at every batch.
        values = torch.stack(list(losses)).tolist()
        if self.is_sum:
            return math.fsum(values)
        factors = [float(weight) for weight in weights]
        total = sum(v * w for v, w in zip(values, factors, strict=True) if w != 0)
        return total / sum(factors) if sum(factors) != 0 else math.nan


def _settings_of(loss_fn: LossFn) -> dict[str, Any]:
    """Return the kind and the settings of a loss of torch; empty if it is none."""
    if isinstance(loss_fn, nn.Module):
        settings = {n: getattr(loss_fn, n, None) for n in ("reduction", "weight", "ignore_index")}
        for kind, classes in (("classifying", _CLASSIFYING), ("elementwise", _ELEMENTWISE)):
            if any(type(loss_fn).forward is cls.forward for cls in classes):
                return {"kind": kind, **settings}
        return {"reduction": settings["reduction"]}
    settings = {"ignore_index": -100}
    while isinstance(loss_fn, functools.partial):
        settings = {**settings, **loss_fn.keywords}
        loss_fn = loss_fn.func
    if any(loss_fn is function for function in _CLASSIFYING_FUNCTIONS):
        return {"kind": "classifying", **settings}
    is_elementwise = any(loss_fn is function for function in _ELEMENTWISE_FUNCTIONS)
    return {"kind": "elementwise", **settings} if is_elementwise else {}
