"""The figure of the quality benchmark: test loss by task, relative to no search."""

from __future__ import annotations

from pathlib import Path

from _quality import Results
from _quality_tables import COMPARED, OURS
from _svg import digest_of, pyplot, save
from tasks import TASKS

FIXED = "no-search"

# Okabe and Ito's palette, which is safe for colour-blind readers, with one marker per method.
_STYLES = {
    "miha": ("#D55E00", "o"),
    "miha-classic": ("#E69F00", "s"),
    "no-search-cosine": ("#999999", "D"),
    "tpe-median": ("#0072B2", "^"),
    "hyperband": ("#56B4E9", "v"),
    "random": ("#000000", "x"),
    "tpe-retrain": ("#009E73", "P"),
    "pbt": ("#CC79A7", "<"),
    "pbt-numbers": ("#7F5F00", ">"),
    "adamw-3": ("#882255", "p"),
}


def points(results: Results) -> dict[str, dict[str, float]]:
    """The plotted values by method and task: ratios of geometric means to no search."""
    found: dict[str, dict[str, float]] = {}
    for method in results.methods(COMPARED):
        for task in results.tasks(TASKS):
            ratio = results.ratio(method, FIXED, [task])
            if method != FIXED and ratio is not None:
                found.setdefault(method, {})[task] = round(ratio.value, 6)
    return found


def digest(results: Results) -> str:
    """A hash of the plotted values, stored in the figure to detect an outdated one."""
    return digest_of([results.n_epochs, points(results)])


def draw(results: Results, path: Path) -> None:
    """Write the figure as SVG.

    Raises:
        LookupError: If there is no run without search.
    """
    plt = pyplot("quality")
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    drawn = points(results)
    if not drawn:
        raise LookupError(f"The figure is drawn in ratios to {FIXED}, which was not run.")
    tasks = [task for task in TASKS if any(task in of_task for of_task in drawn.values())]
    figure, axes = plt.subplots(figsize=(9, 1.6 + 0.36 * len(tasks)))
    for row in range(0, len(tasks), 2):
        axes.axhspan(row - 0.5, row + 0.5, color="#F3F6FA", zorder=0)
    axes.axvline(1, color="#555555", linewidth=1, zorder=1)
    # Methods are offset within a row; ours is in front and larger.
    for index, (method, of_task) in enumerate(drawn.items()):
        colour, marker = _STYLES.get(method, ("#555555", "*"))
        is_ours = method == OURS
        offset = 0.0 if len(drawn) == 1 else 0.6 * (index / (len(drawn) - 1) - 0.5)
        axes.scatter(
            list(of_task.values()),
            [tasks.index(task) + offset for task in of_task],
            s=72 if is_ours else 34,
            color=colour,
            marker=marker,
            label=method,
            zorder=4 if is_ours else 3,
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="x", color="#D5DAE1", linewidth=0.6, zorder=0)
    axes.set_yticks(range(len(tasks)), tasks)
    axes.set_ylim(len(tasks) - 0.5, -0.5)
    axes.set_xlabel(
        f"test loss, ratio to the initial configuration alone; {results.n_epochs} epochs each"
    )
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="upper center", ncols=5, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.62 / figure.get_figheight()))
    save(figure, path, digest(results))
