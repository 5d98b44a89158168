"""Parameters that an outer study chooses, such as the architecture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from optuna_miha._search.space import contains


def fixed(trial: optuna.trial.BaseTrial, params: Mapping[str, Any]) -> Any:
    """Return a trial that suggests fixed values for some parameters.

    The number and width of layers cannot mutate, because branches inherit weights. Search them in
    an outer study, with a call of :func:`optimize` for each candidate::

        def objective(outer):
            params = {"width": outer.suggest_int("width", 8, 64)}
            study = optuna.create_study(sampler=miha.MihaSampler(seed=0))
            result = miha.optimize(study, lambda trial: model_fn(miha.fixed(trial, params)))
            return result.value

    Args:
        trial: The trial that ``model_fn`` gets. It suggests all other parameters, and is the one
            that the study stores.
        params: The fixed values by name.

    Returns:
        The trial for ``model_fn``. Its suggestions of the fixed parameters are not stored.

    Raises:
        ValueError: When a fixed value is suggested from a distribution that does not contain it.
    """
    return _FixedTrial(trial, params)


class _FixedTrial:
    """A trial that answers some suggestions itself."""

    def __init__(self, trial: optuna.trial.BaseTrial, params: Mapping[str, Any]) -> None:
        self._trial = trial
        self._fixed = dict(params)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trial, name)

    @property
    def params(self) -> dict[str, Any]:
        """The parameters, with the fixed ones."""
        return {**self._fixed, **self._trial.params}

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """See :meth:`optuna.trial.Trial.suggest_float`."""
        distribution = FloatDistribution(low, high, log=log, step=step)
        return float(
            self._value(
                name,
                distribution,
                lambda: self._trial.suggest_float(name, low, high, step=step, log=log),
            )
        )

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        """See :meth:`optuna.trial.Trial.suggest_int`."""
        distribution = IntDistribution(low, high, log=log, step=step)
        return int(
            self._value(
                name,
                distribution,
                lambda: self._trial.suggest_int(name, low, high, step=step, log=log),
            )
        )

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """See :meth:`optuna.trial.Trial.suggest_categorical`."""
        distribution = CategoricalDistribution(choices)
        return self._value(
            name, distribution, lambda: self._trial.suggest_categorical(name, choices)
        )

    def _value(self, name: str, distribution: BaseDistribution, suggest: Callable[[], Any]) -> Any:
        if name not in self._fixed:
            return suggest()
        value = self._fixed[name]
        if not contains(distribution, value):
            raise ValueError(
                f"The fixed value of {name!r} must lie in {distribution}, got {value!r}: suggest "
                "it from the same distribution in the outer study."
            )
        return value
