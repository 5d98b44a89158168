"""Colours, sizes, axes and text that all figures share."""

from __future__ import annotations

import html
import importlib
import math
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from optuna_miha._history.optional_imports import try_import

# The palette of Okabe and Ito, which is distinguishable with any colour vision.
BLACK, GREY = "#000000", "#999999"
ORANGE, SKY, GREEN, YELLOW = "#E69F00", "#56B4E9", "#009E73", "#F0E442"
BLUE, VERMILION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"

INK = "#222222"
LINE = "#555555"
GRID = "#E8E8E8"
BAND = "#F3F3F3"

WIDTH, HEIGHT = 1000, 520
"""Default size in pixels. A page may scale the width; labels are laid out for this one."""

LEFT, BOTTOM = 78, 58
"""Margins for tick labels and axis titles, in pixels."""

FONT, SMALL, TITLE = 13, 12, 17
"""Font sizes in pixels."""

DPI = 100
"""Pixels of a figure per inch of a picture file."""

POINT = 72 / DPI
"""Points per pixel."""

_LOG_FACTOR = 3
"""Positive values that differ by more than this factor are shown on a log scale."""

_SHOWN_QUANTILE = 0.96
"""Share of the values that an axis always shows."""

_MANTISSAS: tuple[tuple[float, ...], ...] = (
    (1,),
    (1, 3),
    (1, 2, 5),
    (1, 1.5, 2, 3, 5, 7),
    (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9),
    tuple(k / 20 for k in range(20, 200)),
)
_MAX_TICKS = 7

_MAX_EXPONENT = math.log10(sys.float_info.max)


def import_plotly() -> Any:
    """Import :mod:`plotly.graph_objects`.

    Raises:
        ImportError: If plotly is not installed.
    """
    with try_import("plotly", needed_by="The figure"):
        return importlib.import_module("plotly.graph_objects")


def blank_figure(title: str, *, height: int = HEIGHT, top: int = 60, right: int = 190) -> Any:
    """Create a figure without traces, in the common style.

    Args:
        title: Title of the figure.
        height: Height of the whole figure, in pixels.
        top: Margin above the plot area, in pixels.
        right: Margin to the right of the plot area, for the legend, in pixels.
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
    """Escape text for a label, which plotly parses as HTML."""
    return html.escape(text, quote=False)


def unescape(text: str) -> str:
    """Convert an escaped label back to plain text."""
    return html.unescape(text.replace("<br>", "\n"))


def length(text: str) -> int:
    """Number of characters in the longest line of an escaped text."""
    return max(len(html.unescape(line)) for line in text.split("<br>"))


def format_mutation(mutation: str, *, max_length: int | None = None) -> str:
    """Format the description of a mutation for a label.

    Args:
        mutation: The description stored in the trial.
        max_length: Truncate to this many characters; :obj:`None`: break lines instead.
    """
    text = mutation.replace("->", "→")
    if max_length is not None:
        return escape(shorten(text, max_length))
    lines = textwrap.wrap(text, 60, break_long_words=False)
    return "<br>".join(escape(line) for line in lines)


def shorten(text: str, max_length: int) -> str:
    """Truncate ``text`` to ``max_length`` characters."""
    return text if len(text) <= max_length else f"{text[: max_length - 1].rstrip(' ,')}…"


def is_log_scale(values: Sequence[float]) -> bool:
    """Whether ``values`` are positive and too far apart for a linear scale."""
    return bool(values) and min(values) > 0 and max(values) > _LOG_FACTOR * min(values)


def scale(low: float, high: float, *, is_log: bool) -> dict[str, Any]:
    """Settings of an axis that runs from ``low`` to ``high``; a log axis has round ticks."""
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
    """Settings of an axis for monitored values, which cuts off outliers on the worse side.

    Args:
        trunk: Values of segments that became the trunk; a log scale shows all of them.
        others: All other values.
        is_loss: Whether smaller values are better.
    """
    values = [*trunk, *others]
    if not is_loss:
        return scale(-_upper_limit([-v for v in values]), max(values), is_log=False)
    low, high = min(values), max(*trunk, _upper_limit(values))
    if is_log_scale([low, high]):
        return scale(low, high, is_log=True)
    return scale(low, _upper_limit(values), is_log=False)


def _upper_limit(values: Sequence[float]) -> float:
    """The maximum, or a high quantile if the values above it would take half of the axis."""
    usual = float(np.quantile(values, _SHOWN_QUANTILE))
    return usual if max(values) - min(values) > 2 * (usual - min(values)) else max(values)


def number(value: Any) -> str:
    """Format a value in few characters: ``0.0005``, ``1e-5``, ``relu``."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.4g}".replace("e-0", "e-").replace("e+0", "e")


def _log_ticks(bottom: float, top: float) -> list[float]:
    """As many round values between two powers of ten as are readable."""
    top = min(top, _MAX_EXPONENT)  # The margin above the data may exceed the largest float.
    chosen: list[float] = []
    for mantissas in _MANTISSAS:
        ticks = [
            float(f"{mantissa * 10.0**power:.6g}")
            for power in range(math.floor(bottom), math.ceil(top) + 1)
            for mantissa in mantissas
            if bottom <= math.log10(mantissa) + power <= top
        ]
        if len(ticks) > _MAX_TICKS:
            # Many decades: every second or third power of ten.
            return chosen or ticks[:: math.ceil(len(ticks) / _MAX_TICKS)]
        chosen = ticks
    return chosen
