"""The epoch loop: training, and evaluation on the validation data."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from optuna_miha._history.curve import EpochResult
from optuna_miha._model.optimizers import follow
from optuna_miha._model.recipe import LossFn, Recipe, device_of
from optuna_miha._model.rng import preserved_rng
from optuna_miha._training.compute import DEFAULT_ENGINE, Engine
from optuna_miha._training.data import (
    batch_length,
    evaluation_batches,
    tensors_to,
    training_batches,
)


class Trainer(Protocol):
    """A training loop of the user's own.

    It trains ``recipe.model`` in place for ``n_epochs`` epochs and yields one
    :class:`~optuna_miha.EpochResult` after each. The caller reports, prunes, anneals the
    learning rate of ``recipe.optimizer`` and makes the checkpoints, which hold the state of
    ``recipe.model``, ``recipe.optimizer`` and the global random generators. A segment may call
    it several times, each time with the state that the last call left.
    """

    def __call__(self, recipe: Recipe, n_epochs: int) -> Iterator[EpochResult]:
        """Train for ``n_epochs`` epochs, yielding after each."""
        ...


def train(
    recipe: Recipe, n_epochs: int, *, engine: Engine = DEFAULT_ENGINE
) -> Iterator[EpochResult]:
    """The built-in trainer: mini-batches by the recipe's optimizer, then validation.

    Args:
        recipe: Holds an optimizer; data are moved to where the model's parameters lie.
        n_epochs: Epochs to train.
        engine: How to compute.

    Yields:
        The result of each epoch, evaluated after it.

    Raises:
        TypeError: If the loss is not a tensor.
        ValueError: If the loss is not a scalar, does not depend on the parameters, or the
            training data yields no batch.
    """
    assert recipe.optimizer is not None
    device = device_of(recipe.model)
    batches = batches_of(recipe)
    for _ in range(n_epochs):
        recipe.model.train()
        total, n_samples = torch.zeros((), device=device), 0
        for batch in batches:
            with engine.autocast(device):
                loss = batch_loss(recipe, recipe.model, batch, recipe.loss_fn)
            if n_samples == 0:
                check_loss(recipe, loss)
            recipe.optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            recipe.optimizer.step()
            length = batch_length(batch)
            # Summed on the device: reading it here would wait for the device at every step.
            total += loss.detach() * length
            n_samples += length
        if n_samples == 0:
            raise ValueError(
                "`train_data` must yield at least one batch per epoch, got none: lower the "
                f"batch size ({recipe.batch_size}), or set `drop_last=False`."
            )
        values = evaluate(recipe, recipe.model, engine)
        yield EpochResult(
            value=values[recipe.monitor],
            train_loss=float(total) / n_samples,
            metrics={k: v for k, v in values.items() if k != recipe.monitor},
        )


@torch.no_grad()
def evaluate(
    recipe: Recipe, model: nn.Module, engine: Engine = DEFAULT_ENGINE
) -> dict[str, float]:
    """The validation loss and metrics of ``model``, in evaluation mode.

    Args:
        recipe: Whose ``valid_data``, ``valid_loss_fn`` and ``metrics`` are used.
        model: The network; it need not be the recipe's.
        engine: How to compute the outputs; the figures are computed from them in single
            precision.

    Returns:
        ``"loss"``, the mean over objects, and one figure per metric.

    Raises:
        ValueError: If the validation data yields no batch.
    """
    with preserved_rng():  # A loader draws from it, and training must not notice.
        return _evaluated(recipe, model, engine)


def _evaluated(recipe: Recipe, model: nn.Module, engine: Engine) -> dict[str, float]:
    model.eval()
    device = device_of(model)
    loss_fn = recipe.valid_loss_fn or recipe.loss_fn
    losses: list[Tensor] = []
    lengths: list[int] = []
    outputs: list[Tensor] = []
    targets: list[Tensor] = []
    for batch in evaluation_batches(recipe.valid_data, device):
        if recipe.train_step is not None:
            with engine.autocast(device):
                loss = recipe.train_step(model, batch, loss_fn)
        else:
            *inputs, target = batch
            output = outputs_of(model, inputs, device, engine)
            loss = loss_fn(output, target)
            if recipe.metrics:
                outputs.append(output)
                targets.append(target)
        losses.append(_scalar(recipe, loss))
        lengths.append(batch_length(batch))
    if not losses:
        raise ValueError("`valid_data` must yield at least one batch, got none.")
    # Read in the end: reading one by one would wait for the device at every batch.
    total = sum(map(operator.mul, torch.stack(losses).tolist(), lengths))
    values = {"loss": total / sum(lengths)}
    if outputs:
        all_outputs, all_targets = torch.cat(outputs), torch.cat(targets)
        values |= {k: float(f(all_outputs, all_targets)) for k, f in recipe.metrics.items()}
    return values


def outputs_of(
    model: nn.Module, inputs: Sequence[Any], device: torch.device, engine: Engine
) -> Any:
    """What a network answers, in single precision however it was computed.

    Args:
        model: The network.
        inputs: Those of a batch, without its target.
        device: Where both are.
        engine: How to compute.
    """
    with engine.autocast(device):
        output = model(*inputs)
    is_low = engine.precision is not None and isinstance(output, Tensor)
    return output.float() if is_low else output


def _scalar(recipe: Recipe, loss: Any) -> Tensor:
    """A loss of validation, which may also be a number."""
    value: Tensor = torch.as_tensor(loss)
    if value.numel() != 1:
        own = recipe.valid_loss_fn not in (None, recipe.loss_fn)
        raise _not_scalar("valid_loss_fn" if own else "loss_fn", value)
    return value.reshape(())


def move(recipe: Recipe, device: torch.device, engine: Engine = DEFAULT_ENGINE) -> Recipe:
    """Move the network, what the optimizer holds, the losses, and data that are tensors.

    Args:
        recipe: The recipe; changed in place and returned.
        device: Where to.
        engine: Says how weights are laid out.
    """
    recipe.model.to(device)
    if recipe.optimizer is not None:
        follow(recipe.optimizer, device)
    if engine.channels_last:
        recipe.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for loss_fn in (recipe.loss_fn, recipe.valid_loss_fn):
        if isinstance(loss_fn, nn.Module):
            loss_fn.to(device)
    # Once for the whole job, instead of once in every epoch.
    recipe.train_data = tensors_to(recipe.train_data, device)
    recipe.valid_data = tensors_to(recipe.valid_data, device)
    return recipe


def batches_of(recipe: Recipe) -> Iterable[Any]:
    """The recipe's training batches, where its network is."""
    assert recipe.batch_size is not None
    normalizes = any(isinstance(m, _BatchNorm) for m in recipe.model.modules())
    return training_batches(
        recipe.train_data,
        recipe.batch_size,
        device_of(recipe.model),
        skip_single=normalizes,
    )


