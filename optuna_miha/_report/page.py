"""The report of a run: one self-contained HTML page."""

from __future__ import annotations

import base64
import html
import importlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from os import PathLike
from pathlib import Path
from typing import Any

import optuna

from optuna_miha._history import attributes
from optuna_miha._history.lineage import Lineage
from optuna_miha._history.optional_imports import try_import
from optuna_miha._report.page_style import PAGE
from optuna_miha._report.picture import svg_of
from optuna_miha._results.comparison import Comparison
from optuna_miha._results.summary import Cycle, cycles_of, sentences
from optuna_miha.visualization import (
    plot_comparison,
    plot_lineage,
    plot_mutation_gains,
    plot_schedule,
    plot_training_history,
)
from optuna_miha.visualization._attempts import has_attempts
from optuna_miha.visualization._run_view import read_run_view
from optuna_miha.visualization._style import escape, number, shorten, unescape

_FIGURES = {
    "Lineage": plot_lineage,
    "History": plot_training_history,
    "Schedule": plot_schedule,
    "Gains": plot_mutation_gains,
}

_CAPTIONS = {
    "Lineage": "All segments of training; each starts where its parent ended.",
    "History": "The trunk, with the change that each cycle made.",
    "Schedule": "The hyperparameters of the best network during its training. A star marks the "
    "epoch of its weights.",
    "Gains": "Each branch compared with the control of its population at the same age, by kind of "
    "change, and candidates of the race with the initial configuration: how many won, and the "
    "range of their gains, or from four on their median with its standard error.",
}

_ROUND_CAPTIONS = {
    "Lineage": "All segments of training. The branches of a round start from the best weights of "
    "their parent; their epochs are counted from the end of its training.",
    "History": "The trunk, with the change that each round made. A round starts from the best "
    "weights before it, so that the curve may begin it with a step.",
}

_RESTART_CAPTION = (
    "The restart that the result comes from, with its change against the best network before it."
)

_ONLY_IN_CYCLES = ("branch_epochs", "fixing_epochs", "final_share", "patience", "runup_epochs")
"""Fields of a plan that mean nothing in a plan of rounds."""

_LONG_WORD = 20
"""Characters of a word that may be broken in a cell of a table."""

_CHARACTER_WIDTH = 6
"""Width of a character of a label, in pixels."""

_NARROW, _NARROW_RIGHT, _LEGEND_ROW = 560, 20, 20
"""Width and right margin of a figure for phones, and height of a row of its legend, in pixels."""


def write_report(
    study: optuna.Study,
    path: str | PathLike[str],
    *,
    comparison: Comparison | None = None,
    interactive: bool = False,
) -> None:
    """Write a report of a run as one self-contained HTML file, for screens and for print.

    Args:
        study: A study with a finished or unfinished run of :func:`~optuna_miha.optimize`.
        path: Where to write.
        comparison: A comparison to include in the report.
        interactive:
            Whether figures support zooming and hover text. The file then contains plotly's
            JavaScript, about 5 MB. By default, figures are pictures.

    Raises:
        ImportError: If plotly is not installed, or matplotlib for pictures.
        TypeError: If ``study`` is not a study.
        ValueError: If the study contains no run, or no finished segment.
    """
    lineage = read_run_view(study).lineage
    render = _render_interactive if interactive else _render_picture
    parts = [_summary(study, lineage), _figures(study, lineage, render)]
    parts += [_cycles(lineage), _comparison(comparison, render), _conditions(study, lineage)]
    title = html.escape(study.study_name)
    script = ""
    if interactive:
        with try_import("plotly", needed_by="An interactive report"):
            plotly = importlib.import_module("plotly.offline")
        script = f"<script>{plotly.get_plotlyjs()}</script>"
    about = html.escape(_about(study, lineage))
    body = "\n".join(p for p in parts if p)
    page = PAGE.format(title=title, about=about, script=script, body=body)
    Path(path).write_text(page, encoding="utf-8")


