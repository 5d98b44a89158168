"""Checks before anything is written to the study."""

from __future__ import annotations

import io
import math
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import optuna
import torch
from optuna.distributions import check_distribution_compatibility
from optuna.study import StudyDirection
from torch import Tensor, nn

from optuna_miha._model.optimizer_state import Settings, optimizer_settings
from optuna_miha._model.recipe import LossFn, Recipe, device_of
from optuna_miha._model.rng import preserved_rng, seed_all
from optuna_miha._search.mutation import Distributions
from optuna_miha._training.batch_length import batch_length
from optuna_miha._training.data import evaluation_batches
from optuna_miha._training.data_state import DataState, check_data_state
from optuna_miha._training.job import Context
from optuna_miha._training.optimizer_checks import check_optimizer, check_step
from optuna_miha._training.state import capture, make_ema
from optuna_miha._training.trainer import (
    batch_loss,
    batches_of,
    check_loss,
    evaluate,
    frozen_modules,
    outputs_of,
    set_training,
)

_logger = optuna.logging.get_logger("optuna.miha")

_ELEMENTWISE = (nn.HuberLoss, nn.L1Loss, nn.MSELoss, nn.SmoothL1Loss)
_DIRECTIONS = {"loss": StudyDirection.MINIMIZE, "accuracy": StudyDirection.MAXIMIZE}


def check_direction(study: optuna.Study, recipe: Recipe) -> None:
    """Refuse a study whose direction does not match the monitored value.

    Raises:
        ValueError: If the study maximizes the loss or minimizes the accuracy.
    """
    expected = _DIRECTIONS.get(recipe.monitor)
    if expected is not None and study.direction != expected:
        raise ValueError(
            f"The study must {expected.name.lower()} the monitored {recipe.monitor!r}, got "
            f'direction="{study.direction.name.lower()}": create it with '
            f'`direction="{expected.name.lower()}"`, or monitor another value.'
        )


def resolve_direction(recipe: Recipe, direction: str | None) -> str:
    """Return the direction of the monitored value, without a study.

    Args:
        recipe: The recipe.
        direction: The direction that the user passed, if any.

    Returns:
        ``"minimize"`` or ``"maximize"``.

    Raises:
        ValueError: If ``direction`` is invalid, is missing for a user-defined metric, or does
            not match the monitored value.
    """
    expected = _DIRECTIONS.get(recipe.monitor)
    known = None if expected is None else expected.name.lower()
    if direction not in (None, "minimize", "maximize"):
        raise ValueError(f'`direction` must be "minimize" or "maximize", got {direction!r}.')
    if known is None and direction is None:
        raise ValueError(
            "`direction` must be given for a user-defined metric, got None for the monitored "
            f'{recipe.monitor!r}: pass "minimize" or "maximize".'
        )
    if known is not None and direction not in (None, known):
        raise ValueError(
            f'`direction` must be "{known}" for the monitored {recipe.monitor!r}, got '
            f"{direction!r}: leave it out."
        )
    return str(direction or known)


def check_distributions(study: optuna.Study, distributions: Distributions) -> None:
    """Refuse a study whose trials have incompatible distributions of the same parameters.

    Optuna would raise an error in the first trial of the run.

    Args:
        study: The study, which may hold trials of another problem.
        distributions: The distributions of the initial configuration, by name.

    Raises:
        ValueError: If two distributions of a parameter are incompatible.
    """
    for trial in study.get_trials(deepcopy=False):
        for name in trial.distributions.keys() & distributions.keys():
            existing, new = trial.distributions[name], distributions[name]
            try:
                check_distribution_compatibility(existing, new)
            except ValueError as error:
                raise ValueError(
                    f"The parameter {name!r} must be of one kind in all trials of a study, got "
                    f"{new}, but trial {trial.number} of {study.study_name!r} has {existing}: "
                    "use a study with another name, or suggest the same distribution."
                ) from error


def check_fresh(first: Recipe, second: Recipe) -> None:
    """Refuse a ``model_fn`` that returns the same network twice.

    Raises:
        ValueError: If the two recipes share parameters.
    """
    first_params = {id(parameter) for parameter in first.model.parameters()}
    if any(id(parameter) in first_params for parameter in second.model.parameters()):
        raise ValueError(
            "`model_fn` must build a new network at every call, got the same parameters twice: "
            "build it inside of `model_fn`, or use `copy.deepcopy(model)` of a pretrained one."
        )


def check_valid_loss(first: Recipe, second: Recipe, context: Context) -> None:
    """Refuse a validation loss that depends on the network itself.

    All branches are validated with the loss of one recipe, which refers to no network but its
    own. Therefore, the losses of two recipes must agree on the outputs of a different network:
    that of the second recipe with perturbed weights.

    Args:
        first: A recipe of the initial configuration; its weights do not change.
        second: Another such recipe, not to be used afterwards.
        context: The context of the run. With a user-defined trainer, nothing is checked.

    Raises:
        ValueError: If the losses differ.
    """
    losses = [recipe.valid_loss_fn or recipe.loss_fn for recipe in (first, second)]
    is_custom = context.trainer is not None or second.train_step is not None
    if is_custom or losses[0] is losses[1]:
        return
    with preserved_rng(), torch.no_grad():
        seed_all(context.seed)
        device = device_of(context.on_device(second).model)
        first.model.eval()  # A loss may have terms that it adds in training mode only.
        with _moved_to(device, first.model, losses[0]), _perturbed(second.model):
            try:
                batch = _outputs(second, context)
                expected, again = (_seeded_loss(losses[1], batch, context.seed) for _ in range(2))
            except Exception:
                return  # `check_training` raises it too, with a better message.
            if not _agree(expected, again):
                return  # The loss changes between calls, for example with their number.
            error = None
            try:
                is_alike = _agree(expected, _seeded_loss(losses[0], batch, context.seed))
            except Exception as caught:  # It needs attributes set by a forward pass.
                is_alike, error = False, caught
    if not is_alike:
        raise ValueError(
            "The validation loss must depend on outputs and targets alone, because all branches "
            "share it, got one that depends on the network itself: compute such terms in a "
            "`train_step=lambda model, batch, loss_fn: ...`, or pass a `valid_loss_fn` without "
            "them."
        ) from error


