"""Mutations change one kind, by the rule of that kind, within the search space."""

from __future__ import annotations

import math
from collections.abc import Iterator
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

from optuna_miha._search.mutation import NO_CHANGE, describe, mutate
from optuna_miha._search.space import DEFAULT_LR, kind_of, kinds

SEEDS = st.integers(0, 2**32 - 1)
KINDS = st.sampled_from(sorted(kinds(FULL_SPACE)))


def mutants(
    kind: str,
    start: dict[str, Any] | None = None,
    space: dict[str, BaseDistribution] | None = None,
    *,
    n: int = 200,
    **settings: Any,
) -> Iterator[dict[str, Any]]:
    """Mutations of one kind by ``n`` seeds."""
    for seed in range(n):
        rng = np.random.default_rng(seed)
        yield mutate(start or START, space or FULL_SPACE, kind, rng, **settings)


def mutated_values(
    name: str, value: Any, distribution: BaseDistribution, **settings: Any
) -> set[Any]:
    """The values to which a single parameter mutates."""
    space = {name: distribution}
    return {m[name] for m in mutants(kind_of(name), {name: value}, space, **settings)}


def changed(old: dict[str, Any], new: dict[str, Any]) -> set[str]:
    return {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}


@given(st.data(), distributions(), st.sampled_from(["lr", "batch_size", "x"]), SEEDS)
def test_a_mutated_value_is_valid(
    data: st.DataObject, distribution: BaseDistribution, name: str, seed: int
) -> None:
    if distribution.single():
        return
    value = data.draw(values_of(distribution))
    for upward_lr in (True, False):
        rng = np.random.default_rng(seed)
        new = mutate({name: value}, {name: distribution}, name, rng, upward_lr=upward_lr)
        assert new.keys() == {name}
        assert is_valid(distribution, new[name])


@given(st.data(), KINDS, SEEDS)
def test_all_values_stay_valid_in_a_full_space(data: st.DataObject, kind: str, seed: int) -> None:
    start = {name: data.draw(values_of(dist), label=name) for name, dist in FULL_SPACE.items()}
    new = mutate(start, FULL_SPACE, kind, np.random.default_rng(seed))
    assert new.keys() == start.keys()
    assert all(is_valid(FULL_SPACE[name], value) for name, value in new.items())


@given(KINDS, SEEDS)
def test_exactly_one_kind_changes(kind: str, seed: int) -> None:
    new = mutate(START, FULL_SPACE, kind, np.random.default_rng(seed))
    names = changed(START, new)
    assert names
    rescaled = {"lr"} if kind == "optimizer" else set()
    assert {kind_of(name) for name in names - rescaled} == {kind}


@given(KINDS, SEEDS)
def test_the_trunks_parameters_are_not_modified(kind: str, seed: int) -> None:
    start = dict(START)
    mutate(start, FULL_SPACE, kind, np.random.default_rng(seed))
    assert start == START


@given(KINDS, SEEDS)
def test_the_same_seed_gives_the_same_mutation(kind: str, seed: int) -> None:
    one, other = (mutate(START, FULL_SPACE, kind, np.random.default_rng(seed)) for _ in range(2))
    assert one == other


def test_the_learning_rate_is_only_raised() -> None:
    factors = np.array([m["lr"] / START["lr"] for m in mutants("lr")])
    assert (factors > 1).all()
    assert 0.8 < np.log(factors).mean() < 1.0  # The absolute value of N(0.9, 0.4).


def test_the_learning_rate_changes_in_both_directions_without_upward_lr() -> None:
    factors = np.array([m["lr"] / START["lr"] for m in mutants("lr", upward_lr=False)])
    assert 0.35 < (factors > 1).mean() < 0.65
    assert (factors != 1).all()


def test_the_learning_rate_is_clipped_to_its_bound() -> None:
    assert mutated_values("lr", 0.9, FloatDistribution(1e-5, 1.0, log=True)) <= {
        *mutated_values("lr", 0.9, FloatDistribution(1e-5, 100.0, log=True)),
        1.0,
    }
    assert mutated_values("lr", 1.0, FloatDistribution(1e-5, 1.0, log=True)) == {1.0}


