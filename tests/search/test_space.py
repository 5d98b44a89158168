"""Initial values, kinds, and valid values of distributions."""

from __future__ import annotations

import math
from typing import Any

import optuna
import pytest
from helpers.segments import FULL_SPACE, distributions, is_valid, values_of
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from optuna_miha._search.space import (
    DEFAULT_LR,
    OFFERED_OPTIMIZERS,
    contains,
    declare_initial,
    fit,
    initial_value,
    kind_of,
    kinds,
    other_choices,
)


@given(distributions())
def test_an_initial_value_is_valid(distribution: BaseDistribution) -> None:
    assert is_valid(distribution, initial_value("x", distribution))


@pytest.mark.parametrize(
    ("distribution", "middle"),
    [
        (FloatDistribution(0.0, 1.0), 0.5),
        (FloatDistribution(1e-4, 1e-2, log=True), 1e-3),
        (FloatDistribution(0.0, 0.8, step=0.4), 0.4),
        (IntDistribution(1, 100, log=True), 10),
        (IntDistribution(0, 10, step=2), 4),
        (CategoricalDistribution(("b", "a")), "b"),
    ],
)
def test_the_default_initial_value_is_the_middle(
    distribution: BaseDistribution, middle: Any
) -> None:
    assert initial_value("x", distribution) == pytest.approx(middle)


def test_a_declared_value_is_the_initial_value_of_its_parameter() -> None:
    distribution = FloatDistribution(0.0, 1.0)
    with declare_initial("x", 0.9):
        assert initial_value("x", distribution) == 0.9
        assert initial_value("y", distribution) == 0.5
    assert initial_value("x", distribution) == 0.5


def test_a_declaration_ends_when_its_context_raises() -> None:
    with pytest.raises(RuntimeError), declare_initial("x", 0.9):
        raise RuntimeError
    assert initial_value("x", FloatDistribution(0.0, 1.0)) == 0.5


def test_an_invalid_declared_value_is_ignored() -> None:
    with declare_initial("x", 7.0):
        assert initial_value("x", FloatDistribution(0.0, 1.0)) == 0.5
    with declare_initial("x", "z"):
        assert initial_value("x", CategoricalDistribution(("a", "b"))) == "a"


@given(st.data(), distributions())
def test_every_valid_value_is_contained(
    data: st.DataObject, distribution: BaseDistribution
) -> None:
    assert contains(distribution, data.draw(values_of(distribution)))


@pytest.mark.parametrize(
    ("distribution", "value"),
    [
        (FloatDistribution(0, 1), 1.5),
        (FloatDistribution(0, 1), -0.5),
        (FloatDistribution(0, 1), math.nan),
        (FloatDistribution(0, 1), "0.5"),
        (FloatDistribution(0, 1), None),
        (FloatDistribution(0, 1), True),
        (IntDistribution(0, 3), 4),
        (IntDistribution(0, 3), 2.5),
        (CategoricalDistribution((0, 1)), True),
        (CategoricalDistribution((0, 1)), 1.0),
        (CategoricalDistribution(("a",)), "b"),
    ],
)
def test_an_invalid_value_is_not_contained(distribution: BaseDistribution, value: Any) -> None:
    assert not contains(distribution, value)


@pytest.mark.parametrize(
    ("distribution", "value"),
    [
        (IntDistribution(0, 10, step=2), 3),
        (FloatDistribution(0.0, 1.0, step=0.5), 0.3),
    ],
)
def test_a_value_off_the_grid_is_not_contained(distribution: BaseDistribution, value: Any) -> None:
    assert not contains(distribution, value)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_integer_distribution_does_not_contain_infinity_and_nan(value: float) -> None:
    assert not contains(IntDistribution(0, 3), value)


NUMERIC = distributions().filter(lambda d: not isinstance(d, CategoricalDistribution))


@given(NUMERIC, st.floats(-1e6, 1e6))
def test_a_fitted_value_is_valid(distribution: Any, value: float) -> None:
    assert is_valid(distribution, fit(distribution, value))


@given(st.data(), NUMERIC)
def test_fitting_does_not_change_a_valid_value(data: st.DataObject, distribution: Any) -> None:
    value = data.draw(values_of(distribution))
    assert fit(distribution, value) == pytest.approx(value)


@given(st.data(), NUMERIC, st.floats(-1e4, 1e4))
def test_no_valid_value_is_nearer_than_the_fitted_one(
    data: st.DataObject, distribution: Any, value: float
) -> None:
    other = data.draw(values_of(distribution))
    assert abs(fit(distribution, value) - value) <= abs(other - value) * (1 + 1e-9) + 1e-6


def test_the_kind_is_the_name_before_the_first_dot() -> None:
    assert kind_of("activation.encoder.1") == "activation"
    assert kind_of("lr") == "lr"


def test_kinds_group_variable_parameters_in_alphabetical_order() -> None:
    fixed = {"only": CategoricalDistribution(("a",)), "point": FloatDistribution(1.0, 1.0)}
    shuffled = dict(reversed([*FULL_SPACE.items(), *fixed.items()]))
    groups = kinds(shuffled)
    assert list(groups) == sorted({kind_of(name) for name in FULL_SPACE})
    assert groups["activation"] == ["activation.1", "activation.3", "activation.5"]
    assert sum(map(len, groups.values())) == len(FULL_SPACE)


def test_other_choices_are_all_choices_except_the_present_one() -> None:
    assert other_choices(CategoricalDistribution(("a", "b", "c")), "b") == ["a", "c"]


def test_every_offered_optimizer_has_a_default_learning_rate() -> None:
    assert set(OFFERED_OPTIMIZERS) <= DEFAULT_LR.keys()


def test_a_declaration_does_not_affect_other_threads() -> None:
    seen = []

    def objective(trial: optuna.Trial) -> float:
        seen.append(initial_value("x", FloatDistribution(0.0, 1.0)))
        return 0.0

    with declare_initial("x", 0.9):
        optuna.create_study().optimize(objective, n_trials=2, n_jobs=2)
    assert seen == [0.5, 0.5]
