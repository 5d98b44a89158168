"""A disk that is really full: a file system of a few megabytes, mounted for the test."""

from __future__ import annotations

import errno
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import optuna
import pytest
from helpers.equality import same
from helpers.problems import SHORT, After, history, new_study, run, weights

import optuna_miha as miha
from optuna_miha._history import attributes
from optuna_miha._study import checkpoint_store, retry
from optuna_miha.exceptions import CheckpointError, StorageError


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody makes room meanwhile, so there is nothing to wait for."""
    monkeypatch.setattr(checkpoint_store, "RETRY_DELAYS", (0.01, 0.01))
    monkeypatch.setattr(retry, "RETRY_DELAYS", (0.01, 0.01))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB; skips the test where none can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True) if mount else None
    if done is None or done.returncode != 0:
        said = "there is no `mount`" if done is None else done.stderr.strip()
        pytest.skip(f"No small file system can be mounted, which takes Linux and root: {said}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> None:
    """Write to its last byte."""
    with (disk / "filler").open("wb", buffering=0) as file, suppress(OSError):
        while file.write(b"x" * 4096):
            pass


def make_room(disk: Path) -> None:
    (disk / "filler").unlink()


def is_full(disk: Path) -> bool:
    try:
        (disk / "more").write_bytes(b"x" * 4096)
    except OSError as error:
        (disk / "more").unlink(missing_ok=True)
        return error.errno == errno.ENOSPC
    return False


def named_files(study: optuna.Study) -> set[str]:
    return {
        attr["id"]
        for trial in study.trials
        for key in (attributes.CHECKPOINT, attributes.MEMBER)
        if (attr := trial.user_attrs.get(key)) is not None
    }


def test_where_no_checkpoint_can_be_written_the_run_ends_and_can_be_resumed(
    whole: miha.Result, disk: Path
) -> None:
    study = new_study()
    callbacks = [After(4, partial(fill, disk))]
    with pytest.raises(CheckpointError, match=r"No space left on device.*run the same script"):
        run(study, plan=SHORT, checkpoint_dir=disk, callbacks=callbacks)
    assert is_full(disk)
    there = {path.name: path.stat().st_size for path in disk.glob("*.pt")}
    assert there.keys() <= named_files(study), "what was not written whole is removed"
    assert min(there.values()) > 0
    make_room(disk)
    result = run(study, plan=SHORT, checkpoint_dir=disk)
    assert history(result) == history(whole)
    assert same(weights(result), weights(whole))


def test_where_the_database_cannot_grow_the_run_ends_and_can_be_resumed(
    whole: miha.Result, disk: Path, tmp_path: Path
) -> None:
    url, callbacks = f"sqlite:///{disk}/study.db", [After(3, partial(fill, disk))]
    words = r"database or disk is full.*free disk space.*run the same script again"
    with pytest.raises(StorageError, match=words):
        run(new_study(url), plan=SHORT, checkpoint_dir=tmp_path, callbacks=callbacks)
    assert is_full(disk)
    make_room(disk)
    result = run(new_study(url), plan=SHORT, checkpoint_dir=tmp_path)
    assert history(result) == history(whole)
    assert same(weights(result), weights(whole))


def test_a_file_in_write_ahead_mode_and_its_checkpoints_are_whole_after_it_too(
    whole: miha.Result, disk: Path, log: pytest.LogCaptureFixture
) -> None:
    path, callbacks = disk / "study.db", [After(3, partial(fill, disk))]
    said = ""
    try:
        run(new_study(miha.create_storage(path)), plan=SHORT, callbacks=callbacks)
    except (StorageError, CheckpointError) as error:
        said = str(error)
        assert "run the same script again" in said
    # To connect anew gives room back, the log of changes, so that the run may get through.
    assert "disk is full" in log.text + said or "No space left" in log.text + said
    make_room(disk)
    result = run(new_study(miha.create_storage(path)), plan=SHORT)
    assert history(result) == history(whole)
    assert same(weights(result), weights(whole))