@pytest.mark.parametrize("multiple", [0.1, 1.0, 3.0, 10.0])
def test_another_optimizer_keeps_the_multiple_of_its_default_rate(multiple: float) -> None:
    start = START | {"lr": multiple * DEFAULT_LR["adam"]}
    space = FULL_SPACE | {"lr": FloatDistribution(1e-6, 100.0, log=True)}
    for new in mutants("optimizer", start, space, n=30):
        assert new["optimizer"] != "adam"
        assert new["lr"] == pytest.approx(multiple * DEFAULT_LR[new["optimizer"]])


@pytest.mark.parametrize("multiple", [0.05, 20.0])
def test_another_optimizer_gets_its_default_rate_instead_of_an_extreme_multiple(
    multiple: float,
) -> None:
    start = START | {"lr": multiple * DEFAULT_LR["adam"]}
    for new in mutants("optimizer", start, n=30):
        assert new["lr"] == pytest.approx(DEFAULT_LR[new["optimizer"]])


def test_the_rate_of_another_optimizer_is_clipped_to_its_bounds() -> None:
    space = FULL_SPACE | {"lr": FloatDistribution(1e-5, 0.01, log=True)}
    rates = {m["optimizer"]: m["lr"] for m in mutants("optimizer", START, space)}
    assert rates == {"sgd": 0.01, "adadelta": 0.01}
    start = START | {"weight_decay": 0.01}
    assert {m["lr"] for m in mutants("optimizer", start, space)} == {1e-3, 0.01}


def test_an_optimizer_without_a_known_default_does_not_change_the_rate() -> None:
    space = FULL_SPACE | {"optimizer": CategoricalDistribution(("adam", "mine"))}
    assert all(m["lr"] == START["lr"] for m in mutants("optimizer", START, space, n=20))


def test_the_optimizer_mutates_without_a_learning_rate() -> None:
    assert mutated_values("optimizer", "adam", CategoricalDistribution(("adam", "sgd"))) == {"sgd"}


def test_one_of_several_optimizers_can_mutate() -> None:
    space = {
        "optimizer.critic": CategoricalDistribution(("adam", "sgd")),
        "lr": FloatDistribution(1e-5, 1.0, log=True),
    }
    start = {"optimizer.critic": "adam", "lr": 1e-3}
    new = mutate(start, space, "optimizer", np.random.default_rng(0))
    assert new["optimizer.critic"] == "sgd"


def test_activations_mutate_in_one_layer_or_in_all_layers() -> None:
    layers = {f"activation.{n}": FULL_SPACE["activation.1"] for n in range(4)}
    start = dict.fromkeys(layers, "relu")
    counts = []
    for new in mutants("activation", start, layers, n=400):
        names = changed(start, new)
        assert len({new[name] for name in names}) == 1
        counts.append(len(names))
    assert set(counts) == {1, 4}
    assert 0.2 < counts.count(4) / 400 < 0.4


def test_a_layer_that_does_not_offer_the_new_activation_keeps_its_own() -> None:
    all_layers = [new for new in mutants("activation") if len(changed(START, new)) > 1]
    assert all_layers
    for new in all_layers:
        assert new["activation.1"] == new["activation.3"] != "elu"
        assert new["activation.5"] == "relu"


def test_a_mutation_of_all_layers_makes_them_equal() -> None:
    start = START | {"activation.1": "gelu", "activation.3": "tanh"}
    space = {k: v for k, v in FULL_SPACE.items() if k in ("activation.1", "activation.3")}
    pairs = [
        (m["activation.1"], m["activation.3"])
        for m in mutants("activation", {k: start[k] for k in space}, space)
    ]
    assert any(one == other == "silu" for one, other in pairs)
    assert ("gelu", "tanh") not in pairs


GROUPS = {
    f"activation.{layer}.{group}": CategoricalDistribution(("relu", "gelu", "tanh"))
    for layer, n_groups in {"fc": 3, "1": 12, "encoder.1": 1}.items()
    for group in range(n_groups)
}
"""Two layers whose neurons form groups, and one layer with a single group."""


