"""The global random generators of Python, NumPy and torch, taken as one."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """Seed all of them."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def capture_rng() -> dict[str, Any]:
    """Their states, as tensors, numbers and strings."""
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    rng: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": {
            "keys": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
            "rest": (int(position), int(has_gauss), float(cached)),
        },
    }
    if torch.cuda.is_available():
        rng["cuda"] = torch.cuda.get_rng_state_all()
    return rng


def restore_rng(rng: dict[str, Any]) -> None:
    """Put them back to the states that :func:`capture_rng` returned."""
    torch.set_rng_state(rng["torch"])
    random.setstate(rng["python"])
    keys = rng["numpy"]["keys"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, *rng["numpy"]["rest"]))
    if "cuda" in rng and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(rng["cuda"])


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Leave them as they were before."""
    rng = capture_rng()
    try:
        yield
    finally:
        restore_rng(rng)
