"""Metrics of the validation data: functions of all outputs, or objects that add up batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from optuna_miha._model.recipe import Metric

_METHODS = ("update", "compute", "reset")


def is_object(metric: Any) -> bool:
    """Whether a metric adds up batches, as those of torchmetrics do."""
    return all(callable(getattr(metric, name, None)) for name in _METHODS)


class Metrics:
    """The metrics during one pass over the validation data.

    Outputs are kept only if a metric is a function of all of them.

    Args:
        metrics: The metrics by name.
        device: The device of outputs and targets.
    """

    def __init__(self, metrics: Mapping[str, Metric], device: torch.device) -> None:
        self._metrics = metrics
        self._objects: list[Any] = [m for m in metrics.values() if is_object(m)]
        self._has_functions = len(self._objects) < len(metrics)
        self._outputs: list[Any] = []
        self._targets: list[Any] = []
        for metric in self._objects:
            if hasattr(metric, "to"):
                metric.to(device)
            metric.reset()

    def add(self, outputs: Any, targets: Any) -> None:
        """Add a batch."""
        for metric in self._objects:
            metric.update(outputs, targets)
        if self._has_functions:
            self._outputs.append(outputs)
            self._targets.append(targets)

    def compute(self) -> dict[str, float]:
        """Return the value of each metric.

        Raises:
            TypeError: If a value is not a number.
        """
        outputs, targets = (
            (concatenated(self._outputs), concatenated(self._targets))
            if self._has_functions
            else (None, None)
        )
        values: dict[str, float] = {}
        for name, metric in self._metrics.items():
            called: Any = metric
            result = called.compute() if is_object(metric) else called(outputs, targets)
            values[name] = _as_number(name, result)
        return values


def _as_number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
        raise TypeError(
            f"The metric {name!r} must be one number, got a {type(value).__qualname__}{shape}: "
            "compute a mean, or pass one metric for each number."
        ) from error


def concatenated(parts: Sequence[Any]) -> Any:
    """Combine the outputs or targets of batches to those of all samples.

    Tensors are concatenated, dictionaries, tuples and outputs of Hugging Face part by part, and
    lists of samples are joined. Tensors whose shapes differ in more than the number of samples,
    and other objects, are returned as a list with one element for each batch.

    Args:
        parts: Those of each batch.
    """
    first = parts[0]
    if all(isinstance(part, Tensor) for part in parts):
        if first.ndim == 0:
            return torch.stack(list(parts))
        is_ragged = any(part.shape[1:] != first.shape[1:] for part in parts)
        return list(parts) if is_ragged else torch.cat(list(parts))
    if any(type(part) is not type(first) for part in parts):
        return list(parts)
    if isinstance(first, Mapping) and all(part.keys() == first.keys() for part in parts):
        return _like(first, {key: concatenated([part[key] for part in parts]) for key in first})
    if type(first) is tuple and all(len(part) == len(first) for part in parts):
        return tuple(concatenated(columns) for columns in zip(*parts, strict=True))
    if type(first) is list:
        return [sample for part in parts for sample in part]
    return None if first is None else list(parts)


def as_single_precision(outputs: Any) -> Any:
    """Convert outputs in low precision, also in tuples and dictionaries, to single precision."""
    if isinstance(outputs, Tensor):
        return outputs.float() if outputs.is_floating_point() else outputs
    if isinstance(outputs, Mapping):
        return _like(outputs, {k: as_single_precision(v) for k, v in outputs.items()})
    if type(outputs) in (tuple, list):
        return type(outputs)(map(as_single_precision, outputs))
    return outputs


def _like(mapping: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    """Return items as a dictionary, or as an output of Hugging Face, which is a data class."""
    if dataclasses.is_dataclass(mapping) and not isinstance(mapping, type):
        return type(mapping)(**items)
    return items
