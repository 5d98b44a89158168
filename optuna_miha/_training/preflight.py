"""What is checked before anything is written to the study."""

from __future__ import annotations

import inspect
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

from optuna_miha._model.recipe import LossFn, Recipe, device_of
from optuna_miha._model.rng import preserved_rng, seed_all
from optuna_miha._search.mutation import Distributions
from optuna_miha._training.data import evaluation_batches
from optuna_miha._training.job import Context
from optuna_miha._training.state import averaged, capture
from optuna_miha._training.trainer import batch_loss, batches_of, check_loss, evaluate, outputs_of

_ELEMENTWISE = (nn.HuberLoss, nn.L1Loss, nn.MSELoss, nn.SmoothL1Loss)
_SENSES = {"loss": StudyDirection.MINIMIZE, "accuracy": StudyDirection.MAXIMIZE}


def check_direction(study: optuna.Study, recipe: Recipe) -> None:
    """Refuse a study that would look for the worst.

    Raises:
        ValueError: If the study's direction is against the sense of what is monitored.
    """
    sense = _SENSES.get(recipe.monitor)
    if sense is not None and study.direction != sense:
        raise ValueError(
            f"The study must {sense.name.lower()} the monitored {recipe.monitor!r}, got "
            f'direction="{study.direction.name.lower()}": create it with '
            f'`direction="{sense.name.lower()}"`, or monitor something else.'
        )


def resolve_direction(recipe: Recipe, direction: str | None) -> str:
    """The direction of what a recipe monitors, where there is no study to say it.

    Args:
        recipe: The recipe.
        direction: What the user says; :obj:`None`: nothing.

    Returns:
        ``"minimize"`` or ``"maximize"``.

    Raises:
        ValueError: If it is neither, not known, or against the sense of what is monitored.
    """
    sense = _SENSES.get(recipe.monitor)
    known = None if sense is None else sense.name.lower()
    if direction not in (None, "minimize", "maximize"):
        raise ValueError(f'`direction` must be "minimize" or "maximize", got {direction!r}.')
    if known is None and direction is None:
        raise ValueError(
            "`direction` must be given for a metric of your own, got None for the monitored "
            f'{recipe.monitor!r}: pass "minimize" or "maximize".'
        )
    if known is not None and direction not in (None, known):
        raise ValueError(
            f'`direction` must be "{known}" for the monitored {recipe.monitor!r}, got '
            f"{direction!r}: leave it out."
        )
    return str(direction or known)


def check_distributions(study: optuna.Study, distributions: Distributions) -> None:
    """Refuse a study whose trials have parameters of the same names but of another kind.

    Optuna would, at the first trial of the run.

    Args:
        study: The study, which may hold trials of something else.
        distributions: Those of the initial configuration, by name.

    Raises:
        ValueError: If a parameter cannot be both.
    """
    for trial in study.get_trials(deepcopy=False):
        for name in trial.distributions.keys() & distributions.keys():
            theirs, ours = trial.distributions[name], distributions[name]
            try:
                check_distribution_compatibility(theirs, ours)
            except ValueError as error:
                raise ValueError(
                    f"The parameter {name!r} must be of one kind in all trials of a study, got "
                    f"{ours}, but trial {trial.number} of {study.study_name!r} has {theirs}: "
                    "start a study of another name, or suggest the same."
                ) from error


def check_fresh(first: Recipe, second: Recipe) -> None:
    """Refuse a ``model_fn`` that returns the same network twice.

    Raises:
        ValueError: If the two recipes share parameters.
    """
    held = {id(parameter) for parameter in first.model.parameters()}
    if any(id(parameter) in held for parameter in second.model.parameters()):
        raise ValueError(
            "`model_fn` must build a new network at every call, got the same parameters twice: "
            "build it inside of `model_fn`, or return `copy.deepcopy(model)` of one that is "
            "trained already."
        )


def check_valid_loss(first: Recipe, second: Recipe, context: Context) -> None:
    """Refuse a validation loss that depends on the network itself.

    All branches are validated by the loss of one recipe, which knows no network but its own. So
    the losses of two recipes must agree about the outputs of a network that is neither's: that of
    the second, with other weights.

    Args:
        first: A recipe of the initial configuration; its weights stay as they are.
        second: Another one, which is used up.
        context: The run's; a trainer of the user's own validates as it likes.

    Raises:
        ValueError: If they do not agree.
    """
    losses = [recipe.valid_loss_fn or recipe.loss_fn for recipe in (first, second)]
    is_own = context.trainer is not None or second.train_step is not None
    if is_own or losses[0] is losses[1]:
        return
    with preserved_rng(), torch.no_grad():
        seed_all(context.seed)
        device = device_of(context.on_device(second).model)
        first.model.eval()  # A loss may add something in training alone.
        with _on(device, first.model, losses[0]), _other_weights(second.model):
            try:
                batch = _outputs(second, context)
                expected, again = (_seeded(losses[1], batch, context.seed) for _ in range(2))
            except Exception:
                return  # Whatever it is, `check_training` meets it too, and says so.
            if not _agree(expected, again):
                return  # It differs by itself, as by a count of its calls.
            error = None
            try:
                is_alike = _agree(expected, _seeded(losses[0], batch, context.seed))
            except Exception as caught:  # It misses what a forward pass leaves in the network.
                is_alike, error = False, caught
    if not is_alike:
        raise ValueError(
            "The validation loss must depend on outputs and targets alone, since one serves all "
            "branches, got one that depends on the network itself: add what does in a "
            "`train_step=lambda model, batch, loss_fn: ...`, or give a `valid_loss_fn` without it."
        ) from error


