"""A full disk, by a file system of a few megabytes that is mounted for the test."""

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

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting is useless, because no space is freed between retries."""
    monkeypatch.setattr(checkpoint_store, "RETRY_DELAYS", (0.01, 0.01))
    monkeypatch.setattr(retry, "RETRY_DELAYS", (0.01, 0.01))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB; skips the test if it cannot be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    completed = subprocess.run(command, capture_output=True, text=True) if mount else None
    if completed is None or completed.returncode != 0:
        reason = "there is no `mount`" if completed is None else completed.stderr.strip()
        pytest.skip(f"Mounting a small file system needs Linux and root: {reason}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> None:
    """Fill the disk to its last byte."""
    with (disk / "filler").open("wb", buffering=0) as file, suppress(OSError):
        while file.write(b"x" * 4096):
            pass


def free_space(disk: Path) -> None:
    (disk / "filler").unlink()


def is_full(disk: Path) -> bool:
    try:
        (disk / "more").write_bytes(b"x" * 4096)
    except OSError as error:
        (disk / "more").unlink(missing_ok=True)
        return error.errno == errno.ENOSPC
    return False


def referenced_files(study: optuna.Study) -> set[str]:
    """Names of the files that trials refer to."""
    return {
        attr["id"]
        for trial in study.trials
        for key in (attributes.CHECKPOINT, attributes.MEMBER)
        if (attr := trial.user_attrs.get(key)) is not None
    }


def test_a_run_that_cannot_write_checkpoints_ends_and_can_be_resumed(
    whole: miha.Result, disk: Path
) -> None:
    study = new_study()
    callbacks = [After(4, partial(fill, disk))]
    with pytest.raises(CheckpointError, match=r"No space left on device.*run the same script"):
        run(study, plan=SHORT, checkpoint_dir=disk, callbacks=callbacks)
    assert is_full(disk)
    sizes = {path.name: path.stat().st_size for path in disk.glob("*.pt")}
    assert sizes.keys() <= referenced_files(study), "incomplete files are removed"
    assert min(sizes.values()) > 0
    free_space(disk)
    result = run(study, plan=SHORT, checkpoint_dir=disk)
    assert history(result) == history(whole)
    assert same(weights(result), weights(whole))


def test_a_run_whose_database_cannot_grow_ends_and_can_be_resumed(
    whole: miha.Result, disk: Path, tmp_path: Path
) -> None:
    url, callbacks = f"sqlite:///{disk}/study.db", [After(3, partial(fill, disk))]
    message = r"database or disk is full.*free disk space.*run the same script again"
    with pytest.raises(StorageError, match=message):
        run(new_study(url), plan=SHORT, checkpoint_dir=tmp_path, callbacks=callbacks)
    assert is_full(disk)
    free_space(disk)
    result = run(new_study(url), plan=SHORT, checkpoint_dir=tmp_path)
    assert history(result) == history(whole)
    assert same(weights(result), weights(whole))


def test_a_run_with_write_ahead_logging_survives_a_full_disk(
    whole: miha.Result, disk: Path, log: pytest.LogCaptureFixture
) -> None:
    path, callbacks = disk / "study.db", [After(3, partial(fill, disk))]
    message = ""
    try:
        run(new_study(miha.create_storage(path)), plan=SHORT, callbacks=callbacks)
    except (StorageError, CheckpointError) as error:
        message = str(error)
        assert "run the same script again" in message
    # A reconnect frees the space of the write-ahead log, so that the run may succeed.
    assert "disk is full" in log.text + message or "No space left" in log.text + message
    free_space(disk)
    result = run(new_study(miha.create_storage(path)), plan=SHORT)
    assert history(result) == history(whole)
    assert same(weights(result), weights(whole))
