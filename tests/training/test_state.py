"""The state of a network in training: how it is captured, stored and inherited."""

from __future__ import annotations

import copy
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.equality import memory_of, same
from helpers.networks import network, recipe, train_steps
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.artifacts import FileSystemArtifactStore
from torch import nn, optim

from optuna_miha import Recipe
from optuna_miha._model.optimizers import OPTIMIZERS
from optuna_miha._model.rng import capture_rng, restore_rng
from optuna_miha._model.tensors import copy_tensors
from optuna_miha._study.checkpoint_store import CheckpointStore
from optuna_miha._training.state import capture, inherit, make_ema
from optuna_miha.exceptions import InheritanceError


def trained_recipe(optimizer: str = "adam", seed: int = 0) -> tuple[Recipe, Any]:
    """A recipe and the average of its weights, after some steps."""
    torch.manual_seed(seed)
    built = recipe()
    built.optimizer = OPTIMIZERS[optimizer](built.model.parameters(), lr=0.01)
    ema = make_ema(built.model, 0.6)
    for _ in range(2):
        train_steps(built.model, built.optimizer)
        ema.update_parameters(built.model)
    return built, ema


def untrained_recipe(optimizer: str = "adam", **changes: Any) -> tuple[Recipe, Any]:
    torch.manual_seed(99)
    built = recipe(**changes)
    built.optimizer = OPTIMIZERS[optimizer](built.model.parameters(), lr=0.01)
    return built, make_ema(built.model, 0.6)


def random_numbers() -> tuple[Any, ...]:
    return (
        torch.rand(3),
        [random.random(), random.gauss(0, 1)],
        np.random.rand(3).tolist(),
        float(np.random.randn()),
    )


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    return CheckpointStore(FileSystemArtifactStore(folder))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_saved_state_is_restored_bit_for_bit(store: CheckpointStore, optimizer: str) -> None:
    parent, parent_ema = trained_recipe(optimizer)
    random.gauss(0, 1)  # Both generators cache a second number.
    np.random.randn()
    state = capture(parent, parent_ema, epoch=7)
    state["best"] = {"value": 0.5, "epoch": 3, "weights": state["model"]}
    loaded = store.load(store.save(state, "trunk"))
    assert same(loaded, state)

    child, child_ema = untrained_recipe(optimizer)
    assert not same(child.model.state_dict(), parent.model.state_dict())
    inherit(child, child_ema, loaded)
    assert same(random_numbers(), random_numbers_after(parent, parent_ema, state))
    assert same(child.model.state_dict(), parent.model.state_dict())
    assert same(child_ema.state_dict(), parent_ema.state_dict())
    assert same(child.optimizer.state_dict(), parent.optimizer.state_dict())


def random_numbers_after(
    parent: Recipe, parent_ema: Any, state: dict[str, Any]
) -> tuple[Any, ...]:
    inherit(parent, parent_ema, state)
    return random_numbers()


def test_child_draws_the_random_numbers_that_the_parent_would_draw(store: CheckpointStore) -> None:
    parent, parent_ema = trained_recipe()
    random.gauss(0, 1)
    np.random.randn()
    reference = store.save(capture(parent, parent_ema, epoch=1), "trunk")
    expected = random_numbers()
    random_numbers()
    child, child_ema = untrained_recipe()
    inherit(child, child_ema, store.load(reference))
    assert same(random_numbers(), expected)


def test_child_continues_training_as_the_parent_would(store: CheckpointStore) -> None:
    parent, parent_ema = trained_recipe()
    reference = store.save(capture(parent, parent_ema, epoch=1), "trunk")
    train_steps(parent.model, parent.optimizer)
    parent_ema.update_parameters(parent.model)
    child, child_ema = untrained_recipe()
    inherit(child, child_ema, store.load(reference))
    train_steps(child.model, child.optimizer)
    child_ema.update_parameters(child.model)
    assert same(child.model.state_dict(), parent.model.state_dict())
    assert same(child_ema.state_dict(), parent_ema.state_dict())


def test_captured_state_is_a_copy() -> None:
    parent, parent_ema = trained_recipe()
    state = capture(parent, parent_ema, epoch=1)
    before = copy.deepcopy(state)
    train_steps(parent.model, parent.optimizer)
    parent_ema.update_parameters(parent.model)
    random_numbers()
    assert same(state, before)
    assert not same(state["model"], parent.model.state_dict())


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "nadam", "sgd"])
def test_siblings_share_no_memory_with_each_other_or_the_parent(optimizer: str) -> None:
    parent, parent_ema = trained_recipe("adam")
    state = capture(parent, parent_ema, epoch=1)
    before = copy.deepcopy(state)
    siblings = [untrained_recipe(optimizer) for _ in range(2)]
    for sibling in siblings:
        inherit(*sibling, state)
    held = [
        memory_of(r.model.state_dict(), e.state_dict(), r.optimizer.state_dict())
        for r, e in siblings
    ]
    assert not held[0] & held[1]
    assert not (held[0] | held[1]) & memory_of(state)

    one, one_ema = siblings[0]
    train_steps(one.model, one.optimizer, n_steps=5)
    one_ema.update_parameters(one.model)
    with torch.no_grad():
        for tensor in (*one.model.parameters(), *one_ema.parameters()):
            tensor.zero_()
    assert same(state, before)
    other, other_ema = siblings[1]
    assert same(other.model.state_dict(), before["model"])
    assert same(other_ema.state_dict(), before["ema"])


