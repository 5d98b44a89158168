"""Bytes that pass between processes: functions by value, tensors as they lie in memory."""

from __future__ import annotations

import io
import mmap
import pickle
from pathlib import Path
from typing import Any

import cloudpickle
import torch
from torch import Tensor

_ALIGNMENT = 64


def pack(value: Any, spill: Path | None = None) -> bytes:
    """Serialize ``value`` by cloudpickle, so that functions of a notebook or script can travel.

    Args:
        value: Anything that cloudpickle can serialize.
        spill:
            A file to be written, for the contents of arrays and tensors. Whoever unpacks the
            bytes on this machine maps it into memory, so that all processes share one copy;
            what a process changes there, it alone sees.

    Returns:
        What :func:`unpack` takes.
    """
    buffer = io.BytesIO()
    if spill is None:
        _Pickler(buffer, protocol=5).dump(value)
        return pickle.dumps((buffer.getvalue(), None, []))
    parts: list[pickle.PickleBuffer] = []
    _Pickler(buffer, protocol=5, buffer_callback=parts.append).dump(value)
    places: list[tuple[int, int]] = []
    with spill.open("wb") as file:
        for part in parts:
            raw = part.raw()
            file.write(bytes(-file.tell() % _ALIGNMENT))
            places.append((file.tell(), raw.nbytes))
            file.write(raw)
    return pickle.dumps((buffer.getvalue(), str(spill), places))


def unpack(packed: bytes) -> Any:
    """The value that :func:`pack` was given."""
    content, spill, places = pickle.loads(packed)
    if not any(length for _, length in places):
        return pickle.loads(content, buffers=[bytearray() for _ in places])
    with Path(spill).open("rb") as file:
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    return pickle.loads(content, buffers=[view[start : start + n] for start, n in places])


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    def reducer_override(self, obj: Any) -> Any:
        # Left to torch, a tensor would take along the whole storage that it is a part of.
        if type(obj) is Tensor and _is_plain(obj):
            content = obj.reshape(-1).view(torch.uint8).numpy()
            return _tensor, (pickle.PickleBuffer(content.data), obj.dtype, tuple(obj.shape))
        return super().reducer_override(obj)


def _is_plain(tensor: Tensor) -> bool:
    return (
        tensor.device.type == "cpu"
        and tensor.layout == torch.strided
        and tensor.is_contiguous()
        and tensor.numel() > 0
        and not (tensor.requires_grad or tensor.is_quantized)
        and not (tensor.is_conj() or tensor.is_neg())
    )


def _tensor(content: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return torch.frombuffer(content, dtype=dtype).reshape(shape)
