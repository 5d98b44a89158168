"""The mark of the best epoch of a run."""

from __future__ import annotations

from typing import Any

import numpy as np

from optuna_miha.visualization._run_view import RunView
from optuna_miha.visualization._style import BLACK, number


def best_epoch(view: RunView) -> int | None:
    """The lineage epoch of the best weights; :obj:`None` before a segment is complete."""
    best = view.lineage.best()
    if best is None:
        return None
    if best.checkpoint is not None:
        return int(best.checkpoint["best_epoch"])
    return best.birth + 1 + int(np.argmin(view.lineage.sign * np.array(best.scores)))


def add_best(figure: Any, view: RunView) -> None:
    """Mark the best epoch of the run with a star.

    The curves show the values by which branches are selected, usually those of averaged weights.
    If the best weights are not averaged, a dotted line connects the star to its curve.
    """
    best, epoch = view.lineage.best(), best_epoch(view)
    if best is None:
        return
    curve = dict(zip(*view.curve(best), strict=True))
    if epoch in curve and curve[epoch] != best.value:
        figure.add_scatter(
            x=[epoch, epoch],
            y=[curve[epoch], best.value],
            mode="lines",
            line={"color": BLACK, "width": 1.2, "dash": "dot"},
            hoverinfo="skip",
            name="not averaged",
        )
    figure.add_scatter(
        x=[epoch],
        y=[best.value],
        name=f"best: {number(best.value)}",
        mode="markers",
        marker={"symbol": "star", "size": 14, "color": BLACK},
        hovertemplate=f"{view.hover(best)}<br>epoch %{{x}}: %{{y:.5g}}<extra></extra>",
    )
