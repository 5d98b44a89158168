"""The batches of a long or endless loader, which goes on where it stopped."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from optuna_miha._model.data_state import DataState
from optuna_miha._model.recipe import Recipe, device_of
from optuna_miha._model.rng import capture_rng, restore_rng
from optuna_miha._training.extra_state import ExtraState


class Batches(Protocol):
    """The training batches of a recipe."""

    def __iter__(self) -> Iterator[Any]:
        """Begin a pass over the data."""
        ...

    def rest(self, n_batches: int) -> Iterator[Any]:
        """Begin a pass, and leave out the first batches."""
        ...


class BatchStream:
    """The batches of pass after pass, without regard to epochs.

    It is extra state: a segment continues in the middle of the pass in which its parent stopped.
    The pass is begun once more with the random state of its beginning, and the batches that were
    trained on are left out. Data with a ``state_dict`` of their own continue by themselves.

    Args:
        recipe: The recipe.
        batches: Its training batches.
    """

    def __init__(self, recipe: Recipe, batches: Batches) -> None:
        self._batches = batches
        self._batch_size = recipe.batch_size
        self._device = device_of(recipe.model)
        self._data = DataState().watch(recipe.train_data)
        self._iterator: Iterator[Any] | None = None
        self._n_batches = 0
        self._start: dict[str, Any] = {}

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._iterator is None:
            self._iterator = self._continued() if self._n_batches else self._begun()
        batch = next(self._iterator, None)
        if batch is None:
            self._n_batches = 0
            self._iterator = self._begun()
            batch = next(self._iterator, None)
        if batch is None:
            raise ValueError(
                "`train_data` must yield at least one batch in each pass, got none: lower the "
                f"batch size ({self._batch_size}), set `drop_last=False`, or create the iterator "
                "anew in `__iter__`."
            )
        self._n_batches += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Return how far the present pass is, and the random state of its beginning."""
        return {
            "n_batches": self._n_batches,
            "batch_size": self._batch_size,
            "start": self._start,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue a pass; with another batch size after about as many samples."""
        self._iterator = None
        self._start = dict(state["start"])
        assert self._batch_size is not None
        self._n_batches = state["n_batches"] * state["batch_size"] // self._batch_size

    def _begun(self) -> Iterator[Any]:
        self._start = self._captured()
        return iter(self._batches)

    def _continued(self) -> Iterator[Any]:
        present = self._captured()
        if self._data.is_resumable:
            iterator = iter(self._batches)  # A loader draws a seed for its workers.
            restore_rng(present["rng"], self._device)
            return iterator
        self._restore(self._start)
        iterator = self._batches.rest(self._n_batches)
        self._restore(present)
        return iterator

    def _captured(self) -> dict[str, Any]:
        return {"rng": capture_rng(self._device), "data": self._data.capture()}

    def _restore(self, state: Mapping[str, Any]) -> None:
        restore_rng(state["rng"], self._device)
        self._data.restore(state["data"])


def batch_stream(recipe: Recipe, batches: Batches, extra: ExtraState) -> BatchStream | None:
    """Create the stream of a recipe with ``steps_per_epoch``, and restore its inherited state.

    Args:
        recipe: The recipe.
        batches: Its training batches.
        extra: The extra state of the segment.

    Returns:
        The stream; :obj:`None` if an epoch is a pass over the data.
    """
    if recipe.steps_per_epoch is None:
        return None
    return extra.register("miha:batches", BatchStream(recipe, batches))


def next_batches(recipe: Recipe, stream: BatchStream) -> Iterator[Any]:
    """Return the batches of the next epoch of a recipe with ``steps_per_epoch``."""
    assert recipe.steps_per_epoch is not None
    return itertools.islice(stream, recipe.steps_per_epoch * recipe.accumulate)
