"""Runs on worker processes of loky."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import pytest
from helpers.equality import same
from helpers.failures import KillsOnce, classifier_with
from helpers.problems import history, new_study, run, weights

import optuna_miha as miha
from optuna_miha.integrations.loky import LokyExecutor

pytest.importorskip("loky")

pytestmark = pytest.mark.slow


@pytest.fixture
def executor() -> Iterator[LokyExecutor]:
    with LokyExecutor(2, max_retries=1) as executor:
        yield executor


def test_a_call_is_run_again_when_its_worker_dies(executor: LokyExecutor, tmp_path: Path) -> None:
    (tmp_path / "armed").touch()
    assert executor.submit(die_once, tmp_path).result() == "lived"
    assert (tmp_path / "dead").exists()


def die_once(folder: Path) -> str:
    try:
        (folder / "armed").rename(folder / "dead")
    except FileNotFoundError:
        return "lived"
    os._exit(1)


@pytest.mark.long
def test_a_worker_that_dies_costs_its_branch_only(executor: LokyExecutor, tmp_path: Path) -> None:
    expected = run(new_study(), plan=miha.Plan(16, n_workers=2))
    (tmp_path / "armed").touch()
    model_fn = classifier_with(partial(KillsOnce, tmp_path))
    result = run(new_study(), model_fn, plan=None, n_epochs=16, executor=executor)
    assert (tmp_path / "dead").exists()
    assert history(result) == history(expected)
    assert same(weights(result), weights(expected))


def test_a_call_whose_worker_always_dies_is_given_up(executor: LokyExecutor) -> None:
    with pytest.raises(BrokenProcessPool):
        executor.submit(os._exit, 1).result()
    assert executor.submit(abs, -1).result() == 1
