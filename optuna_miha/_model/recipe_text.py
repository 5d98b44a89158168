"""A short description of a recipe."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer


def describe_recipe(parts: dict[str, Any]) -> str:
    """Describe a recipe in a few lines, without the values of its tensors.

    Args:
        parts: The attributes to show, by name. Those that are :obj:`None` or empty are left out.
    """
    shown = {name: part for name, part in parts.items() if part is not None and part != {}}
    lines = [f"  {name}={_text(part)}," for name, part in shown.items()]
    return "\n".join(["Recipe(", *lines, ")"])


def describe_model(model: nn.Module) -> str:
    """The class of a network and its number of parameters."""
    n_params = sum(p.numel() for p in model.parameters())
    return f"{type(model).__qualname__} of {n_params:,} parameters"


def _text(part: Any) -> str:
    if isinstance(part, Optimizer):
        rates = dict.fromkeys(group.get("lr") for group in part.param_groups)
        return f"{type(part).__qualname__}(lr={', '.join(map(_number, rates))})"
    if isinstance(part, tuple):
        shapes = ", ".join(str(tuple(p.shape)) for p in part if isinstance(p, Tensor))
        return f"tensors of shapes {shapes}"
    if isinstance(part, dict):
        return f"[{', '.join(map(repr, part))}]"
    if isinstance(part, nn.Module) and not any(True for _ in part.children()):
        return _one_line(repr(part))
    if isinstance(part, nn.Module):
        return describe_model(part)
    if isinstance(part, (str, int)):
        return repr(part)
    return _data_text(part)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _data_text(part: Any) -> str:
    """The name of a function, or the class and the length of data."""
    name = getattr(part, "__qualname__", type(part).__qualname__)
    data = getattr(part, "dataset", part)
    try:
        return f"{name} of {len(data):,} samples"
    except TypeError:  # A function, or data of unknown length.
        return str(name)