def _about(study: optuna.Study, lineage: Lineage) -> str:
    """Date, duration, machine and versions of a run."""
    trials = study.get_trials(deepcopy=False)
    starts = [t.datetime_start for s in lineage if (t := trials[s.number]).datetime_start]
    ends = [t.datetime_complete for s in lineage if (t := trials[s.number]).datetime_complete]
    parts = []
    if starts and ends:
        seconds = round((max(ends) - min(starts)).total_seconds())
        parts += [f"{min(starts):%Y-%m-%d %H:%M}", f"took {timedelta(seconds=seconds)} h"]
    versions = study.user_attrs.get(attributes.VERSIONS, {})
    parts += [str(versions[key]) for key in ("machine",) if key in versions]
    names = [n for n in ("optuna_miha", "optuna", "torch", "python") if n in versions]
    parts.append(", ".join(f"{name} {versions[name]}" for name in names))
    return " · ".join(part for part in parts if part)


def _summary(study: optuna.Study, lineage: Lineage) -> str:
    best = lineage.best()
    if best is None:
        return _section("Summary", "<p>No segment of training is complete yet.</p>")
    text = "".join(f"<p>{_text(line)}</p>" for line in sentences(lineage, best))
    initial = study.user_attrs.get(attributes.INITIAL, {})
    rows = [(name, initial.get(name, ""), value) for name, value in best.params.items()]
    table = _table(("parameter", "initial value", "best network"), rows)
    return _section("Summary", text + table)


def _figures(study: optuna.Study, lineage: Lineage, render: Any) -> str:
    sections = []
    best = lineage.best()
    captions = _CAPTIONS | (_ROUND_CAPTIONS if any(s.by_step for s in lineage) else {})
    for title, plot in _FIGURES.items():
        if title == "Gains" and not has_attempts(lineage):
            continue
        caption = captions[title]
        if title == "History" and best is not None and best.role == "restart":
            caption = _RESTART_CAPTION
        sections.append(_section(title, render(plot(study), caption)))
    return "\n".join(sections)


def _cycles(lineage: Lineage) -> str:
    cycles = cycles_of(lineage)
    rows = [
        (
            c.number,
            f"{c.change} (the control {c.comparison})" if c.comparison else c.change,
            c.course.replace(" ", "\N{NO-BREAK SPACE}"),
            "" if c.winner is None else c.winner.number,
            _branches(c),
        )
        for c in cycles
    ]
    if not rows:
        return ""
    kind = cycles[0].kind
    header = (kind, "best change", "value", "trial", "branches")
    return _section(f"{kind.capitalize()}s", _table(header, rows))


def _branches(cycle: Cycle) -> str:
    """The number of branches and their outcomes: ``"3, 1 pruned"``."""
    counts = (
        (cycle.n_pruned, "pruned"),
        (cycle.n_failed, "failed"),
        (cycle.n_without_effect, "without effect"),
    )
    return ", ".join([str(cycle.n_branches), *(f"{n} {outcome}" for n, outcome in counts if n)])


def _comparison(comparison: Comparison | None, render: Any) -> str:
    if comparison is None:
        return ""
    caption = "Mean over seeds of the best value so far, with its standard error."
    figure = render(plot_comparison(comparison), caption)
    return _section("Comparison", f"{figure}<pre>{html.escape(comparison.describe())}</pre>")


def _conditions(study: optuna.Study, lineage: Lineage) -> str:
    """Versions, seed and plan, which are needed to reproduce the run, and its failed trials."""
    attrs = study.user_attrs
    rows: list[tuple[Any, ...]] = [("seed", attrs.get(attributes.RUN_SEED, ""))]
    versions = attrs.get(attributes.VERSIONS, {})
    rows += list(_pairs({k: v for k, v in versions.items() if v is not None}))
    rows += [("epochs trained", lineage.spent), ("direction", study.direction.name.lower())]
    plan = {k: v for k, v in attrs.get(attributes.PLAN, {}).items() if v is not None}
    if plan.get("anneal") == "rounds":
        plan = {name: value for name, value in plan.items() if name not in _ONLY_IN_CYCLES}
    rows += list(_pairs(plan, prefix="plan: "))
    text = _table(("setting", "value"), rows)
    attrs_of = [trial.user_attrs for trial in study.get_trials(deepcopy=False)]
    errors = [
        (s.number, attrs_of[s.number][attributes.ERROR])
        for s in lineage
        if attributes.ERROR in attrs_of[s.number]
    ]
    if errors:
        text += "<h3>Failed trials</h3>" + _table(("trial", "error"), errors)
    return _section("Versions, seed and plan", text)


