"""Finding and replacing the activations of a network."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers.equality import same
from helpers.networks import Block, Nested, Shared
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from optuna_miha._model.activations import (
    ACTIVATIONS,
    activation_name,
    find_activations,
    neurons_before,
    replace_activation,
)


def test_nested_activations_are_found_by_qualified_name() -> None:
    assert find_activations(Nested()) == {
        "encoder.1": "relu",
        "encoder.2.act": "tanh",
        "blocks.0.act": "tanh",
        "blocks.1.act": "tanh",
        "last": "gelu",
    }


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_have_a_name_and_no_parameters(name: str) -> None:
    module = ACTIVATIONS[name]()
    assert activation_name(module) == name
    assert module.state_dict() == {}
    x = torch.linspace(-2, 2, 5)
    assert module(x).shape == x.shape


@pytest.mark.parametrize(
    "module",
    [
        nn.PReLU(),
        nn.Softmax(dim=1),
        nn.LogSoftmax(dim=1),
        nn.Softmin(dim=1),
        nn.GLU(),
        nn.Dropout(),
        nn.Linear(2, 2),
    ],
)
def test_other_modules_have_no_name(module: nn.Module) -> None:
    assert activation_name(module) is None


def test_new_activation_is_applied() -> None:
    model = Nested()
    x = torch.randn(3, 4)
    replace_activation(model, "blocks.1.act", "relu")
    block = model.blocks[1]
    assert torch.equal(block(x), x + torch.relu(block.linear(x)))
    assert isinstance(model.blocks[0].act, nn.Tanh)


@pytest.mark.parametrize("path", find_activations(Nested()))
def test_replacing_an_activation_keeps_the_weights(path: str) -> None:
    model = Nested()
    before = dict(model.named_parameters())
    replace_activation(model, path, "silu")
    after = dict(model.named_parameters())
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)
    assert find_activations(model)[path] == "silu"


def test_module_used_in_two_places_is_found_once_and_replaced_in_both() -> None:
    model = Shared()
    assert find_activations(model) == {"act": "relu"}
    replace_activation(model, "act", "tanh")
    assert isinstance(model.act, nn.Tanh)
    assert model.tail[0] is model.act
    x = torch.randn(3, 4)
    hidden = torch.tanh(model.two(torch.tanh(model.one(x))))
    assert torch.equal(model(x), model.tail[1](hidden))


@pytest.mark.parametrize(
    ("model", "hidden", "with_output"),
    [
        (
            nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1), nn.Sigmoid()),
            {"1"},
            {"1", "3"},
        ),
        (
            nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 1), nn.Tanh())),
            {"1"},
            {"1", "2.1"},
        ),
        (
            nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Flatten(), nn.Dropout()),
            set(),
            {"1"},
        ),
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1)), {"1"}, {"1"}),
        (nn.Sequential(Block(), nn.ReLU()), {"0.act"}, {"0.act", "1"}),
        (nn.Sequential(nn.Linear(4, 4), Block()), {"1.act"}, {"1.act"}),
    ],
)
def test_output_activation_is_found_only_if_included(
    model: nn.Module, hidden: set[str], with_output: set[str]
) -> None:
    assert find_activations(model).keys() == hidden
    assert find_activations(model, include_output=True).keys() == with_output


def test_activation_used_in_hidden_and_output_layers_counts_as_output() -> None:
    act = nn.Sigmoid()
    model = nn.Sequential(nn.Linear(4, 4), act, nn.Linear(4, 1), act)
    assert find_activations(model) == {}
    assert find_activations(model, include_output=True) == {"1": "sigmoid"}


@pytest.mark.parametrize("softmax", [nn.Softmax(dim=1), nn.LogSoftmax(dim=1)])
def test_softmax_is_never_found(softmax: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3), softmax)
    assert find_activations(model, include_output=True) == {"1": "relu"}


def encoder_layer(activation: nn.Module, **settings: Any) -> nn.TransformerEncoderLayer:
    torch.manual_seed(0)
    settings = {"dropout": 0.0, "batch_first": True} | settings
    return nn.TransformerEncoderLayer(8, 2, 16, activation=activation, **settings)


@pytest.mark.parametrize("old", [nn.ReLU, nn.GELU])
@pytest.mark.parametrize("new", ["tanh", "silu", "gelu", "relu"])
def test_transformer_layer_evaluates_with_the_new_activation(
    old: type[nn.Module], new: str
) -> None:
    layer = encoder_layer(old())
    x = torch.randn(3, 5, 8)
    replace_activation(layer, "activation", new)
    trained = layer.train()(x).detach()
    with torch.no_grad():
        evaluated = layer.eval()(x)
    assert torch.allclose(trained, evaluated, atol=1e-6)
    fresh = encoder_layer(ACTIVATIONS[new]())
    assert torch.allclose(trained, fresh.train()(x), atol=1e-6)


def test_copied_transformer_layer_evaluates_with_the_new_activation() -> None:
    layer = encoder_layer(nn.ReLU())
    x = torch.randn(3, 5, 8)
    replace_activation(layer, "activation", "tanh")
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        assert torch.allclose(layer.train()(x), twin.eval()(x), atol=1e-6)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("replaced", [[0], [1], [0, 1]])
def test_transformer_encoder_evaluates_with_the_new_activations(
    masked: bool, replaced: list[int]
) -> None:
    # `enable_nested_tensor` is on by default, with a separate code path for masked batches.
    encoder = nn.TransformerEncoder(encoder_layer(nn.ReLU()), num_layers=2)
    assert find_activations(encoder) == {
        "layers.0.activation": "relu",
        "layers.1.activation": "relu",
    }
    x = torch.randn(3, 5, 8)
    mask = torch.zeros(3, 5, dtype=torch.bool)
    if masked:
        mask[0, 3:] = mask[1, 4:] = True
    for index in replaced:
        replace_activation(encoder, f"layers.{index}.activation", "tanh")
    trained = encoder.train()(x, src_key_padding_mask=mask).detach()
    with torch.no_grad():
        evaluated = encoder.eval()(x, src_key_padding_mask=mask)
    assert torch.allclose(trained[~mask], evaluated[~mask], atol=1e-6)


def test_model_that_is_an_activation_has_none_to_replace() -> None:
    assert find_activations(nn.ReLU()) == {}


def test_new_activation_does_not_change_the_state_dict() -> None:
    model, twin = Nested(), Nested()
    replace_activation(model, "last", "elu")
    twin.load_state_dict(model.state_dict(), strict=True)
    assert same(model.state_dict(), twin.state_dict())


class ManyLayers(nn.Module):
    """Several kinds of layers, one with children, and an unrelated attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.out_channels = 99  # Not the neurons of a layer.
        self.first = nn.ReLU()
        self.conv = nn.Conv1d(2, 3, 1)
        self.pool = nn.MaxPool1d(2)
        self.second = nn.ReLU()
        self.attention = nn.MultiheadAttention(6, 2)
        self.norm = nn.LayerNorm(6)
        self.third = nn.ReLU()


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (ManyLayers(), {"first": (None, -1), "second": (3, 1), "third": (6, -1)}),
        (Nested(), dict.fromkeys(["encoder.1", "encoder.2.act", "last"], (4, -1))),
        (nn.Sequential(nn.Conv3d(1, 5, 1), nn.ReLU()), {"1": (5, 1)}),
        (nn.Sequential(nn.ConvTranspose2d(1, 5, 1), nn.ReLU()), {"1": (5, 1)}),
        (nn.Sequential(nn.Linear(2, 5), nn.BatchNorm1d(5), nn.ReLU()), {"2": (5, 1)}),
        (nn.Sequential(nn.Conv2d(2, 6, 1), nn.GroupNorm(2, 6), nn.ReLU()), {"2": (6, 1)}),
        (nn.Sequential(nn.Conv2d(2, 6, 1), nn.LayerNorm([6, 4, 4]), nn.ReLU()), {"2": (6, 1)}),
        (nn.Sequential(nn.LazyLinear(5), nn.ReLU()), {"1": (5, -1)}),
        (nn.Sequential(weight_norm(nn.Conv1d(2, 5, 1)), nn.ReLU()), {"1": (5, 1)}),
        (nn.Sequential(nn.LazyConv2d(5, 1), nn.LazyBatchNorm2d(), nn.ReLU()), {"2": (5, 1)}),
        (nn.ModuleList([nn.Conv1d(1, 2, 1), nn.GRU(3, 4), nn.ReLU()]), {"2": (4, -1)}),
        (
            nn.TransformerEncoder(encoder_layer(nn.ReLU()), 2, enable_nested_tensor=False),
            {"layers.0.activation": (16, -1), "layers.1.activation": (16, -1)},
        ),
        (
            nn.TransformerDecoderLayer(8, 2, 16, activation=nn.ReLU()),
            {"activation": (16, -1)},
        ),
    ],
)
def test_nearest_layer_before_a_module_determines_its_neurons(
    model: nn.Module, expected: dict[str, tuple[int | None, int]]
) -> None:
    neurons = neurons_before(model)
    assert {path: neurons[path] for path in expected} == expected
