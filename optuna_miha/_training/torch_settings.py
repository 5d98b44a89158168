"""Global settings of torch, which jobs in workers share with the coordinator."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from operator import attrgetter
from typing import Any, TypeAlias

import torch

Settings: TypeAlias = Mapping[str, Any]
"""Values by the names of this module."""

_FLAGS = (
    "backends.cudnn.enabled",
    "backends.cudnn.benchmark",
    "backends.cudnn.deterministic",
    "backends.cudnn.allow_tf32",
    "backends.cuda.matmul.allow_tf32",
    "backends.cuda.matmul.allow_fp16_reduced_precision_reduction",
    "backends.cuda.matmul.allow_bf16_reduced_precision_reduction",
    "backends.mkldnn.enabled",
    "backends.opt_einsum.enabled",
    "utils.deterministic.fill_uninitialized_memory",
    # The newer names of the precisions; earlier versions of torch lack them.
    "backends.fp32_precision",
    "backends.cuda.matmul.fp32_precision",
    "backends.cudnn.conv.fp32_precision",
    "backends.cudnn.rnn.fp32_precision",
    "backends.mkldnn.matmul.fp32_precision",
    "backends.mkldnn.conv.fp32_precision",
    "backends.mkldnn.rnn.fp32_precision",
)
"""Attributes of torch that can be assigned."""


def _set_deterministic(value: tuple[bool, bool]) -> None:
    mode, warn_only = value
    torch.use_deterministic_algorithms(mode, warn_only=warn_only)


def _set_anomaly(value: tuple[bool, bool]) -> None:
    torch.autograd.set_detect_anomaly(*value)  # It takes effect without being entered.


_FUNCTIONS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "default_dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "float32_matmul_precision": (
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
    ),
    "deterministic_algorithms": (
        lambda: (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        _set_deterministic,
    ),
    "detect_anomaly": (
        lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        _set_anomaly,
    ),
    "flash_sdp": (torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp),
    "mem_efficient_sdp": (
        torch.backends.cuda.mem_efficient_sdp_enabled,
        torch.backends.cuda.enable_mem_efficient_sdp,
    ),
    "math_sdp": (torch.backends.cuda.math_sdp_enabled, torch.backends.cuda.enable_math_sdp),
    "cudnn_sdp": (torch.backends.cuda.cudnn_sdp_enabled, torch.backends.cuda.enable_cudnn_sdp),
    "mha_fastpath": (
        torch.backends.mha.get_fastpath_enabled,
        torch.backends.mha.set_fastpath_enabled,
    ),
}
"""Functions that read and set a setting of the process."""

_DEVICE = "default_device"
_AUTOCAST = "autocast"


def current_settings() -> Settings:
    """The settings in force in this thread. One that torch cannot read is left out."""
    settings = {name: _read(name) for name in (*_FUNCTIONS, *_FLAGS)}
    readable = {name: value for name, value in settings.items() if value is not None}
    return readable | {_DEVICE: torch.get_default_device(), _AUTOCAST: _autocasts()}


@contextmanager
def settings_in_force(settings: Settings) -> Iterator[None]:
    """Apply settings, and restore those that differed before.

    Args:
        settings: The settings of the coordinator, by :func:`current_settings`.
    """
    before = current_settings()
    _apply(settings)
    try:
        with ExitStack() as stack:
            if settings[_DEVICE] != before[_DEVICE]:
                stack.enter_context(settings[_DEVICE])
            for device_type, dtype in settings[_AUTOCAST].items():
                if before[_AUTOCAST].get(device_type) != dtype:
                    stack.enter_context(torch.autocast(device_type, dtype=dtype))
            yield
    finally:
        _apply(before)


def _apply(settings: Settings) -> None:
    for name in (*_FUNCTIONS, *_FLAGS):
        # Two names may denote one setting, so that it is read again each time.
        if name in settings and settings[name] != _read(name):
            _set(name, settings[name])


def _autocasts() -> dict[str, torch.dtype]:
    """The data types of the surrounding :class:`torch.autocast`, by device type."""
    accelerator = torch.accelerator.current_accelerator()
    types = ["cpu"] if accelerator is None else ["cpu", accelerator.type]
    return {t: torch.get_autocast_dtype(t) for t in types if torch.is_autocast_enabled(t)}


def _read(name: str) -> Any:
    """The value of a setting; :obj:`None` if torch cannot read it."""
    try:
        return _FUNCTIONS[name][0]() if name in _FUNCTIONS else attrgetter(name)(torch)
    except (AttributeError, RuntimeError):
        # A version of torch without it, or an older name that contradicts a newer one.
        return None


def _set(name: str, value: Any) -> None:
    if name in _FUNCTIONS:
        _FUNCTIONS[name][1](value)
        return
    owner, _, attribute = name.rpartition(".")
    setattr(attrgetter(owner)(torch), attribute, value)
