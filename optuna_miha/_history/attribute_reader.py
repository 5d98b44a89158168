"""Validated access to the attributes of a trial or study, which any program can write."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from optuna_miha.exceptions import RecordError

_MAX_COUNT = 10**9
"""Upper bound of all counts: far above what a run reaches, and small enough to compute with."""

_MAX_TEXT_LENGTH = 100_000
"""In characters. The description of a change of every layer of a deep network is much shorter."""

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}-[0-9a-f]{12}\.pt")
"""The names of a run's files. No name matches that leads to another folder."""

_SHA256 = re.compile(r"[0-9a-f]{64}")

_MAX_SHOWN = 60
"""Characters of an invalid value that an error message repeats."""

_MISSING = object()


class AttributeReader:
    """Reads the attributes of one trial or study and raises an error for invalid ones.

    Args:
        owner: The trial or study, for messages: ``"trial 7"``.
        attrs: The attributes by name.
    """

    def __init__(self, owner: str, attrs: Mapping[str, Any]) -> None:
        self.owner = owner
        self._attrs = attrs

    def integer(self, key: str, *, minimum: int = 0, maximum: int = _MAX_COUNT) -> int:
        """An integer from ``minimum`` to ``maximum``."""
        value = self._get(key)
        if (
            isinstance(value, bool)
            or not isinstance(value, int)
            or not minimum <= value <= maximum
        ):
            raise self.error(key, f"an integer from {minimum} to {maximum}", value)
        return value

    def number(self, key: str) -> float | None:
        """A number, possibly infinite or NaN; :obj:`None` if the attribute is missing."""
        value = self._get(key, None)
        return None if value is None else self._float(key, value)

    def text(self, key: str, default: str) -> str:
        """A string of limited length; ``default`` if the attribute is missing."""
        value = self._get(key, default)
        if not isinstance(value, str) or len(value) > _MAX_TEXT_LENGTH:
            raise self.error(key, f"a string of at most {_MAX_TEXT_LENGTH} characters", value)
        return value

    def mapping(self, key: str) -> dict[str, Any] | None:
        """A JSON object; :obj:`None` if the attribute is missing."""
        value = self._get(key, None)
        if value is not None and not isinstance(value, dict):
            raise self.error(key, "a JSON object", value)
        return value

    def numbers(self, key: str) -> tuple[Any, ...]:
        """A list of numbers, some of which may be :obj:`None`; empty if it is missing."""
        value = self._get(key, [])
        if not isinstance(value, (list, tuple)):
            raise self.error(key, "a list of numbers", value)
        return tuple(None if part is None else self._float(key, part) for part in value)

    def curves(self, key: str) -> dict[str, tuple[Any, ...]]:
        """Lists of numbers by name, some of which may be :obj:`None`; empty if it is missing."""
        curves = AttributeReader(f"{self.owner}, {key!r}", self.mapping(key) or {})
        return {name: curves.numbers(name) for name in self.mapping(key) or {}}

    def integers(self, key: str) -> tuple[int, ...]:
        """A list of non-negative integers; empty if it is missing."""
        value = self._get(key, [])
        if not isinstance(value, (list, tuple)) or not all(
            isinstance(part, int) and not isinstance(part, bool) and 0 <= part <= _MAX_COUNT
            for part in value
        ):
            raise self.error(key, f"a list of integers from 0 to {_MAX_COUNT}", value)
        return tuple(value)

    def file(self, key: str) -> dict[str, Any] | None:
        """A file's name and hash, ``{"id": …, "sha256": …}``; other entries are not checked."""
        value = self.mapping(key)
        if value is None:
            return None
        entries = AttributeReader(f"{self.owner}, {key!r}", value)
        name, sha256 = entries.text("id", ""), entries.text("sha256", "")
        if not is_file_name(name):
            raise entries.error("id", "the name of a file of a run", name)
        if not _SHA256.fullmatch(sha256):
            raise entries.error("sha256", "64 hexadecimal digits", sha256)
        return value

    def number_in(self, key: str, name: str) -> float | None:
        """The finite number ``name`` in a JSON object; :obj:`None` if there is no object."""
        value = self.mapping(key)
        if value is None:
            return None
        number = self._float(key, value.get(name))
        if not math.isfinite(number):
            raise self.error(key, f"a JSON object with a finite number {name!r}", value)
        return number

    def error(self, key: str, requirement: str, value: Any) -> RecordError:
        """The exception for an invalid value; the caller raises it."""
        shown = "nothing" if value is _MISSING else _abbreviated(value)
        return RecordError(
            f"The attribute {key!r} of {self.owner} must be {requirement}, got {shown}: it was "
            "not written by a run. Restore the original value, or start a study with another "
            "name."
        )

    def _get(self, key: str, default: Any = _MISSING) -> Any:
        value = self._attrs.get(key, default)
        if value is _MISSING:
            raise self.error(key, "present", value)
        return value

    def _float(self, key: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.error(key, "a number", value)
        try:
            return float(value)
        except OverflowError:
            raise self.error(key, "a number in the range of a float", value) from None


def is_file_name(text: str) -> bool:
    """Whether ``text`` has the form of the names that a run gives its files."""
    return _FILE_NAME.fullmatch(text) is not None


def _abbreviated(value: Any) -> str:
    """A short representation of a value, which may be very long."""
    if isinstance(value, str):
        return repr(value if len(value) <= _MAX_SHOWN else f"{value[:_MAX_SHOWN]}…")
    if isinstance(value, int) and value.bit_length() > 4 * _MAX_SHOWN:
        return f"a number of {value.bit_length()} bits"  # Python limits the digits of `repr`.
    if isinstance(value, (list, tuple, dict)):
        return f"{type(value).__name__} of {len(value)}"
    return repr(value)
