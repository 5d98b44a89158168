"""A matplotlib picture of a plotly figure: panels, axes, bands, annotations and legend."""

from __future__ import annotations

import importlib
from typing import Any

from optuna_miha.visualization._style import (
    DPI,
    FONT,
    GRID,
    HEIGHT,
    POINT,
    SMALL,
    TITLE,
    WIDTH,
    unescape,
)
from optuna_miha.visualization._traces import (
    draw_bars,
    draw_scatter,
    line_style,
    marker_style,
)

_LEGEND_COLUMNS = 2
"""Columns of a legend below the plot area."""


class Canvas:
    """Draws a plotly figure with matplotlib.

    Args:
        figure: The plotly figure.
        figures: The module :mod:`matplotlib.figure`.

    Attributes:
        picture: The matplotlib figure.
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
            figsize=(self._width / DPI, self._height / DPI), facecolor="white"
        )
        self._panels = {key: self._add_panel(key) for key in self._panel_keys()}

    def draw(self) -> None:
        """Draw all elements, from back to front."""
        for shape in self._figure.layout.shapes:
            self._draw_band(shape)
        previous: Any = None
        for zorder, trace in enumerate(self._figure.data, start=3):
            panel = self._panels[trace.yaxis or "y"]
            if trace.type == "bar":
                draw_bars(panel, trace, zorder)
            else:
                draw_scatter(panel, trace, previous, zorder)
            previous = trace
        for annotation in self._figure.layout.annotations:
            self._draw_annotation(annotation)
        title = self._figure.layout.title
        self.picture.text(
            *self._to_picture(0, title.y, y_is_of_picture=True),
            unescape(title.text or ""),
            size=TITLE * POINT,
            va="center",
        )
        self._add_legend()

    def _panel_keys(self) -> list[str]:
        return list(dict.fromkeys(trace.yaxis or "y" for trace in self._figure.data)) or ["y"]

    def _add_panel(self, key: str) -> Any:
        """Add matplotlib axes for one plotly y axis; all panels share the x axis."""
        x, y = self._figure.layout.xaxis, self._figure.layout[f"yaxis{key[1:]}"]
        low, high = y.domain or (0, 1)
        left, bottom = self._to_picture(0, low)
        right, top = self._to_picture(1, high)
        panel = self.picture.add_axes((left, bottom, right - left, top - bottom))
        panel.patch.set_alpha(0)  # Bands are drawn behind the panels.
        panel.grid(color=GRID, linewidth=POINT)
        panel.tick_params(labelsize=SMALL * POINT)
        _set_axis(panel, "x", x)
        _set_axis(panel, "y", y)
        panel.set_ylabel(unescape(y.title.text or ""), size=FONT * POINT)
        if (x.anchor or "y") == key:
            panel.set_xlabel(unescape(x.title.text or ""), size=FONT * POINT)
        else:
            panel.tick_params(axis="x", length=0, labelbottom=False)
            panel.spines["bottom"].set_visible(False)
        return panel

    def _to_picture(
        self, x: float, y: float, *, y_is_of_picture: bool = False
    ) -> tuple[float, float]:
        """Convert fractions of the plot area to fractions of the picture."""
        across = (self._left + x * self._inner_width) / self._width
        up = y if y_is_of_picture else (self._bottom + y * self._inner_height) / self._height
        return across, up

    def _x_fraction(self, x: float, reference: str | None) -> float:
        """Convert ``x`` of an annotation or a shape to a fraction of the plot area."""
        if reference == "paper":
            return x
        low, high = self._figure.layout.xaxis.range
        return float((x - low) / (high - low))

    def _draw_band(self, shape: Any) -> None:
        patches = importlib.import_module("matplotlib.patches")
        left, bottom = self._to_picture(self._x_fraction(shape.x0, shape.xref), shape.y0)
        right, top = self._to_picture(self._x_fraction(shape.x1, shape.xref), shape.y1)
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

    def _draw_annotation(self, annotation: Any) -> None:
        x, y = self._to_picture(self._x_fraction(annotation.x, annotation.xref), annotation.y)
        self.picture.text(
            x + (annotation.xshift or 0) / self._width,
            y + (annotation.yshift or 0) / self._height,
            unescape(annotation.text),
            size=annotation.font.size * POINT,
            ha=annotation.xanchor,
            va={"middle": "center"}.get(annotation.yanchor, annotation.yanchor),
            rotation=-(annotation.textangle or 0),
        )

    def _add_legend(self) -> None:
        lines = importlib.import_module("matplotlib.lines")
        if self._figure.layout.showlegend is False:
            return
        handles = [
            lines.Line2D(
                [], [], label=unescape(trace.name), **line_style(trace), **marker_style(trace)
            )
            for trace in self._figure.data
            if trace.name and trace.showlegend is not False
        ]
        title = self._figure.layout.legend.title.text
        legend = self._figure.layout.legend
        is_below = legend.orientation == "h"
        if handles:
            self.picture.legend(
                ncols=_LEGEND_COLUMNS if is_below else 1,
                handles=handles,
                title=unescape(title) if title else None,
                alignment="left",
                loc="upper left",
                bbox_to_anchor=self._to_picture(*((0, legend.y) if is_below else (1.01, 1))),
                borderaxespad=0,
                frameon=False,
                fontsize=SMALL * POINT,
                title_fontsize=SMALL * POINT,
            )


def _set_axis(panel: Any, which: str, axis: Any) -> None:
    """Apply the settings of a plotly axis to the x or y axis of a panel."""
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
        own.set_ticks(list(axis.tickvals), [unescape(text) for text in axis.ticktext])
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
        line(0, color=axis.zerolinecolor, linewidth=axis.zerolinewidth * POINT, zorder=2)
