"""Rows of the quality benchmark, and the statistics of them."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from _figures import Row

Key: TypeAlias = tuple[str, str, int, int]
"""Task, method, budget in epochs, seed."""

_LEAST = 1e-12
"""A loss that is smaller counts as this, since its logarithm is taken."""


def key_of(row: Row) -> Key:
    """What the row is about."""
    return row["task"], row["method"], row["n_epochs"], row["seed"]


def read_runs(file: Path) -> list[Row]:
    """The rows of a file, the last one of each run; none if there is no file.

    A line that an interruption cut short is left out.
    """
    if not file.exists():
        return []
    rows = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        rows[key_of(row)] = row
    return list(rows.values())


def newest_runs(results: Path) -> Path:
    """The newest folder of the quality benchmark, by the date that its name begins with.

    Raises:
        LookupError: If there is none.
    """
    folders = sorted(file.parent for file in results.glob("*_quality_*/runs.jsonl"))
    if not folders:
        raise LookupError(f"{results} holds no results of quality: run benchmarks/run.py.")
    return folders[-1]


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A ratio of geometric means over tasks; below 1 the first method has the lower loss.

    Args:
        log: Its logarithm: the mean over tasks of the mean over seeds that both have.
        se: Standard error of ``log`` over the draw of seeds, the tasks being what they are;
            :obj:`None` where there is but one seed.
        n_tasks: How many tasks.
    """

    log: float
    se: float | None
    n_tasks: int

    @property
    def value(self) -> float:
        """The ratio."""
        return math.exp(self.log)

    def text(self) -> str:
        """``0.853 ± 1.2 %``, the standard error being that of the logarithm."""
        spread = "" if self.se is None else f" ± {100 * self.se:.1f} %"
        return f"{self.value:.3f}{spread}"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Test figures of one method on one task.

    Args:
        values: One per seed.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The arithmetic mean."""
        return statistics.fmean(self.values)

    @property
    def sd(self) -> float | None:
        """Standard deviation over seeds."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


class Results:
    """Test losses at one budget.

    Args:
        rows: Rows of all budgets; those that failed or never had a finite loss are left out.
        n_epochs: The budget.
    """

    def __init__(self, rows: Iterable[Row], n_epochs: int) -> None:
        self.n_epochs = n_epochs
        self.rows = [row for row in rows if row["n_epochs"] == n_epochs]
        self._figures: dict[str, dict[tuple[str, str], dict[int, float]]] = {}
        for row in self.rows:
            for figure, value in (row["test"] or {}).items():
                if value is not None:
                    of_figure = self._figures.setdefault(figure, {})
                    of_figure.setdefault((row["task"], row["method"]), {})[row["seed"]] = value

    def tasks(self, among: Iterable[str]) -> list[str]:
        """Those of ``among`` that have a result."""
        present = {task for task, _ in self._figures.get("loss", {})}
        return [task for task in among if task in present]

    def methods(self, among: Iterable[str]) -> list[str]:
        """Those of ``among`` that have a result."""
        present = {method for _, method in self._figures.get("loss", {})}
        return [method for method in among if method in present]

    def ranked(self, methods: Sequence[str], tasks: Sequence[str]) -> tuple[list[str], list[str]]:
        """The methods that can be ranked, and the tasks on which all of them have a result.

        A method that was run on less than half of the tasks is left out, so that it does not
        leave out tasks.
        """
        chosen = [m for m in methods if 2 * sum(map(bool, self._row(tasks, m))) >= len(tasks)]
        common = [t for t in tasks if all(self.cell(t, method) for method in chosen)]
        return chosen, common

    def _row(self, tasks: Iterable[str], method: str) -> list[Cell | None]:
        return [self.cell(task, method) for task in tasks]

    def cell(self, task: str, method: str, figure: str = "loss") -> Cell | None:
        """A method on a task; :obj:`None` without a result."""
        values = self._values(task, method, figure)
        return Cell(values=tuple(values.values())) if values else None

    def ratio(self, ours: str, theirs: str, tasks: Iterable[str]) -> Ratio | None:
        """Paired over seeds, averaged over those tasks that both have; :obj:`None` if none."""
        return _paired((self._values(task, ours), self._values(task, theirs)) for task in tasks)

    def headroom(self, method: str, rivals: Sequence[str], tasks: Iterable[str]) -> Ratio | None:
        """The lowest loss of all rivals, chosen by test data for each task and seed, over its own.

        Only seeds that all rivals have count, as more rivals would have a lower one by luck.
        """
        pairs = []
        for task in tasks:
            every = [self._values(task, rival) for rival in rivals]
            seeds = set.intersection(*(set(values) for values in every))
            lowest = {seed: min(values[seed] for values in every) for seed in seeds}
            pairs.append((lowest, self._values(task, method)))
        return _paired(pairs)

    def mean_ranks(self, methods: Sequence[str], tasks: Sequence[str]) -> dict[str, float]:
        """Mean over tasks of each method's rank by mean loss, 1 being best; ties share ranks."""
        ranks: dict[str, list[float]] = {method: [] for method in methods}
        for task in tasks:
            means = self._means(task, methods)
            for method, mean in means.items():
                below = sum(other < mean for other in means.values())
                equal = sum(other == mean for other in means.values())
                ranks[method].append(below + (1 + equal) / 2)
        return {method: statistics.fmean(found) for method, found in ranks.items() if found}

    def worst(self, method: str, others: Sequence[str], tasks: Sequence[str]) -> tuple[float, str]:
        """The largest ratio of its mean loss to that of the best other one, and the task."""
        found = []
        for task in tasks:
            means = self._means(task, [method, *others])
            best = min(mean for other, mean in means.items() if other != method)
            found.append((means[method] / max(best, _LEAST), task))
        return max(found)

    def best(self, task: str, methods: Sequence[str]) -> str:
        """The method of the lowest mean loss."""
        means = self._means(task, methods)
        return min(means, key=lambda method: means[method])

    def _means(self, task: str, methods: Sequence[str]) -> Mapping[str, float]:
        cells = {method: self.cell(task, method) for method in methods}
        return {method: cell.mean for method, cell in cells.items() if cell is not None}

    def _values(self, task: str, method: str, figure: str = "loss") -> dict[int, float]:
        return self._figures.get(figure, {}).get((task, method), {})


def _paired(tasks: Iterable[tuple[Mapping[int, float], Mapping[int, float]]]) -> Ratio | None:
    """The ratio of two losses by seed, averaged over the tasks that have a common seed.

    The standard error is that of seeds drawn for all tasks at once, since what a seed does to one
    task it may do to another: from a poor start a run may well end with the same network.
    """
    means: list[float] = []
    deviations: dict[int, float] = {}
    for first, second in tasks:
        logs = {
            seed: math.log(max(first[seed], _LEAST) / max(second[seed], _LEAST))
            for seed in sorted(first.keys() & second.keys())
        }
        if not logs:
            continue
        means.append(statistics.fmean(logs.values()))
        for seed, log in logs.items():
            deviations[seed] = deviations.get(seed, 0.0) + (log - means[-1]) / len(logs)
    if not means:
        return None
    n = len(deviations)
    se = None
    if n > 1:
        squares = sum(deviation**2 for deviation in deviations.values())
        se = math.sqrt(squares * n / (n - 1)) / len(means)
    return Ratio(log=statistics.fmean(means), se=se, n_tasks=len(means))
