"""Losses that take the same outputs and targets, and can replace each other."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from optuna_miha._model.recipe import LossFn

_FAMILIES: tuple[dict[str, type[nn.Module]], ...] = (
    {"cross_entropy": nn.CrossEntropyLoss, "multi_margin": nn.MultiMarginLoss},
    {"mse": nn.MSELoss, "l1": nn.L1Loss, "smooth_l1": nn.SmoothL1Loss, "huber": nn.HuberLoss},
    {
        "bce_with_logits": nn.BCEWithLogitsLoss,
        "multilabel_soft_margin": nn.MultiLabelSoftMarginLoss,
    },
)


def interchangeable_losses(initial: LossFn) -> dict[str, LossFn]:
    """List the losses that can replace ``initial``.

    Returns:
        Losses by name: ``initial`` itself first, with its settings, then the others with the
        default settings.

    Raises:
        ValueError: If no losses are known that can replace it.
    """
    for family in _FAMILIES:
        name = next((n for n, cls in family.items() if type(initial) is cls), None)
        if name is not None:
            others: dict[str, LossFn] = {n: cls() for n, cls in family.items() if n != name}
            return {name: initial, **others}
    raise ValueError(
        f"There is no list of losses that can replace {initial!r}: pass `choices`, a dictionary "
        "of losses by name."
    )


def with_label_smoothing(loss_fn: nn.CrossEntropyLoss, label_smoothing: float) -> Any:
    """Copy ``loss_fn`` with another label smoothing."""
    loss_fn = copy.copy(loss_fn)
    loss_fn.label_smoothing = label_smoothing
    return loss_fn
