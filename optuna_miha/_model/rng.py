"""The global random generators of Python, NumPy and torch, handled together.

They belong to the whole process, as does the number of threads of torch. Whoever changes them
holds one lock meanwhile, so that runs in several threads take turns and do not disturb each other.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

_lock = threading.RLock()
_held = threading.local()
"""``depth``: how many times this thread has acquired the lock."""


@contextmanager
def exclusive() -> Iterator[None]:
    """Exclude other threads from the global state; can be nested."""
    with _lock:
        _held.depth = getattr(_held, "depth", 0) + 1
        try:
            yield
        finally:
            _held.depth -= 1


@contextmanager
def lent() -> Iterator[None]:
    """Let other threads have the global state while this one waits for them.

    They leave it as they found it. Without this, a run within a run could wait forever for jobs
    in an executor of threads.
    """
    depth = getattr(_held, "depth", 0)
    for _ in range(depth):
        _lock.release()
    _held.depth = 0
    try:
        yield
    finally:
        for _ in range(depth):
            _lock.acquire()
        _held.depth = depth


def seed_all(seed: int) -> None:
    """Seed all global random generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def capture_rng(device: torch.device) -> dict[str, Any]:
    """Return the states of all global random generators, as tensors, numbers and strings.

    Args:
        device:
            The device to include. Generators of other accelerators are left out: training draws
            only from that of its device, and continues from it on another device.
    """
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    rng: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": {
            "keys": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
            "rest": (int(position), int(has_gauss), float(cached)),
        },
    }
    if _has_generator(device):
        rng["device"] = torch.get_device_module(device).get_rng_state(device)
    return rng


def restore_rng(rng: dict[str, Any], device: torch.device) -> None:
    """Restore the states that :func:`capture_rng` returned.

    Args:
        rng: The states.
        device: The device whose generator gets the captured state, even that of another device.
    """
    torch.set_rng_state(rng["torch"])
    random.setstate(rng["python"])
    keys = rng["numpy"]["keys"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, *rng["numpy"]["rest"]))
    if "device" in rng and _has_generator(device):
        torch.get_device_module(device).set_rng_state(rng["device"], device)


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Restore all random generators on exit, including those of accelerators in use.

    Other threads wait until then; see :func:`exclusive`.
    """
    with exclusive():
        cpu = torch.device("cpu")
        rng = capture_rng(cpu)
        others = [(d, torch.get_device_module(d).get_rng_state(d)) for d in _accelerators_in_use()]
        try:
            yield
        finally:
            restore_rng(rng, cpu)
            for device, state in others:
                torch.get_device_module(device).set_rng_state(state, device)


def _has_generator(device: torch.device) -> bool:
    """Whether a device has its own random generator."""
    return device.type not in ("cpu", "meta")


def _accelerators_in_use() -> list[torch.device]:
    """List the accelerators that this process has initialized, without initializing any."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return []
    module = torch.get_device_module(accelerator)
    if not getattr(module, "is_initialized", lambda: True)():
        return []
    return [torch.device(accelerator.type, i) for i in range(torch.accelerator.device_count())]
