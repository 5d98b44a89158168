"""The figure of a comparison."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

Course: TypeAlias = Sequence[tuple[int, float]]
"""Pairs of epochs spent and the best value so far."""

# Okabe and Ito's palette, which can be told apart with any colour vision; grey in place of
# yellow, which is hard to see on white.
_COLOURS = {
    "miha": "#D55E00",
    "miha-classic": "#E69F00",
    "tpe-median": "#0072B2",
    "hyperband": "#56B4E9",
    "random": "#009E73",
    "tpe-retrain": "#CC79A7",
    "no-search": "#000000",
    "no-search-cosine": "#999999",
}
_DASHED = {"miha-classic", "hyperband", "tpe-retrain", "no-search-cosine"}
"""One of each pair of similar colours, so that they differ in grey print, too."""

_PROMINENT = "miha"
_LOG_FACTOR = 5


def import_plotly() -> Any:
    """The module :mod:`plotly.graph_objects`.

    Raises:
        ImportError: If plotly is not installed.
    """
    try:
        return importlib.import_module("plotly.graph_objects")
    except ImportError as error:
        raise ImportError("The figure needs plotly: pip install plotly.") from error


def make_figure(courses: Mapping[str, Sequence[Course]], end: int, monitor: str) -> Any:
    """Mean and standard error of the best value so far, by epochs spent.

    Args:
        courses: For each method, one for each seed.
        end: Epochs up to which lines are drawn.
        monitor: What the values are.

    Returns:
        A plotly ``Figure``.

    Raises:
        ImportError: If plotly is not installed.
    """
    go = import_plotly()
    values = [value for several in courses.values() for one in several for _, value in one]
    is_log = bool(values) and min(values) > 0 and max(values) > _LOG_FACTOR * min(values)
    means = {method: _mean_course([c for c in many if c], end) for method, many in courses.items()}
    drawn = {method: found for method, found in means.items() if found is not None}
    figure = go.Figure()
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
            "width": 3.5 if method == _PROMINENT else 2,
            "dash": "dash" if method in _DASHED else "solid",
            "shape": "hv",
        }
        figure.add_scatter(
            x=epochs, y=centre, name=method, mode="lines", legendgroup=method, line=line
        )
    figure.update_layout(
        template="simple_white",
        xaxis_title="epochs trained, every trial and branch counted",
        yaxis_title=f"best validation {monitor} so far",
        yaxis_type="log" if is_log else "linear",
        legend_title="mean ± standard error",
        hovermode="x unified",
    )
    return figure


def _colour(method: str) -> str:
    return _COLOURS.get(method, "#000000")


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
