"""Rows of the quality benchmark, and statistics of them."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from _rows import Row

Key: TypeAlias = tuple[str, str, int, int]
"""Task, method, budget in epochs, seed."""

_LEAST = 1e-12
"""Lower bound of a loss before its logarithm is taken."""


def key_of(row: Row) -> Key:
    """Task, method, budget and seed of a row."""
    return row["task"], row["method"], row["n_epochs"], row["seed"]


def read_runs(file: Path) -> list[Row]:
    """Read the last row of each run; empty if there is no file.

    A line that was truncated by an interruption is skipped.
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
    """The newest folder of the quality benchmark, by the date at the start of its name.

    Raises:
        LookupError: If there is no such folder.
    """
    folders = sorted(file.parent for file in results.glob("*_quality_*/runs.jsonl"))
    if not folders:
        raise LookupError(f"{results} holds no results of quality: run benchmarks/run.py.")
    return folders[-1]


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A ratio of geometric means over tasks; below 1, the first method has the lower loss.

    Args:
        log: Logarithm of the ratio: the mean over tasks of the mean over common seeds.
        se: Standard error of ``log`` over seeds, with fixed tasks; :obj:`None` for one seed.
        task_se: Standard error over tasks, as drawn from a population; :obj:`None` for one task.
        n_tasks: Number of tasks.
    """

    log: float
    se: float | None
    task_se: float | None
    n_tasks: int

    @property
    def value(self) -> float:
        """The ratio."""
        return math.exp(self.log)

    def text(self) -> str:
        """``0.853 ± 1.2 %``, with the standard error over seeds of the logarithm."""
        spread = "" if self.se is None else f" ± {100 * self.se:.1f} %"
        return f"{self.value:.3f}{spread}"

    def full_text(self) -> str:
        """``0.853 ± 4.1 % (1.2 %)``, with the standard errors over tasks and over seeds."""
        over_tasks = "" if self.task_se is None else f" ± {100 * self.task_se:.1f} %"
        over_seeds = "" if self.se is None else f" ({100 * self.se:.1f} %)"
        return f"{self.value:.3f}{over_tasks}{over_seeds}"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Test values of one method on one task.

    Args:
        values: One value per seed.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The arithmetic mean."""
        return statistics.fmean(self.values)

    @property
    def sd(self) -> float | None:
        """Standard deviation over seeds; :obj:`None` for one seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


class Results:
    """Test losses at one budget.

    Args:
        rows: Rows of all budgets. Runs that failed or never had a finite loss are left out.
        n_epochs: The budget.
    """

    def __init__(self, rows: Iterable[Row], n_epochs: int) -> None:
        self.n_epochs = n_epochs
        self.rows = [row for row in rows if row["n_epochs"] == n_epochs]
        self._metrics: dict[str, dict[tuple[str, str], dict[int, float]]] = {}
        for row in self.rows:
            for metric, value in (row["test"] or {}).items():
                if value is not None:
                    of_metric = self._metrics.setdefault(metric, {})
                    of_metric.setdefault((row["task"], row["method"]), {})[row["seed"]] = value

    def tasks(self, among: Iterable[str]) -> list[str]:
        """The members of ``among`` that have a result."""
        present = {task for task, _ in self._metrics.get("loss", {})}
        return [task for task in among if task in present]

    def methods(self, among: Iterable[str]) -> list[str]:
        """The members of ``among`` that have a result."""
        present = {method for _, method in self._metrics.get("loss", {})}
        return [method for method in among if method in present]

    def ranked(self, methods: Sequence[str], tasks: Sequence[str]) -> tuple[list[str], list[str]]:
        """The methods to rank, and the tasks on which all of them have a result.

        A method that was run on less than half of the tasks is left out, so that it does not
        exclude tasks.
        """
        chosen = [m for m in methods if 2 * sum(map(bool, self._row(tasks, m))) >= len(tasks)]
        common = [t for t in tasks if all(self.cell(t, method) for method in chosen)]
        return chosen, common

    def _row(self, tasks: Iterable[str], method: str) -> list[Cell | None]:
        return [self.cell(task, method) for task in tasks]

    def cell(self, task: str, method: str, metric: str = "loss") -> Cell | None:
        """The values of a method on a task; :obj:`None` without a result."""
        values = self._values(task, method, metric)
        return Cell(values=tuple(values.values())) if values else None

    def ratio(self, ours: str, theirs: str, tasks: Iterable[str]) -> Ratio | None:
        """Ratio of test losses over common tasks, paired over seeds; :obj:`None` without any."""
        return paired((self._values(task, ours), self._values(task, theirs)) for task in tasks)

    def headroom(self, method: str, rivals: Sequence[str], tasks: Iterable[str]) -> Ratio | None:
        """Lowest test loss of all rivals, for each task and seed, divided by that of ``method``.

        Only seeds that all rivals have count: with more rivals the minimum is lower by chance.
        """
        pairs = []
        for task in tasks:
            every = [self._values(task, rival) for rival in rivals]
            seeds = set.intersection(*(set(values) for values in every))
            lowest = {seed: min(values[seed] for values in every) for seed in seeds}
            pairs.append((lowest, self._values(task, method)))
        return paired(pairs)

    def mean_ranks(self, methods: Sequence[str], tasks: Sequence[str]) -> dict[str, float]:
        """Mean over tasks of each method's rank by mean loss; 1 is best, and ties share ranks."""
        ranks: dict[str, list[float]] = {method: [] for method in methods}
        for task in tasks:
            means = self._means(task, methods)
            for method, mean in means.items():
                below = sum(other < mean for other in means.values())
                equal = sum(other == mean for other in means.values())
                ranks[method].append(below + (1 + equal) / 2)
        return {method: statistics.fmean(found) for method, found in ranks.items() if found}

    def worst(self, method: str, others: Sequence[str], tasks: Sequence[str]) -> tuple[float, str]:
        """Largest ratio of the mean loss to that of the best other method, and its task."""
        found = []
        for task in tasks:
            means = self._means(task, [method, *others])
            best = min(mean for other, mean in means.items() if other != method)
            found.append((means[method] / max(best, _LEAST), task))
        return max(found)

    def best(self, task: str, methods: Sequence[str]) -> str:
        """The method with the lowest mean loss."""
        means = self._means(task, methods)
        return min(means, key=lambda method: means[method])

    def _means(self, task: str, methods: Sequence[str]) -> Mapping[str, float]:
        cells = {method: self.cell(task, method) for method in methods}
        return {method: cell.mean for method, cell in cells.items() if cell is not None}

    def _values(self, task: str, method: str, metric: str = "loss") -> dict[int, float]:
        return self._metrics.get(metric, {}).get((task, method), {})


def paired(tasks: Iterable[tuple[Mapping[int, float], Mapping[int, float]]]) -> Ratio | None:
    """The ratio of two losses by seed, averaged over the tasks that have a common seed.

    The standard error treats a seed as drawn for all tasks at once, because the results of tasks
    with the same seed are correlated: a run from a poor start may end with the same network.
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
    task_se = statistics.stdev(means) / math.sqrt(len(means)) if len(means) > 1 else None
    return Ratio(log=statistics.fmean(means), se=se, task_se=task_se, n_tasks=len(means))
