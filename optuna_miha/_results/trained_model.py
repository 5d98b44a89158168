"""A trained network, and the ways to take it along."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from os import PathLike, fspath
from typing import Any

import torch
from torch import nn

from optuna_miha._history.schedule import Schedule
from optuna_miha._model.tensors import map_tensors
from optuna_miha._results.optional_imports import try_import


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained network.

    Args:
        model: The network with the weights that validated best, in evaluation mode.
        params:
            The hyperparameters at that epoch; where the learning rate was annealed, ``lr`` is the
            highest that it had meanwhile.
        value: Its validation value.
        schedule: The hyperparameters over the epochs that it was trained.
    """

    model: nn.Module
    params: dict[str, Any]
    value: float
    schedule: Schedule

    def save(self, path: str | PathLike[str]) -> None:
        """Write weights, hyperparameters, value and schedule into one file.

        ``torch.load(path, weights_only=True)`` reads it; its ``"state_dict"`` goes into
        ``model.load_state_dict`` of a network with the same hyperparameters.
        """
        content = {
            "state_dict": map_tensors(self.model.state_dict(), torch.Tensor.cpu),
            "params": self.params,
            "value": self.value,
            "schedule": list(self.schedule),
        }
        torch.save(content, path)

    def export(self, path: str | PathLike[str], example_input: Any) -> None:
        """Write the model so that it runs without the code that defined it.

        A path that ends in ``.onnx`` gets an ONNX file, for which ``onnx`` and ``onnxscript``
        must be installed; any other a :func:`torch.export.export` program, to be run by
        ``torch.export.load(path).module()``.

        Args:
            path: Where to write, customarily ending in ``.pt2`` or ``.onnx``.
            example_input: An input of the model, or a tuple of them. What is exported takes
                batches of any length.

        Raises:
            ImportError: If ONNX is asked for, and what it needs is not installed.
            ValueError: If the model does not take ``example_input``.
        """
        inputs = example_input if isinstance(example_input, tuple) else (example_input,)
        # A length of one would be taken for a constant.
        inputs = tuple(
            torch.cat([x, x]) if isinstance(x, torch.Tensor) and len(x) == 1 else x for x in inputs
        )
        self._check_takes(inputs)
        batch = torch.export.Dim("batch")
        dynamic = tuple({0: batch} if isinstance(x, torch.Tensor) else None for x in inputs)
        if not fspath(path).endswith(".onnx"):
            program = torch.export.export(self.model, inputs, dynamic_shapes=dynamic)
            torch.export.save(program, path)
            return
        with try_import(
            "onnx",
            "onnxscript",
            needed_by="Exporting to ONNX",
            install="'optuna-miha[onnx]'",
            alternative=', or choose a path that ends in ".pt2"',
        ):
            import_module("onnx")
            import_module("onnxscript")
        torch.onnx.export(
            self.model,
            inputs,
            fspath(path),
            dynamo=True,
            dynamic_shapes=dynamic,
            external_data=False,  # One file, unless it were larger than 2 GB.
            verbose=False,
        )

    @torch.no_grad()
    def _check_takes(self, inputs: tuple[Any, ...]) -> None:
        try:
            self.model(*inputs)
        except Exception as error:
            kinds = ", ".join(
                f"{tuple(x.shape)} of {x.dtype}" if isinstance(x, torch.Tensor) else repr(x)
                for x in inputs
            )
            raise ValueError(
                f"The example must be an input of the network, with the batch first, got {kinds}: "
                f"{error}"
            ) from error
