"""Steps of training on throw-away networks, before anything is written to the study."""

from __future__ import annotations

import io
import math
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import optuna
import torch
from optuna.trial import FixedTrial
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from optuna_miha._model.batches import split_batch
from optuna_miha._model.data_state import DataState
from optuna_miha._model.model_fn import Initial, build_recipe, offline_trial
from optuna_miha._model.optimizer_state import optimizer_settings
from optuna_miha._model.optimizers import set_optimizer_mode
from optuna_miha._model.recipe import Recipe, device_of
from optuna_miha._model.rng import preserved_rng, seed_all
from optuna_miha._search.plan import Plan
from optuna_miha._training.batch_length import batch_length
from optuna_miha._training.changes import MAX_BUILDS, describe_value, other_values
from optuna_miha._training.context import Context
from optuna_miha._training.data import evaluation_batches
from optuna_miha._training.extra_state import ExtraState
from optuna_miha._training.grading import check_grading, check_targets
from optuna_miha._training.in_force import BatchSizeCheck, ReachCheck, check_in_force
from optuna_miha._training.loss_checks import check_broadcasting
from optuna_miha._training.loss_weights import LossWeights
from optuna_miha._training.metrics import is_object
from optuna_miha._training.modes import frozen_modules, set_training
from optuna_miha._training.optimizer_checks import check_optimizer, check_step
from optuna_miha._training.out_of_memory import is_out_of_memory
from optuna_miha._training.state import State, capture, inherit, make_ema, update_ema
from optuna_miha._training.trainer import (
    batch_loss,
    batches_of,
    check_loss,
    evaluate,
    outputs_of,
)
from optuna_miha._training.updates import Updates
from optuna_miha.exceptions import InheritanceError, MihaError, NotInForceError

_logger = optuna.logging.get_logger("optuna.miha")


def check_copyable(recipe: Recipe, context: Context) -> None:
    """Refuse a network that cannot be copied, if its weights are to be averaged.

    This must come before any forward pass: one without gradients makes networks with
    :func:`torch.nn.utils.weight_norm` copyable until the next one with gradients.

    Raises:
        TypeError: If the network cannot be copied.
    """
    _ema_of(recipe, context)


def check_training(
    recipe: Recipe, context: Context, params: Mapping[str, Any]
) -> tuple[State, float | None]:
    """Train one step, validate, and continue from a checkpoint with a step.

    Args:
        recipe: The initial recipe, not to be used afterwards.
        context: The context of the run. With a user-defined trainer, there are no steps, but the
            state is checked and inherited.
        params: The parameters of the recipe.

    Returns:
        The state after the step, and the monitored value of the untrained network, which is
        :obj:`None` with a user-defined trainer.

    Raises:
        TypeError: If the loss is not a tensor, or the state cannot be stored in a checkpoint.
        ValueError: If the loss is not a scalar, or broadcasts; if the monitored value is NaN; if
            the optimizer's ``step`` has required arguments; or if the training cannot be
            continued from the checkpoint.
    """
    check_in_force(recipe, params, custom_trainer=context.trainer is not None)
    with preserved_rng(), _watched(recipe) as data:
        seed_all(context.seed)
        context.on_device(recipe)
        assert recipe.optimizer is not None
        settings = optimizer_settings(recipe.optimizer)
        ema, value = _ema_of(recipe, context), None
        if context.trainer is None:
            check_optimizer(recipe.optimizer)
            reached = ReachCheck(recipe)
            value = _check_losses(recipe, context, params)
            reached.check()
            if ema is not None:
                update_ema(ema, recipe.model)
        # After forward passes, which may add to the state.
        with _extra_of(recipe) as extra:
            parts = {"data": data.capture()} | extra.capture()
        state = _round_trip(capture(recipe, ema, 1, settings) | parts)
    with preserved_rng():
        second = build_recipe(context.model_fn, FixedTrial(dict(params)), context.seed)
        try:
            _continue(second, context, state)
        except Exception as error:
            if isinstance(error, MihaError) or is_out_of_memory(error):
                raise
            raise ValueError(
                "Training must be able to continue from a checkpoint of its first step, got "
                f"{type(error).__name__}: {error}. Keep all that changes in training in the "
                "`state_dict` of the network, and use an optimizer that can load its state."
            ) from error
    return state, value


