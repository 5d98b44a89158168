"""A run on one page of HTML that needs nothing else."""

from __future__ import annotations

import base64
import html
import importlib
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from optuna_miha._history import attributes
from optuna_miha._history.lineage import Lineage
from optuna_miha._report.page_style import PAGE
from optuna_miha._results.comparison import Comparison
from optuna_miha._results.summary import Cycle, cycles_of, sentences
from optuna_miha.visualization import (
    plot_comparison,
    plot_lineage,
    plot_mutation_gains,
    plot_schedule,
    plot_training_history,
    write_picture,
)
from optuna_miha.visualization._run_view import read_run_view
from optuna_miha.visualization._style import number

_FIGURES = {
    "Lineage": (plot_lineage, "Every segment of training, each from where its parent ended."),
    "History": (plot_training_history, "The trunk alone, and the change that each cycle made."),
    "Schedule": (plot_schedule, "The hyperparameters of the best network while it trained."),
    "Gains": (plot_mutation_gains, "Every branch against the control of its population."),
}


def write_report(
    study: optuna.Study,
    path: str | PathLike[str],
    *,
    comparison: Comparison | None = None,
    interactive: bool = False,
) -> None:
    """Write a run as one self-contained HTML file, for screens of any width and for paper.

    Args:
        study: A study with a run of :func:`~optuna_miha.optimize`, be it over or not.
        path: Where to write.
        comparison: What it is compared with, if anything.
        interactive:
            Whether figures can be zoomed and name what the cursor points at. The file then
            contains plotly's JavaScript, some 5 MB. By default they are pictures.

    Raises:
        ImportError: If plotly, or matplotlib for pictures, is not installed.
        TypeError: If ``study`` is not a study.
        ValueError: If the study holds no run, or none that has finished a segment.
    """
    record = read_run_view(study)
    lineage = record.lineage
    show = _interactive if interactive else _picture
    parts = [_summary(study, lineage), _figures(study, lineage, show)]
    parts += [_cycles(lineage), _comparison(comparison, show), _conditions(study, lineage)]
    title = html.escape(study.study_name)
    script = ""
    if interactive:
        plotly = importlib.import_module("plotly.offline")
        script = f"<script>{plotly.get_plotlyjs()}</script>"
    page = PAGE.format(title=title, script=script, body="\n".join(p for p in parts if p))
    Path(path).write_text(page, encoding="utf-8")


def _summary(study: optuna.Study, lineage: Lineage) -> str:
    best = lineage.best()
    if best is None:
        return _section("Summary", "<p>No segment of training is complete yet.</p>")
    text = "".join(f"<p>{_text(line)}</p>" for line in sentences(lineage, best))
    initial = study.user_attrs.get(attributes.INITIAL, {})
    rows = [(name, initial.get(name, ""), value) for name, value in best.params.items()]
    table = _table(("parameter", "at the start", "of the best network"), rows)
    return _section("Summary", text + table)


def _figures(study: optuna.Study, lineage: Lineage, show: Any) -> str:
    sections = []
    for title, (draw, caption) in _FIGURES.items():
        if title == "Gains" and not cycles_of(lineage):
            continue  # Nothing was mutated.
        sections.append(_section(title, show(draw(study), caption)))
    return "\n".join(sections)


def _cycles(lineage: Lineage) -> str:
    rows = [
        (
            c.number,
            c.change,
            c.course.replace(" ", "\N{NO-BREAK SPACE}"),
            "" if c.winner is None else c.winner.number,
            _branches(c),
        )
        for c in cycles_of(lineage)
    ]
    if not rows:
        return ""
    return _section("Cycles", _table(("cycle", "best change", "value", "trial", "branches"), rows))


def _branches(cycle: Cycle) -> str:
    """How many there were, and what became of them: ``"3, 1 pruned"``."""
    counts = ((cycle.n_pruned, "pruned"), (cycle.n_failed, "failed"))
    return ", ".join([str(cycle.n_branches), *(f"{n} {what}" for n, what in counts if n)])


def _comparison(comparison: Comparison | None, show: Any) -> str:
    if comparison is None:
        return ""
    caption = "Mean over seeds of the best value so far, with its standard error."
    figure = show(plot_comparison(comparison), caption)
    return _section("Comparison", f"{figure}<pre>{html.escape(comparison.describe())}</pre>")


def _conditions(study: optuna.Study, lineage: Lineage) -> str:
    """What it takes to do it again, and what went wrong."""
    attrs = study.user_attrs
    rows: list[tuple[Any, ...]] = [("seed", attrs.get(attributes.RUN_SEED, ""))]
    computed = attrs.get(attributes.VERSIONS, {})
    rows += list(_pairs({k: v for k, v in computed.items() if v is not None}))
    rows += [("epochs trained", lineage.spent), ("direction", study.direction.name.lower())]
    plan = {k: v for k, v in attrs.get(attributes.PLAN, {}).items() if v is not None}
    rows += list(_pairs(plan, prefix="plan: "))
    text = _table(("what", "value"), rows)
    failed = [s.number for s in lineage if s.state == TrialState.FAIL]
    if failed:
        errors = study.get_trials(deepcopy=False)
        lines = [(n, errors[n].user_attrs.get(attributes.ERROR, "")) for n in failed]
        text += "<h3>Trials that failed</h3>" + _table(("trial", "error"), lines)
    return _section("Versions, seed and plan", text)


def _pairs(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    return ((f"{prefix}{name}".replace("_", " "), value) for name, value in values.items())


def _section(title: str, body: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>\n{body}</section>"


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "\n".join(
        f"<tr>{''.join(f'<td>{_text(number(cell))}</td>' for cell in row)}</tr>" for row in rows
    )
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def _text(text: str) -> str:
    return html.escape(text.replace("->", "→"))


def _untitled(figure: Any) -> Any:
    """The figure without its title, which is that of the section."""
    room = 34
    height, top = figure.layout.height - room, figure.layout.margin.t - room
    return figure.update_layout(title_text="", height=height, margin_t=top)


def _picture(figure: Any, caption: str) -> str:
    """The figure as SVG in an address of its own, where nothing in it meets the page."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "figure.svg")
        write_picture(_untitled(figure), file)
        content = base64.b64encode(file.read_bytes()).decode("ascii")
    alt = html.escape(caption)
    return (
        f'<figure><div class="wide"><img src="data:image/svg+xml;base64,{content}" '
        f'alt="{alt}"></div><figcaption>{alt}</figcaption></figure>'
    )


def _interactive(figure: Any, caption: str) -> str:
    content = _untitled(figure).to_html(
        full_html=False,
        include_plotlyjs=False,
        config={"displaylogo": False, "responsive": True},
    )
    return (
        f'<figure><div class="wide"><div class="plot">{content}</div></div>'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )
