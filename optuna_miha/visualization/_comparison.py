"""The figure of a comparison of methods."""

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

Curve: TypeAlias = Sequence[tuple[int, float]]
"""Pairs of trained epochs and the best value so far."""

_COLOURS = {
    "miha": VERMILION,
    "miha-classic": ORANGE,
    "tpe-median": BLUE,
    "hyperband": SKY,
    "random": GREEN,
    "tpe-retrain": PURPLE,
    "no-search": BLACK,
    "no-search-cosine": GREY,
    "rates-cosine": GREY,
}
_DASHED = {"miha-classic", "hyperband", "tpe-retrain", "no-search-cosine"}
"""One of each pair of similar colours, so that both are distinguishable in greyscale."""


def plot_comparison(comparison: Comparison) -> Any:
    """Plot the best validation value so far over the number of trained epochs.

    Each line is the mean of one method over seeds; its band is plus and minus one standard error.

    Args:
        comparison: The return value of :func:`~optuna_miha.compare`.

    Returns:
        A plotly ``Figure``.

    Raises:
        ImportError: If plotly is not installed.
        TypeError: If ``comparison`` is not a comparison.
    """
    if not isinstance(comparison, Comparison):
        raise TypeError(
            f"`comparison` must be an optuna_miha.Comparison, got "
            f"{type(comparison).__qualname__}: pass the return value of `optuna_miha.compare`."
        )
    curves: dict[str, list[Curve]] = {}
    for run in comparison.runs:
        curves.setdefault(run.method, []).append(run.curve)
    end = max((run.epochs for run in comparison.runs), default=0)
    means = {
        method: _mean_curve([c for c in of_seeds if c], end) for method, of_seeds in curves.items()
    }
    drawn = {method: mean for method, mean in means.items() if mean is not None}
    values = [value for of_seeds in curves.values() for curve in of_seeds for _, value in curve]
    is_log = is_log_scale(values)

    figure = blank_figure("Comparison")
    for method, (epochs, centre, error) in drawn.items():
        low, high = centre - error, centre + error
        if is_log:  # A log axis has no values below zero.
            low = np.maximum(low, min(values))
        _add_band(figure, method, epochs, low, high)
    for method, (epochs, centre, _) in drawn.items():  # Lines are drawn above all bands.
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
        title_text="epochs trained, including all trials and branches", range=[0, max(end, 1)]
    )
    figure.update_yaxes(title_text=f"best validation {escape(comparison.monitor)} so far")
    if drawn:
        shown = np.concatenate([[*(m - e), *(m + e)] for _, m, e in drawn.values()])
        low = max(float(shown.min()), min(values)) if is_log else float(shown.min())
        figure.update_yaxes(**scale(low, float(shown.max()), is_log=is_log))
    return figure


def _colour(method: str) -> str:
    return _COLOURS.get(method, BLACK)


def _add_band(figure: Any, method: str, epochs: Any, low: Any, high: Any) -> None:
    band: dict[str, Any] = {"mode": "lines", "line": {"width": 0, "shape": "hv"}}
    band |= {"legendgroup": method, "showlegend": False, "hoverinfo": "skip"}
    colour = _colour(method)
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    figure.add_scatter(x=epochs, y=high, **band)
    figure.add_scatter(
        x=epochs, y=low, fill="tonexty", fillcolor=f"rgba({red},{green},{blue},0.15)", **band
    )


def _mean_curve(curves: Sequence[Curve], end: int) -> tuple[Any, Any, Any] | None:
    """Epochs, mean and standard error, starting where every seed has a value.

    Args:
        curves: The curves of one method, none of them empty.
        end: The last epoch.
    """
    if not curves:
        return None
    first = max(curve[0][0] for curve in curves)
    epochs = np.array(sorted({e for curve in curves for e, _ in curve if e >= first} | {end}))
    rows = []
    for curve in curves:
        curve_epochs, values = (np.array(column) for column in zip(*curve, strict=True))
        rows.append(values[np.searchsorted(curve_epochs, epochs, side="right") - 1])
    table = np.array(rows)
    error = np.zeros(len(epochs))
    if len(table) > 1:
        error = table.std(axis=0, ddof=1) / math.sqrt(len(table))
    return epochs, table.mean(axis=0), error
