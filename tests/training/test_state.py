"""Checkpoints: what they hold, how they are verified, and that nobody shares them."""

from __future__ import annotations

import copy
import hashlib
import io
import random
import tempfile
from collections.abc import Callable
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
from torch import Tensor, nn, optim

from optuna_miha import Recipe
from optuna_miha._model.optimizers import OPTIMIZERS
from optuna_miha._model.rng import capture_rng, restore_rng
from optuna_miha._model.tensors import copy_tensors
from optuna_miha._study.checkpoint_store import CheckpointStore
from optuna_miha._training.state import averaged, capture, inherit
from optuna_miha.exceptions import CheckpointError, CheckpointLostError, InheritanceError


def trained(optimizer: str = "adam", seed: int = 0) -> tuple[Recipe, Any]:
    """A recipe and the average of its weights, after some steps."""
    torch.manual_seed(seed)
    made = recipe()
    made.optimizer = OPTIMIZERS[optimizer](made.model.parameters(), lr=0.01)
    ema = averaged(made.model, 0.6)
    for _ in range(2):
        train_steps(made.model, made.optimizer)
        ema.update_parameters(made.model)
    return made, ema


def fresh(optimizer: str = "adam", **changes: Any) -> tuple[Recipe, Any]:
    torch.manual_seed(99)
    made = recipe(**changes)
    made.optimizer = OPTIMIZERS[optimizer](made.model.parameters(), lr=0.01)
    return made, averaged(made.model, 0.6)


def draws() -> tuple[Any, ...]:
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
def test_a_saved_state_comes_back_bit_by_bit(store: CheckpointStore, optimizer: str) -> None:
    made, ema = trained(optimizer)
    random.gauss(0, 1)  # Both leave a second number in store.
    np.random.randn()
    state = capture(made, ema, epoch=7)
    state["best"] = {"value": 0.5, "epoch": 3, "weights": state["model"]}
    loaded = store.load(store.save(state, "trunk"))
    assert same(loaded, state)

    heir, heir_ema = fresh(optimizer)
    assert not same(heir.model.state_dict(), made.model.state_dict())
    inherit(heir, heir_ema, loaded)
    assert same(draws(), _draws_after(made, ema, state))
    assert same(heir.model.state_dict(), made.model.state_dict())
    assert same(heir_ema.state_dict(), ema.state_dict())
    assert same(heir.optimizer.state_dict(), made.optimizer.state_dict())


def _draws_after(made: Recipe, ema: Any, state: dict[str, Any]) -> tuple[Any, ...]:
    inherit(made, ema, state)
    return draws()


def test_the_heir_draws_what_the_parent_would_have_drawn(store: CheckpointStore) -> None:
    made, ema = trained()
    random.gauss(0, 1)
    np.random.randn()
    reference = store.save(capture(made, ema, epoch=1), "trunk")
    expected = draws()
    draws()
    heir, heir_ema = fresh()
    inherit(heir, heir_ema, store.load(reference))
    assert same(draws(), expected)


def test_the_heir_trains_on_as_the_parent_would_have(store: CheckpointStore) -> None:
    made, ema = trained()
    reference = store.save(capture(made, ema, epoch=1), "trunk")
    train_steps(made.model, made.optimizer)
    ema.update_parameters(made.model)
    heir, heir_ema = fresh()
    inherit(heir, heir_ema, store.load(reference))
    train_steps(heir.model, heir.optimizer)
    heir_ema.update_parameters(heir.model)
    assert same(heir.model.state_dict(), made.model.state_dict())
    assert same(heir_ema.state_dict(), ema.state_dict())


def test_a_state_is_a_copy_that_training_does_not_change() -> None:
    made, ema = trained()
    state = capture(made, ema, epoch=1)
    before = copy.deepcopy(state)
    train_steps(made.model, made.optimizer)
    ema.update_parameters(made.model)
    draws()
    assert same(state, before)
    assert not same(state["model"], made.model.state_dict())


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "nadam", "sgd"])
def test_siblings_share_nothing_with_each_other_nor_with_the_parent(optimizer: str) -> None:
    made, ema = trained("adam")
    state = capture(made, ema, epoch=1)
    before = copy.deepcopy(state)
    siblings = [fresh(optimizer) for _ in range(2)]
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


@pytest.mark.parametrize(("of_parent", "of_heir"), [(0.6, 0.0), (0.0, 0.6)])
def test_an_average_is_passed_only_where_both_have_one(of_parent: float, of_heir: float) -> None:
    made, _ = trained()
    heir, _ = fresh()
    state = capture(made, averaged(made.model, of_parent), epoch=1)
    ema = averaged(heir.model, of_heir)
    inherit(heir, ema, state)
    assert same(heir.model.state_dict(), made.model.state_dict())
    assert (ema is None) == (of_heir == 0)
    if ema is not None:  # It starts from the first weights that it is given.
        ema.update_parameters(heir.model)
        assert same(ema.module.state_dict(), made.model.state_dict())


