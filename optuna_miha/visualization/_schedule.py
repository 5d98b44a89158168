"""The hyperparameters over the trunk's lineage."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution

from optuna_miha._search.learning_rate import pace
from optuna_miha._search.space import kind_of
from optuna_miha.visualization._phase_bands import STRIP, add_phases
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

_VALUES = (SKY, ORANGE, GREEN, PURPLE, YELLOW, BLUE, VERMILION, GREY)
"""Colours of the values of a categorical parameter, in the order in which they appear."""

_CONSTANT = "#DDDDDD"
_DARK = {BLUE, VERMILION}
"""Colours that need white text."""

_NAME = 24
"""Characters of a parameter's name; the hover text has the whole of it."""

_TALL, _FLAT, _GAP = 86, 26, 12
"""Heights of a row of numbers, of a row of bars, and of the space between two, in pixels."""

_APART = 20
"""Pixels between the labels of two values, at least; some pages show the figure half as high."""

_RIGHT = 80
_DEPTH = 100
"""How far below its lowest constant value a learning rate that goes to zero is followed."""


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One parameter: its values in turn, each from one lineage epoch to another."""

    name: str
    distribution: BaseDistribution
    pieces: tuple[tuple[int, int, Any], ...]
    falls: tuple[tuple[int, int], ...]
    """Lineage epochs at which a fall to zero begins and would be over."""

    @property
    def is_constant(self) -> bool:
        return len(self.pieces) == 1 and not self.falls

    @property
    def is_bar(self) -> bool:
        return self.is_constant or isinstance(self.distribution, CategoricalDistribution)

    @property
    def height(self) -> int:
        return _FLAT if self.is_bar else _TALL


def plot_schedule(study: optuna.Study) -> Any:
    """Every hyperparameter over the epochs of the surviving lineage.

    Numbers are steps, on a log scale where the parameter has one; where the learning rate is
    annealed, its rise and fall are drawn as they happen, epoch by epoch. Categories, and whatever
    never changed, are bars; where a parameter did not exist, as the momentum of another
    optimizer, there is none. The learning rate comes first, what never changed last.

    Args:
        study: A study with a run of :func:`~optuna_miha.optimize`, be it over or not.

    Returns:
        A plotly ``Figure``, the higher, the more parameters there are.

    Raises:
        ImportError: If plotly is not installed.
        TypeError: If ``study`` is not a study.
        ValueError: If the study holds no run.
    """
    view = read_run_view(study)
    rows = _rows(view)
    longest = max((len(shorten(row.name, _NAME)) for row in rows), default=0)
    left = 24 + round(7.5 * longest)
    inner = sum(row.height for row in rows) + _GAP * max(len(rows) - 1, 0)
    top = 46 + STRIP
    figure = blank_figure("Schedule", height=top + inner + BOTTOM, top=top, right=_RIGHT)
    figure.update_layout(margin_l=left, showlegend=False, barmode="overlay")
    end = view.trunk[-1].end
    pixels = (WIDTH - left - _RIGHT) / end
    upper = float(inner)
    for index, row in enumerate(rows, start=1):
        lower = upper - row.height
        domain = [max(lower / inner, 0.0), upper / inner]
        key = "y" if index == 1 else f"y{index}"
        axis: dict[str, Any] = {"domain": domain, "anchor": "x", "side": "right"}
        if row.is_bar:
            axis |= {"range": [-0.5, 0.5], "showticklabels": False, "ticks": "", "showgrid": False}
            axis |= {"showline": False}
            _add_bars(figure, row, key, pixels)
        else:
            axis |= _add_steps(figure, row, key)
        figure.update_layout({f"yaxis{key[1:]}": axis})
        figure.add_annotation(
            text=escape(shorten(row.name, _NAME)),
            x=0,
            xref="paper",
            xanchor="right",
            xshift=-10,
            y=sum(domain) / 2,
            yref="paper",
            yanchor="middle",
            showarrow=False,
            font={"size": FONT},
        )
        upper = lower - _GAP
    figure.update_layout(xaxis_anchor=f"y{len(rows)}" if len(rows) > 1 else "y")
    figure.update_xaxes(title_text="lineage epoch", range=[0, end])
    add_phases(figure, view, end * pixels)
    return figure


def _rows(view: RunView) -> list[_Row]:
    names = {name for segment in view.trunk for name in segment.params}
    rows = [_row(view, name) for name in names]
    return sorted(rows, key=lambda r: (kind_of(r.name) != "lr", r.is_constant, _natural(r.name)))


def _natural(name: str) -> list[str]:
    """A key by which ``dropout.2`` comes before ``dropout.10``."""
    return [part.zfill(9) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _row(view: RunView, name: str) -> _Row:
    pieces: list[tuple[int, int, Any]] = []
    falls = []
    holders = [segment for segment in view.trunk if name in segment.params]
    for segment in holders:
        value = segment.params[name]
        if name == "lr" and segment.number in view.final_ends:
            falls.append((segment.birth, view.final_ends[segment.number]))
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


def _add_bars(figure: Any, row: _Row, key: str, pixels: float) -> None:
    values = list(dict.fromkeys(number(value) for _, _, value in row.pieces))
    texts = [number(value) for _, _, value in row.pieces]
    colours = [
        _CONSTANT if row.is_constant else _VALUES[values.index(text) % len(_VALUES)]
        for text in texts
    ]
    lengths = [end - start for start, end, _ in row.pieces]
    fits = [7.5 * len(t) + 6 <= n * pixels for t, n in zip(texts, lengths, strict=True)]
    figure.add_bar(
        orientation="h",
        base=[start for start, _, _ in row.pieces],
        x=lengths,
        y=[0] * len(lengths),
        width=0.92,
        yaxis=key,
        marker={"color": colours, "line": {"width": 0}},
        text=[escape(text) if fit else "" for text, fit in zip(texts, fits, strict=True)],
        textposition="inside",
        insidetextanchor="middle",
        textangle=0,
        constraintext="none",
        insidetextfont={
            "size": SMALL,
            "color": ["#FFFFFF" if colour in _DARK else INK for colour in colours],
        },
        hovertext=[
            f"{escape(row.name)}: {escape(number(value))}<br>epochs {start} to {end}"
            for start, end, value in row.pieces
        ],
        hovertemplate="%{hovertext}<extra></extra>",
    )


def _add_steps(figure: Any, row: _Row, key: str) -> dict[str, Any]:
    """Draw a row of numbers; returns the settings of its axis."""
    x: list[int | None] = []
    y: list[float | None] = []
    for start, end, value in row.pieces:
        if x and x[-1] != start:  # It did not exist in between.
            x.append(None)
            y.append(None)
        zero_at = next((zero for birth, zero in row.falls if birth == start), None)
        if zero_at is None:
            x += [start, end]
            y += [value, value]
            continue
        for epoch in range(start, end):
            x += [epoch, epoch + 1]
            y += [value * pace(epoch - start, zero_at - start)] * 2
    figure.add_scatter(
        x=x,
        y=y,
        mode="lines",
        line={"color": BLUE, "width": 2.5},
        yaxis=key,
        hovertemplate=f"{escape(row.name)}: %{{y:.4g}}<br>epoch %{{x}}<extra></extra>",
    )
    constant = [value for _, _, value in row.pieces]
    shown = [value for value in y if value is not None]
    is_log = bool(getattr(row.distribution, "log", False)) and min(constant) > 0
    low = max(min(shown), min(constant) / _DEPTH) if is_log else min(shown)
    axis = scale(low, max(shown), is_log=is_log)
    ticks = _ticks(row, axis)
    return axis | {"tickvals": ticks, "ticktext": [number(tick) for tick in ticks]}


def _ticks(row: _Row, axis: dict[str, Any]) -> list[float]:
    """The values that the parameter had, the most lasting first, then round ones; not crowded."""
    lasting: Counter[float] = Counter()
    for start, end, value in row.pieces:
        lasting[value] += end - start
    ticks: list[float] = []
    least, most = axis["range"]
    for value in [*(value for value, _ in lasting.most_common()), *axis.get("tickvals", ())]:
        place = math.log10(value) if axis["type"] == "log" else value
        heights = [math.log10(t) if axis["type"] == "log" else t for t in ticks]
        if all(abs(place - height) * _TALL >= _APART * (most - least) for height in heights):
            ticks.append(value)
    return sorted(ticks)
