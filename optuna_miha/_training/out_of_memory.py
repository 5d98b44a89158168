"""Running out of memory."""

from __future__ import annotations

import gc

import torch

_WORDS = (
    "out of memory",  # CUDA, MPS, XPU.
    "can't allocate memory",  # The CPU, on Linux.
    "not enough memory",  # The CPU, elsewhere.
    "_ALLOC_FAILED",  # Libraries of CUDA.
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether ``error`` says that there was not enough memory, of any device.

    Accelerators have a class for it; the CPU raises a :class:`RuntimeError`.
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


def give_back(error: BaseException) -> None:
    """Free what a computation that failed held.

    Args:
        error: What it ended in. Its traceback, by which all of that stays alive, is cut off.
    """
    error.__traceback__ = error.__context__ = None
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
