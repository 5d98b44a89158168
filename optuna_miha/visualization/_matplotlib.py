"""A figure as a picture file, drawn by matplotlib, because plotly needs a browser for it."""

from __future__ import annotations

import html
import importlib
import re
from os import PathLike
from pathlib import Path
from typing import Any

from optuna_miha.visualization._style import (
    FONT,
    GRID,
    HEIGHT,
    INK,
    LINE,
    SMALL,
    TITLE,
    WIDTH,
)

_DPI = 100
"""Pixels of a plotly figure in an inch of the picture."""

_POINT = 72 / _DPI
"""Points in a pixel."""

_SUFFIXES = (".pdf", ".png", ".svg")
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
_SETTINGS = {
    "axes.axisbelow": True,
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": FONT * _POINT,
    "svg.hashsalt": "optuna_miha",  # The same figure gives the same file.
    "text.color": INK,
    "text.parse_math": False,  # A dollar sign is one.
    "xtick.color": LINE,
    "xtick.labelcolor": INK,
    "ytick.color": LINE,
    "ytick.labelcolor": INK,
}


def write_picture(figure: Any, path: str | PathLike[str], *, scale: float = 2.0) -> None:
    """Write a figure of this package as PNG, SVG or PDF.

    It needs no browser, as plotly's own ``write_image`` does, but matplotlib, and knows only
    what the figures of this package are made of.

    Args:
        figure: What a function of :mod:`optuna_miha.visualization` returned. Its
            ``layout.width`` and ``layout.height``, in pixels, are those of the picture; a
            figure without a width gets 1000.
        path: Where to write; its suffix ``.png``, ``.svg`` or ``.pdf`` is the format.
        scale: Pixels of a PNG for each pixel of the figure; 2 is sharp in print and on screens
            of high resolution.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If ``figure`` is no plotly figure, or has traces of another kind.
        ValueError: If the suffix of ``path`` is another one, or ``scale`` is not positive.
    """
    path = Path(path)
    if path.suffix.lower() not in _SUFFIXES:
        raise ValueError(
            f"`path` must end in {', '.join(_SUFFIXES)}, got {str(path)!r}; for a page to look "
            "at in a browser, call `figure.write_html`."
        )
    if not scale > 0:
        raise ValueError(f"`scale` must be positive, got {scale!r}: 2 is twice the pixels.")
    if not hasattr(figure, "data") or not hasattr(figure, "layout"):
        raise TypeError(
            f"`figure` must be a plotly figure, got {type(figure).__qualname__}: pass what, for "
            "example, `optuna_miha.visualization.plot_lineage(study)` returns."
        )
    strangers = {trace.type for trace in figure.data} - {"scatter", "bar"}
    if strangers:
        raise TypeError(
            "`figure` must be one of this package's, got traces of type "
            f"{', '.join(sorted(strangers))}: use plotly's `figure.write_image`, which takes any."
        )
    try:
        matplotlib = importlib.import_module("matplotlib")
        figures = importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise ImportError("The picture needs matplotlib: pip install matplotlib.") from error
    with matplotlib.rc_context(_SETTINGS):
        canvas = _Canvas(figure, figures)
        canvas.draw()
        # Without a date, the same figure gives the same file.
        metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
        canvas.picture.savefig(
            path, dpi=_DPI * scale, metadata=metadata.get(path.suffix.lower(), {})
        )


