"""Figures as SVG."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import optuna

from optuna_miha.visualization import plot_lineage, write_picture


def svg_of(figure: Any) -> bytes:
    """Draw a figure of this package as SVG."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "figure.svg")
        write_picture(figure, file)
        return file.read_bytes()


def lineage_picture(study: optuna.Study) -> bytes:
    """Draw the lineage of a run as SVG.

    Args:
        study: The study of the run.

    Raises:
        ImportError: If plotly or matplotlib is not installed.
    """
    return svg_of(plot_lineage(study))
