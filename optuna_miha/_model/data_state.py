"""The state of the objects that yield the training data: samplers, datasets and generators."""

from __future__ import annotations

import io
import itertools
import pickle
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FunctionType, GeneratorType, MethodType, ModuleType, TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from optuna_miha._model.plain_values import (
    Scalar,
    as_stored,
    assign,
    copied,
    is_plain,
    is_same,
    like,
)
from optuna_miha._model.tensors import copy_tensors

_MAX_PARTS = 10_000
"""Objects to search for random generators, the nearest first: a dataset may hold millions."""

_MAX_CONTAINER = 1_000
"""The longest list, tuple or dictionary whose elements are searched."""

_SAMPLERS = ("sampler", "batch_sampler", "batch_sampler.sampler")
"""Where samplers are that need not be of torch's class."""

_STATE_DICT = "state_dict of "


class DataState:
    """The state of the objects that yield the training data.

    It consists of the random generators that can be reached from the data by attributes, of what
    ``state_dict`` of a loader, sampler or dataset returns, and of the numbers of samplers, and
    their lists and arrays of numbers, that change in training.

    On leaving the context, the objects get back the state that they had when they were watched.
    Otherwise, those that outlive a segment, such as a generator beside ``model_fn``, would carry
    the state of one segment into its siblings.
    """

    def __init__(self) -> None:
        self._sources: dict[str, _Source] = {}
        self._epoch_setters: list[Callable[[int], object]] = []

    def __enter__(self) -> DataState:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None
    ) -> None:
        for source in self._sources.values():
            source.reset()

    def watch(self, data: Any) -> DataState:
        """Remember the present state of data, and return this object."""
        for path, part in _parts_of(data):
            self._sources |= {source.key: source for source in _sources_of(path, part)}
            set_epoch = getattr(part, "set_epoch", None)
            if _yields_samples(path, part) and callable(set_epoch):
                self._epoch_setters.append(set_epoch)
        return self

    def set_epoch(self, epoch: int) -> None:
        """Call ``set_epoch`` of the loader, samplers and datasets that have it.

        Args:
            epoch: The number of epochs that the network has been trained for, including those of
                its ancestors.
        """
        for set_epoch in self._epoch_setters:
            set_epoch(epoch)

    @property
    def is_resumable(self) -> bool:
        """Whether a loader, sampler or dataset has a ``state_dict`` by which it continues."""
        return any(source.kind.startswith(_STATE_DICT) for source in self._sources.values())

    def capture(self) -> dict[str, Any]:
        """Return the present state, as tensors, numbers and strings."""
        return {key: source.capture() for key, source in self._sources.items()}

    def restore(self, states: Mapping[str, Any]) -> None:
        """Restore what :meth:`capture` returned, in as far as there are the same objects.

        An object that a mutation has replaced by one of another class keeps its own state.
        """
        for key, source in self._sources.items():
            if key in states:
                source.restore(states[key])


def check_data_state(data: Any) -> None:
    """Refuse data whose state cannot be part of a checkpoint.

    Raises:
        TypeError: If a sampler or dataset holds an iterator, a random generator without a state,
            or returns a ``state_dict`` that a checkpoint cannot hold.
    """
    for path, part in _parts_of(data):
        if isinstance(part, random.SystemRandom):
            raise TypeError(
                "A random generator of the data must have a state, so that a run can be resumed, "
                f"got a SystemRandom as `{path}`: use `random.Random(seed)`."
            )
        if _yields_samples(path, part):
            for name, value in _attributes(part).items():
                if _is_iterator(value):
                    raise TypeError(
                        "Samplers and datasets must not hold iterators, whose position no "
                        f"checkpoint can hold, got a {type(value).__name__} as `{name}` of "
                        f"{type(part).__qualname__}: create the iterator in `__iter__`, so that "
                        "every epoch begins anew, or write `state_dict` and `load_state_dict`."
                    )
        for source in _sources_of(path, part):
            _check_source(source)


