"""Conversion of the learning rate between optimizer classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.segments import FULL_SPACE, START
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution

from optuna_miha import UniformCrossover
from optuna_miha._search.learning_rate import rescaled_lr
from optuna_miha._search.mutation import mutate
from optuna_miha._search.space import DEFAULT_LR

SPACE = FULL_SPACE | {"lr": FloatDistribution(1e-7, 1e3, log=True)}

CLASSES = st.sampled_from(["adamw", "sgd", "adadelta"])


def adam(multiple: float) -> dict[str, Any]:
    """Parameters with Adam at a multiple of its default learning rate."""
    return START | {"optimizer": "adam", "lr": multiple * DEFAULT_LR["adam"]}


def rates_of_mutants(params: dict[str, Any]) -> dict[str, float]:
    """The learning rate after a mutation of the optimizer, by the new class."""
    mutants = [
        mutate(params, SPACE, "optimizer", np.random.default_rng(seed)) for seed in range(40)
    ]
    return {mutant["optimizer"]: mutant["lr"] for mutant in mutants}


@given(st.floats(0.11, 9.9), CLASSES)
def test_another_class_keeps_the_multiple_of_its_default(multiple: float, optimizer: str) -> None:
    rate = rescaled_lr(adam(multiple), optimizer, SPACE)["lr"]
    assert rate == pytest.approx(multiple * DEFAULT_LR[optimizer])


@given(st.floats(1e-3, 0.09) | st.floats(11.0, 1e3), CLASSES)
def test_another_class_starts_at_its_default_instead_of_an_extreme_multiple(
    multiple: float, optimizer: str
) -> None:
    assert rescaled_lr(adam(multiple), optimizer, SPACE) == {"lr": DEFAULT_LR[optimizer]}


@pytest.mark.parametrize("multiple", [0.02, 0.5, 1.0, 3.0, 8.0, 20.0])
@pytest.mark.parametrize("optimizer", ["sgd", "adadelta"])
@pytest.mark.parametrize("swap", [False, True])
def test_crossover_and_mutation_convert_the_learning_rate_by_the_same_rule(
    multiple: float, optimizer: str, swap: bool
) -> None:
    """The multiple is kept within [0.1, 10], and replaced by 1 outside, in both of them.

    The child of a branch with another class and a branch with another rate has the rate that the
    mutation of the class would give to the other branch. This is the right rule for a crossover,
    because neither parent trained with this combination: an extreme multiple worked with the old
    class only. For example, 20 times the default of Adam would become 0.6 for SGD.
    """
    parent = adam(1.5)
    with_class = parent | {"optimizer": optimizer, "lr": rates_of_mutants(parent)[optimizer]}
    with_rate = adam(multiple)
    fitter, other = (with_rate, with_class) if swap else (with_class, with_rate)
    child = UniformCrossover(prob=float(not swap))(
        fitter, other, parent, SPACE, np.random.default_rng(0)
    )
    assert child["optimizer"] == optimizer
    assert child["lr"] == rates_of_mutants(with_rate)[optimizer]


def test_a_converted_learning_rate_is_clipped_to_its_range() -> None:
    space = SPACE | {"lr": FloatDistribution(1e-5, 0.01, log=True)}
    assert rescaled_lr(adam(3.0), "sgd", space) == {"lr": 0.01}


def test_the_same_class_keeps_even_an_extreme_learning_rate() -> None:
    assert rescaled_lr(adam(50.0), "adam", SPACE) == {}
    child = UniformCrossover()(
        adam(1.0) | {"batch_size": 64}, adam(50.0), adam(1.0), SPACE, np.random.default_rng(0)
    )
    assert child == adam(50.0) | {"batch_size": 64}


def test_a_class_without_a_known_default_is_not_converted() -> None:
    assert rescaled_lr(adam(3.0), "mine", SPACE) == {}
    assert rescaled_lr(adam(3.0) | {"optimizer": "mine"}, "adam", SPACE) == {}
    assert rescaled_lr({"lr": 0.1}, "adam", SPACE) == {}


def test_a_learning_rate_that_is_not_a_float_parameter_is_not_converted() -> None:
    choices = {"lr": CategoricalDistribution((0.1, 0.3))}
    assert rescaled_lr({"optimizer": "adam", "lr": 0.1}, "sgd", choices) == {}
    assert rescaled_lr({"optimizer": "adam"}, "sgd", {}) == {}
    assert rescaled_lr({"optimizer": "adam"}, "sgd", SPACE) == {}


@pytest.mark.parametrize("lr", [1e-3, 0.004074, 0.0003604])
def test_a_branch_that_changed_its_class_did_not_change_its_learning_rate(lr: float) -> None:
    """Not even where the conversion is inexact, as from Adam to AdamW for two of these rates."""
    parent = START | {"optimizer": "adam", "lr": lr}
    for optimizer, rate in rates_of_mutants(parent).items():
        fitter, other = parent | {"optimizer": optimizer, "lr": rate}, parent | {"lr": 2 * lr}
        child = UniformCrossover(prob=0.0)(fitter, other, parent, SPACE, np.random.default_rng(0))
        assert child == fitter | {"lr": pytest.approx(2 * rate)}


def test_categorical_learning_rates_are_compared_as_they_are() -> None:
    space = FULL_SPACE | {"lr": CategoricalDistribution((0.1, 0.3, "high"))}
    parent = START | {"lr": 0.1}
    for rate in (0.3, "high"):
        child = UniformCrossover(prob=0.0)(
            parent | {"optimizer": "sgd"},
            parent | {"lr": rate},
            parent,
            space,
            np.random.default_rng(0),
        )
        assert child == parent | {"optimizer": "sgd", "lr": rate}
