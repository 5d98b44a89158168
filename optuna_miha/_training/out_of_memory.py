"""Detect errors of too little memory, and free what a failed computation holds."""

from __future__ import annotations

import gc

import torch

_MESSAGES = (
    "out of memory",  # CUDA, MPS, XPU.
    "can't allocate memory",  # The CPU, on Linux.
    "not enough memory",  # The CPU, elsewhere.
    "_ALLOC_FAILED",  # CUDA libraries.
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether ``error`` means that a device ran out of memory.

    Accelerators raise :class:`torch.OutOfMemoryError`, the CPU a :class:`RuntimeError`.
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _MESSAGES)


def release_memory(error: BaseException) -> None:
    """Free the memory that a failed computation still holds.

    Args:
        error: The error of the computation. Its traceback is removed, because the frames in it
            keep tensors alive.
    """
    error.__traceback__ = error.__context__ = None
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