def test_activations_mutate_in_one_group_one_layer_or_all_layers() -> None:
    start = dict.fromkeys(GROUPS, "relu")
    counts = []
    for new in mutants("activation", start, GROUPS, n=600):
        names = changed(start, new)
        assert len({new[name] for name in names}) == 1
        counts.append(len(names))
        if len(names) in (3, 12):
            assert len({name.rpartition(".")[0] for name in names}) == 1
    assert set(counts) == {1, 3, 12, 16}
    assert 0.65 < counts.count(1) / 600 < 0.75
    assert 0.1 < counts.count(16) / 600 < 0.2


@pytest.mark.parametrize(
    "paths",
    [["0", "1"], ["encoder.1", "encoder.3"], ["blocks.0.act", "blocks.1.act"], ["op.0", "fc"]],
)
def test_numbered_layers_are_not_groups(paths: list[str]) -> None:
    layers = {f"activation.{path}": FULL_SPACE["activation.1"] for path in paths}
    start = dict.fromkeys(layers, "relu")
    counts = {len(changed(start, new)) for new in mutants("activation", start, layers)}
    assert counts == {1, 2}
    new = dict.fromkeys(layers, "gelu")
    assert describe(start, new) == " and ".join(layers) + " relu -> gelu"


def test_batch_size_is_multiplied_by_a_factor() -> None:
    sizes = mutated_values("batch_size", 100, IntDistribution(16, 256, log=True))
    assert sizes == {50, 70, 140, 200}


def test_weight_decay_of_zero_mutates_to_a_positive_value() -> None:
    assert mutated_values("weight_decay", 0.0, FloatDistribution(0.0, 0.1)) == {1e-4, 1e-3, 1e-2}
    offered = CategoricalDistribution((0.0, 1e-4, 1e-3, 1e-2))
    assert mutated_values("weight_decay", 0.0, offered) == {1e-4, 1e-3, 1e-2}


def test_weight_decay_is_scaled_to_the_nearest_choice() -> None:
    assert mutated_values("weight_decay", 1e-3, FloatDistribution(0.0, 0.1)) == {2e-4, 3e-3, 5e-3}
    offered = CategoricalDistribution((0.0, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1))
    assert mutated_values("weight_decay", 1e-3, offered) == {1e-4, 1e-2}


def test_momentum_halves_or_doubles_its_distance_from_one() -> None:
    assert mutated_values("momentum", 0.9, FloatDistribution(0.0, 0.99)) == {0.95, 0.8}
    assert mutated_values("momentum", 0.2, FloatDistribution(0.0, 0.99)) == {0.6, 0.0}


def test_dropout_changes_by_a_tenth_or_two_tenths() -> None:
    assert mutated_values("dropout.2", 0.3, FloatDistribution(0.0, 0.6)) == {0.2, 0.4, 0.5}


def test_label_smoothing_changes_by_a_twentieth_or_a_tenth() -> None:
    assert mutated_values("label_smoothing", 0.1, FloatDistribution(0.0, 0.3)) == {0.05, 0.15, 0.2}


def test_a_mutation_is_reflected_at_a_bound() -> None:
    assert mutated_values("dropout.2", 0.0, FloatDistribution(0.0, 0.6)) == {0.1, 0.2}
    assert mutated_values("dropout.2", 0.6, FloatDistribution(0.0, 0.6)) == {0.5, 0.4}
    assert 0.0 not in mutated_values("x", 0.0, FloatDistribution(0.0, 1.0))
    assert 5 not in mutated_values("x", 5, IntDistribution(0, 5))


def test_an_integer_changes_by_at_least_one_step() -> None:
    assert 50 not in mutated_values("x", 50, IntDistribution(0, 100))
    assert mutated_values("x", 1, IntDistribution(0, 2)) == {0, 2}
    assert 8 not in mutated_values("width", 8, IntDistribution(2, 20, step=3))


def test_a_categorical_mutates_to_another_choice() -> None:
    words = CategoricalDistribution(("a", "b", "c"))
    assert mutated_values("x", "a", words) == {"b", "c"}
    assert mutated_values("batch_size", 64, CategoricalDistribution((16, 64, 256))) == {16, 256}
    assert mutated_values("x", None, CategoricalDistribution((None, "a"))) == {"a"}


