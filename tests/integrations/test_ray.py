"""Runs on a local cluster of Ray."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from helpers.equality import same
from helpers.problems import history, new_study, run, weights

import optuna_miha as miha
from optuna_miha._training.executor_size import n_workers_of
from optuna_miha.integrations.ray import RayExecutor

ray = pytest.importorskip("ray")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Those of Ray.


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    paths = os.pathsep.join(path for path in sys.path if path)
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": paths}},
    )
    yield
    ray.shutdown()


def test_the_result_is_that_of_one_process_and_the_plan_is_as_wide_as_the_cluster(
    cluster: None,
) -> None:
    study = new_study()
    with RayExecutor() as executor:
        result = run(study, plan=None, n_epochs=16, executor=executor)
    expected = run(new_study(), plan=miha.Plan(16, n_workers=2))
    assert history(result) == history(expected)
    assert same(weights(result), weights(expected))


@pytest.mark.parametrize(
    ("options", "n_workers"),
    [({}, 2), ({"num_cpus": 0.5}, 4), ({"num_cpus": 2}, 1), ({"num_cpus": 0}, 2)],
)
def test_workers_are_counted_by_what_a_branch_needs(
    cluster: None, options: Any, n_workers: int
) -> None:
    assert n_workers_of(RayExecutor(**options)) == n_workers


@pytest.mark.parametrize("options", [{"num_gpus": 8}, {"num_cpus": 3}, {"resources": {"tpu": 1}}])
def test_resources_that_no_node_has_are_refused(cluster: None, options: Any) -> None:
    with pytest.raises(ValueError, match="A node must have what a branch needs"):
        RayExecutor(**options)


def test_an_executor_that_is_shut_down_is_refused(cluster: None) -> None:
    executor = RayExecutor()
    executor.shutdown()
    study = new_study()
    with pytest.raises(ValueError, match="shut down"):
        run(study, plan=None, n_epochs=8, executor=executor)
    assert not study.trials


def test_ray_must_be_running() -> None:
    ray.shutdown()
    with pytest.raises(RuntimeError, match="Ray must be running"):
        RayExecutor()
