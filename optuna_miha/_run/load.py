"""Loading the result of a run: :func:`load_result`."""

from __future__ import annotations

from os import PathLike
from typing import Any

import optuna
import torch

from optuna_miha._model.model_fn import ModelFn
from optuna_miha._results.result import Result, make_result
from optuna_miha._study.retry import convert_storage_errors
from optuna_miha._study.schema import read_lineage
from optuna_miha._study.setup import open_store
from optuna_miha._training.compute import resolve_devices
from optuna_miha.exceptions import MihaError


@convert_storage_errors()
def load_result(
    study: optuna.Study,
    model_fn: ModelFn,
    artifact_store: Any = None,
    *,
    checkpoint_dir: str | PathLike[str] | None = None,
    device: torch.device | str | None = None,
) -> Result:
    """Rebuild the result of a run, finished or not, for instance in another process.

    Args:
        study: The run's study.
        model_fn: The function that it was run with.
        artifact_store: As given to :func:`optimize`.
        checkpoint_dir: As given to :func:`optimize`; by default the folder that the study
            remembers.
        device: Where to put the model; default as in :func:`optimize`.

    Returns:
        The result.

    Raises:
        CheckpointError: If the checkpoint is missing or damaged.
        FormatError: If a later version wrote the study.
        RecordError: If an attribute of the study or of a trial is not what a run writes there.
        StorageError: If the database cannot be read.
        MihaError: If nothing was trained to its end yet.
    """
    lineage = read_lineage(study)
    if lineage.best() is None:
        raise MihaError(
            f"The study {study.study_name!r} holds no finished segment of a run, so there is no "
            "model yet: call `optuna_miha.optimize` on it."
        )
    store = open_store(study, artifact_store, checkpoint_dir, read_only=True)
    return make_result(study, lineage, model_fn, store, resolve_devices(device)[0])
