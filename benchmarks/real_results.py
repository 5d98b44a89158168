"""Tables of the tasks of real origin: ours / each method, per epoch and per CPU second."""

from __future__ import annotations

import argparse
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from _quality import Ratio, Results, paired, read_runs
from _rows import Row
from methods import METHODS
from real_tasks import REAL_TASKS

_TOLERANCE = 1.05
"""Ratio to any other method on one task up to which ours does not count as behind."""

NOTES = (
    "Test loss of {ours} divided by that of the method: geometric mean over tasks, paired over "
    "seeds, ± the standard error over tasks; in parentheses the standard error over seeds with "
    "these tasks. Below 1, {ours} is better. At equal seconds, the method that costs more CPU at "
    "this budget is interpolated between its own runs with smaller budgets, linearly in the "
    "logarithms of seconds and loss; without a run that is cheap enough, its cheapest one counts "
    "if it is the other method's, and the task is left out if it is ours. CPU seconds are medians "
    "over seeds, relative to a fixed training that is timed before and after each run."
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables.

    Args:
        arguments: Command-line arguments; :obj:`None` means those of this process.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="files or folders of runs.jsonl")
    parser.add_argument("--half", choices=["development", "confirmation"], default="development")
    parser.add_argument("--ours", default="miha", help="method to compare, default %(default)s")
    args = parser.parse_args(arguments)
    files = [path / "runs.jsonl" if path.is_dir() else path for path in args.runs]
    rows = [row for file in files for row in read_runs(file)]
    tasks = [name for name, task in REAL_TASKS.items() if task.half == args.half]
    rows = [row for row in rows if row["task"] in tasks and row["error"] is None]
    print("\n".join(report(rows, args.ours, args.half)))


def report(rows: Sequence[Row], ours: str, half: str) -> list[str]:
    """The tables of every budget, in Markdown."""
    lines = [f"# Tasks of real origin, half: {half}", "", NOTES.format(ours=f"`{ours}`"), ""]
    for n_epochs in sorted({row["n_epochs"] for row in rows}):
        results = Results(rows, n_epochs)
        tasks = results.tasks(REAL_TASKS)
        methods = [method for method in results.methods(METHODS) if method != ours]
        seeds = Counter(row["seed"] for row in results.rows)
        lines += [f"## {n_epochs} epochs, seeds {min(seeds)} to {max(seeds)}", ""]
        is_smallest = n_epochs == min(row["n_epochs"] for row in rows)
        ratios = _ratios(Costs(rows), results, ours, methods, tasks, is_comparable=not is_smallest)
        lines += [*ratios, ""]
        lines += [*_by_task(results, ours, methods, tasks), ""]
        lines += [*_losses(results, [ours, *methods], tasks), ""]
        lines += [_behind(results, ours, methods, tasks), ""]
    return lines


