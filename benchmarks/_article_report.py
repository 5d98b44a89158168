"""Tables and figures of the article's experiments, made from the rows of ``raw.jsonl``."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from _rows import Row

from optuna_miha._results.comparison import Comparison, Run
from optuna_miha._results.significance import mean, sign_flip_p

OURS, FIXED, LINEAR = "miha", "no-search", "linear-output"

# Okabe and Ito's palette, which is safe for colour-blind readers.
STYLES: Mapping[str, tuple[str, str, str]] = {
    OURS: ("optuna_miha", "#D55E00", "-"),
    "miha-classic": ("the published loop", "#E69F00", "--"),
    "tpe-median": ("TPE, median pruner", "#0072B2", "-"),
    "hyperband": ("TPE, Hyperband", "#56B4E9", "--"),
    FIXED: ("initial configuration", "#000000", "-"),
    "no-search-cosine": ("initial configuration, cosine", "#999999", "--"),
    LINEAR: ("initial configuration, linear output", "#009E73", "--"),
}
"""Displayed name, colour and line style of each method, in the order of the tables."""

_RUN = tuple(Run.__dataclass_fields__)


def write_report(rows: Sequence[Row], source: str, docs: Path) -> str:
    """Write ``docs/_article_tables.inc`` and ``docs/_static/article.png``.

    Args:
        rows: The rows of ``raw.jsonl``.
        source: Name of the folder that the rows come from.
        docs: The folder ``docs``.

    Returns:
        The text of the tables.
    """
    tables: list[str] = []
    of = {name: [row for row in rows if row["experiment"] == name] for name in ("mnist", "gaps")}
    if of["mnist"]:
        tables += mnist_table(of["mnist"])
    if of["gaps"]:
        tables += gaps_tables(of["gaps"])
    tables.append(f"Raw runs: ``benchmarks/results/{source}/raw.jsonl``.")
    text = "\n".join(tables) + "\n"
    (docs / "_static").mkdir(parents=True, exist_ok=True)
    (docs / "_article_tables.inc").write_text(text, encoding="utf-8")
    draw(of["mnist"], of["gaps"], docs / "_static" / "article.png")
    return text


def mnist_table(rows: Sequence[Row]) -> list[str]:
    """Test accuracy and loss of all methods."""
    comparison = Comparison(runs=tuple(map(_run, rows)))
    found = {row["method"]: row for row in comparison.table()}
    cells = []
    for method in _present(rows):
        row = found[method]
        difference = ""
        if method != OURS and row["test accuracy vs miha n"]:
            values = [row[f"test accuracy vs miha{end}"] for end in ("", " se", " p")]
            difference = f"{values[0]:+.4f} ± {values[1] or math.nan:.4f} (p {values[2]:.2g})"
        cells.append(
            [
                STYLES[method][0],
                f"{row['n']}",
                _spread(row["test accuracy"], row["test accuracy sd"], 4),
                difference,
                _spread(row["test loss"], row["test loss sd"], 4),
                f"{row['epochs']:g}",
            ]
        )
    header = ["method", "seeds", "test accuracy", "difference", "test loss", "epochs"]
    return _table(
        "MNIST, 784-400-10: 8,000 training, 2,000 validation and 10,000 test samples. The "
        "difference is to optuna_miha.",
        header,
        cells,
    )


def gaps_tables(rows: Sequence[Row]) -> list[str]:
    """Mean squared errors, ratios by group of seeds, and what changed the output activation."""
    groups = {
        "alive at the start": [row for row in rows if not row["dead"]],
        "dead at the start": [row for row in rows if row["dead"]],
        "all": list(rows),
    }
    errors, compared = [], []
    for group, members in groups.items():
        for method in _present(members):
            values = _by_seed(members, method, _test)
            errors.append(
                [group, STYLES[method][0], f"{len(values)}", _median(values.values(), 5)]
            )
        for reference in (FIXED, LINEAR, "miha-classic"):
            valid, test = (_ratios(members, reference, metric) for metric in (_value, _test))
            if test:
                logs = [math.log(ratio) for ratio in test]
                row = [group, STYLES[reference][0], f"{len(test)}", _median(valid, 3)]
                row += [
                    _median(test, 3),
                    f"{math.exp(mean(logs)):.3f}",
                    f"{sign_flip_p(logs):.2g}",
                ]
                compared.append(row)
    lines = _table(
        "Gap filling: mean squared error on test fields. Predicting the mean gives 0.0277.",
        ["seeds", "method", "n", "median (lowest..highest)"],
        errors,
    )
    lines += _table(
        "Gap filling: error of optuna_miha divided by that of another method with the same seed. "
        "Medians (lowest..highest), and the geometric mean.",
        [
            "seeds",
            "divided by",
            "n",
            "validation, median",
            "test, median",
            "test, geometric mean",
            "p",
        ],
        compared,
    )
    return lines + _table(
        "Gap filling: the segment of the optuna_miha run that replaced the ReLU at the output",
        ["seeds", "segment", "new activation: number of seeds"],
        [
            [group, segment, ", ".join(f"{output}: {n}" for output, n in counts.most_common())]
            for group in list(groups)[:2]
            for segment, counts in _changes(groups[group]).items()
        ],
    )


def draw(mnist: Sequence[Row], gaps: Sequence[Row], path: Path) -> None:
    """Plot the best validation error so far over the epochs spent, one panel per group of runs.

    A line is the median over seeds. The bands of optuna_miha and of the initial configuration
    span the quartiles.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = {
        "MNIST": mnist,
        "Gap filling, alive at the start": [row for row in gaps if not row["dead"]],
        "Gap filling, dead at the start": [row for row in gaps if row["dead"]],
    }
    panels = {title: rows for title, rows in panels.items() if rows}
    width = 4.2 * max(1, len(panels))
    figure, all_axes = plt.subplots(1, len(panels), figsize=(width, 4.4), dpi=130, squeeze=False)
    for axes, (title, rows) in zip(all_axes[0], panels.items(), strict=True):
        end = max(row["epochs"] for row in rows)
        is_accuracy = rows[0]["monitor"] == "accuracy"
        for method in _present(rows):
            curves = [_steps(row["curve"], end) for row in rows if row["method"] == method]
            low, middle, high = (_quantile(curves, q) for q in (0.25, 0.5, 0.75))
            if is_accuracy:
                low, middle, high = ([100 * (1 - v) for v in line] for line in (high, middle, low))
            label, colour, line = STYLES[method]
            epochs = range(1, end + 1)
            axes.plot(epochs, middle, line, color=colour, label=label, linewidth=1.8)
            if method in (OURS, FIXED):
                axes.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set(title=title, xlabel="epochs spent", yscale="log")
        axes.set_ylabel("validation error, %" if is_accuracy else "validation loss")
        if is_accuracy:  # The large errors of the first epochs would hide the rest.
            axes.set_ylim(top=8)
        axes.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
        axes.yaxis.set_minor_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
        axes.yaxis.set_minor_locator(matplotlib.ticker.LogLocator(subs=(2.0, 5.0)))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, which="both")
        axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)


