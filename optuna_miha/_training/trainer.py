"""The epoch loop: training, and evaluation on the validation data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from optuna_miha._history.curve import EpochResult
from optuna_miha._model.batches import Parts, split_batch
from optuna_miha._model.data_state import DataState
from optuna_miha._model.optimizer_state import move_optimizer_state
from optuna_miha._model.optimizers import set_optimizer_mode
from optuna_miha._model.recipe import LossFn, Recipe, device_of
from optuna_miha._model.rng import preserved_rng
from optuna_miha._model.step_output import StepOutput, loss_of, step_output
from optuna_miha._training.batch_length import batch_length
from optuna_miha._training.batch_stream import Batches, batch_stream, next_batches
from optuna_miha._training.compute import DEFAULT_ENGINE, Engine
from optuna_miha._training.data import (
    evaluation_batches,
    move_data,
    n_batches_of,
    tensors_of,
    training_batches,
)
from optuna_miha._training.extra_state import ExtraState
from optuna_miha._training.loss_weights import LossWeights
from optuna_miha._training.metrics import Metrics, as_single_precision
from optuna_miha._training.modes import frozen_modules, set_training
from optuna_miha._training.rate_course import make_course
from optuna_miha._training.updates import Updates


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
    extra: ExtraState | None = None,
    share: tuple[float, float] = (0.0, 1.0),
    validated: Callable[[], nn.Module] | None = None,
) -> Iterator[EpochResult]:
    """Train on mini-batches, and validate after every epoch: the built-in trainer.

    Args:
        recipe: The recipe, with an optimizer. Batches are moved to the device of the model.
        n_epochs: Epochs to train.
        engine: The compute settings.
        on_batch: Called with every batch before the network is trained on it.
        extra:
            The extra state of the segment, to which the state of the recipe's scheduler and of
            the scaler of half precision belong.
        share: The fractions of the run at the beginning and at the end of these epochs.
        validated: Called at the end of each epoch for the network to validate; :obj:`None`: that
            of the recipe.

    Yields:
        The result of each epoch.

    Raises:
        TypeError: If the loss is not a tensor.
        ValueError: If the loss is not a scalar or does not depend on the parameters, or if the
            training data yield no batch.
    """
    assert recipe.optimizer is not None
    extra = ExtraState() if extra is None else extra
    device = device_of(recipe.model)
    batches = batches_of(recipe)
    weights = LossWeights(None if recipe.train_step is not None else recipe.loss_fn)
    tensors = tensors_of(recipe.train_data)
    if tensors is not None:
        weights.without_ignored(tensors[-1])
    updates = Updates(recipe, engine, weights, extra)
    stream = batch_stream(recipe, batches, extra)
    course = make_course(recipe, n_epochs, steps_of_epoch(recipe, batches), extra, share)
    frozen = frozen_modules(recipe.model)
    for _ in range(n_epochs):
        if course is not None:
            course.begin_epoch()
        set_training(recipe.model, frozen)
        set_optimizer_mode(recipe.optimizer, training=True)
        total, is_first = torch.zeros((), device=device), True
        divisor: float | Tensor = 0.0
        for batch in batches if stream is None else next_batches(recipe, stream):
            if on_batch is not None:
                on_batch(batch)
            with engine.autocast(device):
                loss = batch_loss(recipe, recipe.model, batch, recipe.loss_fn)
            if is_first:
                check_loss(recipe, loss)
            length = batch_length(batch)
            weight = weights.weight(_target_of(recipe, batch), length)
            updates.add(loss, weight, length)
            # Sum on the device: reading the loss here would synchronize at every step.
            total += weights.weighted(loss.detach(), weight)
            divisor += weight
            is_first = False
        if is_first:
            raise ValueError(
                "`train_data` must yield at least one batch per epoch, got none: lower the "
                f"batch size ({recipe.batch_size}), or set `drop_last=False`."
            )
        updates.flush()
        set_optimizer_mode(recipe.optimizer, training=False)
        model = recipe.model if validated is None else validated()
        values = evaluate(recipe, model, engine)
        updates.end_epoch(values[recipe.monitor])
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
    metrics = Metrics(recipe.metrics, device)
    step = recipe.valid_step or recipe.train_step
    for batch in evaluation_batches(recipe.valid_data, device, recipe.valid_batch_size):
        if step is not None:
            with engine.autocast(device):
                result = step(model, batch, loss_fn)
            loss = loss_of(result)
            if recipe.metrics:
                found = _with_outputs(recipe, result)
                metrics.add(as_single_precision(found.outputs), found.targets)
        else:
            parts = split_batch(batch)
            output = outputs_of(model, parts, device, engine)
            loss = loss_fn(output, parts.target)
            metrics.add(output, parts.target)
        losses.append(_as_scalar(recipe, loss))
        factors.append(weights.weight(_target_of(recipe, batch), batch_length(batch)))
    if not losses:
        raise ValueError("`valid_data` must yield at least one batch, got none.")
    values = {"loss": weights.combine(losses, factors)}
    return values | metrics.compute() if recipe.metrics else values


def _with_outputs(recipe: Recipe, result: Any) -> StepOutput:
    found = step_output(result)
    if found is None:
        raise ValueError(
            f"The metric {next(iter(recipe.metrics))!r} needs outputs and targets, but "
            f"`train_step` returns a {type(result).__qualname__}: end it with `return "
            "StepOutput(loss, outputs, targets)`, or leave the metrics out."
        )
    return found


def _target_of(recipe: Recipe, batch: Any) -> Any:
    """The targets of a batch; :obj:`None` if only the ``train_step`` knows them."""
    if recipe.train_step is not None:
        return None
    return batch[-1] if isinstance(batch, (tuple, list)) else split_batch(batch).target


def outputs_of(model: nn.Module, parts: Parts, device: torch.device, engine: Engine) -> Any:
    """Compute the outputs of a network, and convert low precision to single precision.

    Args:
        model: The network.
        parts: The parts of a batch.
        device: The device of both.
        engine: The compute settings.
    """
    with engine.autocast(device):
        outputs = parts.outputs(model)
    return outputs if engine.precision is None else as_single_precision(outputs)


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


def batches_of(recipe: Recipe) -> Batches:
    """Create the training batches of a recipe, on the device of its network."""
    assert recipe.batch_size is not None
    normalizes = any(isinstance(m, _BatchNorm) for m in recipe.model.modules())
    return training_batches(
        recipe.train_data,
        recipe.batch_size,
        device_of(recipe.model),
        skip_single=normalizes,
    )


def steps_of_epoch(recipe: Recipe, batches: Iterable[Any]) -> int | None:
    """Return the number of steps of the optimizer in an epoch; :obj:`None` if it is unknown."""
    if recipe.steps_per_epoch is not None:
        return recipe.steps_per_epoch
    n_batches = n_batches_of(batches)
    return None if n_batches is None else math.ceil(n_batches / recipe.accumulate)


def batch_loss(recipe: Recipe, model: nn.Module, batch: Any, loss_fn: LossFn) -> Tensor:
    """Compute the loss of a batch, by the recipe's ``train_step`` if it has one."""
    if recipe.train_step is not None:
        loss: Tensor = loss_of(recipe.train_step(model, batch, loss_fn))
        return loss
    parts = split_batch(batch)
    return loss_fn(parts.outputs(model), parts.target)


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
            "torch operations, so that it has a gradient, and return it alone, or as the loss of "
            "a `StepOutput`."
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
