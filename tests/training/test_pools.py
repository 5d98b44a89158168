"""Jobs in worker processes and on executors."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from helpers.equality import same
from helpers.networks import recipe, run_context
from helpers.problems import blobs, classifier, explicit, history, new_study, run, weights

import optuna_miha as miha
from optuna_miha._search.learning_rate import Course
from optuna_miha._training import pools, worker
from optuna_miha._training.halves import n_left_over
from optuna_miha._training.job import Job
from optuna_miha._training.pools import InProcess, OnExecutor, WorkerProcesses
from optuna_miha.exceptions import WorkerError

pytestmark = pytest.mark.slow

SHORT = miha.Plan(30, startup=2, fixing_epochs=2, anneal="cosine")


class CountingExecutor(Executor):
    """Runs calls in a thread, and records the size of their arguments."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.threads = ThreadPoolExecutor(1)

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.sizes.append(sum(len(arg) for arg in args if isinstance(arg, bytes)))
        return self.threads.submit(fn, *args, **kwargs)


class ForgetfulExecutor(CountingExecutor):
    """Runs every call as in a new worker."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        worker._cached_context = None
        return super().submit(fn, *args, **kwargs)


class LosingExecutor(CountingExecutor):
    """Loses every call but the first, which checks the executor."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        if not self.sizes:
            return super().submit(fn, *args, **kwargs)
        future: Future[Any] = Future()
        future.set_exception(KeyError("gone"))
        return future


def classifier_with_large_data(trial: Any) -> miha.Recipe:
    """The usual problem, with a megabyte of data in its closure."""
    recipe = classifier(trial)
    x, y = LARGE_DATA
    recipe.train_data = (x[:60], y[:60])
    return recipe


PROCESS_IDS: list[int] = []
"""The process of each call of ``model_fn_of_lr`` in this process."""

DIVERGING_LR = 1e-2
"""A learning rate for which the monitored value is NaN."""


def model_fn_of_lr(trial: Any) -> miha.Recipe:
    PROCESS_IDS.append(os.getpid())
    if trial.suggest_float("lr", 1e-4, 1e-2) == DIVERGING_LR:
        return recipe(metrics={"m": lambda *_: float("nan")}, monitor="m")
    return recipe()


def job(n_epochs: int, lr: float = 1e-3) -> Job:
    return Job(params={"lr": lr}, state=None, n_epochs=n_epochs)


LARGE_DATA = tuple(part.repeat(1000, *[1] * (part.ndim - 1)) for part in blobs(60))


@pytest.fixture(autouse=True)
def forget_contexts() -> None:
    worker._cached_context = None


@pytest.fixture(scope="module")
def two_processes() -> Iterator[WorkerProcesses]:
    """Two processes for jobs of ``model_fn_of_lr``."""
    with WorkerProcesses(run_context(model_fn_of_lr), 2) as workers:
        yield workers


def as_function_of_script(function: Any) -> Any:
    """Return the function as defined in a script, so that workers cannot import it."""
    copy = type(function)(function.__code__, {**function.__globals__, "__name__": "__main__"})
    copy.__module__ = "__main__"
    return copy


def test_data_are_sent_to_a_worker_once() -> None:
    executor = CountingExecutor()
    result = run(
        new_study(),
        as_function_of_script(classifier_with_large_data),
        executor=executor,
        plan=SHORT,
    )
    n_bytes = sum(part.nbytes for part in LARGE_DATA)
    # Both candidates of the start-up race may be sent before the worker has the context.
    assert sum(size > n_bytes for size in executor.sizes) in (1, 2)
    assert len(executor.sizes) > 8
    assert same(weights(result), weights(run(new_study(), classifier_with_large_data, plan=SHORT)))


def test_new_worker_receives_the_context() -> None:
    result = run(new_study(), explicit, executor=ForgetfulExecutor(), plan=SHORT)
    assert same(weights(result), weights(run(new_study(), explicit, plan=SHORT)))


