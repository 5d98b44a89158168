"""The state that one optimizer inherits from another."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers.equality import memory_of, same
from helpers.networks import train_steps
from torch import nn, optim

from optuna_miha._model.optimizer_state import (
    capture_optimizer,
    inherit_optimizer,
    move_optimizer_state,
)
from optuna_miha._model.optimizers import OPTIMIZERS, make_optimizer
from optuna_miha.exceptions import InheritanceError


def make_network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def build(name: str, model: nn.Module, **changes: float) -> optim.Optimizer:
    settings = {"lr": 0.01, "weight_decay": 0.0, "momentum": 0.9} | changes
    return make_optimizer(name, model.parameters(), **settings)


def trained_parent(name: str, **changes: float) -> tuple[nn.Sequential, dict[str, Any]]:
    """A trained network, and the captured state of its optimizer."""
    model = make_network()
    optimizer = build(name, model, **changes)
    train_steps(model, optimizer)
    return model, copy.deepcopy(capture_optimizer(optimizer))


def child_of(
    model: nn.Module, captured: dict[str, Any], name: str, **changes: float
) -> tuple[nn.Module, optim.Optimizer]:
    model = copy.deepcopy(model)
    optimizer = build(name, model, **changes)
    inherit_optimizer(optimizer, captured)
    return model, optimizer


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_of_the_same_class_continues_bit_for_bit(name: str) -> None:
    model = make_network()
    optimizer = build(name, model)
    train_steps(model, optimizer)
    child, child_optimizer = child_of(model, capture_optimizer(optimizer), name)
    assert same(child_optimizer.state_dict()["state"], optimizer.state_dict()["state"])
    train_steps(model, optimizer)
    train_steps(child, child_optimizer)
    assert same(model.state_dict(), child.state_dict())


@pytest.mark.parametrize("old", ["adam", "adamw", "nadam"])
@pytest.mark.parametrize("new", ["adam", "adamw", "nadam"])
def test_adam_family_inherits_the_moments(old: str, new: str) -> None:
    model, captured = trained_parent(old)
    child, optimizer = child_of(model, captured, new)
    state = optimizer.state_dict()["state"]
    assert state.keys() == captured["state"].keys() == {0, 1, 2, 3}
    for index, entry in captured["state"].items():
        for key in ("step", "exp_avg", "exp_avg_sq"):
            assert same(state[index][key], entry[key])
    train_steps(child, optimizer, n_steps=20)
    assert all(parameter.isfinite().all() for parameter in child.parameters())


def test_adamw_without_decay_continues_as_adam_would() -> None:
    model, captured = trained_parent("adam")
    one, adam = child_of(model, captured, "adam")
    other, adamw = child_of(model, captured, "adamw")
    train_steps(one, adam)
    train_steps(other, adamw)
    assert same(one.state_dict(), other.state_dict())


def test_nadam_applies_no_bias_correction_to_inherited_moments() -> None:
    model, captured = trained_parent("adam")
    child, optimizer = child_of(model, captured, "nadam", lr=1e-3)
    before = [parameter.detach().clone() for parameter in child.parameters()]
    train_steps(child, optimizer, n_steps=1)
    # T. Dozat, Incorporating Nesterov Momentum into Adam, 2016, with products of momenta of 0.
    mu, mu_next = (0.9 * (1 - 0.5 * 0.96 ** (step * 4e-3)) for step in (4, 5))
    for index, (old, new) in enumerate(zip(before, child.parameters(), strict=True)):
        assert new.grad is not None
        moments = captured["state"][index]
        first = 0.9 * moments["exp_avg"] + 0.1 * new.grad
        second = 0.999 * moments["exp_avg_sq"] + 0.001 * new.grad**2
        scale = (second / (1 - 0.999**4)).sqrt() + 1e-8
        step = 1e-3 * ((1 - mu) * new.grad + mu_next * first) / scale
        assert torch.allclose(old - new.detach(), step, atol=1e-6)


@pytest.mark.parametrize("old", ["adam", "adamw", "nadam"])
def test_sgd_inherits_adams_first_moment_as_a_sum(old: str) -> None:
    model, captured = trained_parent(old)
    _, optimizer = child_of(model, captured, "sgd", momentum=0.75)
    state = optimizer.state_dict()["state"]
    assert state.keys() == captured["state"].keys()
    for index, entry in captured["state"].items():
        assert state[index].keys() == {"momentum_buffer"}
        assert torch.allclose(state[index]["momentum_buffer"], 4 * entry["exp_avg"])


def test_sgd_uses_the_inherited_momentum_in_its_first_step() -> None:
    model, captured = trained_parent("adam")
    child, optimizer = child_of(model, captured, "sgd", momentum=0.9, lr=0.1)
    fresh = copy.deepcopy(model)
    train_steps(fresh, build("sgd", fresh, momentum=0.9, lr=0.1), n_steps=1)
    before = [parameter.detach().clone() for parameter in child.parameters()]
    train_steps(child, optimizer, n_steps=1)
    moved = zip(before, fresh.parameters(), child.parameters(), strict=True)
    for index, (old, without, with_it) in enumerate(moved):
        buffer = captured["state"][index]["exp_avg"] / (1 - 0.9)
        # v <- 0.9 v + g; without an inherited buffer, v = g.
        expected = (without - old) - 0.1 * 0.9 * buffer
        assert torch.allclose(with_it - old, expected, atol=1e-6)


def test_sgd_without_momentum_inherits_nothing_from_adam() -> None:
    model, captured = trained_parent("adam")
    child, optimizer = child_of(model, captured, "sgd", momentum=0.0)
    assert optimizer.state_dict()["state"] == {}
    fresh = copy.deepcopy(model)
    train_steps(child, optimizer)
    train_steps(fresh, build("sgd", fresh, momentum=0.0))
    assert same(child.state_dict(), fresh.state_dict())


@pytest.mark.parametrize(
    ("old", "new"), [("sgd", "adam"), ("adadelta", "adamw"), ("adam", "rmsprop"), ("sgd", "nadam")]
)
def test_other_pairs_of_classes_inherit_nothing(old: str, new: str) -> None:
    model, captured = trained_parent(old)
    child, optimizer = child_of(model, captured, new)
    assert optimizer.state_dict()["state"] == {}
    fresh = copy.deepcopy(model)
    train_steps(child, optimizer)
    train_steps(fresh, build(new, fresh))
    assert same(child.state_dict(), fresh.state_dict())


@pytest.mark.parametrize("old", ["sgd", "adam"])
@pytest.mark.parametrize("new", ["sgd", "adam", "adamw"])
def test_child_keeps_its_own_hyperparameters(old: str, new: str) -> None:
    model, captured = trained_parent(old, lr=0.01, weight_decay=0.0, momentum=0.9)
    _, optimizer = child_of(model, captured, new, lr=0.5, weight_decay=0.25, momentum=0.75)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.5, 0.25)
    assert group.get("momentum", 0.75) == 0.75


def test_child_trains_with_its_own_learning_rate() -> None:
    model, captured = trained_parent("sgd", momentum=0.0)
    still, optimizer = child_of(model, captured, "sgd", lr=1e-30, momentum=0.0)
    train_steps(still, optimizer)
    assert same(still.state_dict(), model.state_dict())


def test_param_groups_keep_their_own_learning_rates() -> None:
    model, captured = trained_parent("adam")
    child = copy.deepcopy(model)
    groups = [{"params": child[0].parameters(), "lr": 0.5}, {"params": child[2].parameters()}]
    optimizer = make_optimizer("adam", groups, lr=0.1, weight_decay=0.0, momentum=0.0)
    inherit_optimizer(optimizer, captured)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.1]
    assert same(optimizer.state_dict()["state"], captured["state"])


@pytest.mark.parametrize(
    ("old", "new"),
    [("adam", "adam"), ("adam", "adamw"), ("adam", "nadam"), ("adam", "sgd"), ("sgd", "sgd")],
)
def test_children_share_no_memory_with_the_captured_state_or_each_other(
    old: str, new: str
) -> None:
    model, captured = trained_parent(old)
    untouched = copy.deepcopy(captured)
    one, one_optimizer = child_of(model, captured, new)
    other, other_optimizer = child_of(model, captured, new)
    states = [o.state_dict()["state"] for o in (one_optimizer, other_optimizer)]
    assert not memory_of(captured) & memory_of(*states)
    assert not memory_of(states[0]) & memory_of(states[1])
    train_steps(one, one_optimizer, seed=1)
    assert same(captured, untouched)
    train_steps(other, other_optimizer, seed=1)
    assert same(captured, untouched)
    assert same(one.state_dict(), other.state_dict())


def test_training_a_child_does_not_change_the_captured_step_count() -> None:
    model, captured = trained_parent("adam")
    child, optimizer = child_of(model, captured, "adam")
    train_steps(child, optimizer, n_steps=5)
    assert float(captured["state"][0]["step"]) == 3
    assert float(optimizer.state_dict()["state"][0]["step"]) == 8


def test_child_with_fewer_parameters_is_refused() -> None:
    _, captured = trained_parent("adam")
    optimizer = build("adam", nn.Linear(4, 5))
    with pytest.raises(InheritanceError, match=r"4 parameters.*got 2.*same parameters"):
        inherit_optimizer(optimizer, captured)


def test_child_with_more_parameters_is_refused() -> None:
    model = make_network()
    optimizer = build("adam", model[2])
    train_steps(model, optimizer)
    with pytest.raises(InheritanceError, match=r"2 parameters.*got 4.*same parameters"):
        inherit_optimizer(build("adam", model), capture_optimizer(optimizer))


def test_frozen_parameters_leave_no_state() -> None:
    model = make_network()
    model[0].requires_grad_(False)
    optimizer = build("adam", model)
    train_steps(model, optimizer)
    child, child_optimizer = child_of(model, capture_optimizer(optimizer), "adam")
    assert child_optimizer.state_dict()["state"].keys() == {2, 3}
    train_steps(model, optimizer)
    train_steps(child, child_optimizer)
    assert same(model.state_dict(), child.state_dict())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (lambda p: optim.Adam(p), lambda p: optim.Adam(p, amsgrad=True)),
        (lambda p: optim.RMSprop(p), lambda p: optim.RMSprop(p, momentum=0.9)),
        (lambda p: optim.RMSprop(p), lambda p: optim.RMSprop(p, centered=True)),
        (lambda p: optim.SGD(p, lr=0.1), lambda p: optim.SGD(p, lr=0.1, momentum=0.9)),
    ],
    ids=["amsgrad", "rmsprop momentum", "rmsprop centered", "sgd momentum"],
)
def test_missing_state_is_initialized(old: Any, new: Any) -> None:
    model = make_network()
    optimizer = old(model.parameters())
    train_steps(model, optimizer)
    child = copy.deepcopy(model)
    child_optimizer = new(child.parameters())
    inherit_optimizer(child_optimizer, capture_optimizer(optimizer))
    train_steps(child, child_optimizer)
    assert not same(child.state_dict(), model.state_dict())
    assert all(parameter.isfinite().all() for parameter in child.parameters())


def test_captured_state_has_no_hyperparameters() -> None:
    _, captured = trained_parent("adam")
    assert captured["class"] == "Adam"
    assert captured["groups"] == [{}]
    assert {key for entry in captured["state"].values() for key in entry} == {
        "step",
        "exp_avg",
        "exp_avg_sq",
    }


def test_checkpoint_of_an_older_version_is_inherited() -> None:
    model, captured = trained_parent("adam")
    old = {key: captured[key] for key in ("class", "n_params", "state")}
    _, optimizer = child_of(model, old, "adam")
    assert same(optimizer.state_dict()["state"], captured["state"])


def test_initial_state_is_moved_with_the_parameters() -> None:
    model = make_network()
    optimizer = build("adagrad", model)
    model.double()  # A change of dtype stands for a change of device.
    group = optimizer.param_groups[0]
    move_optimizer_state(optimizer, torch.device("cpu"))
    assert optimizer.param_groups[0] is group
    assert {entry["sum"].dtype for entry in optimizer.state.values()} == {torch.float64}
    assert optimizer.param_groups[0]["fused"]
    move_optimizer_state(optimizer, torch.device("cuda"))
    assert not optimizer.param_groups[0]["fused"], "Torch 2.7 has no fused Adagrad for CUDA."


def test_optimizer_without_initial_state_is_not_changed() -> None:
    optimizer = build("adam", make_network())
    groups = optimizer.param_groups
    move_optimizer_state(optimizer, torch.device("cuda"))
    assert optimizer.param_groups is groups


def test_initial_state_of_a_wrapped_optimizer_is_moved() -> None:
    model = make_network()
    wrapper = optim.SGD(model.parameters(), lr=0.1)
    wrapper.base_optimizer = optim.Adagrad(wrapper.param_groups)  # type: ignore[attr-defined]
    model.double()  # A change of dtype stands for a change of device.
    move_optimizer_state(wrapper, torch.device("cpu"))
    state = wrapper.base_optimizer.state  # type: ignore[attr-defined]
    assert {entry["sum"].dtype for entry in state.values()} == {torch.float64}


def test_momentum_of_each_group_counts_in_a_conversion() -> None:
    model, captured = trained_parent("adam")
    groups = [
        {"params": model[0].parameters(), "momentum": 0.5},
        {"params": model[2].parameters()},
    ]
    optimizer = make_optimizer("sgd", groups, lr=0.1, weight_decay=0.0, momentum=0.75)
    inherit_optimizer(optimizer, captured)
    state = optimizer.state_dict()["state"]
    for index, factor in ((0, 2), (1, 2), (2, 4), (3, 4)):
        expected = factor * captured["state"][index]["exp_avg"]
        assert torch.allclose(state[index]["momentum_buffer"], expected)
