"""The bar chart of the README: one bar per method, relative to the initial configuration."""

from __future__ import annotations

from pathlib import Path

from _quality import Results
from _quality_figure import FIXED
from _quality_tables import COMPARED, OURS, ordinary
from _svg import digest_of, pyplot, save
from methods import METHODS
from tasks import TASKS

_OURS_COLOUR, _COLOUR = "#D55E00", "#8FB8DE"


def bars(results: Results) -> dict[str, tuple[float, float]]:
    """Test loss relative to no search and its error over tasks, in per cent, the lowest first.

    Geometric means over the tasks whose initial configuration is not deliberately poor.

    Raises:
        LookupError: If there is no run without search.
    """
    found = {}
    for method in results.methods(COMPARED):
        ratio = results.ratio(method, FIXED, ordinary(results.tasks(TASKS)))
        if ratio is not None:
            error = 0.0 if ratio.task_se is None or method == FIXED else ratio.task_se
            found[method] = (round(100 * ratio.value, 3), round(100 * ratio.value * error, 3))
    if not found:
        raise LookupError(f"The bars are relative to {FIXED}, which was not run.")
    return dict(sorted(found.items(), key=lambda item: item[1]))


def losses(results: Results) -> str:
    """A sentence: where no search, and where any other method, has the lower test loss."""
    to_fixed, to_any = [], []
    for task in results.tasks(TASKS):
        ratios = {
            method: ratio
            for method in results.methods(COMPARED)
            if method != OURS and (ratio := results.ratio(OURS, method, [task])) is not None
        }
        lost = {m: r for m, r in ratios.items() if r.log > (r.se or 0.0)}
        if FIXED in lost:
            to_fixed.append(f"`{task}` (by {_percent(lost[FIXED].value)})")
        if lost:
            best = max(lost, key=lambda method: lost[method].log)
            to_any.append(f"`{task}` (by {_percent(lost[best].value)}, `{best}`)")
    return (
        "By more than one standard error over seeds, its test loss is higher than that of training"
        f" without a search on {', '.join(to_fixed) or 'no task'}, and higher than that of another"
        f" method on {', '.join(to_any) or 'no task'}."
    )


def _percent(ratio: float) -> str:
    above = 100 * (ratio - 1)
    return f"{above:.0f} %" if above >= 1 else f"{above:.1g} %"


def bars_digest(results: Results) -> str:
    """A hash of the drawn values, stored in the picture to detect an outdated one."""
    return digest_of([results.n_epochs, bars(results)])


def draw_bars(results: Results, path: Path) -> None:
    """Write the bar chart as SVG.

    Raises:
        LookupError: If there is no run without search.
    """
    plt = pyplot("bars")

    drawn = bars(results)
    figure, axes = plt.subplots(figsize=(6.6, 0.5 + 0.27 * len(drawn)))
    values = [value for value, _ in drawn.values()]
    axes.barh(
        [_label(method) for method in drawn],
        values,
        xerr=[error for _, error in drawn.values()],
        color=[_OURS_COLOUR if method == OURS else _COLOUR for method in drawn],
        error_kw={"elinewidth": 1, "ecolor": "#333333"},
        height=0.72,
    )
    for row, (value, error) in enumerate(drawn.values()):
        axes.text(
            value + error + 1.5,
            row,
            f"{value:.0f} %",
            va="center",
            fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},  # Hides the line at 100.
        )
    axes.invert_yaxis()
    axes.axvline(100, color="#555555", linewidth=0.8, linestyle=":")
    axes.set_xlim(0, 8 + max(value + error for value, error in drawn.values()))
    axes.set_xlabel(
        f"test loss relative to no search, {results.n_epochs} epochs each (lower is better)",
        fontsize=9,
    )
    axes.tick_params(axis="y", length=0, labelsize=9)
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.tight_layout(pad=0.3)
    save(figure, path, bars_digest(results))


_LABELS = {
    OURS: "optuna_miha",
    FIXED: "no search",
    "no-search-cosine": "no search, cosine annealing",
    "miha-classic": "MIHA as published",
    "tpe-median": "Optuna: TPE, median pruner",
    "hyperband": "Optuna: TPE, Hyperband",
    "random": "Optuna: random search",
    "tpe-retrain": "Optuna: TPE, then retraining",
    "pbt": "population based training",
    "adamw-3": "expert: AdamW at three rates",
}


def _label(method: str) -> str:
    return _LABELS.get(method, METHODS[method].description)
