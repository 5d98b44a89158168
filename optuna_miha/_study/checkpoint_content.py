"""What a checkpoint and a file of weights must contain."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from optuna_miha._model.rng import preserved_rng, restore_rng


def check_state(content: Mapping[str, Any]) -> None:
    """Check that all parts of a state are present and of their types.

    Args:
        content: The content of a checkpoint.

    Raises:
        ValueError: If a part is missing or of another type.
    """
    _check_part(content, "model", is_weights)
    _check_part(content, "ema", lambda part: part is None or is_weights(part))
    _check_part(content, "optimizer", _is_optimizer)
    _check_part(content, "rng", _is_rng)
    _check_part(content, "epoch", is_count)
    _check_part(content, "best", _is_best)
    if "extra" in content:  # Only segments with extra state have it.
        _check_part(content, "extra", is_weights)


def check_weights(content: Mapping[str, Any]) -> None:
    """Check that a file of weights has them.

    Args:
        content: The content of the file.

    Raises:
        ValueError: If they are missing or of another type.
    """
    _check_part(content, "weights", is_weights)


def _check_part(content: Mapping[str, Any], name: str, is_valid: Callable[[Any], bool]) -> None:
    if name not in content:
        raise ValueError(f"the part {name!r} is missing")
    if not is_valid(content[name]):
        raise ValueError(f"the part {name!r} is not what a run writes")


def is_weights(part: Any) -> bool:
    """Whether ``part`` has the form of a state dictionary."""
    return isinstance(part, Mapping) and all(isinstance(name, str) for name in part)


def is_count(part: Any) -> bool:
    """Whether ``part`` is a non-negative integer."""
    return isinstance(part, int) and not isinstance(part, bool) and part >= 0


def _is_optimizer(part: Any) -> bool:
    return (
        isinstance(part, Mapping)
        and isinstance(part.get("class"), str)
        and is_count(part.get("n_params"))
        and isinstance(part.get("state"), Mapping)
        # Entries of parameters have integers as keys; others, as of SPAM, may be anything.
        and all(isinstance(v, Mapping) for k, v in part["state"].items() if isinstance(k, int))
    )


def _is_rng(part: Any) -> bool:
    """Whether the random generators take it as their state."""
    try:
        with preserved_rng():
            restore_rng(part, torch.device("cpu"))
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
        return False
    return True


def _is_best(part: Any) -> bool:
    if not isinstance(part, Mapping) or not is_weights(part.get("weights")):
        return False
    value = part.get("value")
    return isinstance(value, float) and math.isfinite(value) and is_count(part.get("epoch"))