class _Canvas:
    """The picture in the making.

    Args:
        figure: The plotly figure.
        figures: The module :mod:`matplotlib.figure`.
    """

    def __init__(self, figure: Any, figures: Any) -> None:
        self._figure = figure
        layout = figure.layout
        self._width, self._height = layout.width or WIDTH, layout.height or HEIGHT
        margin = layout.margin
        self._left, self._bottom = margin.l, margin.b
        self._inner_width = self._width - margin.l - margin.r
        self._inner_height = self._height - margin.t - margin.b
        self.picture = figures.Figure(
            figsize=(self._width / _DPI, self._height / _DPI), facecolor="white"
        )
        self._panels = {key: self._panel(key) for key in self._keys()}

    def draw(self) -> None:
        """Everything, the lowest first."""
        for shape in self._figure.layout.shapes:
            self._draw_band(shape)
        before: Any = None
        for rank, trace in enumerate(self._figure.data, start=3):
            panel = self._panels[trace.yaxis or "y"]
            if trace.type == "bar":
                _draw_bars(panel, trace, rank)
            else:
                _draw_scatter(panel, trace, before, rank)
            before = trace
        for annotation in self._figure.layout.annotations:
            self._write(annotation)
        title = self._figure.layout.title
        self.picture.text(
            *self._place(0, title.y, y_of_all=True),
            _plain(title.text or ""),
            size=TITLE * _POINT,
            va="center",
        )
        self._add_legend()

    def _keys(self) -> list[str]:
        return list(dict.fromkeys(trace.yaxis or "y" for trace in self._figure.data)) or ["y"]

    def _panel(self, key: str) -> Any:
        """The axes of one plotly axis of values; all share the one of epochs."""
        x, y = self._figure.layout.xaxis, self._figure.layout[f"yaxis{key[1:]}"]
        low, high = y.domain or (0, 1)
        left, bottom = self._place(0, low)
        right, top = self._place(1, high)
        panel = self.picture.add_axes((left, bottom, right - left, top - bottom))
        panel.patch.set_alpha(0)  # Bands lie behind.
        panel.grid(color=GRID, linewidth=_POINT)
        panel.tick_params(labelsize=SMALL * _POINT)
        _set_axis(panel, "x", x)
        _set_axis(panel, "y", y)
        panel.set_ylabel(_plain(y.title.text or ""), size=FONT * _POINT)
        if (x.anchor or "y") == key:
            panel.set_xlabel(_plain(x.title.text or ""), size=FONT * _POINT)
        else:
            panel.tick_params(axis="x", length=0, labelbottom=False)
            panel.spines["bottom"].set_visible(False)
        return panel

    def _place(self, x: float, y: float, *, y_of_all: bool = False) -> tuple[float, float]:
        """Shares of the data's area as shares of the picture."""
        across = (self._left + x * self._inner_width) / self._width
        up = y if y_of_all else (self._bottom + y * self._inner_height) / self._height
        return across, up

    def _across(self, x: float, reference: str | None) -> float:
        """``x`` of an annotation or a shape as a share of the data's area."""
        if reference == "paper":
            return x
        low, high = self._figure.layout.xaxis.range
        return float((x - low) / (high - low))

    def _draw_band(self, shape: Any) -> None:
        patches = importlib.import_module("matplotlib.patches")
        left, bottom = self._place(self._across(shape.x0, shape.xref), shape.y0)
        right, top = self._place(self._across(shape.x1, shape.xref), shape.y1)
        band = patches.Rectangle(
            (left, bottom),
            right - left,
            top - bottom,
            transform=self.picture.transFigure,
            facecolor=shape.fillcolor,
            linewidth=0,
            zorder=-1,
        )
        self.picture.add_artist(band)

    def _write(self, annotation: Any) -> None:
        x, y = self._place(self._across(annotation.x, annotation.xref), annotation.y)
        self.picture.text(
            x + (annotation.xshift or 0) / self._width,
            y + (annotation.yshift or 0) / self._height,
            _plain(annotation.text),
            size=annotation.font.size * _POINT,
            ha=annotation.xanchor,
            va={"middle": "center"}.get(annotation.yanchor, annotation.yanchor),
            rotation=-(annotation.textangle or 0),
        )

    def _add_legend(self) -> None:
        lines = importlib.import_module("matplotlib.lines")
        if self._figure.layout.showlegend is False:
            return
        handles = [
            lines.Line2D([], [], label=_plain(trace.name), **_line(trace), **_marker(trace))
            for trace in self._figure.data
            if trace.name and trace.showlegend is not False
        ]
        title = self._figure.layout.legend.title.text
        if handles:
            self.picture.legend(
                handles=handles,
                title=_plain(title) if title else None,
                alignment="left",
                loc="upper left",
                bbox_to_anchor=self._place(1.01, 1),
                borderaxespad=0,
                frameon=False,
                fontsize=SMALL * _POINT,
                title_fontsize=SMALL * _POINT,
            )


