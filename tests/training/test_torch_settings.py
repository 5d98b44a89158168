"""Global settings of torch are the same in workers as in the coordinator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from helpers.equality import same
from helpers.problems import SHORT, classifier, history, new_study, run, weights
from optuna.study import StudyDirection

import optuna_miha as miha
from optuna_miha._model.model_fn import build_initial
from optuna_miha._training import torch_settings
from optuna_miha._training.context import Context
from optuna_miha._training.job import Job
from optuna_miha._training.outcome import Outcome
from optuna_miha._training.pickling import pack, unpack
from optuna_miha._training.torch_settings import current_settings
from optuna_miha._training.worker import pack_context, run_remote

CHANGES: dict[str, Callable[[], Any]] = {
    "default dtype": lambda: torch.set_default_dtype(torch.float64),
    "deterministic": lambda: torch.use_deterministic_algorithms(True),
    "warn only": lambda: torch.use_deterministic_algorithms(True, warn_only=True),
    "fill": lambda: setattr(torch.utils.deterministic, "fill_uninitialized_memory", False),
    "matmul precision": lambda: torch.set_float32_matmul_precision("high"),
    "benchmark": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "cudnn deterministic": lambda: setattr(torch.backends.cudnn, "deterministic", True),
    "cudnn tf32": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
    "matmul tf32": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "mkldnn": lambda: setattr(torch.backends.mkldnn, "enabled", False),
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True, check_nan=False),
    "attention": lambda: torch.backends.cuda.enable_flash_sdp(False),
    "fast path": lambda: torch.backends.mha.set_fastpath_enabled(False),
}


@contextmanager
def changed(change: Callable[[], Any]) -> Iterator[None]:
    """Change a setting for a while."""
    before = current_settings()
    change()
    try:
        yield
    finally:
        torch_settings._apply(before)
    assert current_settings() == before


class Seeing:
    """A ``model_fn`` that keeps the settings under which it is called."""

    seen: Any = None

    def __call__(self, trial: Any) -> miha.Recipe:
        Seeing.seen = current_settings()
        return classifier(trial)


def new_context() -> tuple[Context, dict[str, Any]]:
    """A context of the settings in force, and the initial parameters."""
    initial = build_initial(Seeing(), 0)
    direction, cpu = StudyDirection.MINIMIZE, torch.device("cpu")
    context = Context.of(initial.recipe, Seeing(), direction=direction, seed=0, devices=(cpu,))
    return context, initial.params


def run_as_worker(key: str, context: Context, params: dict[str, Any]) -> Outcome:
    job = pack(Job(params=params, state=None, n_epochs=1))
    packed = run_remote(key, pack_context(context), job)
    assert packed is not None
    outcome: Outcome = unpack(packed)
    return outcome


@pytest.mark.parametrize("name", CHANGES)
def test_a_job_runs_under_the_settings_of_its_coordinator(name: str) -> None:
    before = current_settings()
    with changed(CHANGES[name]):
        expected = current_settings()
        context, params = new_context()
    assert expected != before
    outcome = run_as_worker(name, context, params)
    assert outcome.error is None
    assert Seeing.seen == expected
    assert current_settings() == before


@pytest.mark.parametrize(
    "around",
    [torch.device("meta"), torch.autocast("cpu", dtype=torch.bfloat16)],
    ids=["device", "autocast"],
)
def test_a_job_runs_within_the_device_and_autocast_of_its_coordinator(around: Any) -> None:
    context, params = new_context()
    with around:
        expected = current_settings()
    assert expected != context.settings
    run_as_worker(str(around), Context(**{**vars(context), "settings": expected}), params)
    assert Seeing.seen == expected
    assert current_settings() == context.settings


def precise(trial: Any) -> miha.Recipe:
    """A classifier in the default data type, on data of that type."""
    recipe = classifier(trial)
    for name in ("train_data", "valid_data"):
        inputs, targets = getattr(recipe, name)
        setattr(recipe, name, (inputs.to(torch.get_default_dtype()), targets))
    return recipe


@pytest.mark.long
@pytest.mark.slow
def test_worker_processes_train_in_the_default_dtype_of_the_coordinator() -> None:
    with changed(lambda: torch.set_default_dtype(torch.float64)):
        here = run(new_study(), precise, plan=SHORT)
        there = run(new_study(), precise, plan=SHORT, n_jobs=2)
    assert next(iter(weights(here).values())).dtype == torch.float64
    assert history(there) == history(here)
    assert same(weights(there), weights(here))
