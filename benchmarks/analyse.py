"""Write the results of the newest runs into the README and the documentation, or check them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import _quality_tables as tables
from _quality import Results, newest_runs, read_runs
from _quality_bars import bars_digest, draw_bars, losses
from _quality_figure import digest, draw
from _rows import RESULTS, Row, with_block
from tasks import TASKS

_ROOT = Path(__file__).parents[1]
_README = _ROOT / "README.md"
_PAGE = _ROOT / "docs" / "benchmark.md"
_FIGURE = _ROOT / "docs" / "_static" / "benchmark.svg"
_BARS_LINK = "docs/_static/methods.svg"
_BARS = _ROOT / _BARS_LINK
_MAIN_BUDGET = 200
_CYCLES = RESULTS / "2026-11-24_quality_2-core-cpu"

_READING = (
    "Each ratio is the test loss of `miha` divided by that of the method, paired over seeds, as a "
    "geometric mean over tasks of equal weight. Below 1, `miha` is better. The standard error "
    "after ± is over tasks, as if they were drawn from a population; the one in parentheses is "
    "over seeds, for these tasks. Standard errors of single tasks are over seeds."
)
_CYCLES_READING = (
    '`Plan(anneal="cosine")` was the default before annealed rounds. It was measured with weight '
    "decays up to 0.1, the default choices of that version; those of `miha` go up to 0.5. Groups "
    "of tasks have standard errors over tasks (and over seeds), single tasks over seeds."
)
_ABLATIONS_READING = (
    'Test loss of `Plan(anneal="cosine")` divided by that of the same plan with one change, with '
    "standard errors over seeds. Above 1, the change lowers the test loss; below 1, it raises it. "
    "The number of tasks is in parentheses."
)

_IMAGE = (
    "![Test loss by task and method, relative to the initial configuration without search.]"
    "(_static/benchmark.svg)"
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the tables and the figure, or check them.

    Args:
        arguments: Command-line arguments; :obj:`None` means those of this process.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder that contains the result folders"
    )
    parser.add_argument(
        "--cycles",
        type=Path,
        default=_CYCLES,
        help="folder of runs of the plan of cycles, called miha there, and of its variants",
    )
    parser.add_argument("--readme", type=Path, default=_README, help="README to update")
    parser.add_argument("--page", type=Path, default=_PAGE, help="page to update")
    parser.add_argument("--figure", type=Path, default=_FIGURE, help="SVG to write")
    parser.add_argument("--bars", type=Path, default=_BARS, help="SVG for the README to write")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 if a file is out of date"
    )
    args = parser.parse_args(arguments)
    try:
        folder = newest_runs(args.results)
        rows = read_runs(folder / "runs.jsonl")
        budgets = _budgets(rows)
        main_one = _main_budget(budgets)
        cycles = read_runs(args.cycles / "runs.jsonl")
        content = page(rows, budgets, folder) + "\n\n" + cycles_section(rows, cycles, args.cycles)
        blocks = {args.readme: summary(main_one, folder), args.page: content}
        texts = {path: path.read_text(encoding="utf-8") for path in blocks}
        new = {path: with_block(texts[path], "quality", blocks[path]) for path in blocks}
        if not args.check:
            draw(main_one, args.figure)
            draw_bars(main_one, args.bars)
    except LookupError as error:
        sys.exit(str(error))
    stale = [path for path in new if new[path] != texts[path]]
    if not args.check:
        for path in stale:
            path.write_text(new[path], encoding="utf-8")
        return
    if not args.figure.exists() or digest(main_one) not in args.figure.read_text("utf-8"):
        stale.append(args.figure)
    if not args.bars.exists() or bars_digest(main_one) not in args.bars.read_text("utf-8"):
        stale.append(args.bars)
    if stale:
        named = " and ".join(map(str, stale))
        sys.exit(f"{named}: out of date; run python benchmarks/analyse.py.")


def summary(results: Results, folder: Path) -> str:
    """Generate the block of the README."""
    n_ordinary = len(tables.ordinary(results.tasks(TASKS)))
    return "\n".join(
        [
            f"![Bars of the test loss of each method, relative to no search]({_BARS_LINK})",
            "",
            f"Geometric means over {n_ordinary} small tasks, ± standard error over tasks; "
            f"{_seeds(results)}. {losses(results)} [All tasks](docs/benchmark.md), "
            f"[raw runs]({_link(folder)}).",
        ]
    )


def page(rows: Sequence[Row], budgets: Sequence[Results], folder: Path) -> str:
    """Generate the block of the documentation page."""
    present = {row["task"] for row in rows}
    tasks = [task for task in TASKS if task in present]
    lines = [_IMAGE, "", "## Tasks", "", *tables.tasks_table(tasks), ""]
    lines += ["## Methods", "", *tables.methods_table(rows), ""]
    for results in budgets:
        lines += [f"## {results.n_epochs} epochs", "", _READING, ""]
        lines += [*tables.summary_table(results), ""]
        lines += ["Test loss, mean ± standard deviation over seeds, the best mean in bold:", ""]
        lines += [*tables.spread_table(results), ""]
        lines += ["Test loss of `miha` / method by task, paired over seeds:", ""]
        lines += [*tables.paired_table(results), ""]
        accuracies = tables.accuracy_table(results)
        if accuracies:
            lines += ["Test accuracy, mean over seeds, the best in bold:", "", *accuracies, ""]
    lines.append(f"Raw runs: `benchmarks/results/{folder.name}/runs.jsonl`.")
    return "\n".join(lines)


def cycles_section(rows: Sequence[Row], cycles: Sequence[Row], folder: Path) -> str:
    """Generate the part of the page on the plan of cycles; empty without its runs.

    Args:
        rows: The newest rows.
        cycles: Rows in which ``miha`` is the plan of cycles.
        folder: Where these come from.
    """
    renamed = [
        row | {"method": tables.CYCLES} if row["method"] == tables.OURS else row for row in cycles
    ]
    lines = []
    own = [row for row in rows if row["method"] == tables.OURS]
    both = [*own, *(row for row in renamed if row["method"] == tables.CYCLES)]
    for n_epochs in sorted({row["n_epochs"] for row in own}):
        compared = tables.cycles_table(Results(both, n_epochs))
        if compared:
            lines += [f"### {n_epochs} epochs", "", *compared, ""]
    if lines:
        lines = ["## The plan of cycles", "", _CYCLES_READING, "", *lines]
    budgets = [Results(renamed, n_epochs) for n_epochs in sorted({r["n_epochs"] for r in renamed})]
    ablations = tables.ablation_table(budgets)
    if ablations:
        lines += ["## Ablations of the plan of cycles", "", _ABLATIONS_READING, "", *ablations, ""]
    if lines:
        lines.append(f"Raw runs: `benchmarks/results/{folder.name}/runs.jsonl`.")
    return "\n".join(lines)


def _budgets(rows: Sequence[Row]) -> list[Results]:
    """The results of every budget that has a finite loss.

    Raises:
        LookupError: If there is no such budget.
    """
    found = [Results(rows, n_epochs) for n_epochs in sorted({row["n_epochs"] for row in rows})]
    found = [results for results in found if results.tasks(TASKS)]
    if not found:
        raise LookupError("The results hold no run that ended with a finite loss.")
    return found


def _main_budget(budgets: Sequence[Results]) -> Results:
    """The budget shown in the README: the one closest to 200 epochs."""
    return min(budgets, key=lambda results: abs(results.n_epochs - _MAIN_BUDGET))


def _seeds(results: Results) -> str:
    n_seeds = len({row["seed"] for row in results.rows if row["method"] == tables.OURS})
    return "one seed" if n_seeds == 1 else f"{n_seeds} seeds"


def _link(folder: Path) -> str:
    """The path relative to the README, if possible."""
    try:
        return folder.resolve().relative_to(_ROOT).as_posix()
    except ValueError:
        return folder.as_posix()


if __name__ == "__main__":
    main()