def check_training(recipe: Recipe, context: Context) -> None:
    """Take one training step, validate once, and store the state in memory.

    Args:
        recipe: The initial recipe, not to be used afterwards.
        context: The context of the run. With a user-defined trainer, only the state is checked.

    Raises:
        TypeError: If the loss is not a tensor, or the state of network or data cannot be stored
            in a checkpoint.
        ValueError: If the loss is not a scalar, the monitored value is NaN, or the optimizer
            cannot be used by the built-in trainer or inherited.
    """
    assert recipe.optimizer is not None
    settings = optimizer_settings(recipe.optimizer)
    check_data_state(recipe.train_data)
    if context.trainer is None:
        check_optimizer(recipe.optimizer)
        _check_losses(recipe, context)
    _check_state(recipe, settings)  # After a training step, which may add to the state.


def _check_losses(recipe: Recipe, context: Context) -> None:
    with preserved_rng(), DataState().watch(recipe.train_data):
        seed_all(context.seed)
        context.on_device(recipe)
        make_ema(recipe.model, context.ema_decay)  # The network must be copyable.
        set_training(recipe.model, _frozen_modules(recipe.model))
        for batch in batches_of(recipe):
            if recipe.train_step is None and isinstance(recipe.loss_fn, _ELEMENTWISE):
                *inputs, target = batch
                _check_shapes(recipe.model(*inputs), target)
            with context.engine.autocast(device_of(recipe.model)):
                loss = batch_loss(recipe, recipe.model, batch, recipe.loss_fn)
            check_loss(recipe, loss)
            batch_length(batch)
            torch.autograd.backward(loss)
            break
        else:
            raise ValueError(
                "`train_data` must yield at least one batch, got none: lower the batch size "
                f"({recipe.batch_size}), or set `drop_last=False`."
            )
        value = evaluate(recipe, recipe.model, context.engine)[recipe.monitor]
        assert recipe.optimizer is not None
        check_step(recipe.optimizer)
    if math.isnan(value):
        raise ValueError(
            f"The monitored {recipe.monitor!r} of the untrained network is NaN: check the "
            "validation data for NaN values, and the loss for targets that it does not expect."
        )


def _frozen_modules(model: nn.Module) -> list[nn.Module]:
    """Log which modules are trained in evaluation mode, because `model_fn` put them into it."""
    frozen = frozen_modules(model)
    if frozen:
        names = [name for name, module in model.named_modules() if not module.training]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        _logger.info(
            f"Modules that stay in evaluation mode, as `model_fn` left them: "
            f"{', '.join(names[:3])}{more}."
        )
    return frozen


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


def _outputs(recipe: Recipe, context: Context) -> tuple[Any, Any]:
    """Compute the outputs of a validation batch, and return them with its targets."""
    recipe.model.eval()
    device = device_of(recipe.model)
    *inputs, target = next(iter(evaluation_batches(recipe.valid_data, device)))
    return outputs_of(recipe.model, inputs, device, context.engine), target


def _seeded_loss(loss_fn: LossFn, batch: tuple[Any, Any], seed: int) -> Tensor:
    seed_all(seed)
    return torch.as_tensor(loss_fn(*batch)).cpu().double()


def _agree(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, equal_nan=True)


def _check_state(recipe: Recipe, settings: Settings) -> None:
    """Write a checkpoint to memory and read it, rather than fail after the first segment."""
    file = io.BytesIO()
    with preserved_rng():
        recipe.model.state_dict()  # Errors of the user's code are raised unchanged.
        try:
            torch.save(capture(recipe, None, 0, settings), file)
            file.seek(0)
            torch.load(file, map_location="cpu", weights_only=True)
        except (pickle.PickleError, AttributeError, TypeError) as error:
            named = re.search(r"GLOBAL (\S+)", str(error))
            raise TypeError(
                "The state of the network, including `get_extra_state`, and of the optimizer must "
                "consist of tensors, numbers, strings, and lists, tuples and dictionaries of "
                "them, so that a checkpoint can be read without running code, got "
                f"{named[1] if named else error}: convert it, for example with `torch.as_tensor`, "
                "`float` or `list`, or use another optimizer."
            ) from error


def _check_shapes(output: Tensor, target: Tensor) -> None:
    """Refuse an elementwise loss that would broadcast outputs and targets."""
    if output.shape != target.shape:
        raise ValueError(
            "The loss compares elementwise and needs outputs and targets of the same shape, got "
            f"an output of shape {tuple(output.shape)} and a target of {tuple(target.shape)}: "
            "reshape the targets, for example by `targets[:, None]`."
        )
