"""The hyperparameters of a network over the epochs of its training."""

from __future__ import annotations

import ast
import csv
import html
import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, overload

from optuna_miha._history.text_table import html_table, text_table

ANNEAL_TO = "anneal_to"
BY_STEP = "by_step"
RUN_SEED = "run_seed"
RESERVED_COLUMNS = ("from_epoch", "to_epoch", "role", ANNEAL_TO, BY_STEP, RUN_SEED)
"""The entries of a row that are not hyperparameters."""

_REPR_ROWS, _REPR_WIDTH = 8, 60
"""Number of rows, and characters of a description, that ``repr`` shows."""


class Schedule(Sequence[dict[str, Any]]):
    """The hyperparameters of the returned model over the epochs of its lineage.

    A schedule is a sequence of rows, so that ``pandas.DataFrame(schedule)`` works.
    ``print(schedule)`` shows it as a table. Each row is a dictionary with ``from_epoch``,
    ``to_epoch``, ``role``, ``run_seed`` and every hyperparameter. It applies to the epochs
    ``from_epoch + 1`` to ``to_epoch``. ``run_seed`` is the seed of the run, the same in every row.

    In a row with ``anneal_to``, the learning rate is annealed until that epoch: over the first
    tenth it rises from a third of ``lr`` to ``lr``, then it falls to zero along half a cosine. If
    ``lr`` is not a float parameter, it only falls. With ``by_step``, it changes by the step: from
    epoch 0 it rises from a 25th of ``lr`` over 30 % of the epochs, later from a quarter over 25 %;
    then it falls to zero along half a cosine, and the next row continues from the best weights of
    this one. In the last row, ``anneal_to`` is larger than ``to_epoch`` if the best weights were
    reached before the end of the annealing.

    Args:
        rows: The rows in the order of their epochs.

    Raises:
        ValueError: If there are no rows, if the epochs of the rows are not integers that start
            at 0 and continue without a gap, or if ``run_seed`` is not the same non-negative
            integer in every row.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._rows = [dict(row) for row in rows]
        if not self._rows:
            raise ValueError("A schedule must have at least one row, got none.")
        end = 0
        for number, row in enumerate(self._rows):
            _check_epochs(number, row, end)
            end = row.get(ANNEAL_TO, row["to_epoch"])
        _check_seed(self._rows)

    @property
    def seed(self) -> int | None:
        """The seed of the run; :obj:`None` for a schedule that was written without one."""
        return self._rows[0].get(RUN_SEED)

    @classmethod
    def from_json(cls, path: str | PathLike[str]) -> Schedule:
        """Read a file written by :meth:`to_json`."""
        return cls(json.loads(Path(path).read_text(encoding="utf-8")))

    @classmethod
    def from_csv(cls, path: str | PathLike[str]) -> Schedule:
        """Read a file written by :meth:`to_csv`. The types of all values are restored."""
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
        """One line for each row that changes something, of at most eight rows."""
        length = "1 row" if len(self) == 1 else f"{len(self)} rows"
        head = f"Schedule({length}, {self[-1]['to_epoch']} epochs, seed {self.seed})"
        first = {name: self[0][name] for name in self._changing(self._names()) if name in self[0]}
        shown = [first | self[0], *self[1:]]  # Parameters that change come first.
        lines = []
        for before, row in zip([{}, *shown], shown, strict=False):
            change = textwrap.shorten(_changes(before, row), _REPR_WIDTH, placeholder=" …")
            lines.append([*_position(row), change])
        table = [f"  {line}" for line in text_table(lines)]
        if len(table) > _REPR_ROWS:
            half = _REPR_ROWS // 2
            table[half:-half] = [f"  … {len(table) - 2 * half} more rows: print(schedule)"]
        return "\n".join([head, *table])

    def to_html(self) -> str:
        """Format the parameters that change as an HTML table, followed by the constant ones."""
        names = self._names()
        changing = self._changing(names)
        rows = [
            [*_position(row), *texts]
            for row, texts in zip(self, _texts_of_rows(self._rows, changing), strict=True)
        ]
        constant = [f"{n} {_text(self[0][n])}" for n in names if n not in changing]
        note = f"<p>throughout: {html.escape(', '.join(constant))}</p>" if constant else ""
        return html_table(["epochs", "role", *changing], rows) + note

    def _repr_html_(self) -> str:
        return self.to_html()

    def __str__(self) -> str:
        """A table of the parameters that change, followed by those that stay constant."""
        names = self._names()
        changing = self._changing(names)
        lines = [["epochs", "role", *changing]]
        lines += [
            [*_position(row), *texts]
            for row, texts in zip(self, _texts_of_rows(self._rows, changing), strict=True)
        ]
        table = text_table(lines, align="right")
        constant = [f"{n} {_text(self[0][n])}" for n in names if n not in changing]
        if constant:
            table.append(f"throughout: {', '.join(constant)}")
        annealed = [row for row in self if ANNEAL_TO in row]
        if annealed:
            *spans, last = [f"{row['from_epoch']}-{row[ANNEAL_TO]}" for row in annealed]
            epochs = f"{', '.join(spans)} and {last}" if spans else last
            table.append(f"lr rises to its value, then falls to zero: over epochs {epochs}")
        if any(row.get(BY_STEP) for row in self[:-1]):
            table.append("each row starts from the best weights of the row before")
        if self.seed is not None:
            table.append(f"seed of the run: {self.seed}")
        return "\n".join(table)

    def _names(self) -> list[str]:
        """The names of all hyperparameters."""
        return list(dict.fromkeys(name for row in self for name in params_of(row)))

    def _changing(self, names: Sequence[str]) -> list[str]:
        """The names among ``names`` whose value changes."""
        return [n for n in names if any(row.get(n) != self[0].get(n) for row in self)]

    def to_csv(self, path: str | PathLike[str]) -> None:
        """Write the rows as CSV. The cells of missing parameters are empty."""
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
    return {name: value for name, value in row.items() if name not in RESERVED_COLUMNS}


def _position(row: Mapping[str, Any]) -> tuple[str, str]:
    """The epochs and the role of a row."""
    return f"{row['from_epoch']}-{row['to_epoch']}", str(row.get("role", ""))


def _changes(before: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """What a row changes, such as ``"lr 0.001 -> 0.003"``; all parameters of the first row."""
    params, old = params_of(row), params_of(before)
    if not before:
        return ", ".join(f"{name} {_text(value)}" for name, value in params.items())
    changes = [
        f"{name} {_text(old.get(name))} -> {_text(value)}"
        for name, value in params.items()
        if old.get(name) != value
    ]
    return ", ".join(changes) or "no change"


def _check_epochs(number: int, row: Mapping[str, Any], end: int) -> None:
    """Check that a row has valid epochs and begins at epoch ``end``."""
    epochs = [row.get("from_epoch"), row.get("to_epoch"), row.get(ANNEAL_TO, row.get("to_epoch"))]
    first, last, annealed = epochs
    if any(not isinstance(e, int) or isinstance(e, bool) for e in epochs):
        raise ValueError(
            f"`from_epoch`, `to_epoch` and, if present, `{ANNEAL_TO}` must be integers, got "
            f"{first!r}, {last!r} and {annealed!r} in row {number}."
        )
    assert isinstance(first, int) and isinstance(last, int) and isinstance(annealed, int)
    if first != end or not first < last <= annealed:
        raise ValueError(
            f"Row {number} must begin at epoch {end}, end later, and not after `{ANNEAL_TO}`, got "
            f"from_epoch={first}, to_epoch={last}, {ANNEAL_TO}={annealed}."
        )


def _check_seed(rows: Sequence[Mapping[str, Any]]) -> None:
    """Check that all rows have the same seed, or none has one."""
    for number, row in enumerate(rows):
        seed = row.get(RUN_SEED)
        is_integer = isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0
        if seed != rows[0].get(RUN_SEED) or not (seed is None or is_integer):
            raise ValueError(
                f"`{RUN_SEED}` must be the same non-negative integer in every row, or missing in "
                f"all of them, got {rows[0].get(RUN_SEED)!r} in row 0 and {seed!r} in row "
                f"{number}."
            )


def _cell(value: Any) -> str:
    """The text of a value; a string that could be read as another type is quoted."""
    if isinstance(value, str):
        return value if value and _value(value) is value else repr(value)
    return repr(value)


def _value(text: str) -> Any:
    """The value of a cell."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def _texts_of_rows(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[list[str]]:
    """The values of some parameters as texts, one list per row."""
    return [[_text(row[name]) if name in row else "" for name in names] for row in rows]


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
