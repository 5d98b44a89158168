"""Training and evaluation mode of the parts of a network."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


def frozen_modules(model: nn.Module) -> list[nn.Module]:
    """Return the modules that are in evaluation mode although the network is in training mode.

    If the network itself is in evaluation mode, as pretrained ones are after loading, that is not
    a choice of modules, and the list is empty.
    """
    return [m for m in model.modules() if not m.training] if model.training else []


def set_training(model: nn.Module, frozen: Iterable[nn.Module]) -> None:
    """Put a network into training mode, except for its frozen modules."""
    model.train()
    for module in frozen:
        module.training = False