def test_choices_that_are_not_numbers_are_drawn_for_a_numeric_kind() -> None:
    assert mutated_values("lr", "low", CategoricalDistribution(("low", "high"))) == {"high"}


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("dropout", (0.0, 0.1, 0.3)),
        ("label_smoothing", (0.0, 0.1)),
        ("momentum", (0.0, 0.5, 0.9)),
        ("lr", (0.0, -1.0)),
    ],
)
def test_a_numeric_choice_of_zero_can_mutate(name: str, choices: tuple[float, ...]) -> None:
    assert mutated_values(name, 0.0, CategoricalDistribution(choices)) <= set(choices[1:])


@pytest.mark.parametrize(
    ("value", "distribution"),
    [
        (0.5, FloatDistribution(0.0, 1.0, step=0.25)),
        (1000.0, FloatDistribution(1000.0, 1000.4)),
    ],
)
def test_a_float_changes_in_spite_of_rounding(
    value: float, distribution: BaseDistribution
) -> None:
    assert value not in mutated_values("x", value, distribution)


def test_choices_that_compare_equal_are_different_choices() -> None:
    assert mutated_values("x", 1, CategoricalDistribution((1, True))) == {True}


def test_floats_are_rounded_to_four_digits() -> None:
    for new in mutants("lr", n=50):
        assert float(f"{new['lr']:.4g}") == new["lr"]


def test_a_custom_mutation_replaces_the_built_in_one() -> None:
    calls = []

    def highest(value: Any, distribution: BaseDistribution, rng: np.random.Generator) -> Any:
        calls.append((value, distribution))
        assert 0 <= rng.random() < 1
        return 0.25

    rng = np.random.default_rng(0)
    new = mutate(START, FULL_SPACE, "lr", rng, value_mutation=highest)
    assert new == START | {"lr": 0.25}
    assert calls == [(START["lr"], FULL_SPACE["lr"])]


def test_a_custom_mutation_that_leaves_the_space_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"must return a value of .* for 'lr', got -1.0"):
        mutate(
            START,
            FULL_SPACE,
            "lr",
            np.random.default_rng(0),
            value_mutation=lambda value, distribution, rng: -1.0,
        )


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ({"lr": 1e-3}, {"lr": 0.00271828}, "lr 0.001 -> 0.002718"),
        ({"batch_size": 32}, {"batch_size": 64}, "batch_size 32 -> 64"),
        ({"optimizer": "adam"}, {"optimizer": "sgd"}, "optimizer adam -> sgd"),
        ({"a": 1, "b": 2}, {"a": 3, "b": 4}, "a 1 -> 3, b 2 -> 4"),
        ({"a": "x", "b": "x"}, {"a": "y", "b": "y"}, "a and b x -> y"),
        ({"a": "x", "b": "x", "c": "x"}, {"a": "y", "b": "y", "c": "y"}, "a b c x -> y"),
        (dict.fromkeys("abcd", "x"), dict.fromkeys("abcd", "y"), "a … d x -> y"),
        ({}, {"momentum": 0.9}, "momentum 0.9"),
        ({"momentum": 0.9}, {}, NO_CHANGE),
        ({"a": 1}, {"a": 1}, NO_CHANGE),
        ({"a": None}, {"a": 1}, "a None -> 1"),
    ],
)
def test_a_mutation_is_described(old: Any, new: Any, text: str) -> None:
    assert describe(old, new) == text


@pytest.mark.parametrize(
    ("new", "text"),
    [
        (["fc.1"], "activation.fc.1 relu -> gelu"),
        (["fc.0", "fc.2"], "activation.fc.0 and activation.fc.2 relu -> gelu"),
        (["fc.0", "fc.1", "fc.2"], "activation.fc relu -> gelu"),
        ([f"1.{n}" for n in range(12)], "activation.1 relu -> gelu"),
        ([f"1.{n}" for n in range(11)], "activation.1.0 … activation.1.10 relu -> gelu"),
        (
            [name.removeprefix("activation.") for name in GROUPS],
            "activation.fc activation.1 activation.encoder.1.0 relu -> gelu",
        ),
    ],
)
def test_the_layer_is_named_if_all_its_groups_change_alike(new: list[str], text: str) -> None:
    start = dict.fromkeys(GROUPS, "relu")
    assert describe(start, start | {f"activation.{name}": "gelu" for name in new}) == text


