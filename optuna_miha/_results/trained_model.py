"""A trained network that can be saved and exported."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from os import PathLike, fspath
from typing import Any

import torch
from torch import nn

from optuna_miha._history.optional_imports import try_import
from optuna_miha._history.schedule import Schedule
from optuna_miha._model.tensors import map_tensors


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained network.

    Args:
        model: The network with the weights of the best validation value, in evaluation mode.
        params:
            The hyperparameters at the epoch of these weights. If the learning rate was annealed,
            ``lr`` is its highest value.
        value: The validation value of the model.
        schedule: The hyperparameters over the epochs of training.
    """

    model: nn.Module
    params: dict[str, Any]
    value: float
    schedule: Schedule

    def save(self, path: str | PathLike[str]) -> None:
        """Save weights, hyperparameters, value and schedule to one file.

        ``torch.load(path, weights_only=True)`` loads it as a dictionary. Pass its
        ``"state_dict"`` to ``load_state_dict`` of a network with the same hyperparameters.

        Args:
            path: The file.
        """
        content = {
            "state_dict": map_tensors(self.model.state_dict(), torch.Tensor.cpu),
            "params": self.params,
            "value": self.value,
            "schedule": list(self.schedule),
        }
        torch.save(content, path)

    def export(self, path: str | PathLike[str], example_input: Any) -> None:
        """Export the model to a file that does not depend on the code of the network.

        A path that ends in ``.onnx`` is written as an ONNX file, which needs ``onnx`` and
        ``onnxscript``. Any other path is written as a :func:`torch.export.export` program, which
        ``torch.export.load(path).module()`` loads.

        Args:
            path: The file, usually ending in ``.pt2`` or ``.onnx``.
            example_input: An input of the model with the batch as its first dimension, or a tuple
                of inputs. The exported model accepts batches of any length.

        Raises:
            ImportError: If ``onnx`` or ``onnxscript`` is needed and not installed.
            ValueError: If the model does not accept ``example_input``.
        """
        inputs = example_input if isinstance(example_input, tuple) else (example_input,)
        # torch would treat a batch length of one as a constant.
        inputs = tuple(
            torch.cat([x, x]) if isinstance(x, torch.Tensor) and len(x) == 1 else x for x in inputs
        )
        self._check_inputs(inputs)
        batch = torch.export.Dim("batch")
        dynamic = tuple({0: batch} if isinstance(x, torch.Tensor) else None for x in inputs)
        # The network that `torch.compile` wraps, which is compiled in another way here.
        model = getattr(self.model, "_orig_mod", self.model)
        if not fspath(path).endswith(".onnx"):
            program = torch.export.export(model, inputs, dynamic_shapes=dynamic)
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
            model,
            inputs,
            fspath(path),
            dynamo=True,
            dynamic_shapes=dynamic,
            external_data=False,  # A single file, of at most 2 GB.
            verbose=False,
        )

    @torch.no_grad()
    def _check_inputs(self, inputs: tuple[Any, ...]) -> None:
        try:
            self.model(*inputs)
        except Exception as error:
            kinds = ", ".join(
                f"{tuple(x.shape)} of {x.dtype}" if isinstance(x, torch.Tensor) else repr(x)
                for x in inputs
            )
            raise ValueError(
                "`example_input` must be an input of the network with the batch as its first "
                f"dimension, got {kinds}: {error}"
            ) from error
