"""Drawing plotly traces on matplotlib axes."""

from __future__ import annotations

import re
from typing import Any

from optuna_miha.visualization._style import INK, POINT, unescape

_DASHES = {"dash": (0, (5, 2.5)), "dot": (0, (1, 1.6))}
_MARKERS = {
    "circle": "o",
    "circle-open": "o",
    "star": "*",
    "triangle-down": "v",
    "triangle-left": "<",
    "triangle-right": ">",
    "x": "x",
}


def draw_scatter(panel: Any, trace: Any, previous: Any, zorder: int) -> None:
    """Draw lines, markers and filled bands.

    Args:
        panel: The matplotlib axes.
        trace: A plotly ``Scatter``.
        previous: The trace before it, which bounds the band of a trace that is filled.
        zorder: Traces with a higher value are drawn above.
    """
    x = [float("nan") if value is None else value for value in trace.x]
    y = [float("nan") if value is None else value for value in trace.y]
    steps = trace.line.shape == "hv"
    if trace.fill == "tonexty":
        colour = re.fullmatch(r"rgba\((\d+),(\d+),(\d+),([\d.]+)\)", trace.fillcolor)
        assert colour is not None
        red, green, blue = (int(part) / 255 for part in colour.groups()[:3])
        panel.fill_between(
            x,
            y,
            list(previous.y),
            step="post" if steps else None,
            facecolor=(red, green, blue, float(colour[4])),
            linewidth=0,
            zorder=zorder,
        )
    style = line_style(trace)
    if style["linewidth"]:
        panel.plot(
            x,
            y,
            drawstyle="steps-post" if steps else "default",
            solid_capstyle="butt",
            solid_joinstyle="round",
            alpha=trace.opacity,
            zorder=zorder,
            **style,
        )
    if "markers" in (trace.mode or ""):
        panel.plot(x, y, linestyle="", zorder=zorder, **marker_style(trace))


def line_style(trace: Any) -> dict[str, Any]:
    """Matplotlib settings for the line of a scatter trace; width 0 if it has none."""
    width = trace.line.width
    is_drawn = "lines" in (trace.mode or "") and width != 0
    return {
        "color": trace.line.color or INK,
        "linewidth": (2 if width is None else width) * POINT if is_drawn else 0,
        "linestyle": _DASHES.get(trace.line.dash, "-"),
    }


def marker_style(trace: Any) -> dict[str, Any]:
    """Matplotlib settings for the markers of a scatter trace; empty if it has none."""
    if "markers" not in (trace.mode or ""):
        return {}
    symbol, colour = trace.marker.symbol, trace.marker.color
    return {
        "marker": _MARKERS[symbol],
        "markersize": trace.marker.size * POINT,
        "markeredgecolor": colour,
        "markerfacecolor": "white" if symbol.endswith("-open") else colour,
        "markeredgewidth": 1.5 * POINT,
    }


def draw_bars(panel: Any, trace: Any, zorder: int) -> None:
    """Draw horizontal bars, each with its own colour and text.

    Args:
        panel: The matplotlib axes.
        trace: A plotly ``Bar``.
        zorder: Traces with a higher value are drawn above.
    """
    panel.barh(
        list(trace.y),
        list(trace.x),
        left=list(trace.base),
        height=trace.width,
        color=list(trace.marker.color),
        zorder=zorder,
    )
    colours = trace.insidetextfont.color
    for start, length, y, text, colour in zip(
        trace.base, trace.x, trace.y, trace.text, colours, strict=True
    ):
        panel.text(
            start + length / 2,
            y,
            unescape(text),
            color=colour,
            size=trace.insidetextfont.size * POINT,
            ha="center",
            va="center_baseline",
            zorder=zorder,
        )
