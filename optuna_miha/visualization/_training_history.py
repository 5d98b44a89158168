"""The loss of the trunk, and the change that each cycle made."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import optuna

from optuna_miha._search.mutation import NO_CHANGE
from optuna_miha.visualization._best_epoch import add_best
from optuna_miha.visualization._phase_bands import STRIP_HEIGHT, add_phases
from optuna_miha.visualization._run_view import RunView, describe_change, read_run_view
from optuna_miha.visualization._style import (
    BLUE,
    GREY,
    HEIGHT,
    LEFT,
    LINE,
    SMALL,
    VERMILION,
    WIDTH,
    blank_figure,
    escape,
    format_mutation,
    length,
    value_scale,
)

_RIGHT_MARGIN = 150

_MAX_LABEL_LENGTH = 34
"""Characters of the label of a change; the hover text shows the whole change."""

_CHARACTER_WIDTH, _FLAT_HEIGHT = 6, 20
"""Width of a character of a label, and height of labels that are not slanted, in pixels."""

_MIN_LABEL_DISTANCE = 19
"""Pixels between the labels of two changes."""

_MANY_BIRTHS = 40
"""Number of births above which dots are drawn smaller, so that the curve stays visible."""

_PANEL_GAP = 0.08
"""Gap between the panels, as a fraction of the height."""

_LOWER_PANEL = 0.36
"""Height of the panel of the training loss and half of the gap, as a fraction of the height."""

_Losses: TypeAlias = list[tuple[int, float | None, str]]
"""Lineage epoch, training loss and hover text."""


def plot_training_history(
    study: optuna.Study, *, target_name: str | None = None, metric: str | None = None
) -> Any:
    """Plot the loss of the trunk over its lineage, with the change that each cycle made.

    This is the figure of the article on MIHA. The upper panel shows the monitored value, the
    lower one the training loss, which is not on the same scale if label smoothing, dropout or
    the loss itself change. Each dot is the birth of a branch that won. Changes are named above
    the plot as far as there is room; the hover text of a dot always names its change. A star marks
    the best epoch, as in :func:`plot_lineage`.

    Args:
        study: A study with a finished or unfinished run of :func:`~optuna_miha.optimize`.
        target_name: Name of the monitored value, for the axis; :obj:`None`: the metric name of
            the study, or else ``"validation loss"`` if the study minimizes.
        metric: Name of a metric, or ``"loss"``, to show in the lower panel instead of the
            training loss.

    Returns:
        A plotly ``Figure``.

    Raises:
        ImportError: If plotly is not installed.
        TypeError: If ``study`` is not a study.
        ValueError: If the study contains no run, or the run has no such metric.

    Reference:
        Sarafanov and Kovalchuk, *One more approach to optimize neural networks*.
    """
    view = read_run_view(study, target_name)
    end = view.trunk[-1].end
    width = WIDTH - LEFT - _RIGHT_MARGIN
    labels = _labels(view, spacing=_MIN_LABEL_DISTANCE * end / width)
    is_flat = _fit_side_by_side(labels, end, width)
    longest = max((length(text) for _, text in labels), default=0)
    slanted = 16 + round(longest * 0.72 * _CHARACTER_WIDTH)
    room = STRIP_HEIGHT + ((_FLAT_HEIGHT if is_flat else slanted) if labels else 0)
    figure = blank_figure(
        "Training history", height=HEIGHT + room, top=46 + room, right=_RIGHT_MARGIN
    )
    figure.update_xaxes(title_text="lineage epoch", range=[0, 1.015 * end])
    losses = _losses(view) if metric is None else _metric(view, metric)
    _set_axes(figure, view, losses, metric)
    _add_curve(figure, view)
    if losses:
        _add_losses(figure, losses, metric or "training")
    _add_births(figure, view)
    if _best_value(view) is not None:
        add_best(figure, view)
    add_phases(figure, view, width)
    _add_labels(figure, labels, angle=0 if is_flat else -45)
    return figure


def _fit_side_by_side(labels: list[tuple[int, str]], end: int, width: int) -> bool:
    """Whether the labels do not overlap if they are not slanted."""
    starts = [epoch for epoch, _ in labels[1:]] + [end]
    return all(
        (start - epoch) * width / end >= length(text) * _CHARACTER_WIDTH + _MIN_LABEL_DISTANCE
        for (epoch, text), start in zip(labels, starts, strict=False)
    )


def _labels(view: RunView, spacing: float) -> list[tuple[int, str]]:
    """Lineage epoch and text of the changes that won, skipping those without room.

    Args:
        view: The run.
        spacing: Minimum distance between two labels, in epochs.
    """
    labels: list[tuple[int, str]] = []
    for segment in view.trunk:
        if segment.role not in ("startup", "branch", "restart") or segment.mutation == NO_CHANGE:
            continue
        if not labels or segment.birth - labels[-1][0] >= spacing:
            text = format_mutation(segment.mutation, max_length=_MAX_LABEL_LENGTH)
            labels.append((segment.birth, text))
    return labels


def _losses(view: RunView) -> _Losses:
    """The training losses of the trunk; empty if none was recorded."""
    losses = [
        (epoch, loss if loss is not None and math.isfinite(loss) else None, view.hover(segment))
        for segment in view.trunk
        for epoch, loss in enumerate(segment.train_losses, start=segment.birth + 1)
    ]
    return losses if any(loss is not None for _, loss, _ in losses) else []


def _metric(view: RunView, name: str) -> _Losses:
    """The values of a metric of the trunk."""
    values = [
        (epoch, value, view.hover(segment))
        for segment in view.trunk
        for epoch, value in enumerate(segment.metrics.get(name, ()), start=segment.birth + 1)
    ]
    if not values:
        known = sorted({known for segment in view.lineage for known in segment.metrics})
        raise ValueError(
            f"`metric` must be one that the run has stored for every epoch, got {name!r}: it has "
            f"{', '.join(map(repr, known)) or 'none'}."
        )
    return values


def _set_axes(figure: Any, view: RunView, losses: _Losses, metric: str | None) -> None:
    """Configure one panel, or two if there is something for the lower one."""
    bottom = _LOWER_PANEL if losses else 0.0
    values = [value for s in view.trunk for value in view.curve(s)[1]]
    best = _best_value(view)
    values += [] if best is None else [best]
    figure.update_layout(
        xaxis={"anchor": "y2" if losses else "y"},
        yaxis={
            "domain": [bottom + (_PANEL_GAP / 2 if losses else 0), 1],
            "title": {"text": escape(view.label)},
            **value_scale(values, is_loss=view.is_loss),
        },
    )
    if losses:
        finite = [loss for _, loss, _ in losses if loss is not None]
        figure.update_layout(
            yaxis2={
                "anchor": "x",
                "domain": [0, bottom - _PANEL_GAP / 2],
                "title": {"text": escape(metric or "training loss")},
                **value_scale(finite, is_loss=metric in (None, "loss")),
            }
        )


def _best_value(view: RunView) -> float | None:
    """The best value of the run if its segment is drawn, otherwise :obj:`None`."""
    best = view.lineage.best()
    return best.value if best is not None and best in view.trunk else None


def _add_curve(figure: Any, view: RunView) -> None:
    """Add the monitored value of the trunk."""
    points = [
        (epoch, value, view.hover(segment))
        for segment in view.trunk
        for epoch, value in enumerate(segment.scores, start=segment.birth + 1)
    ]
    figure.add_scatter(
        x=[epoch for epoch, _, _ in points],
        y=[value for _, value, _ in points],
        hovertext=[text for _, _, text in points],
        hovertemplate="%{hovertext}<br>epoch %{x}: %{y:.5g}<extra></extra>",
        name="validation",
        mode="lines",
        line={"color": BLUE, "width": 3},
    )


def _add_losses(figure: Any, losses: _Losses, name: str) -> None:
    """Add the training loss, or a metric, of the trunk in the lower panel."""
    figure.add_scatter(
        x=[epoch for epoch, _, _ in losses],
        y=[loss for _, loss, _ in losses],
        hovertext=[text for _, _, text in losses],
        hovertemplate="%{hovertext}<br>epoch %{x}: %{y:.5g}<extra></extra>",
        name=escape(name),
        mode="lines",
        line={"color": LINE, "width": 2},
        yaxis="y2",
    )


def _add_births(figure: Any, view: RunView) -> None:
    """Add a dot at the birth of each branch that won."""
    born = [s for s in view.trunk if s.role == "branch" and view.curve(s)[0]]
    for name, symbol, colour, is_control in (
        ("control won", "circle-open", GREY, True),
        ("change won", "circle", VERMILION, False),
    ):
        chosen = [s for s in born if (s.mutation == NO_CHANGE) == is_control]
        if not chosen:
            continue
        size = 9 if len(born) <= _MANY_BIRTHS else 6
        figure.add_scatter(
            x=[s.birth for s in chosen],
            y=[view.curve(s)[1][0] for s in chosen],
            hovertext=[
                f"{s.cycle_name}, trial {s.number}<br>{format_mutation(describe_change(s))}"
                for s in chosen
            ],
            hovertemplate="%{hovertext}<extra></extra>",
            name=f"{name} ({len(chosen)})",
            mode="markers",
            marker={"symbol": symbol, "size": size, "color": colour},
        )


def _add_labels(figure: Any, labels: list[tuple[int, str]], *, angle: int) -> None:
    """Add the labels of the changes, above the phases."""
    slanted = [
        {
            "text": text,
            "x": epoch,
            "xref": "x",
            "xanchor": "left",
            "y": 1,
            "yref": "paper",
            "yanchor": "bottom",
            "yshift": STRIP_HEIGHT,
            "textangle": angle,
            "showarrow": False,
            "font": {"size": SMALL - 1},
        }
        for epoch, text in labels
    ]
    figure.update_layout(annotations=[*figure.layout.annotations, *slanted])
