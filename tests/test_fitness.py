"""Scores of curves: what is rewarded, and what counts as failed."""

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
def test_a_curve_without_epochs_is_failed(fitness: object) -> None:
    assert math.isnan(fitness(curve()))  # type: ignore[operator]


def test_the_last_value_is_what_counts_by_default() -> None:
    assert last_value(curve(9.0, 0.5)) == -0.5
    assert last_value(curve(0.1, -0.5)) == 0.5
    assert math.isnan(last_value(curve(1.0, NAN)))


def test_slope_is_the_fall_per_epoch() -> None:
    assert slope(curve(3.0, 2.0, 1.0)) == pytest.approx(1.0)
    assert slope(curve(1.0, 2.0, 3.0)) == pytest.approx(-1.0)


def test_slope_counts_the_parents_cost_at_birth() -> None:
    assert slope(curve(2.0, birth=10, birth_cost=5.0)) == pytest.approx(3.0)
    assert math.isnan(slope(curve(2.0)))


@given(COSTS, st.integers(0, 1000), st.floats(0.01, 100))
def test_slope_does_not_depend_on_the_age_of_the_lineage(
    costs: tuple[float, ...], birth: int, birth_cost: float
) -> None:
    young = slope(curve(*costs, birth_cost=birth_cost))
    old = slope(curve(*costs, birth=birth, birth_cost=birth_cost))
    assert old == pytest.approx(young, rel=1e-6, abs=1e-6)


def test_slope_passes_over_a_parent_without_a_finite_cost() -> None:
    assert slope(curve(3.0, 1.0, birth_cost=math.inf)) == pytest.approx(2.0)


def test_classic_is_the_published_formula() -> None:
    assert classic(curve(5.0, 4.0, 2.0)) == (5.0 - 2.0) - 2.0
    assert classic(curve(2.0)) == -2.0
    assert math.isnan(classic(curve(5.0, NAN)))


def test_classic_rewards_a_bad_start() -> None:
    good, bad = curve(1.0, 0.5), curve(9.0, 0.6)
    assert classic(bad) > classic(good)
    assert last_value(bad) < last_value(good)


def test_power_law_prefers_who_still_learns_to_who_leads() -> None:
    leads = curve(0.50, 0.50, 0.50, 0.50)
    learns = curve(2.40, 1.20, 0.80, 0.60)
    assert last_value(leads) > last_value(learns)
    assert power_law(learns) > power_law(leads)


def test_power_law_continues_an_exact_power_law() -> None:
    halving = tuple(8.0 / epoch for epoch in range(1, 7))
    nearly, half_way = curve(*halving), curve(*(8.0 / 24 for _ in range(6)))
    # A cost of 8 / 6 falling as 1 / epoch is at 8 / 24 at four times the age.
    assert power_law(nearly) == pytest.approx(power_law(half_way))


def test_power_law_does_not_continue_a_rise() -> None:
    assert power_law(curve(0.1, 0.2, 0.5)) == pytest.approx(power_law(curve(0.5)))
    assert power_law(curve(-0.5, -0.4, -0.1)) == pytest.approx(power_law(curve(-0.1)))


def test_power_law_does_not_continue_a_plunge_faster_than_one_over_the_age() -> None:
    plunge = curve(1e6, 1e3, 1.0)
    one_over_age = curve(3.0, 1.5, 1.0)
    assert power_law(plunge) == pytest.approx(power_law(one_over_age))


def test_power_law_of_costs_that_are_not_positive_continues_the_costs() -> None:
    # An accuracy of 0.5, 0.6, 0.7, 0.8, negated, is judged by its last half.
    rising = curve(-0.5, -0.6, -0.7, -0.8)
    trend = 0.1 / math.log(4 / 3)
    assert power_law(rising) == pytest.approx(0.8 + trend * math.log(4))
    assert power_law(rising) > power_law(curve(-0.8, -0.8, -0.8, -0.8))
    assert power_law(curve(0.0)) == 0.0


def test_power_law_ranks_a_network_that_diverged_as_failed() -> None:
    for last in (NAN, math.inf, -math.inf):
        assert math.isnan(power_law(curve(1.0, 0.5, last)))


def test_power_law_passes_over_a_gap() -> None:
    assert power_law(curve(4.0, NAN, 1.0)) == pytest.approx(power_law(curve(4.0, math.inf, 1.0)))
    assert math.isfinite(power_law(curve(4.0, NAN, 1.0)))


@given(COSTS, st.floats(1.01, 10))
def test_power_law_prefers_the_lower_of_two_parallel_curves(
    costs: tuple[float, ...], factor: float
) -> None:
    assert power_law(curve(*costs)) > power_law(curve(*(factor * c for c in costs)))


@given(COSTS)
def test_power_law_expects_no_more_than_a_fall_by_the_factor(costs: tuple[float, ...]) -> None:
    constant = power_law(curve(costs[-1]))
    quarter = power_law(curve(costs[-1] / 4))
    assert constant - 1e-9 <= power_law(curve(*costs)) <= quarter + 1e-9


def test_power_law_ranks_a_negative_cost_above_a_positive_one() -> None:
    assert power_law(curve(-1.0, -1.0, -1.0)) > power_law(curve(0.01, 0.01, 0.01))


def test_slope_of_a_network_that_diverged_is_nan() -> None:
    assert math.isnan(slope(curve(2.0, 1.0, NAN, birth_cost=3.0)))


def test_the_slope_of_fewer_than_two_points_is_nan() -> None:
    assert math.isnan(least_squares_slope([]))
    assert math.isnan(least_squares_slope([(1.0, 2.0)]))
    assert least_squares_slope([(0.0, 1.0), (2.0, 5.0)]) == 2.0


@pytest.mark.parametrize("number", [torch.tensor(0.5), np.float32(0.5), np.array([0.5])[0]])
def test_numbers_of_an_epoch_are_kept_as_floats(number: Any) -> None:
    result = EpochResult(value=number, train_loss=number, metrics={"f1": number}, ema_value=number)
    numbers = [result.value, result.train_loss, *result.metrics.values(), result.ema_value]
    assert [(type(n), n) for n in numbers] == [(float, 0.5)] * 4


@pytest.mark.parametrize("wrong", [None, torch.ones(2), "low", 1j])
@pytest.mark.parametrize("name", ["value", "train_loss", "metrics"])
def test_what_is_not_a_number_is_refused_with_its_name(name: str, wrong: Any) -> None:
    given = {"value": 1.0, name: {"f1": wrong} if name == "metrics" else wrong}
    message = "The metric 'f1'" if name == "metrics" else f"`{name}` of an EpochResult"
    with pytest.raises(TypeError, match=f"{message} must be a number, got .*: give a float"):
        EpochResult(**given)


def test_an_epochs_score_is_the_averaged_weights_value_where_there_is_one() -> None:
    assert EpochResult(value=0.5).score == 0.5
    assert EpochResult(value=0.5, ema_value=0.4).score == 0.4
