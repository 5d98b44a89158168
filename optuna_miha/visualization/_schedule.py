"""The hyperparameters of the trunk over lineage epochs."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution

from optuna_miha._history.segment import Segment
from optuna_miha._search.learning_rate import Course, warmup_cosine
from optuna_miha._search.space import kind_of
from optuna_miha.visualization._best_epoch import best_epoch
from optuna_miha.visualization._phase_bands import STRIP_HEIGHT, add_phases
from optuna_miha.visualization._run_view import RunView, read_run_view
from optuna_miha.visualization._style import (
    BLUE,
    BOTTOM,
    FONT,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    SMALL,
    VERMILION,
    WIDTH,
    YELLOW,
    blank_figure,
    escape,
    number,
    scale,
    shorten,
)

_VALUE_COLOURS = (SKY, ORANGE, GREEN, PURPLE, YELLOW, BLUE, VERMILION, GREY)
"""Colours of the values of a categorical parameter, in order of appearance."""

_CONSTANT_COLOUR = "#DDDDDD"
_DARK_COLOURS = {BLUE, VERMILION}
"""Colours that need white text."""

_MAX_NAME_LENGTH = 24
"""Characters of a parameter name in its label; the hover text shows the whole name."""

_STEP_HEIGHT, _BAR_HEIGHT, _GAP_HEIGHT = 86, 26, 12
"""Heights of a row of steps, of a row of bars, and of the gap between two rows, in pixels."""

_MIN_TICK_DISTANCE = 20
"""Pixels between two tick labels; some pages show the figure at half of its height."""

_MAX_ROWS = 60
"""Parameters that are shown at most. Plotly and browsers need seconds for some hundred axes."""

_RIGHT_MARGIN = 80

_MAX_FALL = 100
"""Factor below the lowest constant value at which the axis cuts off an annealed learning rate."""


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One parameter and its values over lineage epochs."""

    name: str
    distribution: BaseDistribution
    pieces: tuple[tuple[int, int, Any], ...]
    """First lineage epoch, last lineage epoch, and value."""
    falls: tuple[tuple[int, Callable[[int], float]], ...]
    """Lineage epochs at which annealing begins, and the factor in each epoch from there."""

    @property
    def is_constant(self) -> bool:
        return len(self.pieces) == 1 and not self.falls

    @property
    def is_bar(self) -> bool:
        return self.is_constant or isinstance(self.distribution, CategoricalDistribution)

    @property
    def height(self) -> int:
        return _BAR_HEIGHT if self.is_bar else _STEP_HEIGHT


