"""Writing and reading large checkpoints in pieces, so that no copy of them is in memory."""

from __future__ import annotations

import hashlib
import io
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import torch

from optuna_miha._model.tensors import n_bytes_of
from optuna_miha._training.spool import LARGE_STATE
from optuna_miha._training.state import State

_PIECE = 2**20
"""Bytes that are read at a time."""


def is_large(state: State) -> bool:
    """Whether a state is written in pieces."""
    return n_bytes_of(state) >= LARGE_STATE


def open_buffer(state: State) -> BinaryIO:
    """Open a temporary file if the state is large, otherwise a buffer in memory."""
    return tempfile.TemporaryFile() if is_large(state) else io.BytesIO()


def write_file(state: State, path: Path) -> str:
    """Write a state to a file, and return the hash of the file."""
    with path.open("wb") as file:
        return write_content(state, file)


def write_content(state: State, file: BinaryIO) -> str:
    """Write a state, and return the hash of what was written."""
    if isinstance(file, io.BytesIO):
        torch.save(state, file)
        return hashlib.sha256(file.getbuffer()).hexdigest()
    writer = _HashingWriter(file)
    torch.save(state, writer)  # type: ignore[arg-type]
    return writer.digest.hexdigest()


class _HashingWriter:
    """A file that is written from its beginning to its end, and hashed meanwhile.

    Args:
        file: The file.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, content: Any) -> int:
        """Write a piece."""
        self.digest.update(content)
        return self._file.write(content)

    def flush(self) -> None:
        """Write what is buffered."""
        self._file.flush()


def verified(reader: BinaryIO, sha256: str) -> BinaryIO | None:
    """Return the file from its beginning on, or :obj:`None` if its hash differs.

    Args:
        reader: The file. It is closed unless it is returned: a reader that cannot seek, such as
            that of a bucket, is copied to a temporary file.
        sha256: The hash.
    """
    with ExitStack() as stack:
        file = stack.enter_context(reader)
        if not getattr(reader, "seekable", bool)():
            file = stack.enter_context(tempfile.TemporaryFile())
        digest = hashlib.sha256()
        while piece := reader.read(_PIECE):
            digest.update(piece)
            if file is not reader:
                file.write(piece)
        if digest.hexdigest() != sha256:
            return None
        file.seek(0)
        stack.pop_all()
        if file is not reader:
            reader.close()
        return file
