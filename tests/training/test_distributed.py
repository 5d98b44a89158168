"""Runs whose trials are in PostgreSQL, whose checkpoints are in S3, and whose workers die."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import distributed
import optuna
import pytest
from helpers import services
from helpers.equality import same
from helpers.mishaps import KillsAlways, KillsOnce, classifier_with
from helpers.problems import TINY, classifier, history, new_study, run, weights
from optuna.trial import FrozenTrial, TrialState

import optuna_miha as miha
from optuna_miha._training import pools


@pytest.fixture(scope="module")
def s3() -> Iterator[services.S3]:
    with services.s3() as service:
        yield service


@pytest.fixture(scope="module")
def dask() -> Iterator[distributed.Client]:
    with services.dask_cluster() as client:
        yield client


def assert_equal(one: miha.Result, other: miha.Result) -> None:
    """The same history, and bitwise the same model."""
    assert history(one) == history(other)
    assert same(weights(one), weights(other))
    assert one.value == other.value
    assert one.params == other.params


def interrupt_among_branches() -> Callable[[optuna.Study, FrozenTrial], None]:
    """A callback that stands for Ctrl-C when the second branch of the run has ended."""
    branches = []

    def callback(study: optuna.Study, trial: FrozenTrial) -> None:
        if trial.user_attrs["miha:role"] == "branch":
            branches.append(trial.number)
        if len(branches) == 2:
            raise KeyboardInterrupt

    return callback


def test_dask_and_postgresql_give_the_model_of_one_process(
    dask: distributed.Client,
    postgresql: services.PostgreSQL,
    whole_tiny: miha.Result,
    tmp_path: Path,
) -> None:
    with (
        services.rdb_storage(postgresql.new_database()) as storage,
        dask.get_executor() as executor,
    ):
        result = run(new_study(storage), executor=executor, checkpoint_dir=tmp_path)
        assert_equal(result, whole_tiny)
        again = miha.load_result(new_study(storage), classifier)
        assert same(weights(again), weights(whole_tiny))


def test_interrupted_on_postgresql_it_ends_as_undisturbed(
    postgresql: services.PostgreSQL, whole_tiny: miha.Result, tmp_path: Path
) -> None:
    url = postgresql.new_database()
    with services.rdb_storage(url) as storage, pytest.raises(KeyboardInterrupt):
        run(new_study(storage), callbacks=[interrupt_among_branches()], checkpoint_dir=tmp_path)
    with services.rdb_storage(url) as storage:  # New connections, as another process has them.
        assert_equal(run(new_study(storage)), whole_tiny)


def test_checkpoints_in_s3_survive_an_interruption_and_one_is_left(
    s3: services.S3, whole_tiny: miha.Result
) -> None:
    study, store = new_study(), s3.new_store()
    with pytest.raises(KeyboardInterrupt):
        run(study, callbacks=[interrupt_among_branches()], artifact_store=store, keep="final")
    assert s3.keys(store)
    assert_equal(run(study, artifact_store=store, keep="final"), whole_tiny)
    again = miha.load_result(study, classifier, store)
    assert same(weights(again), weights(whole_tiny))
    assert s3.keys(store) == [again.trial.user_attrs["miha:checkpoint"]["id"]]


def arm_before_branches(folder: Path) -> Callable[[optuna.Study, FrozenTrial], None]:
    """A callback that lets the first population lose a worker."""

    def callback(study: optuna.Study, trial: FrozenTrial) -> None:
        if (trial.user_attrs["miha:role"], trial.user_attrs["miha:cycle"]) == ("trunk", 0):
            (folder / "armed").touch()

    return callback


def workers(where: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    """Arguments of ``optimize``."""
    if where == "dask":
        return {"executor": request.getfixturevalue("dask").get_executor()}
    return {"n_jobs": 2}


@pytest.mark.parametrize("where", ["dask", "n_jobs"])
def test_a_worker_that_dies_costs_what_was_in_training(
    where: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    quiet, loud = tmp_path / "quiet", tmp_path / "loud"
    for folder in (quiet, loud):
        folder.mkdir()
    whole = run(new_study(), classifier_with(lambda: KillsOnce(quiet)))
    study = new_study()
    result = run(
        study,
        classifier_with(lambda: KillsOnce(loud)),
        callbacks=[arm_before_branches(loud)],
        **workers(where, request),
    )
    assert (loud / "dead").exists(), "no worker died"
    assert_equal(result, whole)
    assert len(study.trials) == len(whole.segments), "a trial was repeated"
    again = (loud / "steps").stat().st_size - (quiet / "steps").stat().st_size
    if where == "dask":
        assert again == KillsOnce.FATAL
    else:
        # The job of the other worker is lost as well: half a branch, in batches of 8 at least.
        assert KillsOnce.FATAL <= again <= KillsOnce.FATAL + TINY.branch_epochs // 2 * 8


@pytest.mark.parametrize("where", ["dask", "n_jobs"])
def test_a_job_that_kills_every_worker_ends_the_run_and_says_so(
    where: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    # New ones take seconds to start; two deaths in a row show as much as three.
    monkeypatch.setattr(pools, "_MAX_CRASHES", 2)
    lethal = KillsAlways()
    study = new_study()
    with pytest.raises(miha.exceptions.WorkerError, match="died"):
        run(study, classifier_with(lambda: lethal), **workers(where, request))
    assert not study.get_trials(states=(TrialState.RUNNING,))


@pytest.mark.parametrize("kind", ["threads", "dask"])
def test_an_executor_that_is_shut_down_is_refused_at_once(
    kind: str, request: pytest.FixtureRequest
) -> None:
    executor: Executor = ThreadPoolExecutor(1)
    if kind == "dask":
        executor = request.getfixturevalue("dask").get_executor()
    executor.shutdown()
    study = new_study()
    with pytest.raises(ValueError, match="shut down"):
        run(study, executor=executor)
    assert not study.trials