def test_an_average_moves_by_its_decay() -> None:
    model = nn.Linear(2, 1)
    ema = averaged(model, 0.75)
    with torch.no_grad():
        model.weight.fill_(1.0)
        ema.update_parameters(model)
        assert ema.module.weight.tolist() == [[1.0, 1.0]]
        model.weight.fill_(3.0)
        ema.update_parameters(model)
    assert ema.module.weight.tolist() == [[1.5, 1.5]]


class TestAnotherNetwork:
    def state(self) -> dict[str, Any]:
        made, ema = trained()
        return capture(made, ema, epoch=1)

    def refused(self, model: nn.Module) -> str:
        heir, ema = fresh(model=model)
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(InheritanceError) as caught:
            inherit(heir, ema, self.state())
        assert same(model.state_dict(), before)
        message = str(caught.value)
        assert "keep the architecture fixed in `model_fn`" in message
        return message

    def test_of_other_shapes_is_refused_by_name_and_both_shapes(self) -> None:
        model = network()
        model[4] = nn.Linear(6, 5)
        message = self.refused(model)
        assert "'4.weight'" in message
        assert "(3, 6) in the parent and (5, 6) in the branch" in message

    def test_with_a_parameter_less_is_refused_by_name(self) -> None:
        model = network()
        model[4] = nn.Linear(6, 3, bias=False)
        message = self.refused(model)
        assert "'4.bias'" in message
        assert "the parent has it, the branch lacks it" in message

    def test_with_a_parameter_more_is_refused_by_name(self) -> None:
        model = network().append(nn.PReLU())
        message = self.refused(model)
        assert "'5.weight'" in message
        assert "the branch has it, the parent lacks it" in message


def test_saving_names_the_label_and_the_hash(store: CheckpointStore, tmp_path: Path) -> None:
    reference = store.save({"epoch": 3}, "trunk-0004")
    assert reference["id"].startswith("trunk-0004")
    content = (tmp_path / "checkpoints" / reference["id"]).read_bytes()
    assert hashlib.sha256(content).hexdigest() == reference["sha256"]
    assert store.save({"epoch": 3}, "trunk-0004")["id"] != reference["id"]


def test_a_state_loads_where_only_weights_are_allowed(
    store: CheckpointStore, tmp_path: Path
) -> None:
    made, ema = trained()
    state = capture(made, ema, epoch=1)
    reference = store.save(state, "trunk")
    path = tmp_path / "checkpoints" / reference["id"]
    assert same(torch.load(path, weights_only=True), state)