def check_training(recipe: Recipe, context: Context) -> None:
    """Compute one training loss and one validation, without taking a step.

    Args:
        recipe: The initial recipe, which is used up.
        context: The run's; with a trainer of the user's own only the state is checked.

    Raises:
        TypeError: If the loss is not a tensor, or the state could not be read back.
        ValueError: If it is not a scalar, the monitored value is not a number, or the optimizer
            needs more than its gradients.
    """
    if context.trainer is None:
        _check_optimizer(recipe)
        _check_losses(recipe, context)
    _check_state(recipe)  # With what forward passes leave in it.


def _check_losses(recipe: Recipe, context: Context) -> None:
    with preserved_rng():
        seed_all(context.seed)
        context.on_device(recipe)
        averaged(recipe.model, context.ema_decay)
        recipe.model.train()
        for batch in batches_of(recipe):
            if recipe.train_step is None and isinstance(recipe.loss_fn, _ELEMENTWISE):
                *inputs, target = batch
                _check_shapes(recipe.model(*inputs), target)
            with context.engine.autocast(device_of(recipe.model)):
                loss = batch_loss(recipe, recipe.model, batch, recipe.loss_fn)
            check_loss(recipe, loss)
            break
        else:
            raise ValueError(
                "`train_data` must yield at least one batch, got none: lower the batch size "
                f"({recipe.batch_size}), or set `drop_last=False`."
            )
        value = evaluate(recipe, recipe.model, context.engine)[recipe.monitor]
    if math.isnan(value):
        raise ValueError(
            f"The monitored {recipe.monitor!r} of the untrained network is NaN: check the "
            "validation data for NaN values, and the loss for targets that it does not expect."
        )


@contextmanager
def _on(device: torch.device, model: nn.Module, loss_fn: LossFn) -> Iterator[None]:
    """Move a network and its loss to a device for a while."""
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
def _other_weights(model: nn.Module) -> Iterator[None]:
    """Change all weights of a network somewhat for a while."""
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
    """The outputs and targets of a validation batch."""
    recipe.model.eval()
    device = device_of(recipe.model)
    *inputs, target = next(iter(evaluation_batches(recipe.valid_data, device)))
    return outputs_of(recipe.model, inputs, device, context.engine), target


def _seeded(loss_fn: LossFn, batch: tuple[Any, Any], seed: int) -> Tensor:
    seed_all(seed)
    return torch.as_tensor(loss_fn(*batch)).cpu().double()


def _agree(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, equal_nan=True)


def _check_state(recipe: Recipe) -> None:
    """Write a checkpoint to memory and read it: it would be a pity to fail after all epochs."""
    file = io.BytesIO()
    with preserved_rng():
        recipe.model.state_dict()  # Errors of the user's own code are told as they are.
        try:
            torch.save(capture(recipe, None, 0), file)
            file.seek(0)
            torch.load(file, map_location="cpu", weights_only=True)
        except (pickle.PickleError, AttributeError, TypeError) as error:
            named = re.search(r"GLOBAL (\S+)", str(error))
            raise TypeError(
                "The state of the network, `get_extra_state` included, must consist of tensors, "
                "numbers, strings, and lists, tuples and dictionaries of them, so that a "
                f"checkpoint can be read without running code, got {named[1] if named else error}"
                ": convert it, for instance by `torch.as_tensor`, `float` or `list`."
            ) from error


def _check_optimizer(recipe: Recipe) -> None:
    assert recipe.optimizer is not None
    needed = [
        name
        for name, parameter in inspect.signature(recipe.optimizer.step).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    if needed:
        raise ValueError(
            "The built-in trainer takes steps by `optimizer.step()`, but that of "
            f"{type(recipe.optimizer).__name__} needs `{needed[0]}`: use another optimizer, or "
            "pass a trainer of your own to `optimize`."
        )


def _check_shapes(output: Tensor, target: Tensor) -> None:
    if output.shape != target.shape:
        raise ValueError(
            f"The loss compares element by element, but the output is of shape "
            f"{tuple(output.shape)} and the target of {tuple(target.shape)}: reshape the "
            "targets, for instance by `targets[:, None]`."
        )