def _run(row: Row) -> Run:
    # The first rows were written before there were simulated workers.
    return Run.from_dict({name: row[name] for name in _RUN if name in row})


def _present(rows: Iterable[Row]) -> list[str]:
    """The methods that have rows, in the order of the tables."""
    methods = {row["method"] for row in rows}
    return [method for method in STYLES if method in methods]


def _test(row: Row) -> float:
    return float(row["test"]["loss"])


def _value(row: Row) -> float:
    return float(row["value"])


def _by_seed(rows: Iterable[Row], method: str, metric: Callable[[Row], float]) -> dict[int, float]:
    return {row["seed"]: metric(row) for row in rows if row["method"] == method}


def _ratios(rows: Sequence[Row], reference: str, metric: Callable[[Row], float]) -> list[float]:
    """The value of optuna_miha divided by that of the reference, for every common seed."""
    ours, theirs = (_by_seed(rows, method, metric) for method in (OURS, reference))
    return [ours[seed] / theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]


def _changes(rows: Iterable[Row]) -> dict[str, Counter[str]]:
    """How often each output activation appeared first, by kind of segment."""
    found: dict[str, Counter[str]] = {}
    for row in rows:
        if row["method"] == OURS:
            change: Mapping[str, Any] = row["freed"] or {"role": "never", "output": "relu"}
            words = {"startup": "start-up race", "branch": "cycle"}
            role = words.get(change["role"], change["role"])
            found.setdefault(role, Counter())[change["output"]] += 1
    return dict(sorted(found.items(), key=lambda item: -item[1].total()))


def _steps(curve: Sequence[tuple[int, float]], end: int) -> list[float]:
    """The best value so far after each of the epochs 1 to ``end``."""
    found = {int(epoch): float(value) for epoch, value in curve}
    values, last = [], math.nan
    for epoch in range(1, end + 1):
        last = found.get(epoch, last)
        values.append(last)
    return values


def _quantile(curves: Sequence[Sequence[float]], q: float) -> list[float]:
    """A quantile over all curves at each epoch; NaN where a curve has no value yet."""
    import numpy as np

    return [float(value) for value in np.quantile(np.array(curves), q, axis=0)]


def _spread(centre: float, sd: float | None, digits: int) -> str:
    return f"{centre:.{digits}f}" + ("" if sd is None else f" (sd {sd:.{digits}f})")


def _median(values: Iterable[float], digits: int) -> str:
    values = list(values)
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f}..{high:.{digits}f})"


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A ``list-table`` directive; empty if there are no rows yet."""
    if not rows:
        return []
    lines = [f".. list-table:: {title}", "   :header-rows: 1", ""]
    for row in [header, *rows]:
        for index, cell in enumerate(row):
            lines.append(f"   {'*' if index == 0 else ' '} - {cell}".rstrip())
    return [*lines, ""]
