"""One annealed training, as an expert writes it by hand; the baselines are made of it.

The loop gathers batches by a permutation, uses torch's fused optimizers, and validates once per
epoch. It shares with optuna_miha only how a task is built and tested.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler

from optuna_miha._model.model_fn import ModelFn, build_initial

Shape: TypeAlias = Literal["warm-up", "one-cycle", "recipe", "cosine", "constant"]
"""The learning rate by the step, relative to its peak.

- ``"warm-up"``: up half a cosine over 5 %, then half a cosine to zero.
- ``"one-cycle"``: torch's ``OneCycleLR`` with its defaults, which change the momentum as well.
- ``"recipe"``: the same with a constant momentum.
- ``"cosine"``: half a cosine to zero.
- ``"constant"``: the peak.
"""


@dataclass(frozen=True, kw_only=True)
class Config:
    """A configuration.

    Args:
        optimizer: ``adam``, ``adamw``, ``sgd`` (with momentum .9) or ``soap``.
        lr: Peak of the learning rate.
        weight_decay: Weight decay.
        activation: Replaces every activation; :obj:`None` keeps the given ones.
        dropout: Replaces every dropout probability; :obj:`None` keeps the given ones.
        average: Width of the moving average of the weights in epochs; 0 for none.
    """

    optimizer: str = "adamw"
    lr: float
    weight_decay: float = 0.01
    activation: str | None = None
    dropout: float | None = None
    average: float = 0.0


class Training:
    """A network in training, which can be continued.

    Args:
        model_fn: The task.
        config: The configuration.
        seed: Seed of the initial weights.
    """

    def __init__(self, model_fn: ModelFn, config: Config, seed: int) -> None:
        self.config = config
        recipe = build_initial(model_fn, seed).recipe
        assert isinstance(recipe.train_data, tuple) and isinstance(recipe.valid_data, tuple)
        self._train_data, self._valid_data = recipe.train_data, recipe.valid_data
        self._loss_fn: Callable[..., Tensor] = recipe.loss_fn
        self._batch_size = recipe.batch_size
        self.network = _configured(recipe.model, config)
        self._optimizer = _optimizer(self.network, config)
        self._averaged = copy.deepcopy(self.network).eval() if config.average else self.network
        self._n_steps = 0
        self.n_epochs = 0
        """Number of epochs trained."""
        self.value = math.inf
        """Validation value of the best epoch."""
        self.last = math.inf
        """Validation value of the last epoch."""
        self.best: nn.Module | None = None
        """The network of the best epoch."""

    def train(self, n_epochs: int, shape: Shape) -> None:
        """Train, with the whole ``shape`` within these epochs.

        Args:
            n_epochs: Number of epochs.
            shape: The learning rate by the step.
        """
        if n_epochs == 0:
            return
        inputs, targets = self._train_data
        n_batches = -(-len(inputs) // self._batch_size)
        scheduler = _scheduler(self._optimizer, self.config, shape, n_epochs * n_batches)
        averages = list(self._averaged.parameters())
        parameters = [parameter.detach() for parameter in self.network.parameters()]
        for _ in range(n_epochs):
            self.network.train()
            for batch in torch.randperm(len(inputs)).split(self._batch_size):
                self._optimizer.zero_grad()
                self._loss_fn(self.network(inputs[batch]), targets[batch]).backward()
                self._optimizer.step()
                if scheduler is not None:
                    scheduler.step()
                self._n_steps += 1
                if self.config.average:
                    width = self.config.average * n_batches
                    weight = max(1 / width, 2 / (self._n_steps + 2))
                    with torch.no_grad():
                        torch._foreach_lerp_(averages, parameters, weight)
            self.n_epochs += 1
            self._validate()

    @torch.no_grad()
    def _validate(self) -> None:
        self._averaged.eval()
        inputs, targets = self._valid_data
        self.last = float(self._loss_fn(self._averaged(inputs), targets))
        if self.last < self.value:
            self.value, self.best = self.last, copy.deepcopy(self._averaged)


def _configured(network: nn.Module, config: Config) -> nn.Module:
    """Replace activations, which are all ReLU in the tasks of real origin, and dropout."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if config.activation is not None and isinstance(child, nn.ReLU):
                setattr(module, name, _ACTIVATIONS[config.activation]())
            if config.dropout is not None and isinstance(child, nn.Dropout):
                child.p = config.dropout
    return network


_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


def _optimizer(network: nn.Module, config: Config) -> Optimizer:
    options: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    match config.optimizer:
        case "adam":
            return torch.optim.Adam(network.parameters(), fused=True, **options)
        case "adamw":
            return torch.optim.AdamW(network.parameters(), fused=True, **options)
        case "sgd":
            return torch.optim.SGD(network.parameters(), momentum=0.9, fused=True, **options)
        case "soap":
            try:
                from pytorch_optimizer import SOAP
            except ImportError as error:
                raise ImportError(
                    "The method needs the package pytorch-optimizer: pip install "
                    "pytorch-optimizer."
                ) from error
            # A word vector's table has no preconditioner along its words, which would take longer
            # than everything else.
            return SOAP(network.parameters(), max_precondition_dim=512, **options)
    raise ValueError(f"`optimizer` must be adam, adamw, sgd or soap, got {config.optimizer!r}.")


def _scheduler(
    optimizer: Optimizer, config: Config, shape: Shape, n_steps: int
) -> lr_scheduler.LRScheduler | None:
    if shape == "constant":
        return None
    if shape == "cosine":
        return lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    share = 0.05 if shape == "warm-up" else 0.3
    return lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=config.lr,
        total_steps=n_steps + 1,
        pct_start=max(share, 2 / (n_steps + 1)),  # OneCycleLR divides by zero below one step.
        cycle_momentum=shape == "one-cycle",
    )
