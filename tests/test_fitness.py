"""Fitness functions and the results of epochs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optuna_miha._history.curve import Curve, EpochResult
from optuna_miha.fitness import classic, last_value, least_squares_slope, power_law, slope

NAN = math.nan
COSTS = st.lists(st.floats(0.01, 100), min_size=1, max_size=8).map(tuple)


def curve(*costs: float, birth: int = 0, birth_cost: float = NAN) -> Curve:
    return Curve(costs=costs, birth=birth, birth_cost=birth_cost)


@pytest.mark.parametrize("fitness", [last_value, slope, classic, power_law])
def test_the_fitness_of_a_curve_without_epochs_is_nan(fitness: object) -> None:
    assert math.isnan(fitness(curve()))  # type: ignore[operator]


def test_last_value_is_the_negative_last_cost() -> None:
    assert last_value(curve(9.0, 0.5)) == -0.5
    assert last_value(curve(0.1, -0.5)) == 0.5
    assert math.isnan(last_value(curve(1.0, NAN)))


def test_slope_is_the_decrease_per_epoch() -> None:
    assert slope(curve(3.0, 2.0, 1.0)) == pytest.approx(1.0)
    assert slope(curve(1.0, 2.0, 3.0)) == pytest.approx(-1.0)


def test_slope_includes_the_parents_cost_at_birth() -> None:
    assert slope(curve(2.0, birth=10, birth_cost=5.0)) == pytest.approx(3.0)
    assert math.isnan(slope(curve(2.0)))


@given(COSTS, st.integers(0, 1000), st.floats(0.01, 100))
def test_slope_does_not_depend_on_the_age_of_the_lineage(
    costs: tuple[float, ...], birth: int, birth_cost: float
) -> None:
    young = slope(curve(*costs, birth_cost=birth_cost))
    old = slope(curve(*costs, birth=birth, birth_cost=birth_cost))
    assert old == pytest.approx(young, rel=1e-6, abs=1e-6)


def test_slope_ignores_a_parents_cost_that_is_not_finite() -> None:
    assert slope(curve(3.0, 1.0, birth_cost=math.inf)) == pytest.approx(2.0)


def test_classic_is_the_published_formula() -> None:
    assert classic(curve(5.0, 4.0, 2.0)) == (5.0 - 2.0) - 2.0
    assert classic(curve(2.0)) == -2.0
    assert math.isnan(classic(curve(5.0, NAN)))


def test_classic_rewards_a_high_initial_cost() -> None:
    good, bad = curve(1.0, 0.5), curve(9.0, 0.6)
    assert classic(bad) > classic(good)
    assert last_value(bad) < last_value(good)


def test_power_law_prefers_a_falling_cost_to_a_lower_constant_one() -> None:
    stalled = curve(0.50, 0.50, 0.50, 0.50)
    learning = curve(2.40, 1.20, 0.80, 0.60)
    assert last_value(stalled) > last_value(learning)
    assert power_law(learning) > power_law(stalled)


def test_power_law_extrapolates_an_exact_power_law() -> None:
    falling = curve(*(8.0 / epoch for epoch in range(1, 7)))
    predicted = curve(*(8.0 / 24 for _ in range(6)))
    # A cost that is 8 / epoch in epoch 6 is 8 / 24 at four times the age.
    assert power_law(falling) == pytest.approx(power_law(predicted))


def test_power_law_does_not_extrapolate_a_rising_cost() -> None:
    assert power_law(curve(0.1, 0.2, 0.5)) == pytest.approx(power_law(curve(0.5)))
    assert power_law(curve(-0.5, -0.4, -0.1)) == pytest.approx(power_law(curve(-0.1)))


def test_power_law_extrapolates_a_steep_fall_as_one_over_the_age() -> None:
    steep = curve(1e6, 1e3, 1.0)
    one_over_age = curve(3.0, 1.5, 1.0)
    assert power_law(steep) == pytest.approx(power_law(one_over_age))


def test_power_law_extrapolates_non_positive_costs_themselves() -> None:
    # Negated accuracies of 0.5, 0.6, 0.7, 0.8. The slope is that of the last half.
    rising = curve(-0.5, -0.6, -0.7, -0.8)
    trend = 0.1 / math.log(4 / 3)
    assert power_law(rising) == pytest.approx(0.8 + trend * math.log(4))
    assert power_law(rising) > power_law(curve(-0.8, -0.8, -0.8, -0.8))
    assert power_law(curve(0.0)) == 0.0


def test_power_law_of_a_diverged_network_is_nan() -> None:
    for last in (NAN, math.inf, -math.inf):
        assert math.isnan(power_law(curve(1.0, 0.5, last)))


def test_power_law_ignores_costs_that_are_not_finite() -> None:
    assert power_law(curve(4.0, NAN, 1.0)) == pytest.approx(power_law(curve(4.0, math.inf, 1.0)))
    assert math.isfinite(power_law(curve(4.0, NAN, 1.0)))


@given(COSTS, st.floats(1.01, 10))
def test_power_law_prefers_the_lower_of_two_parallel_curves(
    costs: tuple[float, ...], factor: float
) -> None:
    assert power_law(curve(*costs)) > power_law(curve(*(factor * c for c in costs)))


@given(COSTS)
def test_power_law_predicts_at_most_a_fall_by_the_factor(costs: tuple[float, ...]) -> None:
    constant = power_law(curve(costs[-1]))
    quarter = power_law(curve(costs[-1] / 4))
    assert constant - 1e-9 <= power_law(curve(*costs)) <= quarter + 1e-9


def test_power_law_ranks_a_negative_cost_above_a_positive_one() -> None:
    assert power_law(curve(-1.0, -1.0, -1.0)) > power_law(curve(0.01, 0.01, 0.01))


def test_slope_of_a_diverged_network_is_nan() -> None:
    assert math.isnan(slope(curve(2.0, 1.0, NAN, birth_cost=3.0)))


def test_the_least_squares_slope_of_fewer_than_two_points_is_nan() -> None:
    assert math.isnan(least_squares_slope([]))
    assert math.isnan(least_squares_slope([(1.0, 2.0)]))
    assert least_squares_slope([(0.0, 1.0), (2.0, 5.0)]) == 2.0


@pytest.mark.parametrize("number", [torch.tensor(0.5), np.float32(0.5), np.array([0.5])[0]])
def test_numbers_of_an_epoch_are_stored_as_floats(number: Any) -> None:
    result = EpochResult(value=number, train_loss=number, metrics={"f1": number}, ema_value=number)
    numbers = [result.value, result.train_loss, *result.metrics.values(), result.ema_value]
    assert [(type(n), n) for n in numbers] == [(float, 0.5)] * 4


@pytest.mark.parametrize("invalid", [None, torch.ones(2), "low", 1j])
@pytest.mark.parametrize("name", ["value", "train_loss", "metrics"])
def test_an_invalid_number_raises_an_error_with_its_name(name: str, invalid: Any) -> None:
    arguments = {"value": 1.0, name: {"f1": invalid} if name == "metrics" else invalid}
    message = "The metric 'f1'" if name == "metrics" else f"`{name}` of an EpochResult"
    with pytest.raises(TypeError, match=f"{message} must be a number, got .*: give a float"):
        EpochResult(**arguments)


def test_the_score_of_an_epoch_is_the_value_of_the_averaged_weights_if_there_is_one() -> None:
    assert EpochResult(value=0.5).score == 0.5
    assert EpochResult(value=0.5, ema_value=0.4).score == 0.4
