"""Serialize values for other processes: functions by value, tensors as raw memory."""

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
    """Serialize ``value`` with cloudpickle, including functions of a notebook or script.

    Args:
        value: Any value that cloudpickle can serialize.
        spill:
            A file to write the contents of arrays and tensors to. Processes that unpack the
            bytes on this machine map the file into memory and share one copy. Changes in a
            process are visible in that process only.

    Returns:
        The bytes for :func:`unpack`.
    """
    buffer = io.BytesIO()
    if spill is None:
        _Pickler(buffer, protocol=5).dump(value)
        return pickle.dumps((buffer.getvalue(), None, []))
    parts: list[pickle.PickleBuffer] = []
    _Pickler(buffer, protocol=5, buffer_callback=parts.append).dump(value)
    extents: list[tuple[int, int]] = []  # Offset and length of each part in the file.
    with spill.open("wb") as file:
        for part in parts:
            raw = part.raw()
            file.write(bytes(-file.tell() % _ALIGNMENT))
            extents.append((file.tell(), raw.nbytes))
            file.write(raw)
    return pickle.dumps((buffer.getvalue(), str(spill), extents))


def unpack(packed: bytes) -> Any:
    """Return the value that :func:`pack` serialized."""
    content, spill, extents = pickle.loads(packed)
    if not any(length for _, length in extents):
        return pickle.loads(content, buffers=[bytearray() for _ in extents])
    with Path(spill).open("rb") as file:
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    return pickle.loads(content, buffers=[view[start : start + n] for start, n in extents])


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    def reducer_override(self, obj: Any) -> Any:
        # The default would serialize the whole storage of a tensor that is a part of it.
        if type(obj) is Tensor and _is_raw_memory(obj):
            content = obj.reshape(-1).view(torch.uint8).numpy()
            return _tensor_from, (pickle.PickleBuffer(content.data), obj.dtype, tuple(obj.shape))
        return super().reducer_override(obj)


def _is_raw_memory(tensor: Tensor) -> bool:
    """Whether a tensor is determined by its memory, dtype and shape."""
    return (
        tensor.device.type == "cpu"
        and tensor.layout == torch.strided
        and tensor.is_contiguous()
        and tensor.numel() > 0
        and not (tensor.requires_grad or tensor.is_quantized)
        and not (tensor.is_conj() or tensor.is_neg())
    )


def _tensor_from(content: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return torch.frombuffer(content, dtype=dtype).reshape(shape)
