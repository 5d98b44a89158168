"""Validation of the arguments of :func:`optimize`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from os import PathLike
from typing import Any, get_args

import optuna
import torch

from optuna_miha._history.scalars import as_int
from optuna_miha._model.model_fn import ModelFn
from optuna_miha._run.epoch_report import EpochCallback
from optuna_miha._search.crossover import AverageWeights, Crossover
from optuna_miha._search.plan import Plan
from optuna_miha._study.retention import Keep
from optuna_miha._study.stores import check_one_store
from optuna_miha._study.trial_log import Callback
from optuna_miha._training.compute import (
    Engine,
    resolve_devices,
    resolve_own_device,
    resolve_worker_devices,
)
from optuna_miha._training.executor_size import n_workers_of
from optuna_miha._training.trainer_context import AnyTrainer, check_trainer
from optuna_miha.fitness import Fitness, last_value


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The validated arguments of :func:`optimize`, which documents them.

    Args:
        devices: The devices of this process; at least one.
        worker_devices: The devices of the workers. :obj:`None`: the worker chooses its own.
        engine: ``precision``, ``channels_last`` and ``n_threads``.
        timeout: Seconds; infinite if there is no timeout.
    """

    study: optuna.Study
    model_fn: ModelFn
    n_epochs: int | None
    plan: Plan | None
    n_jobs: int
    executor: Executor | None
    fitness: Fitness
    crossover: Crossover | AverageWeights | None
    trainer: AnyTrainer | None
    initial_params: Mapping[str, Any] | None
    artifact_store: Any
    checkpoint_dir: str | PathLike[str] | None
    keep: Keep
    devices: tuple[torch.device, ...]
    worker_devices: tuple[torch.device | None, ...]
    engine: Engine
    callbacks: tuple[Callback, ...]
    epoch_callbacks: tuple[EpochCallback, ...]
    timeout: float
    catch: tuple[type[Exception], ...]
    show_progress_bar: bool

    @property
    def n_workers(self) -> int | None:
        """The number of workers; :obj:`None` if the executor does not say it."""
        return self.n_jobs if self.executor is None else n_workers_of(self.executor)

    @property
    def budget(self) -> int | None:
        """The requested budget in epochs; :obj:`None`: the stored budget, or the default."""
        return self.n_epochs if self.plan is None else self.plan.n_epochs


def check_arguments(study: optuna.Study, model_fn: ModelFn, **arguments: Any) -> Arguments:
    """Validate the arguments of :func:`optimize`, without reading from the storage.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range or contradicts another.
    """
    _check_study(study)
    if not callable(model_fn):
        raise TypeError(f"`model_fn` must be callable, got {type(model_fn).__qualname__}.")
    arguments["n_epochs"] = as_int(arguments["n_epochs"])
    arguments["n_jobs"] = _check_workers(as_int(arguments["n_jobs"]), arguments["executor"])
    if arguments["keep"] not in get_args(Keep):
        raise ValueError(f"`keep` must be one of {get_args(Keep)}, got {arguments['keep']!r}.")
    check_one_store(arguments["artifact_store"], arguments["checkpoint_dir"])
    names = ("precision", "channels_last", "n_threads")
    engine = Engine(**{name: arguments.pop(name) for name in names})
    if arguments["trainer"] is not None and engine.precision is not None:
        raise ValueError(
            f"`precision` applies only to the built-in trainer, got {engine.precision!r} with "
            "your own `trainer`: use torch.autocast in the trainer."
        )
    if arguments["trainer"] is not None:
        check_trainer(arguments["trainer"])
    device = arguments.pop("device")
    devices: tuple[torch.device, ...]
    worker_devices: tuple[torch.device | None, ...]
    if arguments["executor"] is None:
        devices = worker_devices = resolve_devices(device)
    else:
        worker_devices = resolve_worker_devices(device)
        devices = (resolve_own_device(worker_devices[0]),)
    fitness, timeout, catch = (arguments.pop(name) for name in ("fitness", "timeout", "catch"))
    return Arguments(
        study=study,
        model_fn=model_fn,
        fitness=fitness or last_value,
        devices=devices,
        worker_devices=worker_devices,
        engine=engine,
        callbacks=tuple(arguments.pop("callbacks") or ()),
        epoch_callbacks=tuple(arguments.pop("epoch_callbacks") or ()),
        timeout=math.inf if timeout is None else timeout,
        catch=tuple(catch) if isinstance(catch, Iterable) else (catch,),
        **arguments,
    )


def _check_study(study: object) -> None:
    if not isinstance(study, optuna.Study):
        raise TypeError(f"`study` must be an optuna.Study, got {type(study).__qualname__}.")
    if len(study.directions) > 1:
        raise ValueError(
            f"The study must have one objective, got {len(study.directions)} directions: create "
            "it with `direction=` and combine the objectives into one metric."
        )


def _check_workers(n_jobs: Any, executor: object) -> int:
    if type(n_jobs) is not int or n_jobs < 1:
        raise ValueError(f"`n_jobs` must be a positive number of processes, got {n_jobs!r}.")
    if executor is not None and not isinstance(executor, Executor):
        raise TypeError(
            "`executor` must be a concurrent.futures.Executor, got "
            f"{type(executor).__qualname__}: with Dask, pass `client.get_executor()`; with Ray, a "
            "`RayExecutor`; with submitit, let its jobs start the workers of Dask."
        )
    if executor is not None and n_jobs != 1:
        raise ValueError(
            f"Pass `n_jobs` or an `executor`, not both: got n_jobs={n_jobs} and a "
            f"{type(executor).__qualname__}, which has its own number of workers."
        )
    return n_jobs