def _pairs(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Rows of a table, with spaces in place of underscores in their names."""
    return ((f"{prefix}{name}".replace("_", " "), value) for name, value in values.items())


def _section(title: str, body: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>\n{body}</section>"


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "\n".join(f"<tr>{''.join(_cell(number(value)) for value in row)}</tr>" for row in rows)
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(text: str) -> str:
    """A cell of a table, in which only long words may be broken."""
    is_long = any(len(word) > _LONG_WORD for word in text.split())
    return f"<td{' class=long' if is_long else ''}>{_text(text)}</td>"


def _text(text: str) -> str:
    return html.escape(text.replace("->", "→"))


def _untitled(figure: Any) -> Any:
    """Remove the title of a figure, which repeats that of the section."""
    title_height = 34
    height = figure.layout.height - title_height
    top = figure.layout.margin.t - title_height
    return figure.update_layout(title_text="", height=height, margin_t=top)


def _render_picture(figure: Any, caption: str) -> str:
    """Render a figure as SVG in a data URL, which isolates it from the page; one for phones."""
    wide = _data_url(_untitled(figure))
    narrow = _data_url(_narrowed(figure))
    alt = html.escape(caption)
    return (
        f'<figure><picture><source media="(max-width: 40rem)" srcset="{narrow}">'
        f'<img src="{wide}" alt="{alt}"></picture><figcaption>{alt}</figcaption></figure>'
    )


def _data_url(figure: Any) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg_of(figure)).decode('ascii')}"


def _narrowed(figure: Any) -> Any:
    """Lay a figure out for a phone: less wide, with its legend below."""
    layout = figure.layout
    n_names = sum(bool(t.name) and t.showlegend is not False for t in figure.data)
    figure.update_layout(width=_NARROW)
    _shorten_labels(figure, _NARROW - layout.margin.l - _NARROW_RIGHT)
    if n_names == 0 or layout.showlegend is False:
        return figure
    plot_height = layout.height - layout.margin.t - layout.margin.b
    room = _LEGEND_ROW * (-(-n_names // 2) + 1)
    return figure.update_layout(
        height=layout.height + room,
        margin={"r": _NARROW_RIGHT, "b": layout.margin.b + room},
        legend={"orientation": "h", "x": 0, "y": -(layout.margin.b + 6) / plot_height},
    )


def _shorten_labels(figure: Any, width: int) -> None:
    """Shorten labels that stand side by side on the x axis to the room between them.

    Args:
        figure: The figure.
        width: Width of the plot area, in pixels.
    """
    flat = [
        label
        for label in figure.layout.annotations
        if label.xref == "x" and label.xanchor == "left" and not label.textangle
    ]
    if not flat:
        return
    low, high = figure.layout.xaxis.range
    ends = [*(label.x for label in flat[1:]), high]
    for label, end in zip(flat, ends, strict=True):
        n_characters = int((end - label.x) / (high - low) * width / _CHARACTER_WIDTH) - 2
        label.text = escape(shorten(unescape(label.text), max(n_characters, 1)))


def _render_interactive(figure: Any, caption: str) -> str:
    content = _untitled(figure).to_html(
        full_html=False,
        include_plotlyjs=False,
        config={"displaylogo": False, "responsive": True},
    )
    return (
        f'<figure><div class="wide"><div class="plot">{content}</div></div>'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )
