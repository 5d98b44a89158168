"""The epoch loop: training, and evaluation on the validation data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from optuna_miha._history.curve import EpochResult
from optuna_miha._model.data_state import DataState
from optuna_miha._model.optimizer_state import move_optimizer_state
from optuna_miha._model.optimizers import set_optimizer_mode
from optuna_miha._model.recipe import LossFn, Recipe, device_of
from optuna_miha._model.rng import preserved_rng
from optuna_miha._training.batch_length import batch_length
from optuna_miha._training.compute import DEFAULT_ENGINE, Engine
from optuna_miha._training.data import (
    evaluation_batches,
    move_data,
    tensors_of,
    training_batches,
)
from optuna_miha._training.loss_weights import LossWeights
from optuna_miha._training.modes import frozen_modules, set_training


class Trainer(Protocol):
    """The interface of a user-defined training loop.

    It trains ``recipe.model`` in place for ``n_epochs`` epochs and yields one
    :class:`~optuna_miha.EpochResult` after each. The caller reports and prunes, anneals the
    learning rate of ``recipe.optimizer`` during its steps, and makes the checkpoints, which hold
    the state of ``recipe.model``, ``recipe.optimizer``, of the samplers and generators of
    ``recipe.train_data``, and of the global random generators. A segment may call the trainer
    several times, each time with the state that the previous call left.

    A trainer with a third parameter, named ``context``, also gets a
    :class:`~optuna_miha.TrainerContext`: the trial, and a way to register further state.
    """

    def __call__(self, recipe: Recipe, n_epochs: int) -> Iterator[EpochResult]:
        """Train for ``n_epochs`` epochs, and yield the result of each."""
        ...


def train(
    recipe: Recipe,
    n_epochs: int,
    *,
    engine: Engine = DEFAULT_ENGINE,
    on_batch: Callable[[Any], None] | None = None,
) -> Iterator[EpochResult]:
    """Train on mini-batches, and validate after every epoch: the built-in trainer.

    Args:
        recipe: The recipe, with an optimizer. Batches are moved to the device of the model.
        n_epochs: Epochs to train.
        engine: The compute settings.
        on_batch: Called with every batch before the network is trained on it.

    Yields:
        The result of each epoch.

    Raises:
        TypeError: If the loss is not a tensor.
        ValueError: If the loss is not a scalar or does not depend on the parameters, or if the
            training data yield no batch.
    """
    assert recipe.optimizer is not None
    device = device_of(recipe.model)
    batches = batches_of(recipe)
    weights = LossWeights(None if recipe.train_step is not None else recipe.loss_fn)
    tensors = tensors_of(recipe.train_data)
    if tensors is not None:
        weights.without_ignored(tensors[-1])
    frozen = frozen_modules(recipe.model)
    for _ in range(n_epochs):
        set_training(recipe.model, frozen)
        set_optimizer_mode(recipe.optimizer, training=True)
        total, is_first = torch.zeros((), device=device), True
        divisor: float | Tensor = 0.0
        for batch in batches:
            if on_batch is not None:
                on_batch(batch)
            with engine.autocast(device):
                loss = batch_loss(recipe, recipe.model, batch, recipe.loss_fn)
            if is_first:
                check_loss(recipe, loss)
            recipe.optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            recipe.optimizer.step()
            weight = weights.weight(_target_of(recipe, batch), batch_length(batch))
            # Sum on the device: reading the loss here would synchronize at every step.
            total += weights.weighted(loss.detach(), weight)
            divisor += weight
            is_first = False
        if is_first:
            raise ValueError(
                "`train_data` must yield at least one batch per epoch, got none: lower the "
                f"batch size ({recipe.batch_size}), or set `drop_last=False`."
            )
        set_optimizer_mode(recipe.optimizer, training=False)
        values = evaluate(recipe, recipe.model, engine)
        yield EpochResult(
            value=values[recipe.monitor],
            train_loss=float(total) / (1.0 if weights.is_sum else float(divisor)),
            metrics={k: v for k, v in values.items() if k != recipe.monitor},
        )


@torch.no_grad()
def evaluate(
    recipe: Recipe, model: nn.Module, engine: Engine = DEFAULT_ENGINE
) -> dict[str, float]:
    """Compute the validation loss and metrics of ``model``, in evaluation mode.

    The mode of each module is restored afterwards.

    Args:
        recipe: Provides ``valid_data``, ``valid_loss_fn`` and ``metrics``.
        model: The network; it need not be that of the recipe.
        engine: The compute settings for the outputs; loss and metrics are computed in single
            precision.

    Returns:
        ``"loss"``, that of all samples, and the value of each metric.

    Raises:
        ValueError: If the validation data yield no batch.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        # A loader may draw random numbers, which must not affect training.
        with preserved_rng(), DataState().watch(recipe.valid_data):
            return _evaluate(recipe, model, engine)
    finally:
        for module, is_training in modes:
            module.training = is_training


def _evaluate(recipe: Recipe, model: nn.Module, engine: Engine) -> dict[str, float]:
    model.eval()
    device = device_of(model)
    loss_fn = recipe.valid_loss_fn or recipe.loss_fn
    losses: list[Tensor] = []
    weights = LossWeights(None if recipe.train_step is not None else loss_fn)
    factors: list[float | Tensor] = []
    outputs: list[Tensor] = []
    targets: list[Tensor] = []
    step = recipe.valid_step or recipe.train_step
    for batch in evaluation_batches(recipe.valid_data, device):
        if step is not None:
            with engine.autocast(device):
                loss = step(model, batch, loss_fn)
        else:
            *inputs, target = batch
            output = outputs_of(model, inputs, device, engine)
            loss = loss_fn(output, target)
            if recipe.metrics:
                outputs.append(output)
                targets.append(target)
        losses.append(_as_scalar(recipe, loss))
        factors.append(weights.weight(_target_of(recipe, batch), batch_length(batch)))
    if not losses:
        raise ValueError("`valid_data` must yield at least one batch, got none.")
    values = {"loss": weights.combine(losses, factors)}
    if outputs:
        all_outputs, all_targets = torch.cat(outputs), torch.cat(targets)
        values |= {k: float(f(all_outputs, all_targets)) for k, f in recipe.metrics.items()}
    return values


def _target_of(recipe: Recipe, batch: Any) -> Any:
    """The targets of a batch; :obj:`None` if only the ``train_step`` knows them."""
    return None if recipe.train_step is not None else batch[-1]


def outputs_of(
    model: nn.Module, inputs: Sequence[Any], device: torch.device, engine: Engine
) -> Any:
    """Compute the outputs of a network, and convert low precision to single precision.

    Args:
        model: The network.
        inputs: The inputs of a batch, without the target.
        device: The device of both.
        engine: The compute settings.
    """
    with engine.autocast(device):
        output = model(*inputs)
    is_low = engine.precision is not None and isinstance(output, Tensor)
    return output.float() if is_low else output


def _as_scalar(recipe: Recipe, loss: Any) -> Tensor:
    """Convert a validation loss, which may be a number, to a tensor without dimensions."""
    value: Tensor = torch.as_tensor(loss)
    if value.numel() != 1:
        is_separate = recipe.valid_loss_fn not in (None, recipe.loss_fn)
        raise _not_scalar("valid_loss_fn" if is_separate else "loss_fn", value)
    return value.reshape(())


def move(recipe: Recipe, device: torch.device, engine: Engine = DEFAULT_ENGINE) -> Recipe:
    """Move the network, the optimizer's state, losses, extra modules and tensor data to a device.

    Args:
        recipe: The recipe, changed in place and returned.
        device: The device.
        engine: The compute settings, with the memory layout of the weights.
    """
    recipe.model.to(device)
    if recipe.optimizer is not None:
        move_optimizer_state(recipe.optimizer, device)
    if engine.channels_last:
        recipe.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for part in (recipe.loss_fn, recipe.valid_loss_fn, *recipe.extra_state.values()):
        if isinstance(part, nn.Module):
            part.to(device)
    # Move data once per job instead of once per epoch.
    recipe.train_data = move_data(recipe.train_data, device)
    recipe.valid_data = move_data(recipe.valid_data, device)
    return recipe


def batches_of(recipe: Recipe) -> Iterable[Any]:
    """Create the training batches of a recipe, on the device of its network."""
    assert recipe.batch_size is not None
    normalizes = any(isinstance(m, _BatchNorm) for m in recipe.model.modules())
    return training_batches(
        recipe.train_data,
        recipe.batch_size,
        device_of(recipe.model),
        skip_single=normalizes,
    )


def batch_loss(recipe: Recipe, model: nn.Module, batch: Any, loss_fn: LossFn) -> Tensor:
    """Compute the loss of a batch, by the recipe's ``train_step`` if it has one."""
    if recipe.train_step is not None:
        return recipe.train_step(model, batch, loss_fn)
    *inputs, target = batch
    return loss_fn(model(*inputs), target)


def is_failed(result: EpochResult) -> bool:
    """Whether the value of an epoch is not finite, so that it cannot be compared."""
    return not math.isfinite(result.score)


def check_loss(recipe: Recipe, loss: Any) -> None:
    """Refuse a training loss that cannot be minimized.

    Args:
        recipe: The recipe of the loss.
        loss: The result of ``loss_fn`` or ``train_step`` for a batch.

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
            "The loss must depend on the model's parameters, got one that has no gradient: "
            "compute it from the model's output, without `detach()` or `no_grad()`."
        )


def _not_scalar(name: str, loss: Tensor) -> ValueError:
    return ValueError(
        f"`{name}` must return a scalar, got a tensor of shape {tuple(loss.shape)}: use "
        '`reduction="mean"`, or compute the mean.'
    )
