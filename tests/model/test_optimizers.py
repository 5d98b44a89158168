"""Optimizers by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn, optim

from optuna_miha._model.optimizers import (
    OPTIMIZERS,
    make_optimizer,
    optimizer_name,
)


def make_network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def build(name: str, model: nn.Module, **changes: float) -> optim.Optimizer:
    settings = {"lr": 0.01, "weight_decay": 0.0, "momentum": 0.9} | changes
    return make_optimizer(name, model.parameters(), **settings)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_are_built_with_the_given_hyperparameters(name: str) -> None:
    optimizer = build(name, make_network(), lr=0.125, weight_decay=0.5, momentum=0.75)
    assert type(optimizer) is OPTIMIZERS[name]
    assert optimizer_name(optimizer) == name
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.125, 0.5)
    if name == "sgd":
        assert group["momentum"] == 0.75


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_are_fused_if_the_class_supports_it(name: str) -> None:
    fused = build(name, make_network()).param_groups[0].get("fused")
    assert bool(fused) == (name in {"adagrad", "adam", "adamw", "sgd"})


@pytest.mark.parametrize("name", ["adagrad", "adam", "adamw", "sgd"])
@pytest.mark.parametrize("grouped", [False, True])
def test_complex_parameters_are_trained_without_fused_kernels(name: str, grouped: bool) -> None:
    weight = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    params = [{"params": [weight]}] if grouped else [weight]
    optimizer = make_optimizer(name, params, lr=0.1, weight_decay=0.0, momentum=0.0)
    weight.abs().sum().backward()
    optimizer.step()
    assert bool((weight.detach() != 1).all())


def test_other_classes_have_no_name() -> None:
    class Derived(optim.SGD):
        pass

    assert optimizer_name(Derived(make_network().parameters(), lr=0.1)) is None
    assert optimizer_name(optim.LBFGS(make_network().parameters())) is None


def test_soap_has_no_preconditioner_along_long_dimensions() -> None:
    pytest.importorskip("pytorch_optimizer")
    model = nn.Sequential(nn.Embedding(600, 4), nn.Flatten(), nn.Linear(8, 3))
    soap = make_optimizer("soap", model.parameters(), lr=0.01, weight_decay=0.1, momentum=0.9)
    assert type(soap).__name__ == "SOAP"
    for _ in range(3):
        soap.zero_grad()
        model(torch.randint(600, (5, 2))).square().sum().backward()
        soap.step()
    group = soap.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.01, 0.1)
    shapes = [part.shape for state in soap.state.values() for part in state["GG"] if len(part)]
    assert {tuple(shape) for shape in shapes} == {(3, 3), (4, 4), (8, 8)}
