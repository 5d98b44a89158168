"""Loading the result of a run: :func:`load_result`."""

from __future__ import annotations

from functools import partial
from os import PathLike
from typing import Any

import optuna
import torch

from optuna_miha._model.model_fn import ModelFn
from optuna_miha._report.picture import lineage_picture
from optuna_miha._results.result import Result, make_result
from optuna_miha._study.retry import convert_storage_errors
from optuna_miha._study.schema import read_lineage
from optuna_miha._study.stores import open_store
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
    """Load the result of a finished or unfinished run, for example in another process.

    Args:
        study: The study of the run.
        model_fn: The function that was passed to :func:`optimize`.
        artifact_store: The store that was passed to :func:`optimize`, if any.
        checkpoint_dir: The folder of the checkpoints; default the folder stored in the study.
        device: The device of the model; default as in :func:`optimize`.

    Returns:
        The result.

    Raises:
        CheckpointError: If the checkpoint is missing or damaged.
        FormatError: If a later version of the package wrote the study.
        RecordError: If a stored attribute of the study or of a trial is invalid.
        StorageError: If the database cannot be read.
        MihaError: If no segment is finished yet.
    """
    lineage = read_lineage(study)
    if lineage.best() is None:
        raise MihaError(
            f"The study {study.study_name!r} contains no finished segment of a run, so there is "
            "no model yet: call `optuna_miha.optimize` on it."
        )
    store = open_store(study, artifact_store, checkpoint_dir, read_only=True)
    draw = partial(lineage_picture, study)
    return make_result(study, lineage, model_fn, store, resolve_devices(device)[0], draw)
