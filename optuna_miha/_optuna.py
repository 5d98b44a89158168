"""The only module that touches what Optuna does not promise to keep.

``tests/test_optuna_internals.py`` fails when any of it changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna import Study
from optuna.artifacts import FileSystemArtifactStore
from optuna.pruners import BasePruner, MedianPruner
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import InMemoryStorage, RDBStorage
from optuna.trial import FrozenTrial


def is_default_sampler(sampler: BaseSampler) -> bool:
    """Whether ``sampler`` is what ``optuna.create_study()`` makes when given none.

    A sampler with a seed, or any other setting that differs, is the user's choice, and so is
    one that has drawn random numbers already, which looks the same as a seeded one.
    """
    if type(sampler) is not TPESampler or sampler._rng._rng is not None:
        return False
    default = TPESampler()
    estimator, usual = (s._parzen_estimator_parameters for s in (sampler, default))
    return _settings(sampler) == _settings(default) and estimator == usual


def is_default_pruner(pruner: BasePruner) -> bool:
    """Whether ``pruner`` is what ``optuna.create_study()`` makes when given none."""
    return type(pruner) is MedianPruner and _settings(pruner) == _settings(MedianPruner())


def is_in_memory(study: Study) -> bool:
    """Whether the study ends with the process."""
    return isinstance(study._storage, InMemoryStorage)


def sqlite_file(study: Study) -> Path | None:
    """The SQLite file that holds the study; :obj:`None` for any other storage."""
    storage = getattr(study._storage, "_backend", study._storage)
    if not isinstance(storage, RDBStorage) or storage.engine.dialect.name != "sqlite":
        return None
    database = storage.engine.url.database
    return Path(database).absolute() if database and database != ":memory:" else None


def enqueued_params(trial: FrozenTrial) -> dict[str, Any]:
    """The parameters that ``study.enqueue_trial`` fixed for ``trial``."""
    return dict(trial.system_attrs.get("fixed_params", {}))


def artifact_folder(artifact_store: Any) -> Path | None:
    """The folder of a :class:`~optuna.artifacts.FileSystemArtifactStore`."""
    if isinstance(artifact_store, FileSystemArtifactStore):
        return artifact_store._base_path
    return None


@contextmanager
def stoppable(study: Study) -> Iterator[None]:
    """Let callbacks call ``study.stop()``, as they may inside ``study.optimize``."""
    if study._thread_local.in_optimize_loop:
        raise RuntimeError("A study cannot be optimized inside its own optimization.")
    study._stop_flag = False
    study._thread_local.in_optimize_loop = True
    try:
        yield
    finally:
        study._thread_local.in_optimize_loop = False


def is_stopped(study: Study) -> bool:
    """Whether a callback called ``study.stop()``."""
    return study._stop_flag


def _settings(component: Any) -> dict[str, Any]:
    plain = (bool, int, float, str, type(None))
    return {k: v for k, v in vars(component).items() if isinstance(v, plain)}
