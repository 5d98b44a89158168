"""States that are passed on by reference: in one process, and by workers."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from helpers.equality import same
from helpers.jobs import UNUSED_PARAM, fixed_model_fn
from helpers.networks import run_context
from helpers.problems import explicit, history, new_study, run, weights
from optuna.artifacts import FileSystemArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound

import optuna_miha as miha
from optuna_miha._history import attributes
from optuna_miha._model.tensors import n_bytes_of
from optuna_miha._study import checkpoint_file, checkpoint_store
from optuna_miha._study.checkpoint_store import CheckpointStore
from optuna_miha._training import spool, worker
from optuna_miha._training.job import Job
from optuna_miha._training.pickling import unpack
from optuna_miha.exceptions import CheckpointLostError

PLAN = miha.Plan(60, n_workers=1, startup=4, fixing_epochs=3)
"""A race, and branches that begin with the best weights of its winner."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of a run whose states stay in memory."""
    return tmp_path_factory.mktemp("by_value")


@pytest.fixture(scope="module")
def by_value(folder: Path) -> miha.Result:
    """The result of a run whose states stay in memory."""
    return run(new_study(), explicit, plan=PLAN, checkpoint_dir=folder)


@pytest.fixture(autouse=True)
def every_state_is_large(by_value: miha.Result, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "LARGE_STATE", 1)
    monkeypatch.setattr(checkpoint_file, "LARGE_STATE", 1)
    monkeypatch.setattr(worker, "_cached_context", None)
    monkeypatch.setattr(worker, "_cached_spool", None)


def labels(folder: Path) -> list[str]:
    """The names of files without the id of the run and random digits."""
    return sorted(path.name.rsplit("-", 2)[0] for path in folder.iterdir())


