"""Figures of the benchmarks as SVG, which are the same bytes for the same values."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def digest_of(values: Any) -> str:
    """A hash of drawn values, stored in the figure to detect an outdated one."""
    content = json.dumps(values, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def pyplot(name: str) -> Any:
    """Import pyplot, set up to draw without a screen.

    Args:
        name: The name of the figure, from which the ids in it are made.
    """
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = name  # Makes the ids deterministic.
    matplotlib.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot as plt

    return plt


def save(figure: Any, path: Path, digest: str) -> None:
    """Write a figure with the hash of its values, and close it."""
    from matplotlib import pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None, "Description": digest})
    plt.close(figure)
