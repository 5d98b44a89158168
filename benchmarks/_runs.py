"""Runs of optuna_miha for the speed benchmarks, and their studies."""

from __future__ import annotations

import hashlib
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from _loops import Turns
from _problems import BATCH_SIZE, Pair, Problem
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from torch import nn

import optuna_miha as miha
from optuna_miha._training import job

_SEED = 0


def model_fn(
    trial: Any, problem: Problem, data: tuple[Pair, Pair], marks: str | None = None
) -> miha.Recipe:
    """Build a recipe in which only learning rate and weight decay mutate.

    Neither changes the cost of an epoch.

    Args:
        trial: The trial.
        problem: The network.
        data: Training and validation data.
        marks: A folder in which every process writes the time of its first step.
    """
    model = problem.network()
    optimizer = miha.suggest_optimizer(trial, model.parameters(), choices=("adam",))
    if marks is not None:
        optimizer.register_step_pre_hook(partial(_mark, marks))
    return miha.Recipe(
        model=model,
        loss_fn=nn.CrossEntropyLoss(),
        optimizer=optimizer,
        batch_size=BATCH_SIZE,
        train_data=data[0],
        valid_data=data[1],
    )


def _mark(marks: str, *_: Any) -> None:
    path = Path(marks) / str(os.getpid())
    if not path.exists():
        path.write_text(repr(time.time()), encoding="utf-8")


def read_marks(marks: Path) -> dict[int, float]:
    """The time of the first step of every process, by process ID."""
    return {int(path.name): float(path.read_text("utf-8")) for path in marks.iterdir()}


@contextmanager
def taking_turns(turns: Turns) -> Iterator[None]:
    """Run an epoch of the tuned loop after each epoch that is trained in this process."""
    train_alone = job.train

    def train_in_turns(*args: Any, **settings: Any) -> Iterator[miha.EpochResult]:
        for result in train_alone(*args, **settings):
            turns.take()
            yield result

    job.train = train_in_turns
    try:
        yield
    finally:
        job.train = train_alone


def open_storage(kind: str, folder: Path) -> BaseStorage | None:
    """Create a storage in ``folder``, or open the existing one.

    Args:
        kind: ``memory``, ``sqlite``, ``sqlite-wal`` or ``journal``.
        folder: Folder of the storage's file.
    """
    match kind:
        case "memory":
            return None
        case "sqlite":
            return RDBStorage(f"sqlite:///{folder / 'study.db'}")
        case "sqlite-wal":
            warnings.filterwarnings("ignore", message=".*[Hh]eartbeat")
            return miha.create_storage(folder / "study.db")
        case "journal":
            return JournalStorage(JournalFileBackend(str(folder / "study.log")))
    raise ValueError(f"`kind` must be a kind of storage, got {kind!r}.")


def open_study(storage: BaseStorage | None) -> optuna.Study:
    """Create or load the study ``speed``, with this package's sampler and pruner."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(
        storage=storage,
        study_name="speed",
        load_if_exists=True,
        sampler=miha.MihaSampler(seed=_SEED),
        pruner=miha.SlopePruner(),
    )


def train(
    study: optuna.Study,
    problem: Problem,
    data: tuple[Pair, Pair],
    folder: Path,
    *,
    marks: Path | None = None,
    **settings: Any,
) -> miha.Result:
    """Run optuna_miha on the CPU.

    Args:
        study: The study.
        problem: The network.
        data: Training and validation data.
        folder: Folder of the checkpoints.
        marks: As in :func:`model_fn`.
        settings: Further arguments of ``optuna_miha.optimize``.
    """
    build = partial(model_fn, problem=problem, data=data, marks=marks and str(marks))
    return miha.optimize(
        study,
        build,
        checkpoint_dir=folder / "checkpoints",
        device="cpu",
        show_progress_bar=False,
        **settings,
    )


def digest(model: nn.Module) -> str:
    """A hash of the weights; equal for two models whose weights are bit-identical."""
    content = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        content.update(name.encode())
        content.update(tensor.cpu().numpy().tobytes())
    return content.hexdigest()[:16]
