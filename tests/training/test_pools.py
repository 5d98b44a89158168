"""Jobs in other processes and threads: what they need, and what becomes of it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from helpers.equality import same
from helpers.networks import recipe, run_context
from helpers.networks import same as states_are_equal
from helpers.problems import blobs, classifier, explicit, history, new_study, run, weights

import optuna_miha as miha
from optuna_miha._training import worker
from optuna_miha._training.job import Job
from optuna_miha._training.pools import InProcess, OnExecutor, WorkerProcesses, _n_left_over
from optuna_miha.exceptions import WorkerError

SHORT = miha.Plan(30, startup=2, fixing_epochs=2)


class Counting(Executor):
    """Runs what it gets in a thread, and notes how large it was."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.threads = ThreadPoolExecutor(1)

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.sizes.append(sum(len(arg) for arg in args if isinstance(arg, bytes)))
        return self.threads.submit(fn, *args, **kwargs)


class Forgetful(Counting):
    """As if every job came to a worker that is new."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        worker._latest = None
        return super().submit(fn, *args, **kwargs)


class Losing(Counting):
    """Loses every job but the first one, by which it is tried."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        if not self.sizes:
            return super().submit(fn, *args, **kwargs)
        future: Future[Any] = Future()
        future.set_exception(KeyError("gone"))
        return future


def large(trial: Any) -> miha.Recipe:
    """The usual problem, with a megabyte of data that stand in its closure."""
    recipe = classifier(trial)
    x, y = BALLAST
    recipe.train_data = (x[:60], y[:60])
    return recipe


ASKED: list[int] = []
"""Who asked for a recipe, as far as this process knows."""

DIVERGING = 1e-2
"""A learning rate."""


def one_parameter(trial: Any) -> miha.Recipe:
    ASKED.append(os.getpid())
    if trial.suggest_float("lr", 1e-4, 1e-2) == DIVERGING:
        return recipe(metrics={"m": lambda *_: float("nan")}, monitor="m")
    return recipe()


def job(n_epochs: int, lr: float = 1e-3) -> Job:
    return Job(params={"lr": lr}, state=None, n_epochs=n_epochs)


BALLAST = tuple(part.repeat(1000, *[1] * (part.ndim - 1)) for part in blobs(60))


@pytest.fixture(autouse=True)
def new_workers() -> None:
    worker._latest = None


@pytest.fixture(scope="module")
def two() -> Iterator[WorkerProcesses]:
    """Two processes for jobs of ``one_parameter``."""
    with WorkerProcesses(run_context(one_parameter), 2) as workers:
        yield workers


def by_value(function: Any) -> Any:
    """The function as one of a script: the workers cannot import it."""
    copy = type(function)(function.__code__, {**function.__globals__, "__name__": "__main__"})
    copy.__module__ = "__main__"
    return copy


def test_data_travel_once_to_a_worker() -> None:
    executor = Counting()
    result = run(new_study(), by_value(large), executor=executor, plan=SHORT)
    n_bytes = sum(part.nbytes for part in BALLAST)
    # The two siblings of the race may both have asked before the worker had its answer.
    assert sum(size > n_bytes for size in executor.sizes) in (1, 2)
    assert len(executor.sizes) > 8
    assert same(weights(result), weights(run(new_study(), large, plan=SHORT)))


def test_a_worker_that_is_new_is_told() -> None:
    result = run(new_study(), explicit, executor=Forgetful(), plan=SHORT)
    assert same(weights(result), weights(run(new_study(), explicit, plan=SHORT)))


def test_a_job_that_got_lost_ends_the_run_and_leaves_it_resumable() -> None:
    study = new_study()
    with pytest.raises(WorkerError, match=r"could not be run where it was sent: KeyError: 'gone'"):
        run(study, executor=Losing(), plan=SHORT)
    assert not study.get_trials(states=(optuna.trial.TrialState.RUNNING,))
    assert history(run(study, plan=SHORT)) == history(run(new_study(), plan=SHORT))


def test_an_executor_is_left_running() -> None:
    executor = Counting()
    run(new_study(), executor=executor, plan=SHORT)
    assert executor.submit(len, b"xyz").result() == 3


def test_jobs_that_wait_are_cancelled_when_the_run_ends() -> None:
    executor, asked = Counting(), threading.Event()

    def stop(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        asked.set()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(new_study(), executor=executor, callbacks=[stop])
    assert asked.is_set()
    assert executor.threads._work_queue.empty()


@pytest.mark.parametrize("settings", [{"n_jobs": 2}, {"executor": ThreadPoolExecutor(1)}])
def test_what_cannot_travel_is_refused_at_once(settings: dict[str, Any]) -> None:
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
        ({"executor": Counting(), "n_jobs": 2}, ValueError, "`n_jobs` or an `executor`, not both"),
    ],
)
def test_a_wrong_executor_is_refused(
    settings: dict[str, Any], error: type[Exception], words: str
) -> None:
    study = new_study()
    with pytest.raises(error, match=words):
        run(study, **settings)
    assert not study.user_attrs


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files that nobody else on this machine uses."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def data_in(folder: Path) -> list[Path]:
    return list(folder.glob("optuna-miha-*/data"))