@pytest.mark.parametrize(("parent_decay", "child_decay"), [(0.6, 0.0), (0.0, 0.6)])
def test_average_is_inherited_only_if_both_have_one(
    parent_decay: float, child_decay: float
) -> None:
    parent, _ = trained_recipe()
    child, _ = untrained_recipe()
    state = capture(parent, make_ema(parent.model, parent_decay), epoch=1)
    ema = make_ema(child.model, child_decay)
    inherit(child, ema, state)
    assert same(child.model.state_dict(), parent.model.state_dict())
    assert (ema is None) == (child_decay == 0)
    if ema is not None:  # It starts from the first weights.
        ema.update_parameters(child.model)
        assert same(ema.module.state_dict(), parent.model.state_dict())


def test_average_is_updated_with_its_decay() -> None:
    model = nn.Linear(2, 1)
    ema = make_ema(model, 0.75)
    with torch.no_grad():
        model.weight.fill_(1.0)
        ema.update_parameters(model)
        assert ema.module.weight.tolist() == [[1.0, 1.0]]
        model.weight.fill_(3.0)
        ema.update_parameters(model)
    assert ema.module.weight.tolist() == [[1.5, 1.5]]


class TestChildNetwork:
    def state(self) -> dict[str, Any]:
        parent, parent_ema = trained_recipe()
        return capture(parent, parent_ema, epoch=1)

    def refusal(self, model: nn.Module) -> str:
        """The message of the error for a child with this network."""
        child, child_ema = untrained_recipe(model=model)
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(InheritanceError) as caught:
            inherit(child, child_ema, self.state())
        assert same(model.state_dict(), before)
        message = str(caught.value)
        assert "keep the architecture fixed in `model_fn`" in message
        return message

    def test_with_other_shapes_is_refused(self) -> None:
        model = network()
        model[4] = nn.Linear(6, 5)
        message = self.refusal(model)
        assert "'4.weight'" in message
        assert "(3, 6) in the parent and (5, 6) in the branch" in message

    def test_without_a_parameter_is_refused(self) -> None:
        model = network()
        model[4] = nn.Linear(6, 3, bias=False)
        message = self.refusal(model)
        assert "'4.bias'" in message
        assert "the parent has it, the branch lacks it" in message

    def test_with_an_additional_parameter_is_refused(self) -> None:
        model = network().append(nn.PReLU())
        message = self.refusal(model)
        assert "'5.weight'" in message
        assert "the branch has it, the parent lacks it" in message


def test_state_loads_with_weights_only(store: CheckpointStore, tmp_path: Path) -> None:
    parent, parent_ema = trained_recipe()
    state = capture(parent, parent_ema, epoch=1)
    reference = store.save(state, "trunk")
    path = tmp_path / "checkpoints" / reference["id"]
    assert same(torch.load(path, weights_only=True), state)


leaves = st.one_of(
    st.integers(-(2**60), 2**60),
    st.floats(allow_nan=False),
    st.text(max_size=5),
    st.none(),
    st.lists(st.floats(-9, 9, width=32), max_size=4).map(torch.tensor),
)
states = st.dictionaries(
    st.one_of(st.text(max_size=5), st.integers(0, 9)),
    st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.lists(inner, max_size=3).map(tuple),
            st.dictionaries(st.text(max_size=3), inner, max_size=3),
        ),
        max_leaves=6,
    ),
    max_size=4,
)


@given(state=states)
@settings(deadline=None, max_examples=30)
def test_any_state_of_tensors_and_plain_values_can_be_saved(state: dict[Any, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = CheckpointStore(FileSystemArtifactStore(folder))
        assert same(store.load(store.save(state, "x")), state)


@given(state=states)
@settings(deadline=None, max_examples=30)
def test_copy_is_equal_and_shares_no_memory(state: dict[Any, Any]) -> None:
    twin = copy_tensors(state)
    assert same(twin, state)
    assert not memory_of(twin) & memory_of(state)


def test_child_with_another_optimizer_inherits_the_weights() -> None:
    parent, parent_ema = trained_recipe("adam")
    child, child_ema = untrained_recipe("rmsprop")
    inherit(child, child_ema, capture(parent, parent_ema, epoch=1))
    assert same(child.model.state_dict(), parent.model.state_dict())
    assert isinstance(child.optimizer, optim.RMSprop)
    assert child.optimizer.state_dict()["state"] == {}


def test_random_state_of_an_accelerator_is_ignored_on_the_cpu() -> None:
    cpu = torch.device("cpu")
    torch.manual_seed(5)
    rng = capture_rng(cpu) | {"device": torch.zeros(16, dtype=torch.uint8)}
    expected = torch.rand(3)
    restore_rng(rng, cpu)
    assert torch.equal(torch.rand(3), expected)
