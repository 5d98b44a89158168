"""The front door: :func:`optimize` and :func:`load_result`."""

from __future__ import annotations

import atexit
import hashlib
import math
import platform
import secrets
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, replace
from os import PathLike
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.artifacts import FileSystemArtifactStore
from optuna.distributions import distribution_to_json
from optuna.pruners import HyperbandPruner
from optuna.study import StudyDirection
from optuna.trial import FixedTrial

from optuna_miha import _lineage
from optuna_miha._checkpoint import CheckpointStore
from optuna_miha._data import training_batches
from optuna_miha._lineage import Lineage
from optuna_miha._loop import Callback, Coordinator, Keep
from optuna_miha._model_fn import Initial, ModelFn, build_initial, build_recipe, preserved_rng
from optuna_miha._optuna import (
    is_default_pruner,
    is_default_sampler,
    is_in_memory,
    sqlite_file,
    stoppable,
)
from optuna_miha._phases import Stretch
from optuna_miha._plan import Plan
from optuna_miha._progress import Progress
from optuna_miha._pruner import SlopePruner
from optuna_miha._recipe import Recipe
from optuna_miha._result import Result, make_result
from optuna_miha._sampler import MihaSampler
from optuna_miha._segment import Context, on_device
from optuna_miha._trainer import Trainer, batch_loss, check_loss
from optuna_miha._workers import make_workers
from optuna_miha.exceptions import PlanMismatchError, SearchSpaceChangedError
from optuna_miha.fitness import Fitness, last_value

_logger = optuna.logging.get_logger(__name__)
