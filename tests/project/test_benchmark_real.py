"""The tasks of real origin and the baselines of an expert."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, ModuleType]]:
    """Modules of the benchmark, as its scripts import them."""
    names = ("real_tasks", "real_results", "tasks", "_annealed", "_expert", "_shipped")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield {name: importlib.import_module(name) for name in names}


def test_halves_are_disjoint_and_fixed(modules: dict[str, ModuleType]) -> None:
    tasks = modules["real_tasks"].REAL_TASKS.values()
    halves = {
        half: {task.name for task in tasks if task.half == half}
        for half in ("development", "confirmation")
    }
    # A task that changes its half after a plan was tuned would confirm nothing.
    assert halves == {
        "development": {
            "ames", "credit", "leaves", "concrete", "reviews", "digits-5k", "weather",
        },
        "confirmation": {
            "hotel-rates", "loan-grades", "cells", "orange-juice", "tweets", "photographs",
            "electricity",
        },
    }  # fmt: skip
    assert not modules["real_tasks"].REAL_TASKS.keys() & modules["tasks"].TASKS.keys()


def test_missing_package_of_data_is_named(modules: dict[str, ModuleType]) -> None:
    with pytest.raises(ImportError, match="pip install no-such-data"):
        modules["_shipped"].load("no-such-data", "no_such_data")


def test_experts_spend_the_budget_and_select_by_validation(modules: dict[str, ModuleType]) -> None:
    expert = modules["_expert"]
    model_fn = modules["tasks"].TASKS["diabetes"].make(0)
    for name, (_, search) in expert.SEARCHES.items():
        if name == "soap-3" and not find_spec("pytorch_optimizer"):
            continue
        options = {"n_epochs": 13, "seed": 0, "method": name, "search": search}
        run = expert.run_expert(model_fn, **options)
        assert run.epochs == 13
        assert 0 < run.value < 1
        assert run.test is not None and 0 < run.test["loss"] < 2
    assert expert.run_expert(model_fn, **options).test == run.test


def test_survivors_of_halving_continue(modules: dict[str, ModuleType]) -> None:
    expert = modules["_expert"]
    model_fn = modules["tasks"].TASKS["diabetes"].make(0)
    configs = [modules["_annealed"].Config(lr=lr) for lr in (1e-6, 1e-2, 1e-7, 1e-5)]
    trainings = expert.resumed_halving(model_fn, 24, 0, configs=configs)
    assert [training.n_epochs for training in trainings] == [2, 14, 2, 6]


def test_equal_seconds_interpolate_the_costlier_method(modules: dict[str, ModuleType]) -> None:
    def row(method: str, n_epochs: int, loss: float, cost: float) -> dict[str, object]:
        run = {"task": "ames", "method": method, "n_epochs": n_epochs, "seed": 0}
        return run | {"test": {"loss": loss}, "cpu_seconds": 3 * cost, "unit_seconds": 3.0}

    rows = [row("ours", 30, 4.0, 2), row("ours", 120, 1.0, 8)]
    rows += [row("cheap", 120, 2.0, 4), row("dear", 30, 3.0, 10), row("dear", 120, 2.0, 40)]
    costs = modules["real_results"].Costs(rows)
    # Half of the seconds: half way between 30 and 120 epochs, where ours has a loss of 2.
    assert costs.ratio("ours", "cheap", ["ames"], 120).value == pytest.approx(1.0)
    # Its cheapest run counts, although it costs more than ours.
    assert costs.ratio("ours", "dear", ["ames"], 120).value == pytest.approx(1 / 3)
    assert costs.ratio("ours", "cheap", ["leaves"], 120) is None
    assert math.isclose(costs.relative("ours", "cheap", ["ames"], 120), 2.0)
