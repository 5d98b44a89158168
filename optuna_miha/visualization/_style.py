"""The look that all figures share, and the text in them."""

from __future__ import annotations

import html
import importlib
import math
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

# Okabe and Ito's palette, which can be told apart with any colour vision.
BLACK, GREY = "#000000", "#999999"
ORANGE, SKY, GREEN, YELLOW = "#E69F00", "#56B4E9", "#009E73", "#F0E442"
BLUE, VERMILION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"

INK = "#222222"
LINE = "#555555"
GRID = "#E8E8E8"
BAND = "#F3F3F3"

WIDTH, HEIGHT = 1000, 520
"""Pixels. A figure is as wide as the page that shows it; its labels are laid out for this."""

LEFT, BOTTOM = 78, 58
"""Margins that have room for tick labels and the title of an axis, in pixels."""

FONT, SMALL, TITLE = 13, 12, 17
"""Font sizes in pixels."""

_LOG_FACTOR = 3
"""Values that differ by more than this are shown on a log scale."""

_USUAL = 0.96
"""Share of the values that an axis shows at least."""

_MANTISSAS: tuple[tuple[float, ...], ...] = (
    (1,),
    (1, 3),
    (1, 2, 5),
    (1, 1.5, 2, 3, 5, 7),
    (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9),
    tuple(k / 20 for k in range(20, 200)),
)
_MOST_TICKS = 7

_LARGEST = math.log10(sys.float_info.max)


def import_plotly() -> Any:
    """The module :mod:`plotly.graph_objects`.

    Raises:
        ImportError: If plotly is not installed.
    """
    try:
        return importlib.import_module("plotly.graph_objects")
    except ImportError as error:
        raise ImportError("The figure needs plotly: pip install plotly.") from error


def blank_figure(title: str, *, height: int = HEIGHT, top: int = 60, right: int = 190) -> Any:
    """A figure without traces, in the common look.

    Args:
        title: Its title.
        height: Of the whole figure, in pixels.
        top: Margin above the data, in pixels.
        right: Margin beside the data, where the legend goes, in pixels.
    """
    go = import_plotly()
    axis = {
        "gridcolor": GRID,
        "linecolor": LINE,
        "showgrid": True,
        "showline": True,
        "tickcolor": LINE,
        "tickfont": {"size": SMALL},
        "ticks": "outside",
        "title": {"font": {"size": FONT}},
        "zeroline": False,
    }
    look = {
        "font": {"size": FONT, "color": INK},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "xaxis": axis,
        "yaxis": axis,
        "hoverlabel": {"align": "left", "bgcolor": "white", "font": {"size": SMALL}},
    }
    return go.Figure(
        layout={
            "template": {"layout": look},
            "title": {
                "text": title,
                "font": {"size": TITLE},
                "x": 0,
                "xref": "paper",
                "y": 1 - 26 / height,
                "yanchor": "middle",
            },
            "height": height,
            "margin": {"l": LEFT, "r": right, "t": top, "b": BOTTOM},
            "legend": {"x": 1.02, "y": 1, "xanchor": "left", "yanchor": "top"},
            "hovermode": "closest",
        }
    )


def escape(text: str) -> str:
    """Text that a figure shows as it is, although plotly takes labels for HTML."""
    return html.escape(text, quote=False)


def length(text: str) -> int:
    """Characters of the longest line of an escaped text."""
    return max(len(html.unescape(line)) for line in text.split("<br>"))


def sentence(mutation: str, *, most: int | None = None) -> str:
    """A mutation in words, fit for a label.

    Args:
        mutation: The sentence of the trial.
        most: Cut after so many characters; :obj:`None`: break lines instead.
    """
    text = mutation.replace("->", "→")
    if most is not None:
        return escape(shorten(text, most))
    lines = textwrap.wrap(text, 60, break_long_words=False)
    return "<br>".join(escape(line) for line in lines)


def shorten(text: str, most: int) -> str:
    """``text``, cut after ``most`` characters."""
    return text if len(text) <= most else f"{text[: most - 1].rstrip(' ,')}…"


def is_log_scale(values: Sequence[float]) -> bool:
    """Whether positive ``values`` are too far apart for a linear scale."""
    return bool(values) and min(values) > 0 and max(values) > _LOG_FACTOR * min(values)


def scale(low: float, high: float, *, is_log: bool) -> dict[str, Any]:
    """Settings of an axis from ``low`` to ``high``, with ticks at round values."""
    if not is_log:
        pad = 0.04 * (high - low) or 0.1 * abs(high) or 1.0
        return {"type": "linear", "range": [low - pad, high + pad]}
    bottom, top = math.log10(low), math.log10(high)
    pad = 0.04 * (top - bottom) or 0.1
    bottom, top = bottom - pad, top + pad
    ticks = _log_ticks(bottom, top)
    return {
        "type": "log",
        "range": [bottom, top],
        "tickvals": ticks,
        "ticktext": [number(tick) for tick in ticks],
    }


def value_scale(
    trunk: Sequence[float], others: Sequence[float] = (), *, is_loss: bool
) -> dict[str, Any]:
    """Settings of an axis for monitored values, cut where hardly any of them are.

    Args:
        trunk: Values of what was chosen; on a log scale all of them are shown.
        others: All other values.
        is_loss: Whether the smaller value is better.
    """
    every = [*trunk, *others]
    if not is_loss:
        return scale(-_worst([-value for value in every]), max(every), is_log=False)
    low, high = min(every), max(*trunk, _worst(every))
    if is_log_scale([low, high]):
        return scale(low, high, is_log=True)
    return scale(low, _worst(every), is_log=False)


def _worst(values: Sequence[float]) -> float:
    """The largest of the values, or what nearly all are below if the rest takes half the axis."""
    usual = float(np.quantile(values, _USUAL))
    return usual if max(values) - min(values) > 2 * (usual - min(values)) else max(values)


def number(value: Any) -> str:
    """A value in few characters: ``0.0005``, ``1e-5``, ``relu``."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.4g}".replace("e-0", "e-").replace("e+0", "e")


def _log_ticks(bottom: float, top: float) -> list[float]:
    """Round values between two powers of ten, as many as are readable."""
    top = min(top, _LARGEST)  # The margin above what is drawn may leave the floats.
    chosen: list[float] = []
    for mantissas in _MANTISSAS:
        ticks = [
            float(f"{mantissa * 10.0**power:.6g}")
            for power in range(math.floor(bottom), math.ceil(top) + 1)
            for mantissa in mantissas
            if bottom <= math.log10(mantissa) + power <= top
        ]
        if len(ticks) > _MOST_TICKS:
            # Many decades: every second or third power of ten.
            return chosen or ticks[:: math.ceil(len(ticks) / _MOST_TICKS)]
        chosen = ticks
    return chosen