def test_lost_job_ends_the_run_which_can_be_resumed() -> None:
    study = new_study()
    with pytest.raises(WorkerError, match=r"could not run a job: KeyError: 'gone'"):
        run(study, executor=LosingExecutor(), plan=SHORT)
    assert not study.get_trials(states=(optuna.trial.TrialState.RUNNING,))
    assert history(run(study, plan=SHORT)) == history(run(new_study(), plan=SHORT))


def test_executor_is_not_shut_down() -> None:
    executor = CountingExecutor()
    run(new_study(), executor=executor, plan=SHORT)
    assert executor.submit(len, b"xyz").result() == 3


def test_pending_jobs_are_cancelled_when_the_run_ends() -> None:
    executor, asked = CountingExecutor(), threading.Event()

    def stop(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        asked.set()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(new_study(), executor=executor, callbacks=[stop])
    assert asked.is_set()
    assert executor.threads._work_queue.empty()


@pytest.mark.parametrize("settings", [{"n_jobs": 2}, {"executor": ThreadPoolExecutor(1)}])
def test_model_fn_that_cannot_be_serialized_is_refused(settings: dict[str, Any]) -> None:
    lock = threading.Lock()

    def model_fn(trial: Any) -> miha.Recipe:
        with lock:
            return classifier(trial)

    study = new_study()
    words = r"serializable by cloudpickle.*lock.*inside of `model_fn`, or use `n_jobs=1`"
    with pytest.raises(TypeError, match=words):
        run(study, model_fn, **settings)
    assert not study.trials
    assert not study.user_attrs


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"executor": "dask"}, TypeError, "`executor` must be a concurrent.futures.Executor"),
        (
            {"executor": CountingExecutor(), "n_jobs": 2},
            ValueError,
            "`n_jobs` or an `executor`, not both",
        ),
    ],
)
def test_invalid_executor_is_refused(
    settings: dict[str, Any], error: type[Exception], words: str
) -> None:
    study = new_study()
    with pytest.raises(error, match=words):
        run(study, **settings)
    assert not study.user_attrs


@pytest.fixture
def temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files that only this test uses."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def data_files_in(folder: Path) -> list[Path]:
    return list(folder.glob("optuna-miha-*/data"))


