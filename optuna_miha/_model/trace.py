"""Trace which activations and dropout rates a network uses, and which make its output."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, default_collate

from optuna_miha._model.batches import split_batch
from optuna_miha._model.data_state import DataState
from optuna_miha._model.recipe import Data, Recipe, device_of
from optuna_miha._model.rng import preserved_rng, seed_all
from optuna_miha._model.tensors import map_tensors

_N_SAMPLES = 2
"""The smallest batch that batch normalization accepts in training mode."""


def modules_that_take_values(
    recipe: Recipe, activations: Iterable[str], dropouts: Iterable[str]
) -> set[str]:
    """Return the activations and dropout modules whose values the default search space suggests.

    These are the activations that a forward pass calls, without those of the output, and the
    dropout modules whose rate it reads.

    A copy of the network computes its outputs for two samples. An activation belongs to the
    output if no module with parameters is called after it, or if the output is its result, as it
    is or in another shape. If the network cannot be copied or called with samples of its data,
    or calls no activation at all, all activations are returned, and likewise all dropout modules.

    Args:
        recipe: The recipe; it does not change.
        activations: The qualified names of the activations.
        dropouts: The qualified names of the dropout modules.
    """
    paths, rated = set(activations), set(dropouts)
    trace = _traced(recipe, paths, rated)
    if trace is None:
        return paths | rated
    if not trace.results.keys() & paths:
        return paths | trace.read
    kept = {_storage(tensor) for tensor in trace.outputs}
    return trace.read | {
        path
        for path in paths & trace.results.keys()
        if path in trace.followed and not kept & set(map(_storage, trace.results[path]))
    }


def watch_rate(module: nn.Module, on_read: Callable[[], object]) -> None:
    """Call ``on_read`` when the rate of a dropout module is read, also from outside of it.

    Args:
        module: The module, not to be used in training afterwards.
        on_read: The function.
    """

    def read(self: nn.Module) -> Any:
        on_read()
        return vars(self)["p"]

    cls = type(module)
    module.__class__ = type(cls.__name__, (cls,), {"p": property(read)})


@dataclass
class _Trace:
    """What a forward pass calls.

    Args:
        results: The outputs of the activations, by name. All are kept, so that the memory of one
            is not used again for another.
        followed: The activations after whose last call a module with parameters is called.
        outputs: The outputs of the network.
        read: The dropout modules whose rate is read.
    """

    results: dict[str, list[Tensor]] = field(default_factory=dict)
    followed: set[str] = field(default_factory=set)
    outputs: list[Tensor] = field(default_factory=list)
    read: set[str] = field(default_factory=set)


def _traced(recipe: Recipe, paths: set[str], rated: set[str]) -> _Trace | None:
    """Trace a forward pass in training mode; :obj:`None` if it is not possible."""
    trace = _Trace()
    try:
        with preserved_rng(), DataState().watch(recipe.train_data), torch.no_grad():
            seed_all(0)  # A network that leaves out layers at random must give one space.
            device = device_of(recipe.model)
            batch = map_tensors(_samples(recipe.train_data), lambda t: t.to(device))
            model = copy.deepcopy(recipe.model)
            for path, module in model.named_modules(remove_duplicate=False):
                if path in paths:
                    module.register_forward_hook(_activation_hook(trace, path))
                elif path in rated:
                    watch_rate(module, partial(trace.read.add, path))
                elif next(module.parameters(recurse=False), None) is not None:
                    module.register_forward_hook(_parameters_hook(trace))
            model.register_forward_hook(_output_hook(trace))
            model.train()  # In evaluation mode, transformers compute activations themselves.
            if recipe.train_step is not None:
                recipe.train_step(model, batch, recipe.loss_fn)
            else:
                split_batch(batch).outputs(model)
    except Exception:
        return None
    return trace


def _activation_hook(trace: _Trace, path: str) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        trace.results.setdefault(path, []).extend(_tensors_in(output))
        trace.followed.discard(path)

    return hook


def _parameters_hook(trace: _Trace) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        trace.followed |= trace.results.keys()

    return hook


def _output_hook(trace: _Trace) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        trace.outputs.extend(_tensors_in(output))

    return hook


def _tensors_in(value: Any) -> list[Tensor]:
    tensors: list[Tensor] = []
    map_tensors(value, tensors.append)
    return tensors


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _samples(data: Data) -> Any:
    """Return the first samples as a batch."""
    if isinstance(data, tuple):
        return tuple(part[:_N_SAMPLES].clone() for part in data)
    collate: Any = default_collate
    if isinstance(data, DataLoader):
        collate, single = data.collate_fn, data.batch_size is None and data.batch_sampler is None
        data = data.dataset
        if single:  # The data set returns batches.
            return collate(data[0])
    if isinstance(data, IterableDataset):
        raise TypeError("Its samples may be available only once.")
    n_samples = min(_N_SAMPLES, len(data))  # type: ignore[arg-type]
    return collate([data[index] for index in range(n_samples)])