class Costs:
    """CPU costs, and losses at a given cost.

    Args:
        rows: Rows of all budgets.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        found: dict[tuple[str, str], dict[int, list[float]]] = {}
        self._losses: dict[tuple[str, str], dict[int, dict[int, float]]] = {}
        for row in rows:
            loss = (row["test"] or {}).get("loss")
            if loss is None:
                continue
            key = row["task"], row["method"]
            cost = row["cpu_seconds"] / row["unit_seconds"]
            found.setdefault(key, {}).setdefault(row["n_epochs"], []).append(cost)
            seeds = self._losses.setdefault(key, {}).setdefault(row["n_epochs"], {})
            seeds[row["seed"]] = loss
        self._costs = {
            key: {budget: statistics.median(costs) for budget, costs in budgets.items()}
            for key, budgets in found.items()
        }

    def of(self, task: str, method: str, n_epochs: int) -> float | None:
        """Median cost over seeds, in units; :obj:`None` without a run."""
        return self._costs.get((task, method), {}).get(n_epochs)

    def relative(self, ours: str, theirs: str, tasks: Sequence[str], n_epochs: int) -> float:
        """Geometric mean over tasks of the cost of ``ours`` / ``theirs``; NaN without a task."""
        logs = []
        for task in tasks:
            first, second = (self.of(task, method, n_epochs) for method in (ours, theirs))
            if first is not None and second is not None:
                logs.append(math.log(first / second))
        return math.exp(statistics.fmean(logs)) if logs else math.nan

    def at(self, task: str, method: str, cost: float, *, clip: bool) -> dict[int, float]:
        """Losses by seed of a method that may spend ``cost``.

        Args:
            task: Name of the task.
            method: Name of the method.
            cost: The cost, at most that of the largest budget.
            clip: Whether the smallest budget stands in for a lower cost; otherwise the result is
                empty.
        """
        costs = sorted((c, budget) for budget, c in self._costs[task, method].items())
        below = [pair for pair in costs if pair[0] <= cost]
        above = [pair for pair in costs if pair[0] >= cost]
        if not above or (not below and not clip):
            return {}
        (low, first), (high, second) = (below or above[:1])[-1], above[0]
        share = 0.0 if low >= high else math.log(cost / low) / math.log(high / low)
        losses = self._losses[task, method]
        return {
            seed: losses[first][seed] ** (1 - share) * losses[second][seed] ** share
            for seed in losses[first].keys() & losses[second].keys()
        }

    def ratio(self, ours: str, theirs: str, tasks: Sequence[str], n_epochs: int) -> Ratio | None:
        """Ratio of losses at equal costs: the lower one of the two at this budget."""
        pairs = []
        for task in tasks:
            first, second = (self.of(task, method, n_epochs) for method in (ours, theirs))
            if first is None or second is None:
                continue
            cost = min(first, second)
            pairs.append(
                (
                    self.at(task, ours, cost, clip=False),
                    self.at(task, theirs, cost, clip=True),
                )
            )
        return paired(pairs)


def _ratios(
    costs: Costs,
    results: Results,
    ours: str,
    methods: Sequence[str],
    tasks: Sequence[str],
    *,
    is_comparable: bool,
) -> list[str]:
    """Ours / each method over all tasks; without equal seconds at the smallest budget."""
    heads = ["method", "per epoch", "at equal CPU seconds", "CPU ours / theirs"]
    lines = _header([*heads, "lower on", "worst task", "description"])
    for method in methods:
        ratio = results.ratio(ours, method, tasks)
        if ratio is None:
            continue
        by_task = {task: results.ratio(ours, method, [task]) for task in tasks}
        logs = {task: found.log for task, found in by_task.items() if found is not None}
        worst = max(logs, key=lambda task: logs[task])
        cells = [method, _text(ratio, len(tasks))]
        at_equal = costs.ratio(ours, method, tasks, results.n_epochs) if is_comparable else None
        cells.append(_text(at_equal, len(tasks)))
        cells.append(f"{costs.relative(ours, method, tasks, results.n_epochs):.2f}")
        cells.append(f"{sum(log < 0 for log in logs.values())} of {len(logs)}")
        cells.append(f"{math.exp(logs[worst]):.2f} ({worst})")
        lines.append(_row([*cells, METHODS[method].description]))
    return lines


def _by_task(
    results: Results, ours: str, methods: Sequence[str], tasks: Sequence[str]
) -> list[str]:
    """Ours / each method by task; and ours / the method with the lowest mean on the task."""
    lines = _header(["ours / method", *tasks])
    for method in methods:
        ratios = (results.ratio(ours, method, [task]) for task in tasks)
        lines.append(_row([method, *("" if r is None else r.text() for r in ratios)]))
    return lines


def _losses(results: Results, methods: Sequence[str], tasks: Sequence[str]) -> list[str]:
    lines = _header(["test loss, mean (seeds)", *tasks])
    for method in methods:
        cells = [results.cell(task, method) for task in tasks]
        texts = ["" if c is None else f"{c.mean:.4g} ({len(c.values)})" for c in cells]
        lines.append(_row([method, *texts]))
    return lines


def _behind(results: Results, ours: str, methods: Sequence[str], tasks: Sequence[str]) -> str:
    """The tasks on which a method is better than ours by 5 % and more than its noise."""
    found = []
    for task in tasks:
        for method in methods:
            ratio = results.ratio(ours, method, [task])
            if ratio is not None and ratio.se is not None:
                surplus = ratio.log - math.log(_TOLERANCE)
                if surplus > 2 * ratio.se:
                    found.append(f"{task}, {method}: {ratio.text()}")
    head = f"More than {100 * (_TOLERANCE - 1):.0f} % above a method, by two standard errors: "
    return head + ("; ".join(found) or "none") + "."


def _text(ratio: Ratio | None, n_tasks: int) -> str:
    if ratio is None:
        return ""
    count = "" if ratio.n_tasks == n_tasks else f", {ratio.n_tasks} tasks"
    return ratio.full_text() + count


def _header(names: Sequence[str]) -> list[str]:
    return [_row(names), "|---" * len(names) + "|"]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