def check_mutations(
    context: Context,
    state: State,
    initial: Initial,
    plan: Plan,
    catch: tuple[type[BaseException], ...] = (),
) -> None:
    """Inherit a state with another value of every parameter that may mutate, and take a step.

    All these parameters change at once. If that fails, they change one by one.

    Args:
        context: The context of the run. With a user-defined trainer, there are no steps.
        state: A state of the initial configuration.
        initial: The initial configuration.
        plan: The plan, with the kinds of mutations.
        catch: Exceptions that fail a branch alone, and are ignored.

    Raises:
        InheritanceError: If the shapes of the network depend on a parameter.
        NotInForceError: If a suggested value is not in force.
        ValueError: If training or validation fails after the change of a parameter, or if a
            parameter changes the measure by which branches are compared.
    """
    changes = other_values(initial, plan)
    with preserved_rng():
        if not changes:
            return
        error = _failure(context, state, {**initial.params, **changes})
        if error is None:
            check_grading(context, initial, changes)
            check_targets(context, initial, changes)
            return
        if isinstance(error, NotInForceError):  # It names the parameter.
            raise error
        for name in list(changes)[:MAX_BUILDS]:
            error = _failure(context, state, {**initial.params, name: changes[name]})
            if error is None or isinstance(error, catch) or is_out_of_memory(error):
                continue
            change = describe_value(initial, name, changes[name])
            if isinstance(error, InheritanceError):
                raise InheritanceError(
                    f"{error} This happens when {change}. To search the architecture, choose "
                    f"{name!r} in an outer study, and train each candidate by `optimize` with "
                    f"`model_fn(miha.fixed(trial, {{{name!r}: value}}))`."
                ) from error
            raise ValueError(
                f"Training must work for all values of a parameter, but when {change}, it raises "
                f"{type(error).__name__}: {error}. Do not suggest such values, or pass "
                f"`catch=({type(error).__name__},)`, so that such branches fail alone."
            ) from error


def _check_losses(recipe: Recipe, context: Context, params: Mapping[str, Any]) -> float:
    """Compute the training loss of a batch, validate, and take a step; returns the value."""
    frozen = _frozen_modules(recipe.model)
    set_training(recipe.model, frozen)
    batch = next(iter(batches_of(recipe)), None)
    if batch is None:
        raise ValueError(
            "`train_data` must yield at least one batch, got none: lower the batch size "
            f"({recipe.batch_size}), or set `drop_last=False`."
        )
    if recipe.train_step is None:
        parts = split_batch(batch)
        outputs = outputs_of(recipe.model, parts, device_of(recipe.model), context.engine)
        check_broadcasting("loss_fn", recipe.loss_fn, outputs, parts.target)
    with context.engine.autocast(device_of(recipe.model)):
        loss = batch_loss(recipe, recipe.model, batch, recipe.loss_fn)
    check_loss(recipe, loss)
    batch_length(batch)
    BatchSizeCheck(recipe, params).add(batch)
    value = evaluate(recipe, recipe.model, context.engine)[recipe.monitor]
    if math.isnan(value):
        raise ValueError(
            f"The monitored {recipe.monitor!r} of the untrained network is NaN: check the "
            "validation data for NaN values, and the loss for targets that it does not expect."
        )
    if recipe.train_step is None:
        _check_validation(recipe, context)
    assert recipe.optimizer is not None
    _backward(recipe, context)
    check_step(recipe.optimizer)
    return value


