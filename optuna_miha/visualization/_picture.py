"""Writing a figure as a picture file with matplotlib; plotly would need a browser for this."""

from __future__ import annotations

import importlib
from os import PathLike
from pathlib import Path
from typing import Any

from optuna_miha._history.optional_imports import try_import
from optuna_miha.visualization._canvas import Canvas
from optuna_miha.visualization._style import DPI, FONT, INK, LINE, POINT

_SUFFIXES = (".pdf", ".png", ".svg")

_RC_PARAMS = {
    "axes.axisbelow": True,
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": FONT * POINT,
    "svg.hashsalt": "optuna_miha",  # The same figure gives the same file.
    "text.color": INK,
    "text.parse_math": False,  # Dollar signs are printed literally.
    "xtick.color": LINE,
    "xtick.labelcolor": INK,
    "ytick.color": LINE,
    "ytick.labelcolor": INK,
}


def write_picture(figure: Any, path: str | PathLike[str], *, scale: float = 2.0) -> None:
    """Write a figure of this package as PNG, SVG or PDF.

    This function needs matplotlib, but no browser, unlike plotly's ``write_image``. It supports
    only the elements that figures of this package consist of.

    Args:
        figure: A figure returned by a function of :mod:`optuna_miha.visualization`. The picture
            has its ``layout.width`` and ``layout.height``, in pixels; a figure without a width
            gets 1000.
        path: Where to write; the suffix ``.png``, ``.svg`` or ``.pdf`` selects the format.
        scale: Pixels of a PNG for each pixel of the figure. The default 2 looks sharp in print
            and on high-resolution screens.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If ``figure`` is not a plotly figure, or contains other types of traces.
        ValueError: If ``path`` has another suffix, or ``scale`` is not positive.
    """
    path = Path(path)
    if path.suffix.lower() not in _SUFFIXES:
        raise ValueError(
            f"`path` must end in {', '.join(_SUFFIXES)}, got {str(path)!r}: for a page to open "
            "in a browser, call `figure.write_html`."
        )
    if not scale > 0:
        raise ValueError(f"`scale` must be positive, got {scale!r}: 2 doubles the resolution.")
    _check_figure(figure)
    with try_import("matplotlib", needed_by="The picture"):
        matplotlib = importlib.import_module("matplotlib")
        figures = importlib.import_module("matplotlib.figure")
    with matplotlib.rc_context(_RC_PARAMS):
        canvas = Canvas(figure, figures)
        canvas.draw()
        # Without a date, the same figure gives the same file.
        metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
        canvas.picture.savefig(
            path, dpi=DPI * scale, metadata=metadata.get(path.suffix.lower(), {})
        )


def _check_figure(figure: Any) -> None:
    if not hasattr(figure, "data") or not hasattr(figure, "layout"):
        raise TypeError(
            f"`figure` must be a plotly figure, got {type(figure).__qualname__}: pass for example "
            "the return value of `optuna_miha.visualization.plot_lineage(study)`."
        )
    unsupported = {trace.type for trace in figure.data} - {"scatter", "bar"}
    if unsupported:
        raise TypeError(
            "`figure` must be one of this package's, got traces of type "
            f"{', '.join(sorted(unsupported))}: use plotly's `figure.write_image`, which supports "
            "all types."
        )
