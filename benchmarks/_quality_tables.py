"""Tables of the quality benchmark, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from _quality import Ratio, Results
from _rows import Row
from methods import METHODS, Method
from tasks import TASKS

OURS = "miha"
CYCLES = "miha-cycles"
"""The plan of cycles at a constant learning rate, which the variants change."""
SEEN = ("friedman1", "friedman1-poor")
"""Tasks of the half ``confirmation`` whose data were used when the default plan was made."""
COMPARED = [method.name for method in METHODS.values() if method.role != "variant"]
VARIANTS = [method.name for method in METHODS.values() if method.role == "variant"]


def summary_table(results: Results) -> list[str]:
    """Ours relative to each method: ratios over groups of tasks, mean rank, worst task."""
    tasks = results.tasks(TASKS)
    methods = results.methods(COMPARED)
    ranked, common = results.ranked(methods, tasks)
    ranks = results.mean_ranks(ranked, common)
    groups = _groups(tasks)
    heads = [f"miha / method, {name} ({len(members)})" for name, members in groups.items()]
    usual = ordinary(tasks)
    headroom = f"lowest test loss / method, without poor starts ({len(usual)})"
    heads += ["lower on", "mean rank", "worst task, relative to the best", headroom]
    lines = _header(["method", *heads])
    for method in methods:
        cells = [method]
        if method == OURS:
            cells += ["1"] + [""] * len(groups)
        else:
            cells += [_full(results.ratio(OURS, method, group)) for group in groups.values()]
            cells.append(_wins(results, method, tasks))
        if method in ranks and len(ranked) > 1:
            worst, task = results.worst(method, ranked, common)
            cells += [f"{ranks[method]:.1f}", f"{worst:.2f} ({task})"]
            cells.append(_full(results.headroom(method, ranked, usual)))
        else:
            cells += ["", "", ""]
        lines.append(_row(cells))
    return lines


def spread_table(results: Results) -> list[str]:
    """Mean ± standard deviation of the test loss, the best in bold."""
    return _losses(results, results.tasks(TASKS), results.methods(COMPARED), spread=True)


def accuracy_table(results: Results) -> list[str]:
    """Mean test accuracy of the classification tasks, the best in bold; empty without any."""
    methods = results.methods(COMPARED)
    lines = _header(["task", *methods])
    n_lines = len(lines)
    for task in results.tasks(TASKS):
        cells = {m: results.cell(task, m, "accuracy") for m in methods}
        means = {m: round(cell.mean, 4) for m, cell in cells.items() if cell is not None}
        if means:
            best = max(means.values())
            texts = [
                _bold(f"{means[m]:.4f}", means[m] == best) if m in means else "" for m in cells
            ]
            lines.append(_row([task, *texts]))
    return lines if len(lines) > n_lines else []


def paired_table(results: Results) -> list[str]:
    """Ours relative to each other method, by task, over common seeds."""
    methods = [method for method in results.methods(COMPARED) if method != OURS]
    lines = _header(["task", *methods])
    for task in results.tasks(TASKS):
        lines.append(_row([task, *(_ratio(results.ratio(OURS, m, [task])) for m in methods)]))
    return lines


def cycles_table(results: Results) -> list[str]:
    """Ours relative to the plan of cycles, by group of tasks and by task; empty without any."""
    tasks = results.tasks(TASKS)
    groups = _groups(tasks) | {task: [task] for task in tasks}
    lines = _header(["tasks", "miha / plan of cycles"])
    n_lines = len(lines)
    for name, members in groups.items():
        ratio = results.ratio(OURS, CYCLES, members)
        if ratio is not None:
            count = f" ({ratio.n_tasks})" if len(members) > 1 else ""
            text = ratio.full_text() if len(members) > 1 else ratio.text()
            lines.append(_row([name + count, text]))
    return lines if len(lines) > n_lines else []


def ablation_table(budgets: Sequence[Results]) -> list[str]:
    """The plan of cycles relative to its variants, by budget; empty without any."""
    budgets = [results for results in budgets if results.methods(VARIANTS)]
    variants = [v for v in VARIANTS if any(v in results.methods(VARIANTS) for results in budgets)]
    if not variants:
        return []
    heads = [
        f"plan of cycles / variant at {results.n_epochs}{end}"
        for results in budgets
        for end in (", all", ", without poor starts")
    ]
    lines = _header(["variant", "change", *heads])
    for variant in variants:
        cells = []
        for results in budgets:
            tasks = results.tasks(TASKS)
            for group in (tasks, ordinary(tasks)):
                cells.append(_ratio(results.ratio(CYCLES, variant, group), count=True))
        lines.append(_row([variant, METHODS[variant].description, *cells]))
    return lines


def tasks_table(names: Iterable[str]) -> list[str]:
    """The tasks."""
    lines = _header(["task", "kind", "data and network", "half"])
    for task in (TASKS[name] for name in names):
        lines.append(_row([task.name, task.kind, task.description, task.half]))
    return lines


def methods_table(rows: Sequence[Row]) -> list[str]:
    """The methods, with their numbers of runs and of failed runs."""
    lines = _header(["method", "description", "runs", "failed"])
    for method in METHODS.values():
        own = [row for row in rows if row["method"] == method.name]
        if own:
            lines.append(_row([method.name, *_counts(method, own)]))
    return lines


def _losses(
    results: Results, tasks: Sequence[str], methods: Sequence[str], *, spread: bool
) -> list[str]:
    counts = [len(c.values) for t in tasks for m in methods if (c := results.cell(t, m))]
    most = max(counts, default=0)
    lines = _header(["task", *methods])
    for task in tasks:
        best = results.best(task, methods)
        cells = []
        for method in methods:
            cell = results.cell(task, method)
            if cell is None:
                cells.append("")
                continue
            text = _bold(_number(cell.mean), method == best)
            text += f" ± {cell.sd:.2g}" if spread and cell.sd is not None else ""
            cells.append(text + ("" if len(cell.values) == most else f" (n={len(cell.values)})"))
        lines.append(_row([task, *cells]))
    return [*lines, "", f"n = {most} unless stated otherwise."]


def _counts(method: Method, rows: Sequence[Row]) -> list[str]:
    failed = sum((row["test"] or {}).get("loss") is None for row in rows)
    return [method.description, str(len(rows)), str(failed)]


def _groups(tasks: Sequence[str]) -> dict[str, list[str]]:
    """Non-empty groups of tasks over which ratios are averaged."""
    groups = {"all": list(tasks), "without poor starts": ordinary(tasks)}
    for half in ("development", "confirmation"):
        groups[half] = [name for name in tasks if TASKS[name].half == half]
    unseen = [name for name in groups["confirmation"] if name not in SEEN]
    groups[f"confirmation without {SEEN[0]}"] = unseen
    return {name: members for name, members in groups.items() if members}


def ordinary(tasks: Iterable[str]) -> list[str]:
    return [name for name in tasks if not TASKS[name].deliberately_poor]


def _wins(results: Results, method: str, tasks: Sequence[str]) -> str:
    """The number of tasks on which ours has the lower geometric mean."""
    ratios = [ratio for task in tasks if (ratio := results.ratio(OURS, method, [task]))]
    return f"{sum(ratio.log < 0 for ratio in ratios)} of {len(ratios)}"


def _ratio(ratio: Ratio | None, *, count: bool = False) -> str:
    if ratio is None:
        return ""
    return ratio.text() + (f" ({ratio.n_tasks})" if count else "")


def _full(ratio: Ratio | None) -> str:
    return "" if ratio is None else ratio.full_text()


def _number(value: float) -> str:
    return f"{value:.3g}"


def _bold(text: str, is_bold: bool) -> str:
    return f"**{text}**" if is_bold else text


def _header(names: Sequence[str]) -> list[str]:
    return [_row(names), "|---" * len(names) + "|"]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
