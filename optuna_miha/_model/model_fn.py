"""Call the user's ``model_fn``, and find the initial configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial
from torch import nn

from optuna_miha._history.scalars import as_python
from optuna_miha._history.schedule import RESERVED_COLUMNS
from optuna_miha._model.activations import find_activations, is_chain
from optuna_miha._model.losses import with_label_smoothing
from optuna_miha._model.optimizers import make_optimizer
from optuna_miha._model.recipe import Recipe, takes_batch_size
from optuna_miha._model.recipe_checks import NO_DATA
from optuna_miha._model.rng import preserved_rng, seed_all
from optuna_miha._model.sparse_gradients import (
    check_sparse_space,
    sparse_weights,
    use_plain_kernels,
)
from optuna_miha._model.suggest import (
    find_dropouts,
    suggest_batch_size,
    suggest_dropout_at,
    suggest_label_smoothing,
)
from optuna_miha._model.suggest_activations import suggest_activations_at
from optuna_miha._model.suggest_optimizer import suggest_around, suggest_lr, suggest_optimizer
from optuna_miha._model.suggestions import Suggestions, collected_suggestions
from optuna_miha._model.trace import modules_that_take_values
from optuna_miha._model.verbosity import warnings_only
from optuna_miha._search.space import DEFAULT_LR, check_choices, contains, value_or_initial

ModelFn: TypeAlias = Callable[[Any], Recipe]


@dataclass(frozen=True)
class Initial:
    """The initial configuration: the user's own settings, before any mutation.

    Args:
        recipe: The recipe built from it.
        params: Its hyperparameters.
        distributions: The distributions of the hyperparameters, by name.
    """

    recipe: Recipe
    params: dict[str, Any]
    distributions: dict[str, BaseDistribution]


def build_recipe(model_fn: ModelFn, trial: optuna.trial.BaseTrial, seed: int) -> Recipe:
    """Call ``model_fn`` with seeded random generators, and complete the recipe.

    The default search space is suggested if ``model_fn`` suggests nothing, and a recipe without
    an optimizer gets Adam. The initial weights depend on the seed, not on the suggested values.
    The global random generators are restored afterwards.

    Args:
        model_fn: The user's function.
        trial: The trial passed to ``model_fn``.
        seed: The seed of all global random generators during the call.

    Raises:
        TypeError: If ``model_fn`` does not return a recipe.
        ValueError: If an optimizer does not take the sparse gradients of the network, or has a
            scheduler although the default search space applies, or if a categorical choice would
            be changed by a storage.
    """
    with collected_suggestions() as suggestions:
        with preserved_rng():
            seed_all(seed)
            recipe = model_fn(trial)
        return _completed(recipe, trial, suggestions)


def _completed(recipe: Any, trial: optuna.trial.BaseTrial, suggestions: Suggestions) -> Recipe:
    """Check and complete what ``model_fn`` returned; see :func:`build_recipe`."""
    if not isinstance(recipe, Recipe):
        raise TypeError(
            f"`model_fn` must return an optuna_miha.Recipe, got {recipe!r}: end it with "
            "`return Recipe(model=..., loss_fn=..., train_data=..., valid_data=...)`."
        )
    recipe.__post_init__()  # Checks what `model_fn` has assigned since.
    check_sparse_space(recipe.model, recipe.optimizer, trial.distributions)
    if not trial.params:
        _suggest_default_space(trial, recipe)
    elif recipe.optimizer is not None and "optimizer" in trial.distributions:
        use_plain_kernels(recipe.model, recipe.optimizer)
    if isinstance(trial, optuna.Trial):  # A new one: the choices of others were checked.
        check_choices(trial.distributions)
    if recipe.optimizer is None:
        recipe.has_default_optimizer = True
        recipe.optimizer = make_optimizer(
            "adam",
            recipe.model.parameters(),
            lr=DEFAULT_LR["adam"],
            weight_decay=0.0,
            momentum=0.0,
        )
    suggestions.keep(trial.params)  # The user may have fixed the others.
    recipe.suggestions = suggestions
    return recipe


def build_initial(
    model_fn: ModelFn, seed: int, overrides: Mapping[str, Any] | None = None
) -> Initial:
    """Find the initial configuration by calling ``model_fn``.

    Args:
        model_fn: The user's function.
        seed: As in :func:`build_recipe`.
        overrides: Initial values that take precedence over the declared ones.

    Raises:
        ValueError: If ``overrides`` names a parameter that ``model_fn`` does not suggest, or
            holds a value outside of its distribution; or if a parameter has the name of a
            column of a schedule; or if ``model_fn`` prunes the initial configuration.
    """
    try:
        return _build_initial(model_fn, seed, overrides)
    except optuna.TrialPruned as error:
        raise ValueError(
            f"`model_fn` must accept the initial configuration, got TrialPruned: {error}. Pass "
            "other values by `initial_params`, or declare them in the `suggest_*` functions."
        ) from error


def _build_initial(model_fn: ModelFn, seed: int, overrides: Mapping[str, Any] | None) -> Initial:
    trial = offline_trial({})
    recipe = build_recipe(model_fn, trial, seed)
    if overrides:
        overrides = {name: as_python(value) for name, value in overrides.items()}
        _check_overrides(overrides, trial)
        trial = offline_trial(overrides)
        recipe = build_recipe(model_fn, trial, seed)
        _check_overrides(overrides, trial)
        for name in overrides:
            if name not in trial.distributions:
                raise ValueError(
                    f"`initial_params` must name parameters that `model_fn` suggests, got "
                    f"{name!r}; it suggests {sorted(trial.distributions)}."
                )
    taken = sorted(trial.distributions.keys() & set(RESERVED_COLUMNS))
    if taken:
        raise ValueError(
            "A hyperparameter must not have the name of a column of the schedule "
            f"{RESERVED_COLUMNS}, got {taken[0]!r}: give it another name."
        )
    params = {name: as_python(value) for name, value in trial.params.items()}
    return Initial(recipe, params, dict(trial.distributions))


def _check_overrides(overrides: Mapping[str, Any], trial: optuna.Trial) -> None:
    """Check the values of the parameters that the trial has suggested.

    The others may be suggested only for some values of these.
    """
    for name, value in overrides.items():
        distribution = trial.distributions.get(name)
        if distribution is not None and not contains(distribution, value):
            raise ValueError(
                f"The initial value of {name!r} must lie in {distribution}, got {value!r}."
            )


def offline_trial(params: dict[str, Any]) -> optuna.Trial:
    """Create a trial of an in-memory study, to call ``model_fn`` with.

    Args:
        params: The values to suggest. Parameters that are missing here, or whose distribution
            does not contain the value, get their initial value.
    """
    with warnings_only():
        return optuna.create_study(sampler=_FixedSampler(params)).ask()


class _FixedSampler(BaseSampler):
    """Suggests given values, and initial values for all other parameters."""

    def __init__(self, params: dict[str, Any]) -> None:
        self._params = params

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        return value_or_initial(self._params, param_name, param_distribution)


def _suggest_default_space(trial: optuna.trial.BaseTrial, recipe: Recipe) -> None:
    """Suggest all hyperparameters that can be read from a recipe."""
    found, dropouts = find_activations(recipe.model), find_dropouts(recipe.model)
    if not is_chain(recipe.model, [*found, *dropouts]):
        taking = modules_that_take_values(recipe, found, dropouts)
        found = {path: name for path, name in found.items() if path in taking}
        dropouts = {path: module for path, module in dropouts.items() if path in taking}
    suggest_activations_at(trial, recipe.model, found)
    suggest_dropout_at(trial, dropouts)
    if recipe.optimizer is None:
        recipe.optimizer = suggest_optimizer(trial, recipe.model.parameters())
    elif sparse_weights(recipe.model):  # Few classes and settings take sparse gradients.
        suggest_lr(trial, recipe.optimizer)
    else:
        recipe.optimizer = suggest_around(trial, recipe.optimizer)
    assert recipe.batch_size is not None
    if recipe.train_data is not NO_DATA and takes_batch_size(recipe.train_data):
        recipe.batch_size = suggest_batch_size(trial, initial=recipe.batch_size)
    if type(recipe.loss_fn) is nn.CrossEntropyLoss:
        initial = recipe.loss_fn.label_smoothing
        smoothing = suggest_label_smoothing(trial, initial=initial)
        recipe.loss_fn = with_label_smoothing(recipe.loss_fn, smoothing)