class FileCounter:
    """A callback that notes the number of states in a folder after every trial.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.counts: list[int] = []

    def __call__(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        names = [path.name for path in self.folder.iterdir()]
        self.counts.append(sum(not name.startswith("member") for name in names))


class Sizes(ThreadPoolExecutor):
    """Threads that note the size of what they are sent and what they send back."""

    def __init__(self) -> None:
        super().__init__(2)
        self.states: list[bool] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 4:
            job = unpack(args[2])
            self.states.append(job.state is not None and "model" in job.state)
        return super().submit(fn, *args, **kwargs)


@pytest.mark.parametrize(("kind", "keep"), [("process", "trunk"), ("executor", "final")])
def test_states_by_reference_give_the_same_result(
    kind: str, keep: Any, by_value: miha.Result, folder: Path, tmp_path: Path
) -> None:
    counter, executor = FileCounter(tmp_path), Sizes() if kind == "executor" else None
    settings = {"plan": PLAN, "keep": keep, "executor": executor, "checkpoint_dir": tmp_path}
    result = run(new_study(), explicit, callbacks=[counter], **settings)
    assert same(weights(result), weights(by_value))
    assert history(result) == history(by_value)
    assert executor is None or (executor.states and not any(executor.states))
    # The heads of the run, the siblings, and what one of them has just written.
    assert max(counter.counts) <= 2 + 4 + 1
    own = result.trial.user_attrs[attributes.CHECKPOINT]
    assert own["n_bytes"] > 0
    if keep == "final":
        assert [path.name for path in tmp_path.iterdir()] == [own["id"]]
    else:
        assert labels(tmp_path) == labels(folder)


@pytest.mark.slow
def test_a_run_continues_from_states_by_reference_and_sweeps_leftovers(
    by_value: miha.Result, tmp_path: Path
) -> None:
    class StopError(Exception):
        pass

    def stop(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if trial.user_attrs[attributes.ROLE] == "branch":
            raise StopError

    study = new_study()
    settings = {"plan": PLAN, "checkpoint_dir": tmp_path}
    with pytest.raises(StopError):
        run(study, explicit, callbacks=[stop], **settings)
    result = run(study, explicit, **settings)
    assert same(weights(result), weights(by_value))
    assert history(result) == history(by_value)
    kept = {f["id"] for s in result.segments for f in (s.checkpoint, s.member) if f is not None}
    assert {path.name for path in tmp_path.iterdir()} <= kept


@pytest.mark.parametrize("inherits", [False, True])
def test_a_process_keeps_no_state_that_the_next_job_does_not_need(
    inherits: bool, tmp_path: Path
) -> None:
    store = CheckpointStore(FileSystemArtifactStore(tmp_path), run_id="0" * 8)
    states, context = spool.Spool(store, keeps_members=False), run_context(fixed_model_fn())
    parent = states.run(context, Job(params=UNUSED_PARAM, state=None, n_epochs=1)).state
    for _ in range(3):
        state = spool.inherited(parent, from_best=False) if inherits else None
        states.run(context, Job(params=UNUSED_PARAM, state=state, n_epochs=1))
    assert len(states._cache) == (2 if inherits else 1)


@pytest.mark.slow
def test_average_of_states_by_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = replace(PLAN, anneal="cosine")
    settings = {"plan": plan, "crossover": miha.AverageWeights()}
    stored = run(new_study(), explicit, checkpoint_dir=tmp_path, **settings)
    monkeypatch.setattr(spool, "LARGE_STATE", 2**20)
    assert same(weights(stored), weights(run(new_study(), explicit, **settings)))


class Elsewhere(FileSystemArtifactStore):
    """A store that is another folder in workers."""

    def __reduce__(self) -> Any:
        return FileSystemArtifactStore, (f"{self._base_path}-elsewhere",)


class NotSerializable(FileSystemArtifactStore):
    """A store with a connection."""

    def __reduce__(self) -> Any:
        raise TypeError("cannot pickle a connection")


@pytest.mark.parametrize("cls", [Elsewhere, NotSerializable])
def test_states_are_sent_if_workers_cannot_reach_the_store(
    cls: Any, by_value: miha.Result, log: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    (tmp_path / "files-elsewhere").mkdir()
    (tmp_path / "files").mkdir()
    executor, store = Sizes(), cls(tmp_path / "files")
    result = run(new_study(), explicit, plan=PLAN, artifact_store=store, executor=executor)
    assert same(weights(result), weights(by_value))
    assert any(executor.states)
    assert log.text.count("Workers cannot reach the store of the checkpoints") == 1
    assert not list((tmp_path / "files-elsewhere").glob("probe*"))
    assert not list((tmp_path / "files").glob("probe*"))


class LostLater(FileSystemArtifactStore):
    """A store that workers can read and write for a while."""

    n_left = 2

    def __reduce__(self) -> Any:
        return _make_lost_later, (str(self._base_path),)


class _InWorker(FileSystemArtifactStore):
    def open_reader(self, artifact_id: str) -> Any:
        LostLater.n_left -= 1
        if LostLater.n_left < 0:
            raise ArtifactNotFound
        return super().open_reader(artifact_id)

    def write(self, artifact_id: str, content_body: Any) -> None:
        if LostLater.n_left < 0:
            raise OSError("read-only")
        super().write(artifact_id, content_body)


def _make_lost_later(folder: str) -> Any:
    return _InWorker(folder)


def test_states_are_sent_to_a_worker_that_loses_the_store(
    by_value: miha.Result, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(checkpoint_store, "RETRY_DELAYS", ())
    store, executor = LostLater(tmp_path), Sizes()
    result = run(new_study(), explicit, plan=PLAN, artifact_store=store, executor=executor)
    assert same(weights(result), weights(by_value))
    assert LostLater.n_left < 0
    assert any(executor.states)


class Bucket:
    """A store whose readers cannot seek."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def write(self, artifact_id: str, content_body: Any) -> None:
        self.files[artifact_id] = content_body.read()

    def open_reader(self, artifact_id: str) -> Any:
        reader = io.BytesIO(self.files[artifact_id])
        reader.seekable = lambda: False  # type: ignore[method-assign]
        return reader


def test_a_large_checkpoint_is_written_and_read_in_pieces(tmp_path: Path) -> None:
    state = {"a": torch.arange(1000), "b": [torch.ones(3, dtype=torch.float64)]}
    plain, bucket = FileSystemArtifactStore(tmp_path), Bucket()
    assert n_bytes_of(state) == 8024
    for store in (CheckpointStore(plain), CheckpointStore(bucket)):
        reference = store.save(state, "trunk")
        assert same(store.load(reference), state)
        with pytest.raises(CheckpointLostError, match="damaged"):
            store.load({**reference, "sha256": "0" * 64})
    [content], [path] = bucket.files.values(), tmp_path.iterdir()
    assert path.read_bytes() == content
