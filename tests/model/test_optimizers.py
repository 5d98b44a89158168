"""Optimizers by name, and what one takes over from another."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers.equality import memory_of, same
from helpers.networks import train_steps
from torch import nn, optim

from optuna_miha._model.optimizers import (
    OPTIMIZERS,
    capture_optimizer,
    follow,
    inherit_optimizer,
    make_optimizer,
    name_of,
)
from optuna_miha.exceptions import InheritanceError


def model_of(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def made(name: str, model: nn.Module, **changes: float) -> optim.Optimizer:
    settings = {"lr": 0.01, "weight_decay": 0.0, "momentum": 0.9} | changes
    return make_optimizer(name, model.parameters(), **settings)


def parent(name: str, **changes: float) -> tuple[nn.Sequential, dict[str, Any]]:
    """A trained network, and what its optimizer leaves to its heirs."""
    model = model_of()
    optimizer = made(name, model, **changes)
    train_steps(model, optimizer)
    return model, copy.deepcopy(capture_optimizer(optimizer))


def heir_of(
    model: nn.Module, captured: dict[str, Any], name: str, **changes: float
) -> tuple[nn.Module, optim.Optimizer]:
    model = copy.deepcopy(model)
    optimizer = made(name, model, **changes)
    inherit_optimizer(optimizer, captured)
    return model, optimizer


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_same_class_continues_bit_identically(name: str) -> None:
    model = model_of()
    optimizer = made(name, model)
    train_steps(model, optimizer)
    heir, own = heir_of(model, capture_optimizer(optimizer), name)
    assert same(own.state_dict()["state"], optimizer.state_dict()["state"])
    train_steps(model, optimizer)
    train_steps(heir, own)
    assert same(model.state_dict(), heir.state_dict())


@pytest.mark.parametrize("old", ["adam", "adamw", "nadam"])
@pytest.mark.parametrize("new", ["adam", "adamw", "nadam"])
def test_the_adam_family_shares_its_moments(old: str, new: str) -> None:
    model, captured = parent(old)
    heir, optimizer = heir_of(model, captured, new)
    state = optimizer.state_dict()["state"]
    assert state.keys() == captured["state"].keys() == {0, 1, 2, 3}
    for index, entry in captured["state"].items():
        for key in ("step", "exp_avg", "exp_avg_sq"):
            assert same(state[index][key], entry[key])
    train_steps(heir, optimizer, n_steps=20)
    assert all(parameter.isfinite().all() for parameter in heir.parameters())


def test_adam_without_decay_goes_on_in_adamw_as_in_adam() -> None:
    model, captured = parent("adam")
    one, adam = heir_of(model, captured, "adam")
    other, adamw = heir_of(model, captured, "adamw")
    train_steps(one, adam)
    train_steps(other, adamw)
    assert same(one.state_dict(), other.state_dict())


def test_nadam_takes_adams_moments_for_unbiased_in_its_first_step() -> None:
    model, captured = parent("adam")
    heir, optimizer = heir_of(model, captured, "nadam", lr=1e-3)
    before = [parameter.detach().clone() for parameter in heir.parameters()]
    train_steps(heir, optimizer, n_steps=1)
    # T. Dozat, Incorporating Nesterov Momentum into Adam, 2016, with products of momenta of 0.
    mu, mu_next = (0.9 * (1 - 0.5 * 0.96 ** (step * 4e-3)) for step in (4, 5))
    for index, (old, new) in enumerate(zip(before, heir.parameters(), strict=True)):
        assert new.grad is not None
        moments = captured["state"][index]
        first = 0.9 * moments["exp_avg"] + 0.1 * new.grad
        second = 0.999 * moments["exp_avg_sq"] + 0.001 * new.grad**2
        scale = (second / (1 - 0.999**4)).sqrt() + 1e-8
        step = 1e-3 * ((1 - mu) * new.grad + mu_next * first) / scale
        assert torch.allclose(old - new.detach(), step, atol=1e-6)


@pytest.mark.parametrize("old", ["adam", "adamw", "nadam"])
def test_sgd_starts_from_adams_first_moment_as_a_sum(old: str) -> None:
    model, captured = parent(old)
    _, optimizer = heir_of(model, captured, "sgd", momentum=0.75)
    state = optimizer.state_dict()["state"]
    assert state.keys() == captured["state"].keys()
    for index, entry in captured["state"].items():
        assert state[index].keys() == {"momentum_buffer"}
        assert torch.allclose(state[index]["momentum_buffer"], 4 * entry["exp_avg"])


def test_the_momentum_that_sgd_starts_from_is_used_in_its_first_step() -> None:
    model, captured = parent("adam")
    heir, optimizer = heir_of(model, captured, "sgd", momentum=0.9, lr=0.1)
    fresh = copy.deepcopy(model)
    train_steps(fresh, made("sgd", fresh, momentum=0.9, lr=0.1), n_steps=1)
    before = [parameter.detach().clone() for parameter in heir.parameters()]
    train_steps(heir, optimizer, n_steps=1)
    moved = zip(before, fresh.parameters(), heir.parameters(), strict=True)
    for index, (old, without, with_it) in enumerate(moved):
        buffer = captured["state"][index]["exp_avg"] / (1 - 0.9)
        # v <- 0.9 v + g; a fresh buffer begins at g.
        expected = (without - old) - 0.1 * 0.9 * buffer
        assert torch.allclose(with_it - old, expected, atol=1e-6)


def test_sgd_without_momentum_takes_nothing_from_adam() -> None:
    model, captured = parent("adam")
    heir, optimizer = heir_of(model, captured, "sgd", momentum=0.0)
    assert optimizer.state_dict()["state"] == {}
    fresh = copy.deepcopy(model)
    train_steps(heir, optimizer)
    train_steps(fresh, made("sgd", fresh, momentum=0.0))
    assert same(heir.state_dict(), fresh.state_dict())


@pytest.mark.parametrize(
    ("old", "new"), [("sgd", "adam"), ("adadelta", "adamw"), ("adam", "rmsprop"), ("sgd", "nadam")]
)
def test_strangers_start_afresh(old: str, new: str) -> None:
    model, captured = parent(old)
    heir, optimizer = heir_of(model, captured, new)
    assert optimizer.state_dict()["state"] == {}
    fresh = copy.deepcopy(model)
    train_steps(heir, optimizer)
    train_steps(fresh, made(new, fresh))
    assert same(heir.state_dict(), fresh.state_dict())


@pytest.mark.parametrize("old", ["sgd", "adam"])
@pytest.mark.parametrize("new", ["sgd", "adam", "adamw"])
def test_an_heir_keeps_its_own_hyperparameters(old: str, new: str) -> None:
    model, captured = parent(old, lr=0.01, weight_decay=0.0, momentum=0.9)
    _, optimizer = heir_of(model, captured, new, lr=0.5, weight_decay=0.25, momentum=0.75)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.5, 0.25)
    assert group.get("momentum", 0.75) == 0.75


def test_the_learning_rate_in_force_is_the_heirs() -> None:
    model, captured = parent("sgd", momentum=0.0)
    still, optimizer = heir_of(model, captured, "sgd", lr=1e-30, momentum=0.0)
    train_steps(still, optimizer)
    assert same(still.state_dict(), model.state_dict())


def test_param_groups_keep_their_own_learning_rates() -> None:
    model, captured = parent("adam")
    heir = copy.deepcopy(model)
    groups = [{"params": heir[0].parameters(), "lr": 0.5}, {"params": heir[2].parameters()}]
    optimizer = make_optimizer("adam", groups, lr=0.1, weight_decay=0.0, momentum=0.0)
    inherit_optimizer(optimizer, captured)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.1]
    assert same(optimizer.state_dict()["state"], captured["state"])


@pytest.mark.parametrize(
    ("old", "new"),
    [("adam", "adam"), ("adam", "adamw"), ("adam", "nadam"), ("adam", "sgd"), ("sgd", "sgd")],
)
def test_heirs_share_nothing_with_the_captured_state_nor_with_each_other(
    old: str, new: str
) -> None:
    model, captured = parent(old)
    untouched = copy.deepcopy(captured)
    one, one_optimizer = heir_of(model, captured, new)
    other, other_optimizer = heir_of(model, captured, new)
    states = [o.state_dict()["state"] for o in (one_optimizer, other_optimizer)]
    assert not memory_of(captured) & memory_of(*states)
    assert not memory_of(states[0]) & memory_of(states[1])
    train_steps(one, one_optimizer, seed=1)
    assert same(captured, untouched)
    train_steps(other, other_optimizer, seed=1)
    assert same(captured, untouched)
    assert same(one.state_dict(), other.state_dict())


def test_the_count_of_steps_is_no_heirs_to_change() -> None:
    model, captured = parent("adam")
    heir, optimizer = heir_of(model, captured, "adam")
    train_steps(heir, optimizer, n_steps=5)
    assert float(captured["state"][0]["step"]) == 3
    assert float(optimizer.state_dict()["state"][0]["step"]) == 8


def test_an_heir_with_fewer_parameters_is_refused() -> None:
    _, captured = parent("adam")
    optimizer = made("adam", nn.Linear(4, 5))
    with pytest.raises(InheritanceError, match=r"4 parameters.*got 2.*same parameters"):
        inherit_optimizer(optimizer, captured)


def test_an_heir_with_more_parameters_is_refused() -> None:
    model = model_of()
    optimizer = made("adam", model[2])
    train_steps(model, optimizer)
    with pytest.raises(InheritanceError, match=r"2 parameters.*got 4.*same parameters"):
        inherit_optimizer(made("adam", model), capture_optimizer(optimizer))


def test_parameters_that_were_never_trained_have_nothing_to_leave() -> None:
    model = model_of()
    model[0].requires_grad_(False)
    optimizer = made("adam", model)
    train_steps(model, optimizer)
    heir, own = heir_of(model, capture_optimizer(optimizer), "adam")
    assert own.state_dict()["state"].keys() == {2, 3}
    train_steps(model, optimizer)
    train_steps(heir, own)
    assert same(model.state_dict(), heir.state_dict())


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
def test_an_heir_that_needs_more_state_than_it_inherits_trains(old: Any, new: Any) -> None:
    model = model_of()
    optimizer = old(model.parameters())
    train_steps(model, optimizer)
    heir = copy.deepcopy(model)
    own = new(heir.parameters())
    inherit_optimizer(own, capture_optimizer(optimizer))
    train_steps(heir, own)
    assert not same(heir.state_dict(), model.state_dict())
    assert all(parameter.isfinite().all() for parameter in heir.parameters())


def test_what_an_optimizer_sets_up_when_built_follows_its_parameters() -> None:
    model = model_of()
    optimizer = made("adagrad", model)
    model.double()  # It is cast as it would be moved.
    follow(optimizer, torch.device("cpu"))
    assert {entry["sum"].dtype for entry in optimizer.state.values()} == {torch.float64}
    assert optimizer.param_groups[0]["fused"]
    follow(optimizer, torch.device("cuda"))
    assert not optimizer.param_groups[0]["fused"], "Torch 2.7 has no such kernel for CUDA."


def test_an_optimizer_that_has_set_up_nothing_is_left_alone() -> None:
    optimizer = made("adam", model_of())
    groups = optimizer.param_groups
    follow(optimizer, torch.device("cuda"))
    assert optimizer.param_groups is groups


def test_captured_state_holds_no_hyperparameters() -> None:
    _, captured = parent("adam")
    assert captured.keys() == {"class", "n_params", "state"}
    assert captured["class"] == "Adam"


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_are_made_with_the_hyperparameters_asked_for(name: str) -> None:
    optimizer = made(name, model_of(), lr=0.125, weight_decay=0.5, momentum=0.75)
    assert type(optimizer) is OPTIMIZERS[name]
    assert name_of(optimizer) == name
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.125, 0.5)
    if name == "sgd":
        assert group["momentum"] == 0.75


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_are_fused_where_the_class_can(name: str) -> None:
    fused = made(name, model_of()).param_groups[0].get("fused")
    assert bool(fused) == (name in {"adagrad", "adam", "adamw", "sgd"})


@pytest.mark.parametrize("name", ["adagrad", "adam", "adamw", "sgd"])
@pytest.mark.parametrize("grouped", [False, True])
def test_parameters_that_fused_kernels_do_not_know_are_trained_without(
    name: str, grouped: bool
) -> None:
    weight = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    params = [{"params": [weight]}] if grouped else [weight]
    optimizer = make_optimizer(name, params, lr=0.1, weight_decay=0.0, momentum=0.0)
    weight.abs().sum().backward()
    optimizer.step()
    assert bool((weight.detach() != 1).all())


def test_a_class_without_a_name_has_none() -> None:
    class Mine(optim.SGD):
        pass

    assert name_of(Mine(model_of().parameters(), lr=0.1)) is None
    assert name_of(optim.LBFGS(model_of().parameters())) is None