def _check_source(source: _Source) -> None:
    file = io.BytesIO()
    try:
        torch.save(source.capture(), file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except (pickle.PickleError, AttributeError, TypeError) as error:
        raise TypeError(
            f"The `state_dict` of the data's `{source.key or 'loader'}` must consist of tensors, "
            "numbers, strings, and lists, tuples and dictionaries of them, so that a checkpoint "
            f"can be read without running code, got: {error}"
        ) from error


class _Source:
    """One object with a state.

    Args:
        key: Where it is: its attributes, from the data on.
        kind: What it is; a state is restored only to an object of the same kind.
        read: Returns a copy of its state, as tensors, numbers and strings.
        write: Sets it to such a state.
    """

    def __init__(
        self, key: str, kind: str, read: Callable[[], Any], write: Callable[[Any], object]
    ) -> None:
        self.key = key
        self.kind = kind
        self.read = read
        self._write = write
        self._first = read()

    def capture(self) -> dict[str, Any]:
        return {"kind": self.kind, "state": self.read()}

    def restore(self, captured: Mapping[str, Any]) -> None:
        if captured["kind"] == self.kind:
            self._write(captured["state"])

    def reset(self) -> None:
        self._write(self._first)


class _Attributes(_Source):
    """The numbers of a sampler, and its lists and arrays of them; what changes is its state."""

    def __init__(self, key: str, owner: Any) -> None:
        self._owner = owner
        super().__init__(key, f"attributes of {type(owner).__qualname__}", self._plain, self._put)

    def capture(self) -> dict[str, Any]:
        changed = {name: as_stored(value) for name, value in self._changed().items()}
        return {"kind": self.kind, "state": changed}

    def reset(self) -> None:
        for name in self._changed():
            if name in self._first:
                assign(vars(self._owner), name, self._first[name])
            else:
                del vars(self._owner)[name]

    def _changed(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in self._plain().items()
            if name not in self._first or not is_same(value, self._first[name])
        }

    def _plain(self) -> dict[str, Any]:
        attributes = _attributes(self._owner)
        return {name: copied(value) for name, value in attributes.items() if is_plain(value)}

    def _put(self, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            assign(vars(self._owner), name, value)


def _sources_of(path: str, part: Any) -> Iterator[_Source]:
    """The states of one object, without those of its attributes."""
    if isinstance(part, torch.Generator):
        yield _Source(path, "torch.Generator", part.get_state, part.set_state)
    elif isinstance(part, random.Random):
        if not isinstance(part, random.SystemRandom):  # It has no state.
            yield _Source(path, "random.Random", part.getstate, part.setstate)
    elif isinstance(part, (np.random.Generator, np.random.RandomState)):
        yield _numpy_source(path, part)
    elif _yields_samples(path, part):
        if callable(getattr(part, "state_dict", None)) and hasattr(part, "load_state_dict"):
            kind = f"{_STATE_DICT}{type(part).__qualname__}"
            yield _Source(
                path, kind, lambda: copy_tensors(part.state_dict()), part.load_state_dict
            )
        elif isinstance(part, Sampler) or path in _SAMPLERS:
            yield _Attributes(path, part)


def _numpy_source(path: str, part: np.random.Generator | np.random.RandomState) -> _Source:
    def read() -> Any:
        if isinstance(part, np.random.Generator):
            return part.bit_generator.state
        return part.get_state(legacy=False)

    def write(state: Any) -> None:
        state = like(state, read())
        if isinstance(part, np.random.Generator):
            part.bit_generator.state = state
        else:
            part.set_state(state)

    return _Source(path, f"numpy.{read()['bit_generator']}", lambda: as_stored(read()), write)


def _parts_of(data: Any) -> Iterator[tuple[str, Any]]:
    """Iterate over the objects that can be reached from the data, each with its path."""
    if isinstance(data, (tuple, Tensor)):
        return
    queue, seen = deque([("", data)]), dict[int, Any]()
    while queue and len(seen) < _MAX_PARTS:
        path, part = queue.popleft()
        if id(part) in seen or _is_leaf(part):
            continue
        seen[id(part)] = part
        yield path, part
        queue.extend(_children(path, part))


def _children(path: str, part: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(part, Mapping | list | tuple):
        if len(part) > _MAX_CONTAINER:
            return []
        items = part.items() if isinstance(part, Mapping) else enumerate(part)
        return [(f"{path}[{key!r}]", value) for key, value in items]
    if isinstance(part, MethodType):
        return [(f"{path}.__self__", part.__self__)]
    if isinstance(part, FunctionType):
        names, cells = part.__code__.co_freevars, part.__closure__ or ()
        return [
            (f"{path}.{name}", _content_of(cell)) for name, cell in zip(names, cells, strict=True)
        ]
    prefix = f"{path}." if path else ""
    return [(prefix + name, value) for name, value in _attributes(part).items()]


def _content_of(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # It is empty yet.
        return None


def _is_leaf(part: Any) -> bool:
    """Whether an object holds nothing that the order of the data may depend on."""
    if isinstance(part, (*Scalar, Tensor, np.ndarray, nn.Module, type, ModuleType)):
        return True
    # A function of the user may refer to its trial, and so to all of the study.
    return type(part).__module__.partition(".")[0] in ("optuna", "optuna_miha")


def _attributes(part: Any) -> dict[str, Any]:
    attributes = getattr(part, "__dict__", {})
    # An iterator of torch lives for one epoch, or, with persistent workers, is set up anew.
    hidden = "_iterator" if isinstance(part, DataLoader) else None
    return {name: value for name, value in attributes.items() if name != hidden}


def _yields_samples(path: str, part: Any) -> bool:
    return isinstance(part, (DataLoader, Dataset, Sampler)) or path in _SAMPLERS


def _is_iterator(value: Any) -> bool:
    """Whether a value is an iterator of Python itself, which has a position but no state."""
    if isinstance(value, GeneratorType):
        return True
    module = type(value).__module__
    return module in ("builtins", itertools.__name__) and isinstance(value, Iterator)