def _set_axis(panel: Any, which: str, axis: Any) -> None:
    limits = list(axis.range) if axis.range is not None else None
    if axis.type == "log":
        panel.set(**{f"{which}scale": "log"})
        limits = [10**limit for limit in limits] if limits else None
    if limits is not None:
        panel.set(**{f"{which}lim": limits})
    own = panel.xaxis if which == "x" else panel.yaxis
    if axis.side == "right":
        own.tick_right()
        panel.spines["left"].set_visible(False)
        panel.spines["right"].set_visible(axis.showline is not False)
    if axis.tickvals is not None:
        own.set_ticks(list(axis.tickvals), [_plain(text) for text in axis.ticktext])
        own.set_ticks([], minor=True)
    elif axis.nticks:
        own.set_major_locator(
            importlib.import_module("matplotlib.ticker").MaxNLocator(axis.nticks)
        )
    if axis.showticklabels is False:
        own.set_ticks([])
    if axis.ticks == "":
        own.set_tick_params(length=0)
    if axis.showgrid is False:
        own.grid(False)
    if axis.showline is False:
        panel.spines[["left", "right"] if which == "y" else ["bottom"]].set_visible(False)
    if axis.zeroline:
        line = panel.axvline if which == "x" else panel.axhline
        line(0, color=axis.zerolinecolor, linewidth=axis.zerolinewidth * _POINT, zorder=2)


def _draw_scatter(panel: Any, trace: Any, before: Any, rank: int) -> None:
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
            list(before.y),
            step="post" if steps else None,
            facecolor=(red, green, blue, float(colour[4])),
            linewidth=0,
            zorder=rank,
        )
    style = _line(trace)
    if style["linewidth"]:
        panel.plot(
            x,
            y,
            drawstyle="steps-post" if steps else "default",
            solid_capstyle="butt",
            solid_joinstyle="round",
            alpha=trace.opacity,
            zorder=rank,
            **style,
        )
    if "markers" in (trace.mode or ""):
        panel.plot(x, y, linestyle="", zorder=rank, **_marker(trace))


def _line(trace: Any) -> dict[str, Any]:
    width = trace.line.width
    drawn = "lines" in (trace.mode or "") and width != 0
    return {
        "color": trace.line.color or INK,
        "linewidth": (2 if width is None else width) * _POINT if drawn else 0,
        "linestyle": _DASHES.get(trace.line.dash, "-"),
    }


def _marker(trace: Any) -> dict[str, Any]:
    if "markers" not in (trace.mode or ""):
        return {}
    symbol, colour = trace.marker.symbol, trace.marker.color
    return {
        "marker": _MARKERS[symbol],
        "markersize": trace.marker.size * _POINT,
        "markeredgecolor": colour,
        "markerfacecolor": "white" if symbol.endswith("-open") else colour,
        "markeredgewidth": 1.5 * _POINT,
    }


def _draw_bars(panel: Any, trace: Any, rank: int) -> None:
    """Horizontal ones, each with its own colour and text."""
    panel.barh(
        list(trace.y),
        list(trace.x),
        left=list(trace.base),
        height=trace.width,
        color=list(trace.marker.color),
        zorder=rank,
    )
    colours = trace.insidetextfont.color
    for start, length, y, text, colour in zip(
        trace.base, trace.x, trace.y, trace.text, colours, strict=True
    ):
        panel.text(
            start + length / 2,
            y,
            _plain(text),
            color=colour,
            size=trace.insidetextfont.size * _POINT,
            ha="center",
            va="center_baseline",
            zorder=rank,
        )


def _plain(text: str) -> str:
    """Text without plotly's HTML."""
    return html.unescape(text.replace("<br>", "\n"))
