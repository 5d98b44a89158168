"""Checks of the losses: what they depend on, and whether they broadcast."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from optuna_miha._model.batches import split_batch
from optuna_miha._model.data_state import DataState
from optuna_miha._model.recipe import LossFn, Recipe, device_of
from optuna_miha._model.rng import preserved_rng, seed_all
from optuna_miha._model.step_output import loss_of
from optuna_miha._training.context import Context
from optuna_miha._training.data import evaluation_batches, tensors_of
from optuna_miha._training.trainer import outputs_of

_ELEMENTWISE = (nn.HuberLoss, nn.L1Loss, nn.MSELoss, nn.SmoothL1Loss)


def check_valid_loss(first: Recipe, second: Recipe, context: Context) -> None:
    """Refuse a validation loss, or a ``train_step``, that depends on a network of its own.

    All branches are validated with the loss and the ``train_step`` of one recipe. Therefore,
    those of two recipes must agree on a different network: that of the second recipe with
    perturbed weights.

    Args:
        first: A recipe of the initial configuration; its weights do not change.
        second: Another such recipe, not to be used afterwards.
        context: The context of the run. With a user-defined trainer, nothing is checked.

    Raises:
        ValueError: If they differ.
    """
    losses = [recipe.valid_loss_fn or recipe.loss_fn for recipe in (first, second)]
    steps = [first.train_step, second.train_step]
    own = losses if second.train_step is None else steps
    if context.trainer is not None or own[0] is own[1]:
        return
    with preserved_rng(), torch.no_grad():
        seed_all(context.seed)
        device = device_of(context.on_device(second).model)
        first.model.eval()  # A loss may have terms that it adds in training mode only.
        with _moved_to(device, first.model, losses[0]), _perturbed(second.model):
            try:
                values = _values(second, losses, steps, context)
                expected, again = values(1), values(1)
            except Exception:
                return  # `check_training` raises it too, with a better message.
            if not _agree(expected, again):
                return  # The loss changes between calls, for example with their number.
            error = None
            try:
                is_alike = _agree(expected, values(0))
            except Exception as caught:  # It needs attributes set by a forward pass.
                is_alike, error = False, caught
    if not is_alike and second.train_step is not None:
        raise ValueError(
            "`train_step` must use the model that is passed to it, because all branches are "
            "validated with that of the initial configuration, got one that depends on another "
            "network: write `train_step(model, batch, loss_fn)` as a function of its arguments."
        ) from error
    if not is_alike:
        raise ValueError(
            "The validation loss must depend on outputs and targets alone, because all branches "
            "share it, got one that depends on the network itself: compute such terms in a "
            "`train_step=lambda model, batch, loss_fn: ...`, or pass a `valid_loss_fn` without "
            "them."
        ) from error


def n_classified(recipe: Recipe, context: Context) -> int | None:
    """The number of samples whose cross-entropy is monitored.

    Args:
        recipe: The recipe of the initial configuration.
        context: The context of the run.

    Returns:
        The number; :obj:`None` if another value is monitored, or data do not consist of tensors.
    """
    if context.trainer is not None or recipe.train_step is not None or recipe.monitor != "loss":
        return None
    loss_fn, tensors = context.valid_loss_fn, tensors_of(recipe.valid_data)
    is_plain = type(loss_fn) is nn.CrossEntropyLoss and loss_fn.label_smoothing == 0
    if not is_plain or tensors is None:
        return None
    targets = tensors[-1]
    return len(targets) if targets.is_floating_point() else targets.numel()


def _values(
    recipe: Recipe, losses: list[LossFn], steps: list[Any], context: Context
) -> Callable[[int], Tensor]:
    """Return a function that computes the validation loss of a batch by either recipe's own."""
    recipe.model.eval()
    device = device_of(recipe.model)
    with DataState().watch(recipe.valid_data):
        batches = evaluation_batches(recipe.valid_data, device, recipe.valid_batch_size)
        batch = next(iter(batches))
    if recipe.train_step is not None:

        def of_step(index: int) -> Tensor:
            seed_all(context.seed)
            with context.engine.autocast(device):
                loss = loss_of(steps[index](recipe.model, batch, losses[1]))
            return torch.as_tensor(loss).cpu().double()

        return of_step
    parts = split_batch(batch)
    output = outputs_of(recipe.model, parts, device, context.engine)

    def of_loss(index: int) -> Tensor:
        seed_all(context.seed)
        return torch.as_tensor(losses[index](output, parts.target)).cpu().double()

    return of_loss


def check_broadcasting(name: str, function: Callable[..., Any], output: Any, target: Any) -> None:
    """Refuse a loss or metric that compares every output with every target.

    An output of shape ``(n, 1)`` and a target of ``(n,)`` broadcast to ``(n, n)``. Such a loss
    does not depend on which target belongs to which output, and has another value for a target of
    the output's shape.

    Args:
        name: The name of the function in the message.
        function: The loss or metric.
        output: The output of the network for a batch.
        target: Its target.

    Raises:
        ValueError: If it broadcasts.
    """
    if not (isinstance(output, Tensor) and isinstance(target, Tensor)):
        return
    if output.shape == target.shape:
        return
    if isinstance(function, _ELEMENTWISE) or _compares_all_pairs(function, output, target):
        raise ValueError(
            f"`{name}` compares elementwise and needs outputs and targets of the same shape, got "
            f"an output of shape {tuple(output.shape)} and a target of {tuple(target.shape)}: "
            "reshape the targets, for example by `targets[:, None]`."
        )


def _compares_all_pairs(function: Callable[..., Any], output: Tensor, target: Tensor) -> bool:
    try:
        pairs = torch.broadcast_shapes(output.shape, target.shape)  # type: ignore[no-untyped-call]
    except RuntimeError:
        return False
    if pairs.numel() <= max(output.numel(), target.numel()) or output.numel() != target.numel():
        return False
    # Of outputs that are all alike, as those of a network with zero weights, nothing is learned.
    with preserved_rng(), torch.no_grad():
        output = torch.rand_like(output)
        rotated = target.roll(1, 0)
        if torch.equal(rotated, target):
            return False
        try:
            value, value_rotated, value_aligned = (
                torch.as_tensor(function(output, part)).double()
                for part in (target, rotated, target.reshape(output.shape))
            )
        except Exception:
            return False  # Not a loss of outputs in [0, 1), or none that takes both shapes.
    return _agree(value, value_rotated) and not _agree(value, value_aligned)


@contextmanager
def _moved_to(device: torch.device, model: nn.Module, loss_fn: LossFn) -> Iterator[None]:
    """Move a network and its loss to a device temporarily."""
    before = device_of(model)
    modules = [part for part in (model, loss_fn) if isinstance(part, nn.Module)]
    try:
        for module in modules:
            module.to(device)
        yield
    finally:
        for module in modules:
            module.to(before)


@contextmanager
def _perturbed(model: nn.Module) -> Iterator[None]:
    """Change all weights of a network slightly and temporarily."""
    before = [parameter.clone() for parameter in model.parameters()]
    try:
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.mul_(1 + 0.1 * torch.rand_like(parameter))
        yield
    finally:
        for parameter, value in zip(model.parameters(), before, strict=True):
            parameter.copy_(value)


def _agree(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, equal_nan=True)
