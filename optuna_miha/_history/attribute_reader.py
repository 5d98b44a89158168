"""Validated reading of the attributes of a trial or study, which anybody can write."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from optuna_miha.exceptions import RecordError

_MOST = 10**9
"""Of any count. Far above what a run reaches, and small enough to compute with."""

_LONGEST = 100_000
"""Characters of a text. A change of every layer of a deep network stays far below."""

_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}-[0-9a-f]{12}\.pt")
"""The name of a file that a run writes. It leads out of no folder, and is nobody else's."""

_SHA256 = re.compile(r"[0-9a-f]{64}")

_SHOWN = 60
"""Characters of a bad value that an error repeats."""

_MISSING = object()


class AttributeReader:
    """The attributes of one trial or study; every reader names what it refuses.

    Args:
        owner: Whose they are, for messages: ``"trial 7"``.
        attrs: The attributes by name.
    """

    def __init__(self, owner: str, attrs: Mapping[str, Any]) -> None:
        self.owner = owner
        self._attrs = attrs

    def integer(self, key: str, *, least: int = 0, most: int = _MOST) -> int:
        """A whole number from ``least`` to ``most``."""
        value = self._get(key)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.error(key, f"a whole number from {least} to {most}", value)
        return value

    def number(self, key: str) -> float | None:
        """A number, which may be infinite or NaN; :obj:`None` if there is none."""
        value = self._get(key, None)
        return None if value is None else self._float(key, value)

    def text(self, key: str, default: str) -> str:
        """A text of sensible length."""
        value = self._get(key, default)
        if not isinstance(value, str) or len(value) > _LONGEST:
            raise self.error(key, f"a text of at most {_LONGEST} characters", value)
        return value

    def mapping(self, key: str) -> dict[str, Any] | None:
        """An object of JSON; :obj:`None` if there is none."""
        value = self._get(key, None)
        if value is not None and not isinstance(value, dict):
            raise self.error(key, "an object", value)
        return value

    def numbers(self, key: str) -> tuple[Any, ...]:
        """A list of numbers, some of which may be :obj:`None`."""
        value = self._get(key, [])
        if not isinstance(value, (list, tuple)):
            raise self.error(key, "a list of numbers", value)
        return tuple(None if part is None else self._float(key, part) for part in value)

    def integers(self, key: str) -> tuple[int, ...]:
        """A list of whole numbers, none of them negative."""
        value = self._get(key, [])
        if not isinstance(value, (list, tuple)) or not all(
            isinstance(part, int) and not isinstance(part, bool) and 0 <= part <= _MOST
            for part in value
        ):
            raise self.error(key, f"a list of whole numbers from 0 to {_MOST}", value)
        return tuple(value)

    def file(self, key: str) -> dict[str, Any] | None:
        """The name of a file and its hash, ``{"id": …, "sha256": …}``, and whatever else."""
        value = self.mapping(key)
        if value is None:
            return None
        parts = AttributeReader(f"{self.owner}, {key!r}", value)
        name, sha256 = parts.text("id", ""), parts.text("sha256", "")
        if not is_file_name(name):
            raise parts.error("id", "the name of a file of a run", name)
        if not _SHA256.fullmatch(sha256):
            raise parts.error("sha256", "64 hexadecimal digits", sha256)
        return value

    def number_in(self, key: str, name: str) -> float | None:
        """The finite number ``name`` in an object; :obj:`None` if there is no object."""
        value = self.mapping(key)
        if value is None:
            return None
        number = self._float(key, value.get(name))
        if not math.isfinite(number):
            raise self.error(key, f"an object with a finite number {name!r}", value)
        return number

    def error(self, key: str, requirement: str, value: Any) -> RecordError:
        """What to raise of a bad value."""
        shown = "nothing" if value is _MISSING else _shown(value)
        return RecordError(
            f"The attribute {key!r} of {self.owner} must be {requirement}, got {shown}: something "
            "other than a run wrote it. Put back what was there, or start a study of another "
            "name."
        )

    def _get(self, key: str, default: Any = _MISSING) -> Any:
        value = self._attrs.get(key, default)
        if value is _MISSING:
            raise self.error(key, "there", value)
        return value

    def _float(self, key: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.error(key, "a number", value)
        try:
            return float(value)
        except OverflowError:
            raise self.error(key, "a number that a float can hold", value) from None


def is_file_name(text: str) -> bool:
    """Whether a run gives its files such names."""
    return _FILE.fullmatch(text) is not None


def _shown(value: Any) -> str:
    """The beginning of a value; a whole one may be of any length."""
    if isinstance(value, str):
        return repr(value if len(value) <= _SHOWN else f"{value[:_SHOWN]}…")
    if isinstance(value, int) and value.bit_length() > 4 * _SHOWN:  # Python refuses to print some.
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, (list, tuple, dict)):
        return f"{type(value).__name__} of {len(value)}"
    return repr(value)
