"""Compute settings: precision, memory layout, threads and devices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch

from optuna_miha._model.rng import exclusive

Precision: TypeAlias = Literal["bf16", "fp16"]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Compute settings of all segments of a run.

    Args:
        precision: ``"bf16"`` or ``"fp16"``: forward passes run under :class:`torch.autocast`;
            weights, optimizer and validation metrics stay in single precision. With ``"fp16"``,
            a :class:`torch.amp.GradScaler` scales the losses. :obj:`None`: the precision of the
            network.
        channels_last: Whether convolution weights use the channels-last memory format.
        n_threads: Intra-op threads of torch while a segment trains.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range.
    """

    precision: Precision | None = None
    channels_last: bool = False
    n_threads: int = 1

    def __post_init__(self) -> None:
        if self.precision is not None and self.precision not in get_args(Precision):
            raise ValueError(
                f'`precision` must be "bf16", "fp16" or None, got {self.precision!r}.'
            )
        if not isinstance(self.channels_last, bool):
            raise TypeError(f"`channels_last` must be True or False, got {self.channels_last!r}.")
        if isinstance(self.n_threads, bool) or not isinstance(self.n_threads, int):
            raise TypeError(f"`n_threads` must be an integer, got {self.n_threads!r}.")
        if self.n_threads < 1:
            raise ValueError(
                f"`n_threads` must be positive, got {self.n_threads}: 1 gives the same result "
                "on every machine."
            )

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """Return the context manager for forward passes."""
        if self.precision is None:
            return nullcontext()
        return torch.autocast(device.type, dtype=_DTYPES[self.precision])


DEFAULT_ENGINE = Engine()


def resolve_device(device: torch.device | str | None) -> torch.device:
    """Return the device; for :obj:`None`, the accelerator if there is one, else the CPU."""
    if device is not None:
        return _available(device)
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return torch.device("cpu") if accelerator is None else accelerator


def resolve_devices(
    device: torch.device | str | Sequence[torch.device | str] | None,
) -> tuple[torch.device, ...]:
    """Return the devices to train on, at least one."""
    if device is None:
        return (resolve_device(None),)
    devices = [device] if isinstance(device, (torch.device, str)) else list(device)
    if not devices:
        raise ValueError("`device` must name at least one device, got an empty sequence.")
    return tuple(_available(name) for name in devices)


def _available(name: torch.device | str) -> torch.device:
    """The device of a name, if tensors can be made on it."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:  # Torch raises either.
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f'`device` must be available to torch, such as "cpu" or "cuda:0", got {str(name)!r}: '
            f"{reason}"
        ) from error
    return device


def resolve_worker_devices(
    device: torch.device | str | Sequence[torch.device | str] | None,
) -> tuple[torch.device | None, ...]:
    """Return the devices of workers elsewhere, which this machine need not have.

    Args:
        device: As for :func:`resolve_devices`. :obj:`None`: the worker's accelerator if it has
            one, otherwise its CPU.
    """
    if device is None:
        return (None,)
    devices = [device] if isinstance(device, (torch.device, str)) else list(device)
    return tuple(torch.device(name) for name in devices)


def resolve_own_device(device: torch.device | None) -> torch.device:
    """Return the device of a coordinator whose workers are elsewhere.

    Args:
        device: The device of the workers.

    Returns:
        The same device if this machine has it, otherwise the CPU.
    """
    try:
        return resolve_device(device)
    except ValueError:
        return torch.device("cpu")


@contextmanager
def uncompiled() -> Iterator[None]:
    """Compile no network: throw-away ones would take long.

    The setting is that of the whole process; see :func:`~optuna_miha._model.rng.exclusive`.
    """
    with exclusive(), torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def intra_op_threads(number: int) -> Iterator[None]:
    """Set the number of intra-op threads, which fixes the order of summation.

    The number is that of the whole process; see :func:`~optuna_miha._model.rng.exclusive`.
    """
    with exclusive():
        before = torch.get_num_threads()
        torch.set_num_threads(number)
        try:
            yield
        finally:
            torch.set_num_threads(before)
