"""Finding the activations of a network, and putting others in their place."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers.equality import same
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from optuna_miha._model.activations import (
    ACTIVATIONS,
    GroupedActivation,
    activation_name,
    find_activations,
    group_activation,
    neurons_before,
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


def _grouped(names: str, dim: int) -> GroupedActivation:
    return GroupedActivation([ACTIVATIONS[name]() for name in names.split()], dim)


@pytest.mark.parametrize(
    ("shape", "dim"),
    [((5, 8), -1), ((5, 8), 1), ((5, 3, 8), -1), ((5, 8, 3), 1), ((5, 8, 3, 3), 1), ((8,), -1)],
)
def test_each_group_of_neurons_has_its_own_activation(shape: tuple[int, ...], dim: int) -> None:
    x = torch.randn(shape)
    parts = x.chunk(4, dim)
    functions = (torch.relu, torch.tanh, nn.functional.gelu, torch.relu)
    expected = torch.cat([f(part) for f, part in zip(functions, parts, strict=True)], dim)
    assert torch.equal(_grouped("relu tanh gelu relu", dim)(x), expected)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_groups_of_the_same_activation_are_that_activation_bit_for_bit(name: str) -> None:
    plain = ACTIVATIONS[name]()
    x = 3 * torch.randn(7, 31)
    assert torch.equal(GroupedActivation([plain] * 4, -1)(x), plain(x))
    # Apart, vectorized kernels end elsewhere: the last bit may differ.
    assert torch.allclose(_grouped(" ".join([name] * 4), -1)(x), plain(x), atol=1e-6)


@pytest.mark.parametrize(("width", "sizes"), [(8, [2, 3, 3]), (9, [3, 3, 3]), (2, [0, 1, 1])])
def test_groups_are_as_equal_as_they_can_be(width: int, sizes: list[int]) -> None:
    x = torch.full((4, width), -10.0)
    out = _grouped("relu tanh hardtanh", -1)(x)
    relu, tanh, hardtanh = out[0].split(sizes)
    assert (relu == 0).all()
    assert torch.equal(tanh, torch.tanh(torch.full((sizes[1],), -10.0)))
    assert (hardtanh == -1).all()


def test_neighbours_that_share_an_activation_are_computed_at_once() -> None:
    relu, tanh = nn.ReLU(), nn.Tanh()
    module = GroupedActivation([relu, relu, tanh, relu], -1)
    assert list(module.activations) == [relu, tanh, relu]
    assert "n_groups=4, dim=-1" in repr(module)


def test_gradients_flow_through_every_group() -> None:
    x = torch.randn(5, 8, requires_grad=True)
    _grouped("relu tanh gelu silu", -1)(x).sum().backward()
    got = x.grad
    y = x.detach().clone().requires_grad_()
    functions = (torch.relu, torch.tanh, nn.functional.gelu, nn.functional.silu)
    sum(f(y[:, 2 * n : 2 * n + 2]).sum() for n, f in enumerate(functions)).backward()
    assert got is not None and y.grad is not None
    assert torch.allclose(got, y.grad)
    assert torch.autograd.gradcheck(
        _grouped("elu tanh gelu silu", -1),
        torch.randn(3, 8, dtype=torch.float64, requires_grad=True),
    )


@pytest.mark.parametrize("n_channels", [8, 4])
def test_groups_keep_the_memory_format(n_channels: int) -> None:
    x = torch.randn(2, n_channels, 5, 5).to(memory_format=torch.channels_last)
    out = _grouped("relu tanh gelu silu", 1)(x)
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_groups_have_no_state() -> None:
    model, plain = Nested(), Nested()
    plain.load_state_dict(model.state_dict())
    group_activation(model, "encoder.1", ["relu", "gelu"], -1)
    assert same(model.state_dict(), plain.state_dict())
    assert [n for n, _ in model.named_buffers()] == [n for n, _ in plain.named_buffers()]
    plain.load_state_dict(model.state_dict(), strict=True)
    assert list(find_activations(model)) == [p for p in find_activations(plain) if p[-2:] != ".1"]


def test_a_group_of_the_present_name_keeps_its_settings() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LeakyReLU(0.2), nn.Linear(4, 1))
    own = model[1]
    group_activation(model, "1", ["leaky_relu", "tanh"], -1)
    assert model[1].activations[0] is own


def test_an_activation_in_place_spoils_no_other_group() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 1))
    own = model[1]
    group_activation(model, "1", ["relu", "gelu"], -1)
    x = torch.randn(3, 4)
    hidden = model[0](x)
    before = hidden.clone()
    model[1](hidden).sum().backward()
    assert torch.equal(hidden, before)
    assert own.inplace  # The user's module may serve elsewhere.


def test_a_grouped_module_in_two_places_is_put_in_both() -> None:
    model = Shared()
    group_activation(model, "act", ["relu", "tanh"], -1)
    assert model.tail[0] is model.act
    x = torch.randn(3, 4)
    assert model(x).shape == x.shape


class Late(nn.Module):
    """Registers a layer with neurons of its own, and one whose children have them."""

    def __init__(self) -> None:
        super().__init__()
        self.out_channels = 99  # Nobody's neurons.
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
        (Late(), {"first": (None, -1), "second": (3, 1), "third": (6, -1)}),
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
            nn.TransformerEncoder(_encoder_layer(nn.ReLU()), 2, enable_nested_tensor=False),
            {"layers.0.activation": (16, -1), "layers.1.activation": (16, -1)},
        ),
        (
            nn.TransformerDecoderLayer(8, 2, 16, activation=nn.ReLU()),
            {"activation": (16, -1)},
        ),
    ],
)
def test_the_layer_before_tells_the_neurons(
    model: nn.Module, expected: dict[str, tuple[int | None, int]]
) -> None:
    neurons = neurons_before(model)
    assert {path: neurons[path] for path in expected} == expected