def plot_schedule(study: optuna.Study) -> Any:
    """Plot every hyperparameter over the epochs of the surviving lineage.

    Numerical parameters are steps, on a log scale if their distribution has one. If the learning
    rate is annealed, its value at each epoch is shown. Categorical and constant parameters are
    bars. A row is empty where its parameter did not exist, such as the momentum of another
    optimizer. The learning rate is the first row; constant parameters are the last. Of more than
    60 parameters, the learning rate and those that changed most often are shown. A star on the
    axis marks the epoch of the best weights.

    Args:
        study: A study with a finished or unfinished run of :func:`~optuna_miha.optimize`.

    Returns:
        A plotly ``Figure``, whose height grows with the number of parameters.

    Raises:
        ImportError: If plotly is not installed.
        TypeError: If ``study`` is not a study.
        ValueError: If the study contains no run.
    """
    view = read_run_view(study)
    rows, n_params = _rows(view)
    title = "Schedule"
    if len(rows) < n_params:
        title += f" of the {len(rows)} parameters that changed most, of {n_params}"
    longest = max((len(shorten(row.name, _MAX_NAME_LENGTH)) for row in rows), default=0)
    left = 24 + round(7.5 * longest)
    inner = sum(row.height for row in rows) + _GAP_HEIGHT * max(len(rows) - 1, 0)
    top = 46 + STRIP_HEIGHT
    figure = blank_figure(title, height=top + inner + BOTTOM, top=top, right=_RIGHT_MARGIN)
    figure.update_layout(margin_l=left, showlegend=False, barmode="overlay")
    end = view.trunk[-1].end
    epoch_width = (WIDTH - left - _RIGHT_MARGIN) / end
    upper = float(inner)
    # Collected, because plotly validates all of a figure again with each addition.
    traces: list[dict[str, Any]] = []
    layout: dict[str, Any] = {}
    labels: list[dict[str, Any]] = []
    for index, row in enumerate(rows, start=1):
        lower = upper - row.height
        domain = [max(lower / inner, 0.0), upper / inner]
        key = "y" if index == 1 else f"y{index}"
        axis: dict[str, Any] = {"domain": domain, "anchor": "x", "side": "right"}
        if row.is_bar:
            axis |= {"range": [-0.5, 0.5], "showticklabels": False, "ticks": "", "showgrid": False}
            axis |= {"showline": False}
            traces.append(_bars(row, key, epoch_width))
        else:
            trace, step_axis = _steps(row, key)
            traces.append(trace)
            axis |= step_axis
        layout[f"yaxis{key[1:]}"] = axis
        labels.append(
            {
                "text": escape(shorten(row.name, _MAX_NAME_LENGTH)),
                "x": 0,
                "xref": "paper",
                "xanchor": "right",
                "xshift": -10,
                "y": sum(domain) / 2,
                "yref": "paper",
                "yanchor": "middle",
                "showarrow": False,
                "font": {"size": FONT},
            }
        )
        upper = lower - _GAP_HEIGHT
    figure.add_traces(traces)
    figure.update_layout(layout)
    figure.update_layout(xaxis_anchor=f"y{len(rows)}" if len(rows) > 1 else "y")
    figure.update_xaxes(title_text="lineage epoch", range=[0, end])
    add_phases(figure, view, end * epoch_width)
    epoch = best_epoch(view)
    if epoch is not None and view.trunk[-1] is view.lineage.best():
        labels.append(_star(epoch))
    figure.layout.annotations = (*figure.layout.annotations, *labels)
    return figure


def _star(epoch: int) -> dict[str, Any]:
    """A star on the axis at the epoch of the best weights."""
    return {
        "text": "★",
        "x": epoch,
        "xref": "x",
        "xanchor": "center",
        "y": 0,
        "yref": "paper",
        "yanchor": "middle",
        "showarrow": False,
        "font": {"size": FONT + 4},
    }


def _rows(view: RunView) -> tuple[list[_Row], int]:
    """The rows to show, and the number of all parameters."""
    names = {name for segment in view.trunk for name in segment.params}
    rows = [_row(view, name) for name in names]
    rows.sort(key=lambda r: (kind_of(r.name) != "lr", -len(r.pieces), _natural_key(r.name)))
    shown = sorted(
        rows[:_MAX_ROWS],
        key=lambda r: (kind_of(r.name) != "lr", r.is_constant, _natural_key(r.name)),
    )
    return shown, len(rows)


