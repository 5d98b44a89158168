"""Devices belong to workers: the coordinator need not have them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import optuna
import pytest
import torch
from helpers.networks import recipe, run_context

import optuna_miha as miha
from optuna_miha._run.arguments import check_arguments
from optuna_miha._training import pools, worker
from optuna_miha._training.context import Context
from optuna_miha._training.job import Job, Outcome
from optuna_miha._training.pickling import pack
from optuna_miha._training.pools import OnExecutor
from optuna_miha._training.worker import pack_context

MISSING = "cuda" if not torch.cuda.is_available() else "xpu"


def seen_by(device: Any, executor: Any) -> Any:
    """The devices of the coordinator and of the workers."""
    study = optuna.create_study()
    names = ("n_epochs", "plan", "fitness", "crossover", "trainer", "initial_params")
    names += ("artifact_store", "checkpoint_dir", "precision", "callbacks", "epoch_callbacks")
    settings: dict[str, Any] = dict.fromkeys(names)
    settings |= {"n_jobs": 1, "keep": "trunk", "channels_last": False, "n_threads": 1}
    settings |= {"timeout": None, "catch": (), "show_progress_bar": False}
    checked = check_arguments(study, recipe, device=device, executor=executor, **settings)
    return checked.devices, checked.worker_devices


def test_a_worker_elsewhere_chooses_its_own_device() -> None:
    with ThreadPoolExecutor(1) as executor:
        assert seen_by(None, executor)[1] == (None,)
        own, workers = seen_by(MISSING, executor)
    assert own == (torch.device("cpu"),) and workers == (torch.device(MISSING),)
    own, workers = seen_by("cpu", None)
    assert own == workers == (torch.device("cpu"),)


def test_a_device_that_no_worker_has_is_refused_before_the_study_is_written() -> None:
    study = optuna.create_study()
    with (
        ThreadPoolExecutor(1) as executor,
        pytest.raises(ValueError, match=rf"workers .* must have the `device`.*'{MISSING}'"),
    ):
        miha.optimize(
            study, lambda trial: recipe(), n_epochs=24, executor=executor, device=MISSING
        )
    assert not study.trials and not study.user_attrs


def thread_trainer(
    recipe: miha.Recipe, n_epochs: int, context: miha.TrainerContext
) -> Iterator[miha.EpochResult]:
    """The value says whether the main thread trains."""
    for _ in range(n_epochs):
        is_main = threading.current_thread() is threading.main_thread()
        yield miha.EpochResult(value=float(is_main))


def test_lone_phases_run_on_a_worker() -> None:
    def model_fn(trial: Any) -> miha.Recipe:
        trial.suggest_float("x", 0.0, 1.0)
        return miha.Recipe(model=torch.nn.Linear(1, 1))

    with ThreadPoolExecutor(1) as executor:
        result = miha.optimize(
            optuna.create_study(sampler=miha.MihaSampler(seed=0)),
            model_fn,
            plan=miha.Plan(24, anneal="cosine"),
            trainer=thread_trainer,
            executor=executor,
            device="cpu",
            show_progress_bar=False,
        )
    roles = {segment.role: segment.scores for segment in result.segments}
    assert {"trunk", "branch", "final"} <= set(roles)
    assert not any(score for scores in roles.values() for score in scores)


def test_an_executor_without_suitable_workers_is_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pools, "PATIENCE", 0.05)
    release = threading.Event()
    logging.getLogger("optuna").propagate = True
    with ThreadPoolExecutor(1) as executor, caplog.at_level("WARNING"):
        executor.submit(release.wait, 10)
        threading.Timer(0.3, release.set).start()
        OnExecutor(run_context(lambda trial: recipe()), executor).check()
    assert "none has the resources that the executor asks for" in caplog.text


def test_a_device_belongs_to_one_worker_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever sibling a process takes, it trains on the device of the process."""
    trained_on = []
    context = run_context(lambda trial: recipe(), devices=(torch.device("cpu"),) * 2)
    packed = pack_context(context)

    def note(context: Context, job: Job, on_epoch: object) -> Outcome:
        trained_on.append(job.index)
        return Outcome((), 0, None)

    monkeypatch.setattr(worker, "run_job", note)
    for place in (0, 1):
        monkeypatch.setattr(worker, "_place", place)
        for index in range(3):
            job = Job(params={}, state=None, n_epochs=1, index=index)
            worker.run_remote(f"key {place}", packed, pack(job))
    assert trained_on == [0, 0, 0, 1, 1, 1]