def test_data_are_not_left_behind_by_a_run_that_is_interrupted(temporary: Path) -> None:
    seen: list[list[Path]] = []

    def fail(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        seen.append(data_in(temporary))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(new_study(), n_jobs=2, plan=SHORT, callbacks=[fail])
    assert len(seen[0]) == 1, "the data lay there"
    assert not data_in(temporary)


def test_a_lone_job_stays_in_this_process(two: WorkerProcesses) -> None:
    ASKED.clear()
    (outcome,) = two.run([job(2)], lambda *_: None)
    assert outcome.error is None
    assert [os.getpid()] == ASKED
    two.run([job(2), job(2)], lambda *_: None)
    assert len(ASKED) == 1, "jobs that are not alone are trained elsewhere"


def test_epochs_are_reported_with_the_place_of_their_job() -> None:
    context, jobs = run_context(one_parameter), [job(1), job(2), job(3)]
    for workers in (InProcess(context), OnExecutor(context, ThreadPoolExecutor(1))):
        seen: list[int] = []
        with workers:
            workers.run(jobs, lambda place, _, seen=seen: seen.append(place))
        assert sorted(seen) == [0, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("n_jobs", [1, 2, 3, 5])
def test_jobs_that_are_cut_in_halves_end_as_whole_ones(n_jobs: int, two: WorkerProcesses) -> None:
    jobs = [job(n) for n in (4, 3, 1, 2, 5)][:n_jobs]
    whole = InProcess(run_context(one_parameter)).run(jobs, lambda *_: None)
    seen: list[int] = []
    outcomes = two.run(jobs, lambda place, _: seen.append(place))
    assert sorted(seen) == sorted(p for p, j in enumerate(jobs) for _ in range(j.n_epochs))
    for one, other in zip(whole, outcomes, strict=True):
        assert one.results == other.results
        assert one.begun == other.begun
        assert states_are_equal(one.state, other.state)


def test_jobs_are_left_over_only_where_all_processes_have_one() -> None:
    left = {n: [_n_left_over(n_jobs, n) for n_jobs in range(1, 8)] for n in (2, 3, 8)}
    assert left == {2: [0, 0, 1, 0, 1, 0, 1], 3: [0, 0, 0, 1, 2, 0, 1], 8: [0] * 7}


def test_a_job_that_fails_in_its_first_half_has_no_second(two: WorkerProcesses) -> None:
    outcomes = two.run([job(4, DIVERGING)] * 3, lambda *_: None)
    assert [outcome.begun for outcome in outcomes] == [1, 1, 1]
    assert all(outcome.error for outcome in outcomes)


def test_what_a_progress_bar_raises_is_not_the_jobs_fault() -> None:
    def broken(place: int, result: miha.EpochResult) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        InProcess(run_context(one_parameter)).run([job(2)], broken)


class TwoArguments(Exception):
    """Pickles, but does not come back."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.__notes__ = ["a note"]  # As `add_note` does, from Python 3.11 on.


class Worded(ValueError):
    """Would come back with its words said twice."""

    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")


def arrived(fail: Callable[[], Any]) -> Any:
    """What the coordinator gets of an exception in a worker."""

    def model_fn(trial: Any) -> miha.Recipe:
        fail()
        raise AssertionError("It did not fail.")

    with ThreadPoolExecutor(1) as executor:
        workers = OnExecutor(run_context(model_fn), executor)
        [outcome] = workers.run([Job(params={}, state=None, n_epochs=1)], lambda *_: None)
    return outcome.exception


def test_exceptions_arrive_as_they_were() -> None:
    def fail(cls: Any, *args: Any) -> None:
        raise cls(*args)

    exception = arrived(lambda: fail(TwoArguments, 7, "in the worker"))
    assert type(exception) is TwoArguments
    assert str(exception) == "7: in the worker"
    assert exception.code == 7
    assert exception.__notes__ == ["a note"]
    assert str(arrived(lambda: fail(Worded, 3))) == "code 3"
    assert arrived(lambda: fail(FileNotFoundError, 2, "none")).errno == 2
    assert arrived(lambda: b"\xff".decode()).start == 0
    assert type(arrived(lambda: fail(KeyError, object()))) is KeyError


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_an_exception_of_two_arguments_is_caught_whatever_the_number_of_jobs(n_jobs: int) -> None:
    def fail(output: Any, target: Any) -> Any:
        raise TwoArguments(7, "no SGD")

    def model_fn(trial: Any) -> miha.Recipe:
        recipe = explicit(trial)
        if trial.params["optimizer"] == "sgd":
            recipe.loss_fn = fail
        return recipe

    study = new_study()
    run(study, model_fn, n_jobs=n_jobs, catch=TwoArguments)
    errors = [t.user_attrs.get("miha:error") for t in study.trials]
    assert "TwoArguments: 7: no SGD" in errors


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


def script(tmp_path: Path, ending: str) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "script.py"
    file.write_text(SCRIPT + ending)
    command = [sys.executable, os.fspath(file), f"sqlite:///{tmp_path}/s.db"]
    root = os.fspath(Path(__file__).parents[2])
    env = os.environ | {"PYTHONPATH": root}
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)


def test_a_model_fn_of_a_script_works(tmp_path: Path) -> None:
    ended = script(tmp_path, 'if __name__ == "__main__":\n    main()\n')
    assert ended.stdout == "trained 30\n", ended.stderr


def test_a_script_without_a_guard_is_told_the_repair(tmp_path: Path) -> None:
    ended = script(tmp_path, "main()\n")
    assert ended.returncode == 1
    last = ended.stderr.strip().splitlines()[-1]
    assert "WorkerError" in last
    assert 'if __name__ == "__main__"' in last
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path}/s.db")
    assert not study.trials
    assert not study.user_attrs


def test_after_a_run_threads_are_as_before_and_no_data_left(temporary: Path) -> None:
    before = torch.get_num_threads()
    run(new_study(), n_jobs=2, plan=SHORT)
    assert torch.get_num_threads() == before
    assert not data_in(temporary)
