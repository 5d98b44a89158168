"""Checkpoints: the state that passes from trunk to branch, and where it is kept."""

from __future__ import annotations

import hashlib
import io
import uuid
from collections.abc import Mapping
from typing import Any, TypeAlias

import optuna
import torch
from optuna.artifacts.exceptions import ArtifactNotFound
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from optuna_miha._optimizers import capture_optimizer, inherit_optimizer
from optuna_miha._optuna import artifact_folder
from optuna_miha._recipe import Recipe
from optuna_miha._rng import capture_rng, restore_rng
from optuna_miha.exceptions import CheckpointError, InheritanceError

_logger = optuna.logging.get_logger("optuna.miha")

State: TypeAlias = dict[str, Any]
"""``model``, ``ema`` (or None), ``optimizer``, ``rng``, ``epoch`` of a network in training,
and ``best``: the weights that validated best in the segment. Tensors, numbers and strings only,
so that it loads with ``weights_only=True``."""


def averaged(model: nn.Module, decay: float) -> AveragedModel | None:
    """A moving average of the weights of ``model``; :obj:`None` if ``decay`` is 0.

    Raises:
        TypeError: If the network cannot be copied.
    """
    if decay == 0:
        return None
    try:
        return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise TypeError(
            "The network must be copyable by `copy.deepcopy`, because its weights are averaged, "
            f"got: {error} Use `torch.nn.utils.parametrizations.weight_norm` instead of "
            "`torch.nn.utils.weight_norm`, or `Plan(ema_decay=0)`."
        ) from error


def capture(recipe: Recipe, ema: AveragedModel | None, epoch: int) -> State:
    """Copy the whole state of a network in training.

    Args:
        recipe: The network and its optimizer.
        ema: The average of its weights.
        epoch: Epochs that its lineage has behind it.
    """
    assert recipe.optimizer is not None
    return {
        "model": copy_tensors(recipe.model.state_dict()),
        "ema": None if ema is None else copy_tensors(ema.state_dict()),
        "optimizer": copy_tensors(capture_optimizer(recipe.optimizer)),
        "rng": capture_rng(),
        "epoch": epoch,
    }


def inherit(recipe: Recipe, ema: AveragedModel | None, state: State) -> None:
    """Continue from ``state``: weights, average, optimizer state and random state.

    Hyperparameters stay the recipe's own. ``state`` is copied, so that any number of branches
    can inherit from it.

    Raises:
        InheritanceError: If the network has other parameters than the one captured.
    """
    _check_same_network(recipe.model, state["model"])
    recipe.model.load_state_dict(state["model"], strict=True)
    if ema is not None and state["ema"] is not None:
        ema.load_state_dict(state["ema"], strict=True)
    assert recipe.optimizer is not None
    inherit_optimizer(recipe.optimizer, state["optimizer"])
    restore_rng(state["rng"])


def copy_tensors(value: Any) -> Any:
    """A deep copy of nested dictionaries and lists, in which tensors are detached."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: copy_tensors(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(copy_tensors(part) for part in value)
    return value


def on_cpu(value: Any) -> Any:
    """The same nested dictionaries and lists, with all tensors in main memory."""
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, Mapping):
        return {key: on_cpu(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(on_cpu(part) for part in value)
    return value


def _check_same_network(model: nn.Module, inherited: Mapping[str, Any]) -> None:
    own = model.state_dict()
    advice = (
        "A mutation must not change the network's parameters: keep the architecture fixed in "
        "`model_fn`."
    )
    for name in [*inherited, *own]:
        if name not in own or name not in inherited:
            where = "the parent has it, the branch lacks it"
            if name not in inherited:
                where = "the branch has it, the parent lacks it"
            raise InheritanceError(f"Parameter {name!r} cannot be inherited: {where}. {advice}")
        old, new = inherited[name], own[name]
        if isinstance(new, Tensor) and old.shape != new.shape:
            raise InheritanceError(
                f"Parameter {name!r} cannot be inherited: its shape is {tuple(old.shape)} in "
                f"the parent and {tuple(new.shape)} in the branch. {advice}"
            )


class CheckpointStore:
    """Checkpoints in an Optuna artifact store, each with its hash.

    Args:
        artifact_store: Any object with ``write``, ``open_reader`` and ``remove`` of
            :class:`optuna.artifacts.ArtifactStore`: a folder, S3 or GCS.
    """

    def __init__(self, artifact_store: Any) -> None:
        self._artifact_store = artifact_store

    def save(self, state: State, label: str) -> dict[str, str]:
        """Write a checkpoint under a fresh id.

        Args:
            state: What to write.
            label: Beginning of the id, for whoever looks into the store.

        Returns:
            ``{"id": …, "sha256": …}``: what :meth:`load` needs. It is meant for an attribute
            of the trial, set only once this returned, so that no attribute ever points at half
            a checkpoint.
        """
        buffer = io.BytesIO()
        torch.save(state, buffer)
        reference = {
            "id": f"{label}-{uuid.uuid4().hex[:12]}.pt",
            "sha256": hashlib.sha256(buffer.getbuffer()).hexdigest(),
        }
        buffer.seek(0)
        self._artifact_store.write(reference["id"], buffer)
        return reference

    def load(self, reference: Mapping[str, str]) -> State:
        """Read a checkpoint, verify it, and load it with ``weights_only=True``.

        Raises:
            CheckpointError: If it is missing, or is not what was written.
        """
        name = reference["id"]
        try:
            with self._artifact_store.open_reader(name) as reader:
                content = reader.read()
        except ArtifactNotFound:
            raise CheckpointError(
                f"Checkpoint {name} is missing from {_describe(self._artifact_store)}: pass "
                "the `checkpoint_dir` or `artifact_store` that the study was run with."
            ) from None
        if hashlib.sha256(content).hexdigest() != reference["sha256"]:
            raise CheckpointError(
                f"Checkpoint {name} is damaged: its SHA-256 is not the one that the study "
                "recorded. Restore the file from a backup."
            )
        state: State = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        return state

    def remove(self, reference: Mapping[str, str]) -> None:
        """Delete a checkpoint, if that is possible: failing to tidy up must not end a run.

        Raises:
            ValueError: If the id leads out of the store.
        """
        try:
            self._artifact_store.remove(reference["id"])
        except ValueError:
            raise
        except Exception as error:
            _logger.debug(f"Checkpoint {reference['id']} was not removed: {error!r}.")


def _describe(artifact_store: Any) -> str:
    folder = artifact_folder(artifact_store)
    return type(artifact_store).__name__ if folder is None else f"the folder {folder}"