def batch_loss(recipe: Recipe, model: nn.Module, batch: Any, loss_fn: LossFn) -> Tensor:
    """The loss of one batch, by the recipe's ``train_step`` where it has one."""
    if recipe.train_step is not None:
        return recipe.train_step(model, batch, loss_fn)
    *inputs, target = batch
    return loss_fn(model(*inputs), target)


def rate_setter(optimizer: torch.optim.Optimizer) -> Callable[[float], None]:
    """A function that sets the learning rates, in multiples of what they are now."""
    groups = optimizer.param_groups
    rates = [group["lr"] for group in groups]

    def set_rate(factor: float) -> None:
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate * factor

    return set_rate


def is_failed(result: EpochResult) -> bool:
    """Whether an epoch ended in a value that cannot be compared."""
    return not math.isfinite(result.score)


def check_loss(recipe: Recipe, loss: Any) -> None:
    """Refuse what cannot be trained on, with a message that says why.

    Args:
        recipe: The recipe whose loss it is.
        loss: What ``loss_fn`` or ``train_step`` returned for a batch.

    Raises:
        TypeError: If it is not a tensor.
        ValueError: If it is not a scalar, or has no gradient.
    """
    name = "loss_fn" if recipe.train_step is None else "train_step"
    if not isinstance(loss, Tensor):
        raise TypeError(
            f"`{name}` must return a tensor, got {type(loss).__qualname__}: compute the loss with "
            "torch operations, so that it has a gradient, and return it alone."
        )
    if loss.ndim > 0:
        raise _not_scalar(name, loss)
    if not loss.requires_grad:
        raise ValueError(
            "The loss does not depend on the model's parameters (it has no gradient): compute "
            "it from the model's output, without `detach()` or `no_grad()`."
        )


def _not_scalar(name: str, loss: Tensor) -> ValueError:
    return ValueError(
        f"`{name}` must return a scalar, got a tensor of shape {tuple(loss.shape)}: use "
        '`reduction="mean"`, or take the mean.'
    )
