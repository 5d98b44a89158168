"""Runs with PostgreSQL, with checkpoints in S3, on Dask, and with crashing workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import distributed
import optuna
import pytest
from helpers import services
from helpers.equality import same
from helpers.failures import KillsAlways, KillsOnce, classifier_with
from helpers.problems import TINY, classifier, history, new_study, run, weights
from optuna.trial import FrozenTrial, TrialState

import optuna_miha as miha
from optuna_miha._training import pools
from optuna_miha._training.executor_size import n_workers_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def s3() -> Iterator[services.S3]:
    with services.s3() as service:
        yield service


@pytest.fixture(scope="module")
def dask() -> Iterator[distributed.Client]:
    with services.dask_cluster() as client:
        yield client


def assert_same_result(one: miha.Result, other: miha.Result) -> None:
    """Assert that two runs have the same history and bitwise the same model."""
    assert history(one) == history(other)
    assert same(weights(one), weights(other))
    assert one.value == other.value
    assert one.params == other.params


def interrupt_after_two_branches() -> Callable[[optuna.Study, FrozenTrial], None]:
    """A callback that raises KeyboardInterrupt when the second branch of the run has ended."""
    branches = []

    def callback(study: optuna.Study, trial: FrozenTrial) -> None:
        if trial.user_attrs["miha:role"] == "branch":
            branches.append(trial.number)
        if len(branches) == 2:
            raise KeyboardInterrupt

    return callback


def test_dask_and_postgresql_give_the_same_result_as_one_process(
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
        assert_same_result(result, whole_tiny)
        again = miha.load_result(new_study(storage), classifier)
        assert same(weights(again), weights(whole_tiny))


@pytest.mark.long
def test_interrupted_run_on_postgresql_resumes_to_the_same_result(
    postgresql: services.PostgreSQL, whole_tiny: miha.Result, tmp_path: Path
) -> None:
    url = postgresql.new_database()
    with services.rdb_storage(url) as storage, pytest.raises(KeyboardInterrupt):
        run(
            new_study(storage), callbacks=[interrupt_after_two_branches()], checkpoint_dir=tmp_path
        )
    with services.rdb_storage(url) as storage:  # New connections, as in another process.
        assert_same_result(run(new_study(storage)), whole_tiny)


def test_interrupted_run_with_checkpoints_in_s3_resumes_and_keeps_one(
    s3: services.S3, whole_tiny: miha.Result
) -> None:
    study, store = new_study(), s3.new_store()
    with pytest.raises(KeyboardInterrupt):
        run(study, callbacks=[interrupt_after_two_branches()], artifact_store=store, keep="final")
    assert s3.keys(store)
    assert_same_result(run(study, artifact_store=store, keep="final"), whole_tiny)
    again = miha.load_result(study, classifier, store)
    assert same(weights(again), weights(whole_tiny))
    assert s3.keys(store) == [again.trial.user_attrs["miha:checkpoint"]["id"]]


def arm_before_first_population(folder: Path) -> Callable[[optuna.Study, FrozenTrial], None]:
    """A callback that makes a worker crash in the first population."""

    def callback(study: optuna.Study, trial: FrozenTrial) -> None:
        if (trial.user_attrs["miha:role"], trial.user_attrs["miha:cycle"]) == ("trunk", 0):
            (folder / "armed").touch()

    return callback


def worker_arguments(where: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    """Arguments of ``optimize``."""
    if where == "dask":
        return {"executor": request.getfixturevalue("dask").get_executor()}
    return {"n_jobs": 2}


@pytest.mark.parametrize("where", ["dask", pytest.param("n_jobs", marks=pytest.mark.long)])
def test_crash_of_a_worker_repeats_only_the_jobs_in_training(
    where: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    without_crash, with_crash = tmp_path / "without_crash", tmp_path / "with_crash"
    for folder in (without_crash, with_crash):
        folder.mkdir()
    whole = run(new_study(), classifier_with(lambda: KillsOnce(without_crash)))
    study = new_study()
    result = run(
        study,
        classifier_with(lambda: KillsOnce(with_crash)),
        callbacks=[arm_before_first_population(with_crash)],
        **worker_arguments(where, request),
    )
    assert (with_crash / "dead").exists(), "no worker died"
    assert_same_result(result, whole)
    assert len(study.trials) == len(whole.segments), "a trial was repeated"
    again = (with_crash / "steps").stat().st_size - (without_crash / "steps").stat().st_size
    if where == "dask":
        assert again == KillsOnce.FATAL_STEP
    else:
        # The job of the other worker is lost too: half a branch, in batches of at least 8.
        fatal = KillsOnce.FATAL_STEP
        assert fatal <= again <= fatal + TINY.branch_epochs // 2 * 8


@pytest.mark.long
@pytest.mark.parametrize("where", ["dask", "n_jobs"])
def test_job_that_kills_every_worker_ends_the_run_with_an_error(
    where: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two crashes instead of three: new workers take seconds to start.
    monkeypatch.setattr(pools, "_MAX_CRASHES", 2)
    lethal = KillsAlways()
    study = new_study()
    with pytest.raises(miha.exceptions.WorkerError, match="died"):
        run(study, classifier_with(lambda: lethal), **worker_arguments(where, request))
    assert not study.get_trials(states=(TrialState.RUNNING,))


@pytest.mark.parametrize("kind", ["threads", "dask"])
def test_executor_that_is_shut_down_is_refused(kind: str, request: pytest.FixtureRequest) -> None:
    executor: Executor = ThreadPoolExecutor(1)
    if kind == "dask":
        executor = request.getfixturevalue("dask").get_executor()
    executor.shutdown()
    study = new_study()
    with pytest.raises(ValueError, match="shut down"):
        run(study, executor=executor)
    assert not study.trials


def test_executors_say_how_many_workers_they_have(dask: distributed.Client) -> None:
    """No interface promises it: a new version of Python or Dask may take it away."""
    dask.wait_for_workers(2)  # A test before this one may have killed them.
    with (
        dask.get_executor() as on_dask,
        ThreadPoolExecutor(3) as threads,
        ProcessPoolExecutor(2) as processes,
    ):
        assert [n_workers_of(executor) for executor in (on_dask, threads, processes)] == [2, 3, 2]