def test_groups_with_different_old_values_are_described_separately() -> None:
    start = dict.fromkeys(GROUPS, "relu") | {"activation.fc.1": "tanh"}
    new = start | {f"activation.fc.{n}": "gelu" for n in range(3)}
    text = "activation.fc.0 and activation.fc.2 relu -> gelu, activation.fc.1 tanh -> gelu"
    assert describe(start, new) == text


@given(KINDS, SEEDS)
def test_the_description_names_the_changed_parameters_only(kind: str, seed: int) -> None:
    new = mutate(START, FULL_SPACE, kind, np.random.default_rng(seed))
    text = describe(START, new)
    assert text != NO_CHANGE
    assert all(name in text for name in changed(START, new))
    assert not any(name in text.split() for name in START.keys() - changed(START, new))


def test_repeatedly_raised_rates_end_at_the_upper_bound() -> None:
    rate = START["lr"]
    for seed in range(30):
        rng = np.random.default_rng(seed)
        rate = mutate(START | {"lr": rate}, FULL_SPACE, "lr", rng)["lr"]
    assert math.isfinite(rate)
    assert rate == FULL_SPACE["lr"].high  # type: ignore[attr-defined]


@pytest.mark.parametrize("rate", [1e-3, 0.0027, 0.0099])
def test_adam_and_adamw_are_the_same_without_weight_decay(rate: float) -> None:
    for old, new in (("adam", "adamw"), ("adamw", "adam")):
        start = START | {"optimizer": old, "weight_decay": 0.0, "lr": rate}
        assert new not in {m["optimizer"] for m in mutants("optimizer", start)}
        assert new in {
            m["optimizer"] for m in mutants("optimizer", start | {"weight_decay": 0.01})
        }
        del start["weight_decay"]  # That of `model_fn` is not known.
        space = {name: FULL_SPACE[name] for name in start}
        assert new in {m["optimizer"] for m in mutants("optimizer", start, space)}


def test_adam_and_adamw_with_another_rate_differ() -> None:
    start = START | {"optimizer": "adam", "weight_decay": 0.0, "lr": 0.5}
    changed = next(m for m in mutants("optimizer", start) if m["optimizer"] == "adamw")
    assert changed["lr"] == DEFAULT_LR["adamw"]


def test_parameters_do_not_change_if_no_mutation_has_an_effect() -> None:
    start = {"optimizer": "adam", "weight_decay": 0.0}
    space = {"optimizer": CategoricalDistribution(["adam", "adamw"])}
    space["weight_decay"] = CategoricalDistribution([0.0, 0.1])
    assert all(m == start for m in mutants("optimizer", start, space, n=5))


@pytest.mark.parametrize(("regularize", "sign"), [("less", -1), ("more", 1)])
@pytest.mark.parametrize(
    ("name", "value", "distribution"),
    [
        ("dropout", 0.25, FloatDistribution(0.0, 0.5)),
        ("dropout", 0.0, FloatDistribution(0.0, 0.5, step=0.1)),
        ("dropout", 0.5, FloatDistribution(0.0, 0.5, step=0.1)),
        ("label_smoothing", 0.05, FloatDistribution(0.0, 0.2)),
        ("weight_decay", 1e-2, FloatDistribution(1e-5, 1.0, log=True)),
        ("weight_decay", 0.3, CategoricalDistribution((0.0, 1e-3, 0.1, 0.3, 0.5))),
        ("weight_decay", 0.0, CategoricalDistribution((0.0, 1e-3, 0.1, 0.3, 0.5))),
        ("weight_decay", 0.1, CategoricalDistribution((0.3, 0.1))),
        ("weight_decay", 0.3, CategoricalDistribution((0.3, 0.1))),
    ],
)
def test_a_directed_mutation_of_a_regularizer_has_its_direction(
    name: str, value: float, distribution: Any, regularize: Any, sign: int
) -> None:
    values = mutated_values(name, value, distribution, regularize=regularize)
    low, high = (
        (min(distribution.choices), max(distribution.choices))
        if isinstance(distribution, CategoricalDistribution)
        else (distribution.low, distribution.high)
    )
    at_a_bound = value == (low if sign < 0 else high)
    assert all(sign * (new - value) > 0 or at_a_bound for new in values)
    assert not at_a_bound or values == {value}
    assert all(is_valid(distribution, new) for new in values)
