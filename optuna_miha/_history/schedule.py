"""The hyperparameters over the epochs of one network's training."""

from __future__ import annotations

import ast
import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, overload

from optuna_miha._history.text_table import text_table

ANNEAL_TO = "anneal_to"
PLACE = ("from_epoch", "to_epoch", "role", ANNEAL_TO)
"""What a row holds besides hyperparameters."""


class Schedule(Sequence[dict[str, Any]]):
    """The hyperparameters over the epochs of the returned model's own lineage.

    A sequence of rows, so that ``pandas.DataFrame(schedule)`` works; ``print(schedule)`` shows
    them as a table. Each row is a dictionary of ``from_epoch`` and ``to_epoch`` (the row holds
    after the first and up to the last), ``role``, and every hyperparameter. In a row that has
    ``anneal_to``, the learning rate is annealed until that epoch: over the first tenth it rises
    from a third of ``lr`` to ``lr``, then it falls to zero along half a cosine; where ``lr`` is
    no float parameter, it only falls. In the last row that epoch lies behind ``to_epoch`` where
    the best weights came before the end.

    Args:
        rows: The rows, in the order of their epochs.

    Raises:
        ValueError: If there is no row, or the epochs are not integers that follow each other
            without a gap from 0 on.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._rows = [dict(row) for row in rows]
        if not self._rows:
            raise ValueError("A schedule must have at least one row, got none.")
        end = 0
        for number, row in enumerate(self._rows):
            _check_epochs(number, row, end)
            end = row.get(ANNEAL_TO, row["to_epoch"])

    @classmethod
    def from_json(cls, path: str | PathLike[str]) -> Schedule:
        """Read what :meth:`to_json` wrote."""
        return cls(json.loads(Path(path).read_text(encoding="utf-8")))

    @classmethod
    def from_csv(cls, path: str | PathLike[str]) -> Schedule:
        """Read what :meth:`to_csv` wrote, with every value of the type that it had."""
        with open(path, newline="", encoding="utf-8") as file:
            return cls(
                [{k: _value(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
            )

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schedule) and self[:] == other[:]

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Schedule({self._rows!r})"

    def __str__(self) -> str:
        """A table of what changes, and below it what stays as it is."""
        names = list(dict.fromkeys(name for row in self for name in params_of(row)))
        moving = [n for n in names if any(row.get(n) != self[0].get(n) for row in self)]
        lines = [["epochs", "role", *moving]]
        lines += [
            [f"{row['from_epoch']}-{row['to_epoch']}", str(row.get("role", "")), *texts]
            for row, texts in zip(self, _columns(self._rows, moving), strict=True)
        ]
        table = text_table(lines, align="right")
        still = [f"{n} {_text(self[0][n])}" for n in names if n not in moving]
        if still:
            table.append(f"throughout: {', '.join(still)}")
        falls = [row for row in self if ANNEAL_TO in row]
        if falls:
            spans = " and ".join(f"{row['from_epoch']}-{row[ANNEAL_TO]}" for row in falls)
            table.append(f"lr rises to its value, then falls to zero: over epochs {spans}")
        return "\n".join(table)

    def to_csv(self, path: str | PathLike[str]) -> None:
        """Write the rows as CSV; a parameter that a row lacks is left empty."""
        names = list(dict.fromkeys(name for row in self for name in row))
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows({name: _cell(value) for name, value in row.items()} for row in self)

    def to_json(self, path: str | PathLike[str]) -> None:
        """Write the rows as a JSON array of objects."""
        Path(path).write_text(json.dumps(self._rows, indent=2) + "\n", encoding="utf-8")


def params_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters of a row."""
    return {name: value for name, value in row.items() if name not in PLACE}


def _check_epochs(number: int, row: Mapping[str, Any], end: int) -> None:
    """Refuse a row that does not follow on epoch ``end``."""
    epochs = [row.get("from_epoch"), row.get("to_epoch"), row.get(ANNEAL_TO, row.get("to_epoch"))]
    first, last, annealed = epochs
    if any(not isinstance(e, int) or isinstance(e, bool) for e in epochs):
        raise ValueError(
            f"`from_epoch`, `to_epoch` and, where it is, `{ANNEAL_TO}` must be integers, got "
            f"{first!r}, {last!r} and {annealed!r} in row {number}."
        )
    assert isinstance(first, int) and isinstance(last, int) and isinstance(annealed, int)
    if first != end or not first < last <= annealed:
        raise ValueError(
            f"Row {number} must begin at epoch {end}, end later, and not after `{ANNEAL_TO}`, got "
            f"from_epoch={first}, to_epoch={last}, {ANNEAL_TO}={annealed}."
        )


def _cell(value: Any) -> str:
    """The text of a value, a string in quotes where it could be taken for anything else."""
    if isinstance(value, str):
        return value if value and _value(value) is value else repr(value)
    return repr(value)


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def _columns(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[list[str]]:
    """The texts of some parameters, one list for each row."""
    return [[_text(row[name]) if name in row else "" for name in names] for row in rows]


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