class Attack:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_code_in_a_checkpoint_is_not_run(store: CheckpointStore, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    buffer = io.BytesIO()
    torch.save({"model": Attack(mark)}, buffer)
    buffer.seek(0)
    torch.load(buffer, weights_only=False)
    assert mark.exists()  # The attack works where it is not prevented.
    mark.unlink()
    name = f"bad-{12 * '0'}.pt"
    reference = {"id": name, "sha256": hashlib.sha256(buffer.getvalue()).hexdigest()}
    (tmp_path / "checkpoints" / name).write_bytes(buffer.getvalue())
    with pytest.raises(CheckpointLostError, match="UnpicklingError"):
        store.load(reference)
    assert not mark.exists()


def test_a_missing_checkpoint_is_named(store: CheckpointStore, tmp_path: Path) -> None:
    reference = store.save({"epoch": 3}, "trunk")
    (tmp_path / "checkpoints" / reference["id"]).unlink()
    with pytest.raises(CheckpointError) as caught:
        store.load(reference)
    message = str(caught.value)
    assert f"Checkpoint {reference['id']} is missing" in message
    assert str(tmp_path / "checkpoints") in message
    assert "`checkpoint_dir` or `artifact_store`" in message


@st.composite
def damages(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """What can happen to the bytes of a file."""
    kind = draw(st.sampled_from(["flip", "cut", "insert", "overwrite", "zeros"]))
    where = draw(st.floats(0, 1, exclude_max=True))
    noise = draw(st.binary(min_size=1, max_size=40))
    bit = draw(st.integers(0, 7))

    def damage(content: bytes) -> bytes:
        at = int(where * len(content))
        if kind == "flip":
            return content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]
        if kind == "cut":
            return content[:at]
        if kind == "zeros":  # As a file that was made longer, but not written before the crash.
            return content[:at] + bytes(len(content) - at)
        return content[:at] + noise + content[at + (len(noise) if kind == "overwrite" else 0) :]

    return damage


SMALL = {"model": {"weight": torch.arange(6.0)}, "epoch": 3}


def check_damaged(damage: Callable[[bytes], bytes], *, is_forged: bool) -> None:
    """A damaged file is refused by its name, and if its hash is made to fit, read as what it is.

    Args:
        damage: What happens to it.
        is_forged: Whether the study records the hash of what is there now.
    """
    with tempfile.TemporaryDirectory() as folder:
        store = CheckpointStore(FileSystemArtifactStore(folder))
        reference = store.save(SMALL, "trunk")
        path = Path(folder) / reference["id"]
        whole = path.read_bytes()
        damaged = damage(whole)
        path.write_bytes(damaged)
        if damaged == whole:
            assert same(store.load(reference), SMALL)
            return
        if is_forged:
            reference["sha256"] = hashlib.sha256(damaged).hexdigest()
        try:
            state = store.load(reference)
        except CheckpointLostError as error:
            assert f"Checkpoint {reference['id']} is damaged" in str(error)
            assert len(str(error)) < 1_000
        else:
            assert is_forged, "the hash tells"
            assert isinstance(state, dict)


@given(damage=damages(), is_forged=st.booleans())
@settings(max_examples=400)
def test_a_damaged_checkpoint_is_named_whatever_the_damage_is(
    damage: Callable[[bytes], bytes], is_forged: bool
) -> None:
    check_damaged(damage, is_forged=is_forged)


@pytest.mark.long
@given(damage=damages(), is_forged=st.booleans())
@settings(max_examples=20_000)
def test_a_damaged_checkpoint_is_named_whatever_the_damage_is_at_length(
    damage: Callable[[bytes], bytes], is_forged: bool
) -> None:
    check_damaged(damage, is_forged=is_forged)


@pytest.mark.parametrize("content", [b"", b"PK", b"\x80\x04N.", b"text"])
def test_what_is_no_checkpoint_at_all_is_named_too(
    content: bytes, store: CheckpointStore, tmp_path: Path
) -> None:
    reference = store.save(SMALL, "trunk")
    (tmp_path / "checkpoints" / reference["id"]).write_bytes(content)
    forged = reference | {"sha256": hashlib.sha256(content).hexdigest()}
    with pytest.raises(CheckpointLostError, match="not what a run writes"):
        store.load(forged)


def test_a_checkpoint_of_something_else_is_named_too(
    store: CheckpointStore, tmp_path: Path
) -> None:
    reference = store.save([1, 2], "trunk")  # type: ignore[arg-type]
    with pytest.raises(CheckpointLostError, match="it holds a list"):
        store.load(reference)


SECRET = "secret-0123456789ab.pt"
"""Named as a run names its files."""


@pytest.mark.parametrize("escape", [f"../{SECRET}", f"a/../../{SECRET}", "absolute", "notes.txt"])
def test_an_id_never_leads_out_of_the_folder(
    store: CheckpointStore, tmp_path: Path, escape: str
) -> None:
    outside = tmp_path / SECRET
    torch.save({"epoch": 3}, outside)
    (tmp_path / "checkpoints" / "a").mkdir()
    name = str(outside) if escape == "absolute" else escape
    sha256 = hashlib.sha256(outside.read_bytes()).hexdigest()
    for call in (store.load, store.has, store.remove):
        with pytest.raises(CheckpointError, match="must be one that a run writes"):
            call({"id": name, "sha256": sha256})
    assert outside.exists()


def test_a_checkpoint_can_be_removed_twice(store: CheckpointStore, tmp_path: Path) -> None:
    reference, other = store.save({"epoch": 3}, "trunk"), store.save({"epoch": 4}, "trunk")
    store.remove(reference)
    store.remove(reference)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [other["id"]]
    assert store.load(other) == {"epoch": 4}


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
def test_any_state_of_tensors_and_plain_values_survives(state: dict[Any, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = CheckpointStore(FileSystemArtifactStore(folder))
        assert same(store.load(store.save(state, "x")), state)


@given(state=states)
@settings(deadline=None, max_examples=30)
def test_a_copy_is_equal_and_shares_nothing(state: dict[Any, Any]) -> None:
    twin = copy_tensors(state)
    assert same(twin, state)
    assert not memory_of(twin) & memory_of(state)


def test_a_copy_has_no_gradient() -> None:
    weight = nn.Parameter(torch.ones(2))
    twin = copy_tensors({"a": [weight]})["a"][0]
    assert type(twin) is Tensor and not twin.requires_grad


def test_an_optimizer_of_another_class_inherits_the_weights() -> None:
    made, ema = trained("adam")
    heir, heir_ema = fresh("rmsprop")
    inherit(heir, heir_ema, capture(made, ema, epoch=1))
    assert same(heir.model.state_dict(), made.model.state_dict())
    assert isinstance(heir.optimizer, optim.RMSprop)
    assert heir.optimizer.state_dict()["state"] == {}


def test_a_random_state_of_an_accelerator_does_not_keep_training_from_the_cpu() -> None:
    cpu = torch.device("cpu")
    torch.manual_seed(5)
    rng = capture_rng(cpu) | {"device": torch.zeros(16, dtype=torch.uint8)}
    expected = torch.rand(3)
    restore_rng(rng, cpu)
    assert torch.equal(torch.rand(3), expected)
