"""What is checked before anything is written to the study."""

from __future__ import annotations

import math

import optuna
from optuna.distributions import check_distribution_compatibility
from optuna.study import StudyDirection
from torch import Tensor, nn

from optuna_miha._checkpoint import averaged
from optuna_miha._job import Context
from optuna_miha._mutation import Distributions
from optuna_miha._recipe import Recipe, device_of
from optuna_miha._rng import preserved_rng, seed_all
from optuna_miha._trainer import batch_loss, batches_of, check_loss, evaluate

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


def settle_direction(recipe: Recipe, direction: str | None) -> str:
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


def check_training(recipe: Recipe, context: Context) -> None:
    """Compute one training loss and one validation, without taking a step.

    Args:
        recipe: The initial recipe, which is used up.
        context: The run's; with a trainer of the user's own there is nothing to check.

    Raises:
        TypeError: If the loss is not a tensor.
        ValueError: If it is not a scalar, or the monitored value is not a number.
    """
    if context.trainer is not None:
        return
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
            check_loss(loss)
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


def _check_shapes(output: Tensor, target: Tensor) -> None:
    if output.shape != target.shape:
        raise ValueError(
            f"The loss compares element by element, but the output is of shape "
            f"{tuple(output.shape)} and the target of {tuple(target.shape)}: reshape the "
            "targets, for instance by `targets[:, None]`."
        )
