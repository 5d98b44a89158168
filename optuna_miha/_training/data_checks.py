"""Checks of the data before training: streams that end, validation data that stay the same."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset, TensorDataset

from optuna_miha._model.batches import split_batch
from optuna_miha._model.data_state import DataState, check_data_state
from optuna_miha._model.recipe import Data, Recipe
from optuna_miha._model.rng import preserved_rng, seed_all
from optuna_miha._model.tensors import is_equal
from optuna_miha._training.context import Context
from optuna_miha._training.data import tensors_of

_MAX_STREAM = 100_000
"""Samples of the longest stream without a length; a longer one may be endless."""

_N_COMPARED = 3
"""Samples to compare of a stream, which cannot be compared as a whole."""


def check_data(recipe: Recipe, context: Context) -> None:
    """Refuse data that cannot be trained on for several epochs, or validated on.

    Args:
        recipe: The initial recipe; its random generators are left as they are.
        context: The context of the run. A user-defined trainer may use the data in other ways, so
            that only their state is checked.

    Raises:
        TypeError: If the state of the training data cannot be stored in a checkpoint.
        ValueError: If a stream is endless or can be read only once, or if validation data are
            shuffled or not read to their end.
    """
    check_data_state(recipe.train_data)
    if context.trainer is not None:
        return
    data = {"train_data": recipe.train_data, "valid_data": recipe.valid_data}
    if recipe.test_data is not None:
        data["test_data"] = recipe.test_data
    for name, part in data.items():
        with preserved_rng(), DataState().watch(part):
            if name != "train_data" or recipe.steps_per_epoch is None:
                _check_stream(part, name)
            if name != "train_data" and isinstance(part, DataLoader):
                _check_complete(part, name)
    if isinstance(recipe.valid_data, DataLoader):
        _check_order(recipe.valid_data)


def check_split(first: Recipe, second: Recipe) -> None:
    """Refuse a ``model_fn`` whose validation data change from call to call.

    Args:
        first: A recipe of the initial configuration.
        second: Another one.

    Raises:
        ValueError: If their validation data differ.
    """
    if not _is_same_data(first.valid_data, second.valid_data):
        raise ValueError(
            "`model_fn` must give the same validation data at every call, because branches are "
            "compared on them, got other samples in the second call: split the data outside of "
            "`model_fn`, or with a new generator of a fixed seed, as in `random_split(data, "
            "lengths, generator=torch.Generator().manual_seed(0))`."
        )


def has_same_targets(one: Recipe, other: Recipe) -> bool:
    """Whether two recipes validate on as many samples, with the same targets, as far as is seen.

    The inputs may differ, because a hyperparameter may say how they are prepared. With a
    ``train_step``, it is not known which part of a sample is the target.
    """
    if one.valid_data is other.valid_data:
        return True
    is_known = one.train_step is None
    return is_equal(_targets_of(one.valid_data, is_known), _targets_of(other.valid_data, is_known))


def _targets_of(data: Any, is_known: bool) -> tuple[int | None, Any]:
    """The length of a dataset, and all or some of its targets, if it is known what they are."""
    dataset = data.dataset if isinstance(data, DataLoader) else data
    tensors = tensors_of(dataset)
    if tensors is not None:
        return len(tensors[-1]), tensors[-1] if is_known else None
    found = _some_samples(dataset)
    length, samples = found if isinstance(found, tuple) else (None, [])
    with suppress(TypeError):
        return length, [split_batch(sample).target for sample in samples] if is_known else None
    return length, None


def _check_stream(data: Data, name: str) -> None:
    """Read a stream of unknown length to its end, and begin a second epoch."""
    order = _order_of(data)
    if order is None or _has_length(order):
        return
    n_samples = sum(1 for _ in itertools.islice(order, _MAX_STREAM + 1))
    if n_samples > _MAX_STREAM:
        repair = "set `Recipe(steps_per_epoch=...)`, or " if name == "train_data" else ""
        raise ValueError(
            f"A stream in `{name}` of more than {_MAX_STREAM} samples must have a length, because "
            f"it might never end, got a {type(order).__qualname__} without one: {repair}end each "
            "epoch in `__iter__`, for example by `itertools.islice`, and write `__len__`."
        )
    if n_samples > 0 and next(iter(order), None) is None:
        raise ValueError(
            f"`{name}` must yield its samples in every epoch, got a {type(order).__qualname__} "
            f"that yields {n_samples} in the first and none in the second: create its iterator "
            "anew in `__iter__`."
        )


def _check_complete(loader: DataLoader[Any], name: str) -> None:
    """Refuse a loader that drops samples."""
    batches = loader.batch_sampler
    if isinstance(loader.dataset, IterableDataset):
        is_dropping = loader.drop_last and loader.batch_size != 1
    else:
        is_dropping = getattr(batches, "drop_last", False) and _drops(batches)
    if is_dropping:
        raise ValueError(
            f"`{name}` must be evaluated to the last sample, got a DataLoader with "
            "`drop_last=True` that leaves some out: use `drop_last=False`."
        )


def _drops(batches: Any) -> bool:
    sampler = getattr(batches, "sampler", None)
    if sampler is None or not _has_length(sampler):
        return True
    return sum(map(len, batches)) < len(sampler)


def _check_order(loader: DataLoader[Any]) -> None:
    """Refuse a loader whose order depends on random numbers, or changes from epoch to epoch."""
    order = _order_of(loader)
    if order is None or isinstance(loader.dataset, IterableDataset) or order is loader:
        return
    with preserved_rng(), DataState().watch(loader):
        orders = []
        for seed in range(2):
            seed_all(seed)
            orders.append(list(order))
    if not is_equal(*orders):
        sampler = getattr(order, "sampler", order)
        raise ValueError(
            "The validation data must come in the same order in every epoch, so that values and "
            "outputs of networks can be compared, got a DataLoader with a "
            f"{type(sampler).__qualname__}: use `shuffle=False`, and for a part of the data "
            "`torch.utils.data.Subset(dataset, indices)` in place of a sampler."
        )


def _order_of(data: Data) -> Iterable[Any] | None:
    """What yields the samples or their indices; :obj:`None` if their number is known."""
    if isinstance(data, DataLoader):
        if type(data).__iter__ is not DataLoader.__iter__:
            return data
        if not isinstance(data.dataset, IterableDataset):
            return data.sampler if data.batch_sampler is None else data.batch_sampler
        data = data.dataset
    return data if isinstance(data, IterableDataset) else None


def _has_length(value: Any) -> bool:
    try:
        return len(value) >= 0
    except (TypeError, NotImplementedError):
        return False


def _is_same_data(one: Any, other: Any) -> bool:
    """Whether two data sets hold the same samples in the same order, as far as can be seen."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, (tuple, Tensor)):
        return is_equal(one, other)
    if isinstance(one, DataLoader):
        if not isinstance(one.dataset, IterableDataset):
            with preserved_rng(), DataState().watch(one), DataState().watch(other):
                orders = []
                for loader in (one, other):
                    seed_all(0)
                    orders.append(list(loader.sampler))
            if not is_equal(*orders):
                return False
        return _is_same_data(one.dataset, other.dataset)
    if type(one) is TensorDataset:
        return is_equal(one.tensors, other.tensors)
    if type(one) is Subset:
        return is_equal(list(one.indices), list(other.indices)) and _is_same_data(
            one.dataset, other.dataset
        )
    if type(one) is ConcatDataset:
        return len(one.datasets) == len(other.datasets) and all(
            map(_is_same_data, one.datasets, other.datasets)
        )
    return is_equal(_some_samples(one), _some_samples(other))


def _some_samples(dataset: Any) -> Any:
    """The length and a few samples of a dataset."""
    with preserved_rng(), DataState().watch(dataset):
        seed_all(0)
        if isinstance(dataset, IterableDataset):
            return list(itertools.islice(dataset, _N_COMPARED))
        n = len(dataset)
        try:
            return n, [dataset[i] for i in sorted({0, n // 2, n - 1})]
        except Exception:  # Only its sampler knows the indices of its samples.
            return n, []
