"""Runs in several threads of one process, and runs within runs."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import optuna
import pytest
import torch
from helpers.equality import same
from helpers.problems import SHORT, classifier, explicit, history, new_study, run, weights

import optuna_miha as miha
from optuna_miha._model.rng import exclusive, lent, preserved_rng, seed_all
from optuna_miha._model.verbosity import warnings_only
from optuna_miha._training.compute import intra_op_threads, uncompiled

pytestmark = pytest.mark.slow

PATIENCE = 300.0
"""Seconds after which threads count as blocked forever."""


def in_threads(*calls: Callable[[], Any]) -> list[Any]:
    """Make calls at the same time, each in a thread of its own; fail if they block each other."""
    results: list[Any] = [None] * len(calls)

    def call(index: int) -> None:
        results[index] = calls[index]()

    threads = [threading.Thread(target=call, args=(i,), daemon=True) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "the threads block each other"
    return results


def test_two_runs_in_two_threads_end_as_they_do_alone() -> None:
    n_threads = torch.get_num_threads()
    calls = [
        lambda: run(new_study(seed=0), plan=SHORT),
        lambda: run(new_study(seed=1), explicit, plan=SHORT, n_threads=2),
        lambda: run(new_study(seed=2), plan=SHORT, callbacks=[lambda *_: None]),
    ]
    alone = [call() for call in calls]
    together = in_threads(*calls)
    for one, other in zip(alone, together, strict=True):
        assert history(other) == history(one)
        assert same(weights(other), weights(one))
    assert torch.get_num_threads() == n_threads


def test_runs_in_threads_may_share_an_executor_of_threads(whole: Any) -> None:
    with ThreadPoolExecutor(2) as pool:
        calls = [lambda: run(new_study(), plan=SHORT, executor=pool)] * 2
        for result in in_threads(*calls, lambda: run(new_study(), plan=SHORT)):
            assert history(result) == history(whole)
            assert same(weights(result), weights(whole))


def test_after_checks_in_several_threads_networks_are_compiled() -> None:
    has_begun, n_compiled = threading.Event(), 0

    def count(graph: Any, inputs: Any) -> Any:
        nonlocal n_compiled
        n_compiled += 1
        return graph.forward

    def check(seconds: float) -> None:
        with uncompiled():
            has_begun.set()
            time.sleep(seconds)

    def check_later() -> None:
        has_begun.wait(PATIENCE)
        check(0.2)

    in_threads(lambda: check(0.1), check_later)
    torch.compile(lambda x: x + 1, backend=count)(torch.ones(2))
    assert n_compiled == 1


_inner: list[miha.Result] = []
_inner_thread = "MainThread"


def nesting(trial: Any) -> miha.Recipe:
    """A ``model_fn`` that runs another study, once, in a thread of a certain name."""
    if threading.current_thread().name.startswith(_inner_thread) and not _inner:
        with ThreadPoolExecutor(2) as pool:
            _inner.append(run(new_study(), plan=SHORT, executor=pool))
    return classifier(trial)


@pytest.mark.parametrize("thread", ["coordinator", "job"])
def test_a_run_within_model_fn_may_use_an_executor_of_threads(
    thread: str, whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "_inner_thread", thread)
    _inner.clear()

    def outer_run() -> miha.Result:
        threading.current_thread().name = "coordinator"
        with ThreadPoolExecutor(2, "job") as pool:
            outer: miha.Result = run(new_study(), nesting, plan=SHORT, executor=pool)
        return outer

    [outer] = in_threads(outer_run)
    for result in (outer, _inner[0]):
        assert history(result) == history(whole)
        assert same(weights(result), weights(whole))


def test_a_callback_may_run_another_study(whole: Any) -> None:
    inner: list[miha.Result] = []

    def callback(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if not inner:
            inner.extend(in_threads(lambda: run(new_study(), plan=SHORT)))

    outer = run(new_study(), plan=SHORT, callbacks=[callback])
    for result in (outer, inner[0]):
        assert history(result) == history(whole)
        assert same(weights(result), weights(whole))


def interleave(context: Callable[[], Any]) -> None:
    """Enter and leave a context in two threads: first in, first out, if nothing prevents it."""
    entered, left = threading.Event(), threading.Event()

    def first() -> None:
        with context():
            second.start()
            entered.wait(0.3)  # In vain if the second thread has to wait.
        left.set()

    def behind() -> None:
        with context():
            entered.set()
            left.wait(PATIENCE)

    second = threading.Thread(target=behind, daemon=True)
    in_threads(first)
    second.join(PATIENCE)
    assert not second.is_alive()


def test_the_verbosity_is_restored_after_two_threads_changed_it() -> None:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.INFO)
    try:
        interleave(warnings_only)
        assert optuna.logging.get_verbosity() == optuna.logging.INFO
    finally:
        optuna.logging.set_verbosity(before)


def test_the_number_of_threads_is_restored_after_two_threads_changed_it() -> None:
    before = torch.get_num_threads()
    numbers = iter([before + 1, before + 2])
    interleave(lambda: intra_op_threads(next(numbers)))
    assert torch.get_num_threads() == before


def test_the_random_state_that_a_thread_lends_is_returned_unchanged() -> None:
    def disturb() -> None:
        with preserved_rng():
            seed_all(5)
            torch.rand(3)

    with exclusive(), preserved_rng():
        seed_all(1)
        with lent():
            in_threads(disturb)
        drawn = torch.rand(3)
        seed_all(1)
        assert torch.equal(drawn, torch.rand(3))