@torch.no_grad()
def _check_validation(recipe: Recipe, context: Context) -> None:
    """Refuse a validation loss and metrics that broadcast."""
    modes = [(module, module.training) for module in recipe.model.modules()]
    recipe.model.eval()
    device = device_of(recipe.model)
    batches = evaluation_batches(recipe.valid_data, device, recipe.valid_batch_size)
    parts = split_batch(next(iter(batches)))
    output = outputs_of(recipe.model, parts, device, context.engine)
    loss_fn = recipe.valid_loss_fn or recipe.loss_fn
    check_broadcasting("valid_loss_fn", loss_fn, output, parts.target)
    for name, metric in recipe.metrics.items():
        if not is_object(metric):
            function = cast("Callable[..., Any]", metric)
            check_broadcasting(f"metrics[{name!r}]", function, output, parts.target)
    for module, is_training in modes:
        module.training = is_training


def _step(recipe: Recipe, context: Context) -> None:
    """Take one training step."""
    assert recipe.optimizer is not None
    updates = Updates(recipe, context.engine, LossWeights(None), ExtraState())
    batch, loss = _loss(recipe, context)
    set_optimizer_mode(recipe.optimizer, training=True)
    length = batch_length(batch)
    updates.add(loss, length, length)
    updates.flush()
    set_optimizer_mode(recipe.optimizer, training=False)


def _backward(recipe: Recipe, context: Context) -> None:
    """Compute the gradients of one batch."""
    assert recipe.optimizer is not None
    _, loss = _loss(recipe, context)
    recipe.optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)


def _loss(recipe: Recipe, context: Context) -> tuple[Any, Tensor]:
    """Return a batch and its training loss."""
    set_training(recipe.model, frozen_modules(recipe.model))
    batch = next(iter(batches_of(recipe)))
    with context.engine.autocast(device_of(recipe.model)):
        return batch, batch_loss(recipe, recipe.model, batch, recipe.loss_fn)


def _continue(recipe: Recipe, context: Context, state: State) -> None:
    """Inherit a state, and take a step from it."""
    with _watched(recipe) as data:
        context.on_device(recipe)
        inherit(recipe, _ema_of(recipe, context), state)
        data.restore(state["data"])
        with _extra_of(recipe, state):
            pass
        if context.trainer is None:
            _step(recipe, context)


@contextmanager
def _watched(recipe: Recipe) -> Iterator[DataState]:
    """Restore the state of the data on leaving, and yield that of the training data."""
    with DataState().watch(recipe.valid_data), DataState().watch(recipe.train_data) as data:
        yield data


def _extra_of(recipe: Recipe, state: State | None = None) -> ExtraState:
    """Register the extra state of a recipe, which inherits that of ``state``."""
    extra = ExtraState()
    extra.inherit(state or {})
    for name, part in recipe.extra_state.items():
        extra.register(name, part)
    return extra


def _failure(context: Context, state: State, params: dict[str, Any]) -> Exception | None:
    """Return the exception of a step with other parameters; :obj:`None` if there is none.

    Those of ``model_fn`` are ignored: it may refuse a combination of values.
    """
    try:
        trial = offline_trial(params)
        recipe = build_recipe(context.model_fn, trial, context.seed)
    except Exception:
        return None
    try:
        check_in_force(recipe, trial.params, custom_trainer=context.trainer is not None)
        if context.trainer is not None:
            _continue(recipe, context, state)
            return None
        reached = ReachCheck(recipe)
        _continue(recipe, context, state)
        evaluate(recipe, recipe.model, context.engine)
        reached.check()
    except Exception as error:
        return error
    return None


def _ema_of(recipe: Recipe, context: Context) -> AveragedModel | None:
    return make_ema(recipe.model, 0.0 if context.trainer is not None else context.ema_decay)


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


def _round_trip(state: State) -> State:
    """Write a checkpoint to memory and read it, rather than fail after the first segment."""
    file = io.BytesIO()
    try:
        torch.save(state, file)
        file.seek(0)
        loaded: State = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.PickleError, AttributeError, TypeError) as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        raise TypeError(
            "The state of the network, including `get_extra_state`, and of the optimizer must "
            "consist of tensors, numbers, strings, and lists, tuples and dictionaries of "
            "them, so that a checkpoint can be read without running code, got "
            f"{named[1] if named else error}: convert it, for example with `torch.as_tensor`, "
            "`float` or `list`, or use another optimizer."
        ) from error
    return loaded
