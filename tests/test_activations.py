"""Finding the activations of a network, and putting others in their place."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers import same
from torch import Tensor, nn

from optuna_miha._activations import (
    ACTIVATIONS,
    activation_name,
    find_activations,
    replace_activation,
)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.act = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.act(self.linear(x))


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), Block())
        self.blocks = nn.ModuleList([Block(), Block()])
        self.last = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.act = nn.ReLU()
        self.tail = nn.Sequential(self.act, nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.two(self.act(self.one(x))))


def test_nested_activations_are_found_by_their_qualified_names() -> None:
    assert find_activations(Nested()) == {
        "encoder.1": "relu",
        "encoder.2.act": "tanh",
        "blocks.0.act": "tanh",
        "blocks.1.act": "tanh",
        "last": "gelu",
    }


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_is_known_by_its_name_and_has_no_parameters(name: str) -> None:
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
def test_modules_that_cannot_stand_in_for_each_other_have_no_name(module: nn.Module) -> None:
    assert activation_name(module) is None


def test_a_replaced_activation_is_computed() -> None:
    model = Nested()
    x = torch.randn(3, 4)
    replace_activation(model, "blocks.1.act", "relu")
    block = model.blocks[1]
    assert torch.equal(block(x), x + torch.relu(block.linear(x)))
    assert isinstance(model.blocks[0].act, nn.Tanh)


@pytest.mark.parametrize("path", find_activations(Nested()))
def test_weights_stay_in_place_when_an_activation_is_replaced(path: str) -> None:
    model = Nested()
    before = dict(model.named_parameters())
    replace_activation(model, path, "silu")
    after = dict(model.named_parameters())
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)
    assert find_activations(model)[path] == "silu"


def test_a_module_in_two_places_is_found_once_and_replaced_in_both() -> None:
    model = Shared()
    assert find_activations(model) == {"act": "relu"}
    replace_activation(model, "act", "tanh")
    assert isinstance(model.act, nn.Tanh)
    assert model.tail[0] is model.act
    x = torch.randn(3, 4)
    hidden = torch.tanh(model.two(torch.tanh(model.one(x))))
    assert torch.equal(model(x), model.tail[1](hidden))


@pytest.mark.parametrize(
    ("model", "hidden", "all_of_them"),
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
def test_the_output_activation_is_left_alone_unless_asked_for(
    model: nn.Module, hidden: set[str], all_of_them: set[str]
) -> None:
    assert find_activations(model).keys() == hidden
    assert find_activations(model, include_output=True).keys() == all_of_them


def test_an_output_activation_that_is_used_inside_too_is_left_alone() -> None:
    act = nn.Sigmoid()
    model = nn.Sequential(nn.Linear(4, 4), act, nn.Linear(4, 1), act)
    assert find_activations(model) == {}
    assert find_activations(model, include_output=True) == {"1": "sigmoid"}


@pytest.mark.parametrize("softmax", [nn.Softmax(dim=1), nn.LogSoftmax(dim=1)])
def test_a_softmax_is_never_found(softmax: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3), softmax)
    assert find_activations(model, include_output=True) == {"1": "relu"}


def _encoder_layer(activation: nn.Module, **settings: Any) -> nn.TransformerEncoderLayer:
    torch.manual_seed(0)
    settings = {"dropout": 0.0, "batch_first": True} | settings
    return nn.TransformerEncoderLayer(8, 2, 16, activation=activation, **settings)


@pytest.mark.parametrize("old", [nn.ReLU, nn.GELU])
@pytest.mark.parametrize("new", ["tanh", "silu", "gelu", "relu"])
def test_a_transformer_layer_evaluates_with_the_activation_it_trains_with(
    old: type[nn.Module], new: str
) -> None:
    layer = _encoder_layer(old())
    x = torch.randn(3, 5, 8)
    replace_activation(layer, "activation", new)
    trained = layer.train()(x).detach()
    with torch.no_grad():
        evaluated = layer.eval()(x)
    assert torch.allclose(trained, evaluated, atol=1e-6)
    fresh = _encoder_layer(ACTIVATIONS[new]())
    assert torch.allclose(trained, fresh.train()(x), atol=1e-6)


def test_a_copied_transformer_layer_evaluates_with_the_replaced_activation() -> None:
    layer = _encoder_layer(nn.ReLU())
    x = torch.randn(3, 5, 8)
    replace_activation(layer, "activation", "tanh")
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        assert torch.allclose(layer.train()(x), twin.eval()(x), atol=1e-6)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("replaced", [[0], [1], [0, 1]])
def test_an_encoder_evaluates_after_replacement_with_or_without_padding(
    masked: bool, replaced: list[int]
) -> None:
    # `enable_nested_tensor` is on by default: masked batches then take a path of their own.
    encoder = nn.TransformerEncoder(_encoder_layer(nn.ReLU()), num_layers=2)
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


def test_a_model_that_is_an_activation_itself_has_none_to_replace() -> None:
    assert find_activations(nn.ReLU()) == {}


def test_a_replaced_activation_passes_all_weights() -> None:
    model, twin = Nested(), Nested()
    replace_activation(model, "last", "elu")
    twin.load_state_dict(model.state_dict(), strict=True)
    assert same(model.state_dict(), twin.state_dict())
