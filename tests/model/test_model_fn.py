"""Calling the user's `model_fn`: random state, default search space, initial configuration."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers.equality import same
from helpers.networks import Doubling, first_trial, network, recipe, samples
from optuna.trial import FixedTrial
from torch import nn, optim
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, TensorDataset

import optuna_miha as miha
from optuna_miha import Recipe
from optuna_miha._model.model_fn import build_initial, build_recipe


def without_suggestions(trial: Any) -> Recipe:
    """Suggests nothing."""
    return recipe()


def with_suggestions(trial: Any) -> Recipe:
    model = network()
    miha.suggest_activations(trial, model)
    return recipe(
        model=model,
        optimizer=miha.suggest_optimizer(trial, model.parameters()),
        batch_size=miha.suggest_batch_size(trial, initial=8),
    )


def random_numbers() -> tuple[Any, ...]:
    return random.random(), float(np.random.rand()), float(np.random.randn()), torch.rand(3)


def test_initial_weights_depend_only_on_the_seed() -> None:
    params = {"optimizer": "adam", "lr": 1e-3, "weight_decay": 0.0, "batch_size": 8}
    one = build_recipe(with_suggestions, FixedTrial({**params, "activation.2": "relu"}), seed=5)
    other = build_recipe(
        with_suggestions, FixedTrial({**params, "activation.2": "tanh", "batch_size": 64}), seed=5
    )
    assert same(one.model.state_dict(), other.model.state_dict())
    another = build_recipe(
        with_suggestions, FixedTrial({**params, "activation.2": "relu"}), seed=6
    )
    assert not same(one.model.state_dict(), another.model.state_dict())


def test_model_fn_runs_with_all_random_generators_seeded() -> None:
    seen = []

    def model_fn(trial: Any) -> Recipe:
        seen.append(random_numbers())
        return recipe()

    for seed in (1, 1, 2):
        build_recipe(model_fn, first_trial(), seed)
    assert same(seen[0], seen[1])
    assert all(not same(a, b) for a, b in zip(seen[0], seen[2], strict=True))


@pytest.mark.parametrize("fails", [False, True])
def test_global_random_generators_are_restored(fails: bool) -> None:
    def model_fn(trial: Any) -> Recipe:
        random_numbers()
        if fails:
            raise RuntimeError("failed")
        return recipe()

    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    np.random.randn()  # NumPy caches a second normal number.
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    if fails:
        with pytest.raises(RuntimeError, match="failed"):
            build_recipe(model_fn, first_trial(), seed=7)
    else:
        build_recipe(model_fn, first_trial(), seed=7)
        build_initial(model_fn, seed=7)
    assert random.getstate() == states[0]
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), states[1], strict=True))
    assert torch.equal(torch.get_rng_state(), states[2])


@pytest.mark.parametrize("result", [None, 3, nn.Linear(2, 2), (1, 2)])
def test_model_fn_must_return_a_recipe(result: Any) -> None:
    with pytest.raises(TypeError) as caught:
        build_recipe(lambda trial: result, first_trial(), seed=0)
    message = str(caught.value)
    assert "`model_fn` must return an optuna_miha.Recipe" in message
    assert repr(result) in message
    assert "return Recipe(model=" in message


def test_recipe_without_suggestions_gets_the_default_search_space() -> None:
    initial = build_initial(without_suggestions, seed=0)
    assert initial.params == {
        "activation.2": "relu",
        "dropout.3": 0.3,
        "optimizer": "adam",
        "lr": 1e-3,
        "weight_decay": 0.0,
        "batch_size": 32,
        "label_smoothing": 0.0,
    }
    assert initial.distributions.keys() == initial.params.keys()
    assert type(initial.recipe.optimizer) is optim.Adam


def test_default_search_space_changes_the_recipe() -> None:
    chosen = {
        "activation.2": "gelu",
        "dropout.3": 0.15,
        "optimizer": "sgd",
        "lr": 0.25,
        "weight_decay": 1e-3,
        "momentum": 0.5,
        "batch_size": 21,
        "label_smoothing": 0.125,
    }
    rebuilt = build_recipe(without_suggestions, FixedTrial(chosen), seed=0)
    assert isinstance(rebuilt.model, nn.Sequential)
    assert isinstance(rebuilt.model[2], nn.GELU)
    assert rebuilt.model[3].p == 0.15
    assert type(rebuilt.optimizer) is optim.SGD
    group = rebuilt.optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["momentum"]) == (0.25, 1e-3, 0.5)
    assert rebuilt.batch_size == 21
    assert rebuilt.loss_fn.label_smoothing == 0.125  # type: ignore[attr-defined]


def test_label_smoothing_does_not_change_the_users_loss() -> None:
    loss_fn = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]), label_smoothing=0.1)
    initial_params = build_initial(lambda trial: recipe(loss_fn=loss_fn), seed=0).params
    assert initial_params["label_smoothing"] == 0.1
    rebuilt = build_recipe(
        lambda trial: recipe(loss_fn=loss_fn),
        FixedTrial({**initial_params, "label_smoothing": 0.2}),
        seed=0,
    )
    assert rebuilt.loss_fn.label_smoothing == 0.2  # type: ignore[attr-defined]
    assert torch.equal(rebuilt.loss_fn.weight, loss_fn.weight)  # type: ignore[attr-defined]
    assert loss_fn.label_smoothing == 0.1


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"loss_fn": nn.MSELoss()}, {"label_smoothing": None}),
        ({"model": nn.Linear(4, 3)}, {"activation.2": None, "dropout.3": None, "lr": 1e-3}),
        ({"batch_size": 7}, {"batch_size": 7}),
        (
            {"train_data": DataLoader(TensorDataset(torch.rand(8, 4), torch.ones(8)), 5)},
            {"batch_size": 5},
        ),
        (
            {
                "train_data": DataLoader(
                    TensorDataset(*samples(8)),
                    batch_sampler=BatchSampler(SequentialSampler(range(8)), 4, False),
                )
            },
            {"batch_size": None, "lr": 1e-3},
        ),
        ({"train_data": Doubling(TensorDataset(*samples(8)), 5)}, {"batch_size": None}),
    ],
)
def test_default_search_space_depends_on_the_recipe(
    changes: dict[str, Any], expected: dict[str, Any]
) -> None:
    params = build_initial(lambda trial: recipe(**changes), seed=0).params
    for name, value in expected.items():
        assert params.get(name) == value


def with_optimizer(make: Callable[[nn.Module], optim.Optimizer]) -> Callable[[Any], Recipe]:
    def model_fn(trial: Any) -> Recipe:
        model = network()
        return recipe(model=model, optimizer=make(model))

    return model_fn


def test_optimizer_of_the_recipe_is_the_initial_one() -> None:
    model_fn = with_optimizer(
        lambda model: optim.SGD(model.parameters(), lr=0.5, momentum=0.25, weight_decay=0.125)
    )
    initial = build_initial(model_fn, seed=0)
    expected = {"optimizer": "sgd", "lr": 0.5, "momentum": 0.25, "weight_decay": 0.125}
    assert initial.params.items() >= expected.items()
    assert type(initial.recipe.optimizer) is optim.SGD


def test_rebuilt_optimizer_trains_the_same_parameters() -> None:
    # Only the head of the network is trained.
    model_fn = with_optimizer(lambda model: optim.Adam(model[4].parameters()))
    rebuilt = build_initial(model_fn, seed=0).recipe
    assert rebuilt.optimizer is not None
    optimized = [p for group in rebuilt.optimizer.param_groups for p in group["params"]]
    expected = list(rebuilt.model[4].parameters())
    assert [id(p) for p in optimized] == [id(p) for p in expected]


def test_rebuilt_optimizer_keeps_settings_that_are_not_suggested() -> None:
    model_fn = with_optimizer(lambda model: optim.Adam(model.parameters(), betas=(0.5, 0.9)))
    rebuilt = build_initial(model_fn, seed=0).recipe
    assert rebuilt.optimizer is not None
    assert rebuilt.optimizer.param_groups[0]["betas"] == (0.5, 0.9)


@pytest.mark.parametrize(
    "make",
    [
        lambda model: optim.ASGD(model.parameters(), lr=0.5),
        lambda model: optim.Adam(
            [
                {"params": model[0].parameters(), "lr": 0.5},
                {"params": model[4].parameters(), "lr": 0.125},
            ]
        ),
    ],
    ids=["class without a name", "several groups"],
)
def test_optimizer_that_cannot_be_rebuilt_gets_scaled_learning_rates(make: Any) -> None:
    model_fn = with_optimizer(make)
    initial = build_initial(model_fn, seed=0)
    assert initial.params["lr"] == 0.5
    assert not {"optimizer", "weight_decay", "momentum"} & initial.params.keys()
    before = [group["lr"] for group in initial.recipe.optimizer.param_groups]
    rebuilt = build_recipe(model_fn, FixedTrial({**initial.params, "lr": 1.0}), seed=0)
    assert rebuilt.optimizer is not None
    assert [group["lr"] for group in rebuilt.optimizer.param_groups] == [2 * lr for lr in before]


def test_any_suggestion_replaces_the_default_search_space() -> None:
    def model_fn(trial: Any) -> Recipe:
        trial.suggest_float("width", 0.0, 1.0)
        return recipe()

    initial = build_initial(model_fn, seed=0)
    assert initial.params == {"width": 0.5}
    assert type(initial.recipe.optimizer) is optim.Adam
    assert initial.recipe.optimizer.param_groups[0]["lr"] == 1e-3


def test_initial_recipe_can_be_rebuilt_from_its_params() -> None:
    for model_fn in (without_suggestions, with_suggestions):
        initial = build_initial(model_fn, seed=3)
        again = build_recipe(model_fn, FixedTrial(initial.params), seed=3)
        assert same(again.model.state_dict(), initial.recipe.model.state_dict())
        assert str(again.model) == str(initial.recipe.model)
        assert str(again.optimizer) == str(initial.recipe.optimizer)
        assert again.batch_size == initial.recipe.batch_size


def test_overrides_take_precedence_over_declared_initial_values() -> None:
    overrides = {"lr": 0.5, "activation.2": "tanh", "batch_size": 17}
    for model_fn in (without_suggestions, with_suggestions):
        initial = build_initial(model_fn, seed=0, overrides=overrides)
        assert initial.params.items() >= overrides.items()
        assert initial.params["optimizer"] == "adam"
        assert isinstance(initial.recipe.model[2], nn.Tanh)  # type: ignore[index]
    assert overrides == {"lr": 0.5, "activation.2": "tanh", "batch_size": 17}


def test_override_can_enable_a_conditional_parameter() -> None:
    initial = build_initial(
        without_suggestions, seed=0, overrides={"optimizer": "sgd", "momentum": 0.5}
    )
    assert initial.params["optimizer"] == "sgd"
    assert initial.params["momentum"] == 0.5


def test_override_of_an_unknown_parameter_is_refused() -> None:
    with pytest.raises(ValueError) as caught:
        build_initial(without_suggestions, seed=0, overrides={"learning_rate": 0.1})
    message = str(caught.value)
    assert "must name parameters that `model_fn` suggests" in message
    assert "'learning_rate'" in message
    assert "'lr'" in message and "'batch_size'" in message


@pytest.mark.filterwarnings("ignore:Fixed parameter")
@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", 50.0), ("batch_size", 5), ("dropout.3", "much"), ("optimizer", "lion")],
)
def test_override_out_of_range_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError) as caught:
        build_initial(without_suggestions, seed=0, overrides={name: value})
    message = str(caught.value)
    assert f"The initial value of {name!r} must lie in" in message
    assert repr(value) in message


@pytest.mark.filterwarnings("ignore:Fixed parameter")
def test_fractional_override_of_an_integer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'batch_size'.*32\.5"):
        build_initial(without_suggestions, seed=0, overrides={"batch_size": 32.5})


def test_an_optimizer_of_another_network_is_refused_also_if_it_is_assigned_later() -> None:
    def model_fn(trial: Any) -> Recipe:
        made = recipe()
        made.optimizer = optim.SGD(nn.Linear(4, 3).parameters(), lr=0.1)
        return made

    with pytest.raises(ValueError, match="must hold parameters of `model`, got none"):
        build_initial(model_fn, 0)
