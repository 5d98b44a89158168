"""Rows of results, and the statistics computed from them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, TypeAlias

Row: TypeAlias = dict[str, Any]

RESULTS = Path(__file__).parent / "results"


def newest(results: Path, name: str) -> Path:
    """The newest result folder of a benchmark, by the date at the start of its name.

    Raises:
        LookupError: If there is no such folder.
    """
    folders = sorted(path.parent for path in results.glob(f"*_{name}_*/raw.jsonl"))
    if not folders:
        raise LookupError(f"{results} holds no results of {name}: run benchmarks/{name}.py.")
    return folders[-1]


def read_rows(folder: Path) -> list[Row]:
    """Read the rows that :meth:`Benchmark.run` wrote; empty if there is no file."""
    path = folder / "raw.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def append_row(file: TextIO, row: Row) -> None:
    """Write a row as a line that an interruption does not lose."""
    file.write(json.dumps(row) + "\n")
    file.flush()


def mean_text(values: Sequence[float], digits: int) -> str:
    """``0.984 ± 0.007``, the mean and the standard deviation."""
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


@dataclass(frozen=True)
class Spread:
    """The values of one measurement over the repeats.

    Args:
        values: At least one value.
    """

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median."""
        return statistics.median(self.values)

    def text(self, digits: int) -> str:
        """``1.05 (1.02..1.09)``, or only the median if there is one value."""
        if len(self.values) == 1:
            return f"{self.median:.{digits}f}"
        low, high = min(self.values), max(self.values)
        return f"{self.median:.{digits}f} ({low:.{digits}f}..{high:.{digits}f})"


def chosen(rows: Iterable[Row], **labels: Any) -> dict[int, Row]:
    """The rows with these labels, by repeat.

    Raises:
        LookupError: If there is no such row.
    """
    found = {
        row["repeat"]: row
        for row in rows
        if all(key in row and row[key] == value for key, value in labels.items())
    }
    if not found:
        raise LookupError(f"The results hold no row of {labels}: measure again.")
    return found


def spread(rows: Mapping[int, Row], measure: Callable[[Row], float]) -> Spread:
    """One measurement over the repeats."""
    return Spread(tuple(measure(row) for row in rows.values()))


def ratios(
    rows: Mapping[int, Row], reference: Mapping[int, Row], measure: Callable[[Row], float]
) -> Spread:
    """One measurement divided by that of ``reference`` in the same repeat.

    Raises:
        LookupError: If no repeat has both, for example after an interruption.
    """
    both = sorted(rows.keys() & reference.keys())
    if not both:
        raise LookupError("The results hold no whole repeat: measure again.")
    return Spread(tuple(measure(rows[i]) / measure(reference[i]) for i in both))


def with_block(text: str, name: str, body: str) -> str:
    """``text`` with ``body`` between the marks ``<!-- name:begin -->`` and ``<!-- name:end -->``.

    Raises:
        LookupError: If ``text`` lacks the marks.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, has_begin, rest = text.partition(begin)
    _, has_end, after = rest.partition(end)
    if not has_begin or not has_end:
        raise LookupError(f"The file must hold the lines {begin} and {end}.")
    return f"{before}{begin}\n\n{body.strip()}\n\n{end}{after}"
