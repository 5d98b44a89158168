"""A configuration as PyTorch code that does not depend on this package."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from optuna_miha._model.activations import GroupedActivation, activation_name
from optuna_miha._model.recipe import Recipe
from optuna_miha._search.learning_rate import Course

_REDUCTIONS = ("size_average", "reduce")
"""Deprecated arguments of torch's losses."""


def code_of(
    recipe: Recipe,
    params: Mapping[str, Any],
    *,
    n_annealed: int | None = None,
    is_raised: bool = True,
    course: Course | None = None,
) -> str:
    """Generate Python code that applies a configuration to a network named ``model``.

    The code sets the suggested activations and dropout rates, and defines ``optimizer``,
    ``batch_size``, ``loss_fn`` if it is a loss of torch, and a dictionary ``params`` with the
    parameters that ``model_fn`` suggests itself.

    Args:
        recipe: The recipe that ``model_fn`` returns for the configuration.
        params: The configuration.
        n_annealed: Epochs over which the learning rate was annealed; :obj:`None` if it was
            constant.
        is_raised: Whether the learning rate rose before it fell.
        course: The course of the learning rate, if it was annealed by the step.
    """
    model, loss_fn = recipe.model, recipe.loss_fn
    used = {"batch_size", "optimizer", "lr", "weight_decay", "momentum", "loss"}
    changes = []
    grouped = False
    for name in params:
        lines = list(_change(model, name, params[name]))
        if lines:
            used.add(name)
            changes += [line for line in lines if line not in changes]
            grouped = grouped or any("GroupedActivation(" in line for line in lines)
    parts = []
    if grouped:
        parts.append(_imports_of_groups() + "\n\n\n" + inspect.getsource(GroupedActivation))
    parts.append("# `model` is the network with its original architecture.")
    parts += changes
    assert recipe.optimizer is not None
    if course is not None:
        parts.append(
            f"# `lr` is the highest learning rate of {course.n_epochs} epochs. At each step, it "
            f"rose from {course.initial:g} of\n# `lr` over {course.rise:.0%} of them along half a "
            "cosine, then fell to zero along half a cosine."
        )
    elif n_annealed is not None and not is_raised:
        parts.append(
            f"# `lr` is the initial learning rate of {n_annealed} epochs. It was annealed to zero "
            "along half a\n# cosine."
        )
    elif n_annealed is not None:
        parts.append(
            f"# `lr` is the highest learning rate of {n_annealed} epochs. It rose from `lr / 3` "
            "over the first tenth,\n# then was annealed to zero along half a cosine."
        )
    parts.append(_optimizer(recipe.optimizer, model))
    parts.append(f"batch_size = {recipe.batch_size}")
    if isinstance(loss_fn, nn.Module) and type(loss_fn).__module__ == nn.modules.loss.__name__:
        parts.append(f"loss_fn = {_call(f'nn.{type(loss_fn).__name__}', _settings(loss_fn))}")
        used.add("label_smoothing")
    else:
        parts.append("# Use your own `loss_fn`.")
    others = {name: value for name, value in params.items() if name not in used}
    if others:
        parts.append(f"params = {others!r}  # Suggested by your own code.")
    return "import torch\nfrom torch import nn\n" + "\n".join(parts) + "\n"


def _change(model: nn.Module, name: str, value: Any) -> Iterator[str]:
    """The lines of code for one parameter of an activation or dropout module."""
    kind, _, path = name.partition(".")
    if kind == "dropout" and hasattr(_submodule(model, path), "p"):
        yield f"model.get_submodule({path!r}).p = {value!r}"
    if kind != "activation":
        return
    # If neurons have groups, the last part of the name is the group.
    found = (_submodule(model, p) for p in (path, path.rpartition(".")[0]))
    module = next((m for m in found if _is_activation(m)), None)
    if module is None:
        return
    for other_path, other in model.named_modules(remove_duplicate=False):
        if other is not module:
            continue
        yield f"model.set_submodule({other_path!r}, {_activation(module)})"
        parent = other_path.rpartition(".")[0]
        if isinstance(model.get_submodule(parent), nn.TransformerEncoderLayer):
            # Its fused evaluation path would still compute the old activation.
            owner = f"model.get_submodule({parent!r})" if parent else "model"
            yield f"{owner}.activation_relu_or_gelu = 0"


def _submodule(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path) if path else None
    except AttributeError:
        return None


def _is_activation(module: nn.Module | None) -> bool:
    return module is not None and (
        isinstance(module, GroupedActivation) or activation_name(module) is not None
    )


def _activation(module: nn.Module) -> str:
    """The call that creates an activation. The ``repr`` of torch shows all its settings."""
    if not isinstance(module, GroupedActivation):
        return f"nn.{module!r}"
    lengths = [end - start for start, end in pairwise(module.bounds)]
    groups = [
        f"[nn.{part!r}]" + (f" * {length}" if length > 1 else "")
        for part, length in zip(module.activations, lengths, strict=True)
    ]
    return f"GroupedActivation({' + '.join(groups)}, dim={module.dim})"


def _imports_of_groups() -> str:
    return (
        "from collections.abc import Sequence\n"
        "from itertools import accumulate, groupby, pairwise\n\n"
        "from torch import Tensor"
    )


def _optimizer(optimizer: torch.optim.Optimizer, model: nn.Module) -> str:
    cls = type(optimizer)
    name = f"torch.optim.{cls.__name__}"
    lines = []
    if getattr(torch.optim, cls.__name__, None) is not cls:
        name = cls.__name__
        lines.append(f"from {cls.__module__} import {name}")
    accepted = inspect.signature(cls).parameters
    groups = optimizer.param_groups
    defaults = {k: v for k, v in optimizer.defaults.items() if k in accepted}
    # The groups may have been changed after construction.
    own = [k for k in defaults if any(group[k] != groups[0][k] for group in groups)]
    settings = {
        k: groups[0][k]
        for k in defaults
        if k not in own and (k in ("lr", "weight_decay") or groups[0][k] != accepted[k].default)
    }
    held = [parameter for group in groups for parameter in group["params"]]
    parameters = "model.parameters()"
    if own or [id(p) for p in held] != [id(p) for p in model.parameters()]:
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        texts = []
        for group in groups:
            known = [names[id(p)] for p in group["params"] if id(p) in names]
            listed = ", ".join(f"model.get_parameter({name!r})" for name in known)
            extra = "".join(f", {k!r}: {_text(group[k])}" for k in own)
            texts.append(f'    {{"params": [{listed}]{extra}}},\n')
        parameters = f"[\n{''.join(texts)}]"
    return "\n".join([*lines, f"optimizer = {_call(name, settings, parameters)}"])


def _settings(loss_fn: nn.Module) -> dict[str, Any]:
    """The arguments of a torch loss that differ from their defaults."""
    arguments = inspect.signature(type(loss_fn)).parameters
    values = {
        name: getattr(loss_fn, name)
        for name in arguments
        if name not in _REDUCTIONS and hasattr(loss_fn, name)
    }
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, torch.Tensor) or value != arguments[name].default
    }


def _call(name: str, settings: Mapping[str, Any], *first: str) -> str:
    arguments = [*first, *(f"{key}={_text(value)}" for key, value in settings.items())]
    return f"{name}({', '.join(arguments)})"


def _text(value: Any) -> str:
    """The value of a setting as code."""
    if isinstance(value, torch.Tensor):
        return f"torch.tensor({value.tolist()!r})" if value.ndim else repr(value.item())
    return repr(value)
