"""Which activations a forward pass calls, and which of them make the output."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.networks import Nested, recipe, samples
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    SequentialSampler,
    TensorDataset,
)

from optuna_miha._model.activations import find_activations
from optuna_miha._model.model_fn import build_initial
from optuna_miha._model.trace import modules_that_take_values


class Net(nn.Module):
    """A network with a hidden activation, one for its output, and one that is not called."""

    def __init__(self, last: Any = lambda net, x: net.out(x)) -> None:
        super().__init__()
        self.out = nn.Sigmoid()  # The order of registration does not matter.
        self.fc1, self.fc2 = nn.Linear(4, 8), nn.Linear(8, 1)
        self.act, self.unused = nn.ReLU(inplace=True), nn.Tanh()
        self.norm = nn.BatchNorm1d(8)
        self.last = last

    def forward(self, x: Tensor) -> Any:
        return self.last(self, self.fc2(self.act(self.norm(self.fc1(x)))))


def offered(model: nn.Module, **changes: Any) -> set[str]:
    built = recipe(model=model, loss_fn=lambda output, target: output.mean(), **changes)
    return modules_that_take_values(built, find_activations(model), [])


OUTPUTS: dict[str, Any] = {
    "as it is": lambda net, x: net.out(x),
    "in another shape": lambda net, x: net.out(x).squeeze(1),
    "clamped": lambda net, x: net.out(x).clamp(0.1, 0.9),
    "in a dictionary": lambda net, x: {"p": net.out(x)},
    "gated": lambda net, x: x * net.out(x),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_activation_of_the_output_and_one_that_is_not_called_are_left_out(kind: str) -> None:
    assert offered(Net(OUTPUTS[kind])) == {"act"}


def test_activation_before_parameters_of_the_network_itself_is_hidden() -> None:
    class Scaled(Net):
        def __init__(self) -> None:
            super().__init__(lambda net, x: net.out(x) * net.scale)
            self.scale = nn.Parameter(torch.ones(1))

    assert offered(Scaled()) == {"act", "out"}


def test_activation_reached_by_a_list_is_found() -> None:
    class Listed(Net):
        def __init__(self) -> None:
            super().__init__(lambda net, x: net.fc3(net.listed[0](x)))
            self.listed = [self.unused]
            self.fc3 = nn.Linear(1, 1)

    assert offered(Listed()) == {"act", "unused"}


FOLLOWED = find_activations(Nested()).keys() - {"last", "blocks.1.act"}


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(zip(*samples(24), strict=True))


LOADERS: dict[str, Any] = {
    "data set": TensorDataset(*samples(24)),
    "loader": DataLoader(TensorDataset(*samples(24)), batch_size=7),
    "batch sampler": DataLoader(
        TensorDataset(*samples(24)),
        batch_sampler=BatchSampler(SequentialSampler(range(24)), 7, False),
    ),
    "whole batches": DataLoader([samples(7), samples(7)], batch_size=None),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_data_of_any_kind_are_used(kind: str) -> None:
    assert offered(Net(), train_data=LOADERS[kind]) == {"act"}


@pytest.mark.parametrize("kind", ["stream", "failing", "other network"])
def test_all_activations_are_offered_if_no_forward_pass_is_possible(kind: str) -> None:
    model = Net()
    changes: dict[str, Any] = {"stream": {"train_data": Stream()}}.get(kind, {})
    if kind == "failing":
        model.fc1 = nn.Linear(5, 8)
    elif kind == "other network":
        changes["train_step"] = lambda _, batch, loss_fn: loss_fn(model(batch[0]), batch[1])
    assert offered(model, **changes) == {"act", "out", "unused"}


def test_train_step_is_traced() -> None:
    def step(model: nn.Module, batch: Any, loss_fn: Any) -> Tensor:
        return loss_fn(model(batch[0]), batch[1])

    assert offered(Net(), train_step=step) == {"act"}


def test_recipe_and_generators_do_not_change() -> None:
    model = Net()
    model.train(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    built = recipe(model=model, train_data=DataLoader(TensorDataset(*samples(24)), shuffle=True))
    assert modules_that_take_values(built, ["act", "out"], []) == {"act"}
    assert torch.equal(state, torch.get_rng_state())
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_generator_of_a_dataset_does_not_advance() -> None:
    class Noisy(TensorDataset):
        generator = torch.Generator().manual_seed(3)

        def __init__(self) -> None:
            super().__init__(*samples(24))
            self.own = Noisy.generator

        def __getitem__(self, index: int) -> Any:
            x, y = super().__getitem__(index)
            return x + torch.rand(4, generator=self.own), y

    before = Noisy.generator.get_state()
    assert offered(Net(), train_data=Noisy()) == {"act"}
    assert torch.equal(before, Noisy.generator.get_state())


def test_default_space_leaves_the_output_alone() -> None:
    def model_fn(trial: Any) -> Any:
        return recipe(model=Net(), loss_fn=nn.BCELoss())

    names = {n for n in build_initial(model_fn, 0).params if n.startswith("activation.")}
    assert names == {"activation.act"}


def test_default_space_leaves_all_activations_after_the_last_layer_alone() -> None:
    params = build_initial(lambda trial: recipe(model=Nested()), 0).params
    names = {n for n in params if n.startswith("activation.")}
    assert names == {f"activation.{p}" for p in FOLLOWED}


@pytest.mark.parametrize("kind", ["batch sampler", "whole batches"])
def test_default_space_has_no_batch_size_if_the_data_form_batches(kind: str) -> None:
    params = build_initial(lambda trial: recipe(train_data=LOADERS[kind]), 0).params
    assert "batch_size" not in params


def test_default_space_of_a_network_that_leaves_out_layers_at_random_is_always_the_same() -> None:
    class Dropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            blocks = (nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Dropout(0.1)) for _ in range(8))
            self.blocks, self.last = nn.ModuleList(blocks), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Any:
            for block in self.blocks:
                if not self.training or torch.rand(()) < 0.5:
                    x = block(x)
            return self.last(x)

    spaces = set()
    for seed in range(3):
        torch.manual_seed(seed)
        initial = build_initial(lambda trial: recipe(model=Dropped()), 0)
        spaces.add(tuple(initial.params))
    assert len(spaces) == 1
