"""The figure of a comparison."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from optuna_miha._results.comparison import REFERENCE, Comparison
from optuna_miha.visualization._style import (
    BLACK,
    BLUE,
    FONT,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    blank_figure,
    escape,
    is_log_scale,
    scale,
)

Course: TypeAlias = Sequence[tuple[int, float]]
"""Pairs of epochs spent and the best value so far."""

_COLOURS = {
    "miha": VERMILION,
    "miha-classic": ORANGE,
    "tpe-median": BLUE,
    "hyperband": SKY,
    "random": GREEN,
    "tpe-retrain": PURPLE,
    "no-search": BLACK,
    "no-search-cosine": GREY,
}
_DASHED = {"miha-classic", "hyperband", "tpe-retrain", "no-search-cosine"}
"""One of each pair of similar colours, so that they differ in grey print, too."""


def plot_comparison(comparison: Comparison) -> Any:
    """Best validation value so far over the epochs spent.

    A line is the mean over seeds of one method, its band one standard error up and down.

    Args:
        comparison: What :func:`~optuna_miha.compare` returned.

    Returns:
        A plotly ``Figure``.

    Raises:
        ImportError: If plotly is not installed.
        TypeError: If ``comparison`` is not a comparison.
    """
    if not isinstance(comparison, Comparison):
        raise TypeError(
            f"`comparison` must be an optuna_miha.Comparison, got "
            f"{type(comparison).__qualname__}: pass what `optuna_miha.compare` returned."
        )
    courses: dict[str, list[Course]] = {}
    for run in comparison.runs:
        courses.setdefault(run.method, []).append(run.curve)
    end = max((run.epochs for run in comparison.runs), default=0)
    means = {method: _mean_course([c for c in many if c], end) for method, many in courses.items()}
    drawn = {method: found for method, found in means.items() if found is not None}
    values = [value for many in courses.values() for one in many for _, value in one]
    is_log = is_log_scale(values)

    figure = blank_figure("Comparison")
    for method, (epochs, centre, error) in drawn.items():
        low, high = centre - error, centre + error
        if is_log:  # There is nothing below zero.
            low = np.maximum(low, min(values))
        band: dict[str, Any] = {"mode": "lines", "line": {"width": 0, "shape": "hv"}}
        band |= {"legendgroup": method, "showlegend": False, "hoverinfo": "skip"}
        colour = _colour(method)
        red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
        figure.add_scatter(x=epochs, y=high, **band)
        figure.add_scatter(
            x=epochs, y=low, fill="tonexty", fillcolor=f"rgba({red},{green},{blue},0.15)", **band
        )
    for method, (epochs, centre, _) in drawn.items():  # Above all bands.
        line = {
            "color": _colour(method),
            "width": 3.5 if method == REFERENCE else 2,
            "dash": "dash" if method in _DASHED else "solid",
            "shape": "hv",
        }
        figure.add_scatter(
            x=epochs, y=centre, name=escape(method), mode="lines", legendgroup=method, line=line
        )
    title = {"text": "mean ± standard error", "font": {"size": FONT}}
    figure.update_layout(legend_title=title, hovermode="x unified")
    figure.update_xaxes(
        title_text="epochs trained, every trial and branch counted", range=[0, max(end, 1)]
    )
    figure.update_yaxes(title_text=f"best validation {escape(comparison.monitor)} so far")
    if drawn:
        shown = np.concatenate([[*(m - e), *(m + e)] for _, m, e in drawn.values()])
        low = max(float(shown.min()), min(values)) if is_log else float(shown.min())
        figure.update_yaxes(**scale(low, float(shown.max()), is_log=is_log))
    return figure


def _colour(method: str) -> str:
    return _COLOURS.get(method, BLACK)


def _mean_course(courses: Sequence[Course], end: int) -> tuple[Any, Any, Any] | None:
    """Epochs, mean and standard error, from where on every seed has a value."""
    if not courses:
        return None
    first = max(course[0][0] for course in courses)
    epochs = np.array(sorted({e for one in courses for e, _ in one if e >= first} | {end}))
    rows = []
    for course in courses:
        at, values = (np.array(column) for column in zip(*course, strict=True))
        rows.append(values[np.searchsorted(at, epochs, side="right") - 1])
    table = np.array(rows)
    error = np.zeros(len(epochs))
    if len(table) > 1:
        error = table.std(axis=0, ddof=1) / math.sqrt(len(table))
    return epochs, table.mean(axis=0), error