def _natural_key(name: str) -> list[str]:
    """A sort key by which ``dropout.2`` comes before ``dropout.10``."""
    return [part.zfill(9) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _factor_of(segment: Segment, end: int) -> Callable[[int], float]:
    """The factor of the learning rate in each epoch of an annealed segment."""
    n_epochs = end - segment.birth
    if not segment.by_step:
        return lambda epoch: warmup_cosine(epoch, n_epochs)
    course = Course(n_epochs=n_epochs, is_fresh=segment.parent is None)
    return lambda epoch: course.factor(epoch + 0.5)  # In the middle of the epoch.


def _row(view: RunView, name: str) -> _Row:
    pieces: list[tuple[int, int, Any]] = []
    falls = []
    holders = [segment for segment in view.trunk if name in segment.params]
    for segment in holders:
        value = segment.params[name]
        if name == "lr" and segment.number in view.final_ends:
            falls.append((segment.birth, _factor_of(segment, view.final_ends[segment.number])))
        elif pieces and pieces[-1][1:] == (segment.birth, value):
            pieces[-1] = (pieces[-1][0], segment.end, value)
            continue
        pieces.append((segment.birth, segment.end, value))
    return _Row(
        name=name,
        distribution=holders[-1].distributions[name],
        pieces=tuple(pieces),
        falls=tuple(falls),
    )


def _bars(row: _Row, key: str, epoch_width: float) -> dict[str, Any]:
    """The trace of a row of bars.

    Args:
        row: The row.
        key: The plotly y axis of the row.
        epoch_width: Width of an epoch, in pixels.
    """
    values = list(dict.fromkeys(number(value) for _, _, value in row.pieces))
    texts = [number(value) for _, _, value in row.pieces]
    colours = [_CONSTANT_COLOUR] * len(texts)
    if not row.is_constant:
        colours = [_VALUE_COLOURS[values.index(text) % len(_VALUE_COLOURS)] for text in texts]
    lengths = [end - start for start, end, _ in row.pieces]
    fits = [7.5 * len(t) + 6 <= n * epoch_width for t, n in zip(texts, lengths, strict=True)]
    return {
        "type": "bar",
        "orientation": "h",
        "base": [start for start, _, _ in row.pieces],
        "x": lengths,
        "y": [0] * len(lengths),
        "width": 0.92,
        "yaxis": key,
        "marker": {"color": colours, "line": {"width": 0}},
        "text": [escape(text) if fit else "" for text, fit in zip(texts, fits, strict=True)],
        "textposition": "inside",
        "insidetextanchor": "middle",
        "textangle": 0,
        "constraintext": "none",
        "insidetextfont": {
            "size": SMALL,
            "color": ["#FFFFFF" if colour in _DARK_COLOURS else INK for colour in colours],
        },
        "hovertext": [
            f"{escape(row.name)}: {escape(number(value))}<br>epochs {start} to {end}"
            for start, end, value in row.pieces
        ],
        "hovertemplate": "%{hovertext}<extra></extra>",
    }


def _steps(row: _Row, key: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The trace of a row of steps, and the settings of its axis."""
    x: list[int | None] = []
    y: list[float | None] = []
    for start, end, value in row.pieces:
        if x and x[-1] != start:  # The parameter did not exist in between.
            x.append(None)
            y.append(None)
        factor = next((factor for birth, factor in row.falls if birth == start), None)
        if factor is None:
            x += [start, end]
            y += [value, value]
            continue
        for epoch in range(start, end):
            x += [epoch, epoch + 1]
            y += [value * factor(epoch - start)] * 2
    trace = {
        "type": "scatter",
        "x": x,
        "y": y,
        "mode": "lines",
        "line": {"color": BLUE, "width": 2.5},
        "yaxis": key,
        "hovertemplate": f"{escape(row.name)}: %{{y:.4g}}<br>epoch %{{x}}<extra></extra>",
    }
    constant = [value for _, _, value in row.pieces]
    shown = [value for value in y if value is not None]
    is_log = bool(getattr(row.distribution, "log", False)) and min(constant) > 0
    low = max(min(shown), min(constant) / _MAX_FALL) if is_log else min(shown)
    axis = scale(low, max(shown), is_log=is_log)
    ticks = _ticks(row, axis)
    return trace, axis | {"tickvals": ticks, "ticktext": [number(tick) for tick in ticks]}


def _ticks(row: _Row, axis: dict[str, Any]) -> list[float]:
    """Values of the parameter, the longest used first, then round values, where there is room."""
    durations: Counter[float] = Counter()
    for start, end, value in row.pieces:
        durations[value] += end - start
    ticks: list[float] = []
    low, high = axis["range"]
    min_distance = _MIN_TICK_DISTANCE * (high - low)
    for value in [*(value for value, _ in durations.most_common()), *axis.get("tickvals", ())]:
        position = math.log10(value) if axis["type"] == "log" else value
        others = [math.log10(t) if axis["type"] == "log" else t for t in ticks]
        if all(abs(position - other) * _STEP_HEIGHT >= min_distance for other in others):
            ticks.append(value)
    return sorted(ticks)
