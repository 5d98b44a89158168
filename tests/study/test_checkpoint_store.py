"""Checkpoint files: names, hashes, damage and removal."""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.equality import same
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.artifacts import FileSystemArtifactStore

from optuna_miha._study.checkpoint_store import CheckpointStore
from optuna_miha.exceptions import CheckpointError, CheckpointLostError


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    return CheckpointStore(FileSystemArtifactStore(folder))


def test_reference_holds_the_label_and_the_hash(store: CheckpointStore, tmp_path: Path) -> None:
    reference = store.save({"epoch": 3}, "trunk-0004")
    assert reference["id"].startswith("trunk-0004")
    content = (tmp_path / "checkpoints" / reference["id"]).read_bytes()
    assert hashlib.sha256(content).hexdigest() == reference["sha256"]
    assert store.save({"epoch": 3}, "trunk-0004")["id"] != reference["id"]


class CreatesFile:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_code_in_a_checkpoint_is_not_executed(store: CheckpointStore, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    buffer = io.BytesIO()
    torch.save({"model": CreatesFile(mark)}, buffer)
    buffer.seek(0)
    torch.load(buffer, weights_only=False)
    assert mark.exists()  # Without protection, the code is executed.
    mark.unlink()
    name = f"bad-{12 * '0'}.pt"
    reference = {"id": name, "sha256": hashlib.sha256(buffer.getvalue()).hexdigest()}
    (tmp_path / "checkpoints" / name).write_bytes(buffer.getvalue())
    with pytest.raises(CheckpointLostError, match="UnpicklingError"):
        store.load(reference)
    assert not mark.exists()


def test_missing_checkpoint_is_reported_with_its_name(
    store: CheckpointStore, tmp_path: Path
) -> None:
    reference = store.save({"epoch": 3}, "trunk")
    (tmp_path / "checkpoints" / reference["id"]).unlink()
    with pytest.raises(CheckpointError) as caught:
        store.load(reference)
    message = str(caught.value)
    assert f"Checkpoint {reference['id']} is missing" in message
    assert str(tmp_path / "checkpoints") in message
    assert "`checkpoint_dir` or `artifact_store`" in message


@st.composite
def damage_functions(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """Functions that damage the bytes of a file."""
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
        if kind == "zeros":  # As a file that was extended, but not written before a crash.
            return content[:at] + bytes(len(content) - at)
        return content[:at] + noise + content[at + (len(noise) if kind == "overwrite" else 0) :]

    return damage


SMALL = {"model": {"weight": torch.arange(6.0)}, "epoch": 3}


def check_damaged_checkpoint(damage: Callable[[bytes], bytes], *, is_forged: bool) -> None:
    """Check that a damaged file is refused with its name, or read if the study holds its hash.

    Args:
        damage: The function that damages the file.
        is_forged: Whether the study holds the hash of the damaged file.
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
            assert is_forged, "the hash does not match"
            assert isinstance(state, dict)


@pytest.mark.slow
@given(damage=damage_functions(), is_forged=st.booleans())
@settings(max_examples=400)
def test_damaged_checkpoint_is_reported_with_its_name(
    damage: Callable[[bytes], bytes], is_forged: bool
) -> None:
    check_damaged_checkpoint(damage, is_forged=is_forged)


@pytest.mark.long
@given(damage=damage_functions(), is_forged=st.booleans())
@settings(max_examples=20_000)
def test_damaged_checkpoint_is_reported_with_its_name_in_many_examples(
    damage: Callable[[bytes], bytes], is_forged: bool
) -> None:
    check_damaged_checkpoint(damage, is_forged=is_forged)


@pytest.mark.parametrize("content", [b"", b"PK", b"\x80\x04N.", b"text"])
def test_file_that_is_not_a_checkpoint_is_refused(
    content: bytes, store: CheckpointStore, tmp_path: Path
) -> None:
    reference = store.save(SMALL, "trunk")
    (tmp_path / "checkpoints" / reference["id"]).write_bytes(content)
    forged = reference | {"sha256": hashlib.sha256(content).hexdigest()}
    with pytest.raises(CheckpointLostError, match="not what a run writes"):
        store.load(forged)


def test_checkpoint_that_is_not_a_dictionary_is_refused(
    store: CheckpointStore, tmp_path: Path
) -> None:
    reference = store.save([1, 2], "trunk")  # type: ignore[arg-type]
    with pytest.raises(CheckpointLostError, match="it holds a list"):
        store.load(reference)


OUTSIDE_NAME = "secret-0123456789ab.pt"
"""A name like those of checkpoints."""


@pytest.mark.parametrize(
    "checkpoint_id", [f"../{OUTSIDE_NAME}", f"a/../../{OUTSIDE_NAME}", "absolute", "notes.txt"]
)
def test_checkpoint_id_outside_of_the_folder_is_refused(
    store: CheckpointStore, tmp_path: Path, checkpoint_id: str
) -> None:
    outside = tmp_path / OUTSIDE_NAME
    torch.save({"epoch": 3}, outside)
    (tmp_path / "checkpoints" / "a").mkdir()
    name = str(outside) if checkpoint_id == "absolute" else checkpoint_id
    sha256 = hashlib.sha256(outside.read_bytes()).hexdigest()
    for call in (store.load, store.has, store.remove):
        with pytest.raises(CheckpointError, match="must be one that a run writes"):
            call({"id": name, "sha256": sha256})
    assert outside.exists()


def test_checkpoint_can_be_removed_twice(store: CheckpointStore, tmp_path: Path) -> None:
    reference, other = store.save({"epoch": 3}, "trunk"), store.save({"epoch": 4}, "trunk")
    store.remove(reference)
    store.remove(reference)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [other["id"]]
    assert store.load(other) == {"epoch": 4}
