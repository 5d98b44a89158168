"""Checks before anything is written to the study."""

from __future__ import annotations

from collections.abc import Mapping

import optuna
from optuna.distributions import (
    BaseDistribution,
    IntDistribution,
    check_distribution_compatibility,
)
from optuna.study import StudyDirection

from optuna_miha._model.recipe import Recipe
from optuna_miha._search.mutation_rules import Distributions
from optuna_miha._training.data import n_batches_of
from optuna_miha._training.trainer import batches_of

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


def resolve_direction(
    recipe: Recipe, direction: str | None, *, custom_trainer: bool = False
) -> str:
    """Return the direction of the monitored value, without a study.

    Args:
        recipe: The recipe.
        direction: The direction that the user passed, if any.
        custom_trainer: Whether the value is that of a user-defined trainer, which may have any
            direction. The default is still that of the monitored value.

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
    if known is not None and direction not in (None, known) and not custom_trainer:
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


def check_accumulate(recipe: Recipe, distributions: Mapping[str, BaseDistribution]) -> None:
    """Refuse an accumulation over more batches than an epoch has.

    Args:
        recipe: The initial recipe; the state of its data does not change.
        distributions: The distributions of its parameters.

    Raises:
        ValueError: If ``accumulate``, or its suggested upper bound, is larger.
    """
    most, what = recipe.accumulate, "`accumulate`"
    distribution = distributions.get("accumulate")
    if isinstance(distribution, IntDistribution) and distribution.high > most:
        most, what = distribution.high, "The upper bound of the suggested `accumulate`"
    if most == 1 or recipe.steps_per_epoch is not None:
        return
    n_batches = n_batches_of(batches_of(recipe))
    if n_batches is not None and most > n_batches:
        raise ValueError(
            f"{what} must be at most the number of batches of an epoch, which is {n_batches}, got "
            f"{most}: lower it or the batch size ({recipe.batch_size}), or make an epoch longer "
            "by `steps_per_epoch`."
        )
