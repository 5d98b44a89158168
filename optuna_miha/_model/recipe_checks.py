"""Validation of the network, the data and the optimizer of a recipe."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.utils.data import DataLoader, Dataset, IterableDataset

NO_DATA: tuple[Tensor, ...] = ()
"""The data of a recipe without any, for a user-defined trainer that brings its own."""


def check_model(model: Any) -> None:
    """Refuse what is no network, or has nothing to train."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be a torch.nn.Module, got {type_name(model)}.")
    if next(model.parameters(), None) is None:
        raise ValueError(
            f"`model` must have parameters to train, got {type_name(model)} without any."
        )
    if any(isinstance(p, UninitializedParameter) for p in model.parameters()):
        raise ValueError(
            "The lazy modules of `model` must be initialized, got uninitialized parameters in "
            f"{type_name(model)}: run one batch through it in `model_fn`."
        )


def checked_data(data: Any, name: str) -> Any:
    """Check data, and convert a list of tensors to a tuple."""
    if data is None:
        raise ValueError(
            f"`{name}` is None: pass a tuple of tensors, a Dataset or a DataLoader. Branches are "
            "selected on the validation data: hold out part of the training data for them."
        )
    if data is NO_DATA:
        return ()
    if isinstance(data, list):
        data = tuple(data)
    if isinstance(data, tuple):
        wrong = [type_name(part) for part in data if not isinstance(part, Tensor)]
        if wrong or len(data) < 2:
            raise TypeError(
                f"`{name}` must be a tuple of at least two tensors (inputs, targets), got "
                f"{len(data)} parts{', one of them ' + wrong[0] if wrong else ''}: convert arrays "
                "by `torch.as_tensor`."
            )
        lengths = [len(part) for part in data]
        if len(set(lengths)) > 1:
            raise ValueError(f"The tensors of `{name}` must be of equal length, got {lengths}.")
        if lengths[0] == 0:
            raise ValueError(f"`{name}` must hold at least one sample, got none.")
        return data
    if not isinstance(data, (Dataset, DataLoader)):
        raise TypeError(
            f"`{name}` must be a tuple of tensors, a Dataset or a DataLoader, got "
            f"{type_name(data)}."
        )
    dataset = data.dataset if isinstance(data, DataLoader) else data
    if not isinstance(dataset, IterableDataset) and len(dataset) == 0:  # type: ignore[arg-type]
        raise ValueError(f"`{name}` must hold at least one sample, got an empty dataset.")
    return data


def check_parameters(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Refuse parameters that the model does not hold: branches would not inherit them."""
    model_params = {id(p) for p in model.parameters()}
    optimized = [p for group in optimizer.param_groups for p in group["params"]]
    foreign = [tuple(p.shape) for p in optimized if id(p) not in model_params]
    if len(foreign) == len(optimized):
        raise ValueError(
            "`optimizer` must hold parameters of `model`, got none of them: build it from the "
            "`model.parameters()` of the model in the recipe."
        )
    if foreign:
        raise ValueError(
            f"`optimizer` must hold parameters of `model` only, got others of shapes {foreign}: "
            "branches would not inherit their values. Make them part of the model, for example "
            "a loss with parameters by `model.loss = loss_fn`, and use it in a `train_step`."
        )


def type_name(value: Any) -> str:
    """Return the name of the type of a value, with its module."""
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