def test_interrupted_run_removes_its_data_file(temporary_folder: Path) -> None:
    seen: list[list[Path]] = []

    def fail(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        seen.append(data_files_in(temporary_folder))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(new_study(), n_jobs=2, plan=SHORT, callbacks=[fail])
    assert len(seen[0]) == 1, "there was no data file"
    assert not data_files_in(temporary_folder)


@pytest.mark.long
def test_single_job_runs_in_this_process(two_processes: WorkerProcesses) -> None:
    PROCESS_IDS.clear()
    (outcome,) = two_processes.run([job(2)], lambda *_: None)
    assert outcome.error is None
    assert [os.getpid()] == PROCESS_IDS
    two_processes.run([job(2), job(2)], lambda *_: None)
    assert len(PROCESS_IDS) == 1, "several jobs run in other processes"


def test_epochs_are_reported_with_the_index_of_their_job() -> None:
    context, jobs = run_context(model_fn_of_lr), [job(1), job(2), job(3)]
    for workers in (InProcess(context), OnExecutor(context, ThreadPoolExecutor(1))):
        seen: list[int] = []
        with workers:
            workers.run(jobs, lambda index, _, seen=seen: seen.append(index))
        assert sorted(seen) == [0, 1, 1, 2, 2, 2]


def test_epochs_are_counted_while_jobs_run(
    two_processes: WorkerProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "_GLANCE", 0.001)
    seen: list[int] = []
    two_processes.on_running = seen.append
    for _ in range(2):  # The second time, the first epochs are not counted again.
        two_processes.run([job(60), job(60)], lambda *_: None)
        assert seen == sorted(seen)
        assert 0 < seen[-1] <= 120
        seen.clear()
    two_processes.on_running = None


@pytest.mark.parametrize("course", [None, Course(n_epochs=8, begin=2)])
@pytest.mark.parametrize("n_jobs", [1, 2, 3, 5])
def test_halved_jobs_have_the_same_outcome_as_whole_ones(
    n_jobs: int, course: Course | None, two_processes: WorkerProcesses
) -> None:
    jobs = [replace(job(n), course=course) for n in (4, 3, 1, 2, 5)][:n_jobs]
    whole = InProcess(run_context(model_fn_of_lr)).run(jobs, lambda *_: None)
    seen: list[int] = []
    outcomes = two_processes.run(jobs, lambda index, _: seen.append(index))
    assert sorted(seen) == sorted(p for p, j in enumerate(jobs) for _ in range(j.n_epochs))
    for one, other in zip(whole, outcomes, strict=True):
        assert one.results == other.results
        assert one.begun == other.begun
        assert same(one.state, other.state)


def test_jobs_are_left_over_only_if_all_processes_have_one() -> None:
    left = {n: [n_left_over(n_jobs, n) for n_jobs in range(1, 8)] for n in (2, 3, 8)}
    assert left == {2: [0, 0, 1, 0, 1, 0, 1], 3: [0, 0, 0, 1, 2, 0, 1], 8: [0] * 7}


def test_job_that_fails_in_its_first_half_has_no_second_half(
    two_processes: WorkerProcesses,
) -> None:
    outcomes = two_processes.run([job(4, DIVERGING_LR)] * 3, lambda *_: None)
    assert [outcome.begun for outcome in outcomes] == [1, 1, 1]
    assert all(outcome.error for outcome in outcomes)


def test_exceptions_of_on_epoch_are_raised() -> None:
    def broken(index: int, result: miha.EpochResult) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        InProcess(run_context(model_fn_of_lr)).run([job(2)], broken)


SCRIPT = """
import sys, optuna, torch
from torch import nn
import optuna_miha as miha

x, y = torch.randn(64, 4), torch.arange(64) % 3

def model_fn(trial):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    return miha.Recipe(model=model, loss_fn=nn.CrossEntropyLoss(),
                       train_data=(x[:48], y[:48]), valid_data=(x[48:], y[48:]))

def main():
    study = optuna.create_study(storage=sys.argv[1], study_name="s", load_if_exists=True)
    plan = miha.Plan(30, startup=2, fixing_epochs=2)
    result = miha.optimize(study, model_fn, plan=plan, n_jobs=2, show_progress_bar=False)
    print("trained", result.n_epochs_trained)

"""


def run_script(tmp_path: Path, ending: str) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "script.py"
    file.write_text(SCRIPT + ending)
    command = [sys.executable, os.fspath(file), f"sqlite:///{tmp_path}/s.db"]
    root = os.fspath(Path(__file__).parents[2])
    env = os.environ | {"PYTHONPATH": root}
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)


def test_model_fn_of_a_script_is_supported(tmp_path: Path) -> None:
    process = run_script(tmp_path, 'if __name__ == "__main__":\n    main()\n')
    assert process.stdout == "trained 30\n", process.stderr


@pytest.mark.long
def test_script_without_a_main_guard_gets_a_helpful_error(tmp_path: Path) -> None:
    process = run_script(tmp_path, "main()\n")
    assert process.returncode == 1
    last = process.stderr.strip().splitlines()[-1]
    assert "WorkerError" in last
    assert 'if __name__ == "__main__"' in last
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path}/s.db")
    assert not study.trials
    assert not study.user_attrs


@pytest.mark.long
def test_run_restores_the_threads_and_removes_its_data_file(temporary_folder: Path) -> None:
    before = torch.get_num_threads()
    run(new_study(), n_jobs=2, plan=SHORT)
    assert torch.get_num_threads() == before
    assert not data_files_in(temporary_folder)
