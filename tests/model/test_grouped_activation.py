"""Groups of neurons with different activations."""

from __future__ import annotations

import pytest
import torch
from helpers.equality import same
from helpers.networks import Nested, Shared
from torch import nn

from optuna_miha._model.activations import (
    ACTIVATIONS,
    GroupedActivation,
    find_activations,
    group_activation,
)


def grouped(names: str, dim: int) -> GroupedActivation:
    return GroupedActivation([ACTIVATIONS[name]() for name in names.split()], dim)


@pytest.mark.parametrize(
    ("shape", "dim"),
    [((5, 8), -1), ((5, 8), 1), ((5, 3, 8), -1), ((5, 8, 3), 1), ((5, 8, 3, 3), 1), ((8,), -1)],
)
def test_each_group_has_its_own_activation(shape: tuple[int, ...], dim: int) -> None:
    x = torch.randn(shape)
    parts = x.chunk(4, dim)
    functions = (torch.relu, torch.tanh, nn.functional.gelu, torch.relu)
    expected = torch.cat([f(part) for f, part in zip(functions, parts, strict=True)], dim)
    assert torch.equal(grouped("relu tanh gelu relu", dim)(x), expected)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_groups_with_the_same_activation_equal_the_plain_one(name: str) -> None:
    plain = ACTIVATIONS[name]()
    x = 3 * torch.randn(7, 31)
    assert torch.equal(GroupedActivation([plain] * 4, -1)(x), plain(x))
    # Separate modules compute shorter vectors: vectorized kernels may differ in the last bit.
    assert torch.allclose(grouped(" ".join([name] * 4), -1)(x), plain(x), atol=1e-6)


@pytest.mark.parametrize(("width", "sizes"), [(8, [2, 3, 3]), (9, [3, 3, 3]), (2, [0, 1, 1])])
def test_group_sizes_differ_by_at_most_one(width: int, sizes: list[int]) -> None:
    x = torch.full((4, width), -10.0)
    out = grouped("relu tanh hardtanh", -1)(x)
    relu, tanh, hardtanh = out[0].split(sizes)
    assert (relu == 0).all()
    assert torch.equal(tanh, torch.tanh(torch.full((sizes[1],), -10.0)))
    assert (hardtanh == -1).all()


def test_adjacent_groups_with_the_same_module_are_merged() -> None:
    relu, tanh = nn.ReLU(), nn.Tanh()
    module = GroupedActivation([relu, relu, tanh, relu], -1)
    assert list(module.activations) == [relu, tanh, relu]
    assert "n_groups=4, dim=-1" in repr(module)


def test_gradients_of_every_group_are_correct() -> None:
    x = torch.randn(5, 8, requires_grad=True)
    grouped("relu tanh gelu silu", -1)(x).sum().backward()
    got = x.grad
    y = x.detach().clone().requires_grad_()
    functions = (torch.relu, torch.tanh, nn.functional.gelu, nn.functional.silu)
    sum(f(y[:, 2 * n : 2 * n + 2]).sum() for n, f in enumerate(functions)).backward()
    assert got is not None and y.grad is not None
    assert torch.allclose(got, y.grad)
    assert torch.autograd.gradcheck(
        grouped("elu tanh gelu silu", -1),
        torch.randn(3, 8, dtype=torch.float64, requires_grad=True),
    )


@pytest.mark.parametrize("n_channels", [8, 4])
def test_groups_keep_the_memory_format(n_channels: int) -> None:
    x = torch.randn(2, n_channels, 5, 5).to(memory_format=torch.channels_last)
    out = grouped("relu tanh gelu silu", 1)(x)
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_groups_have_no_state() -> None:
    model, plain = Nested(), Nested()
    plain.load_state_dict(model.state_dict())
    group_activation(model, "encoder.1", ["relu", "gelu"], -1)
    assert same(model.state_dict(), plain.state_dict())
    assert [n for n, _ in model.named_buffers()] == [n for n, _ in plain.named_buffers()]
    plain.load_state_dict(model.state_dict(), strict=True)
    assert list(find_activations(model)) == [p for p in find_activations(plain) if p[-2:] != ".1"]


def test_group_with_the_current_activation_keeps_its_settings() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LeakyReLU(0.2), nn.Linear(4, 1))
    original = model[1]
    group_activation(model, "1", ["leaky_relu", "tanh"], -1)
    assert model[1].activations[0] is original


def test_inplace_activation_does_not_affect_other_groups() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 1))
    original = model[1]
    group_activation(model, "1", ["relu", "gelu"], -1)
    x = torch.randn(3, 4)
    hidden = model[0](x)
    before = hidden.clone()
    model[1](hidden).sum().backward()
    assert torch.equal(hidden, before)
    assert original.inplace  # The user's module may be used elsewhere.


def test_module_used_in_two_places_is_grouped_in_both() -> None:
    model = Shared()
    group_activation(model, "act", ["relu", "tanh"], -1)
    assert model.tail[0] is model.act
    x = torch.randn(3, 4)
    assert model(x).shape == x.shape
