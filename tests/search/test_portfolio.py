"""The configurations of the start-up race."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.segments import FULL_SPACE, START, distributions, is_valid, values_of
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from optuna_miha._search.portfolio import startup_candidates

SEEDS = st.integers(0, 2**32 - 1)


def candidates(
    initial: dict[str, Any],
    space: dict[str, BaseDistribution],
    size: int,
    seed: int = 0,
    **settings: Any,
) -> list[dict[str, Any]]:
    return startup_candidates(initial, space, size, np.random.default_rng(seed), **settings)


def count_distinct(points: list[dict[str, Any]]) -> int:
    return len({tuple(sorted((k, repr(v)) for k, v in point.items())) for point in points})


@st.composite
def spaces(draw: st.DrawFn) -> tuple[dict[str, BaseDistribution], dict[str, Any]]:
    """A part of the full space with a few other parameters, and a point of it."""
    names = draw(st.sets(st.sampled_from(sorted(FULL_SPACE))))
    space = {name: FULL_SPACE[name] for name in names}
    space |= draw(st.dictionaries(st.sampled_from("xyz"), distributions(), max_size=2))
    return space, {name: draw(values_of(d)) for name, d in space.items()}


@given(spaces(), st.integers(1, 20), SEEDS)
def test_a_race_has_the_given_size_and_starts_with_the_initial_configuration(
    space: Any, size: int, seed: int
) -> None:
    distributions_, initial = space
    race = candidates(initial, distributions_, size, seed)
    assert len(race) == size
    assert race[0] == initial


@given(spaces(), st.integers(1, 20), SEEDS)
def test_every_candidate_is_in_the_search_space(space: Any, size: int, seed: int) -> None:
    distributions_, initial = space
    for candidate in candidates(initial, distributions_, size, seed):
        assert candidate.keys() >= initial.keys()
        for name, distribution in distributions_.items():
            if name != "momentum":  # Another test checks its bounds.
                assert is_valid(distribution, candidate[name])


@given(st.integers(1, 20), SEEDS)
def test_candidates_of_a_full_space_are_pairwise_different(size: int, seed: int) -> None:
    assert count_distinct(candidates(START, FULL_SPACE, size, seed)) == size


@given(st.integers(1, 12), SEEDS)
def test_a_smaller_race_is_the_beginning_of_a_larger_one(size: int, seed: int) -> None:
    space = {"lr": FULL_SPACE["lr"], "width": FULL_SPACE["width"]}
    initial = {"lr": 1e-3, "width": 8}
    larger = candidates(initial, space, 12, seed)
    assert candidates(initial, space, size, seed) == larger[:size]


@pytest.mark.parametrize("start", ["relu", "tanh", "silu"])
def test_the_portfolio_does_not_depend_on_the_seed(start: str) -> None:
    initial = START | {"activation.1": start, "optimizer": "adadelta"}
    assert candidates(initial, FULL_SPACE, 7, 0) == candidates(initial, FULL_SPACE, 7, 1)


def test_all_entries_that_the_space_contains_are_candidates() -> None:
    initial = START | {"activation.1": "silu", "activation.3": "tanh"}
    race = candidates(initial, FULL_SPACE, 8)
    optimizers = ["adam", "sgd", "adamw", "adam", "adam", "adamw", "adam", "adam"]
    assert [c["optimizer"] for c in race] == optimizers
    sgd = race[1]
    assert (sgd["optimizer"], sgd["lr"], sgd["momentum"]) == ("sgd", 0.09, 0.9)
    assert (sgd["activation.1"], sgd["activation.3"], sgd["weight_decay"]) == (
        "gelu",
        "gelu",
        1e-3,
    )
    assert sgd["activation.5"] == "relu"  # GELU is not one of its choices.
    assert {c["lr"] for c in race} >= {1e-3, 0.09, 4e-3, 3e-3}


def test_an_optimizer_that_the_space_does_not_contain_is_not_a_candidate() -> None:
    space = FULL_SPACE | {"optimizer": CategoricalDistribution(("adam", "adadelta"))}
    race = candidates(START, space, 8)
    assert {c["optimizer"] for c in race} <= {"adam", "adadelta"}
    assert 0.09 not in {c["lr"] for c in race}  # The rate of the entry with SGD.


def test_learning_rates_are_clipped_to_their_bounds() -> None:
    space = FULL_SPACE | {"lr": FloatDistribution(1e-5, 2e-3, log=True)}
    assert max(c["lr"] for c in candidates(START, space, 5)) == 2e-3


@pytest.mark.parametrize(("initial", "raced"), [(8, 32), (128, 32), (16, 16), (64, 64), (20, 20)])
def test_an_unusual_batch_size_is_compared_with_32(initial: int, raced: int) -> None:
    space = FULL_SPACE | {"batch_size": IntDistribution(1, 512, log=True)}
    race = candidates(START | {"batch_size": initial}, space, 6)
    assert race[0]["batch_size"] == initial
    assert [c["batch_size"] for c in race[1:]] == [raced] * 5


@pytest.mark.parametrize(
    ("initial", "steps", "raced"), [(256, 32, 256), (256, 31, 32), (8, 90, 32)]
)
def test_a_large_batch_size_is_kept_if_an_epoch_has_enough_steps(
    initial: int, steps: int, raced: int
) -> None:
    space = FULL_SPACE | {"batch_size": IntDistribution(1, 512, log=True)}
    race = candidates(START | {"batch_size": initial}, space, 4, epoch_steps=steps)
    assert [c["batch_size"] for c in race[1:]] == [raced] * 3


ANNEALED_SPACE = FULL_SPACE | {
    "weight_decay": CategoricalDistribution((0.0, 1e-3, 1e-2, 0.1, 0.3)),
    "batch_size": IntDistribution(1, 512, log=True),
}


@pytest.mark.parametrize(
    ("epoch_steps", "rates", "decays"),
    [
        (32, [1e-2, 3e-2], [1e-2, 0.3]),
        (None, [1e-2, 3e-2], [1e-2, 0.3]),
        (128, [5e-3, 1.5e-2], [1e-2, 0.1]),
        (3200, [1e-3, 3e-3], [1e-3, 1e-2]),
    ],
)
def test_rate_and_decay_of_an_annealed_race_fall_with_the_steps_of_an_epoch(
    epoch_steps: int | None, rates: list[float], decays: list[float]
) -> None:
    race = candidates(START, ANNEALED_SPACE, 3, epoch_steps=epoch_steps, is_annealed=True)
    assert race[0] == START
    assert [c["lr"] for c in race[1:]] == pytest.approx(rates)
    assert [c["weight_decay"] for c in race[1:]] == decays


def test_the_steps_of_a_candidate_are_those_of_its_own_batch_size() -> None:
    # With 256 samples per batch, an epoch has 16 steps; with 32, it has 128.
    start = START | {"batch_size": 256}
    race = candidates(start, ANNEALED_SPACE, 3, epoch_steps=16, is_annealed=True)
    assert [c["batch_size"] for c in race[1:]] == [32, 32]
    assert [c["lr"] for c in race[1:]] == [5e-3, 1.5e-2]


@pytest.mark.parametrize(
    ("initial", "distribution", "raced", "rate"),
    [
        (8, CategoricalDistribution((8, 128)), 8, 5e-3),  # There is no 32.
        (256, IntDistribution(128, 512, log=True), 128, 7.2e-3),
        (256, None, 256, 0.01),  # The batch size may not change.
    ],
)
def test_the_steps_are_those_of_the_batch_size_that_the_space_allows(
    initial: int, distribution: Any, raced: int, rate: float
) -> None:
    space = {k: v for k, v in ANNEALED_SPACE.items() if k != "batch_size"}
    space |= {} if distribution is None else {"batch_size": distribution}
    steps = 128 if initial == 8 else 31
    start = START | {"batch_size": initial}
    race = candidates(start, space, 3, epoch_steps=steps, is_annealed=True)
    assert race[1]["batch_size"] == raced
    assert race[1]["lr"] == pytest.approx(rate)


def test_the_rates_of_sgd_and_of_a_race_before_cycles_do_not_fall() -> None:
    wide = candidates(START, ANNEALED_SPACE, 6, epoch_steps=1000, is_annealed=True)
    assert [c["lr"] for c in wide if c["optimizer"] == "sgd"] == [0.1]
    constant = candidates(START, ANNEALED_SPACE, 8, epoch_steps=1000)
    assert constant == candidates(START, ANNEALED_SPACE, 8)


def test_duplicates_are_replaced_by_mutations() -> None:
    space = {"width": IntDistribution(0, 1000)}
    race = candidates({"width": 500}, space, 8)
    assert count_distinct([{"width": c["width"]} for c in race[2:]]) == 6
    assert race != candidates({"width": 500}, space, 8, seed=1)


def test_a_space_with_too_few_points_repeats_the_initial_configuration() -> None:
    space = {"loss": CategoricalDistribution(("mse", "l1"))}
    race = candidates({"loss": "mse"}, space, 5)
    assert len(race) == 5
    assert {c["loss"] for c in race} == {"mse", "l1"}
    assert sum(c["loss"] == "l1" for c in race) == 1


def test_an_empty_space_repeats_the_initial_configuration() -> None:
    assert [c.get("lr") for c in candidates({}, {}, 3)] == [None] * 3


def test_candidates_have_only_suggested_parameters() -> None:
    space = {name: FULL_SPACE[name] for name in ("activation.1", "lr", "width")}
    initial = {name: START[name] for name in space}
    race = candidates(initial, {"activation.1": space["activation.1"]} | space, 8)
    assert all(c.keys() == space.keys() for c in race)
    activations = {"activation.1": space["activation.1"]}
    narrow = candidates({"activation.1": "relu"}, activations, 4)
    assert len({c["activation.1"] for c in narrow}) == 4


def test_momentum_is_clipped_to_its_bounds() -> None:
    space = FULL_SPACE | {"momentum": FloatDistribution(0.0, 0.5)}
    race = candidates(START | {"momentum": 0.1}, space, 8)
    assert all(c["momentum"] <= 0.5 for c in race)


@pytest.mark.parametrize(
    ("name", "initial", "distribution"),
    [
        ("activation.slope", 0.1, FloatDistribution(0.01, 0.3)),
        ("activation", 1, IntDistribution(0, 1)),
        ("optimizer.beta1", 0.9, FloatDistribution(0.5, 0.99)),
        ("batch_size", None, CategoricalDistribution((None, 16, 32))),
        ("lr", "high", CategoricalDistribution(("high", "low"))),
    ],
)
def test_a_value_of_the_wrong_type_for_a_parameter_is_ignored(
    name: str, initial: Any, distribution: BaseDistribution
) -> None:
    space = {name: distribution, "weight_decay": FULL_SPACE["weight_decay"]}
    race = candidates({name: initial, "weight_decay": 0.0}, space, 2)
    assert race[1] == {name: initial, "weight_decay": 1e-2}
