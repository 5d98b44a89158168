"""What a result shows of itself in a console and in a notebook."""

from __future__ import annotations

import base64
import html
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING

from optuna_miha._history.error_text import describe_error
from optuna_miha._history.schedule import params_of
from optuna_miha._history.segment import place_of
from optuna_miha._history.text_table import html_table
from optuna_miha._model.recipe_text import describe_model
from optuna_miha._search.mutation import describe

if TYPE_CHECKING:
    from optuna_miha._results.result import Result

_MAX_TEXT = 66
"""Characters of a value; with its name, a line fits into 80 columns."""


def overview(result: Result) -> list[tuple[str, str]]:
    """Names and texts that summarize a result, starting with a headline without a name."""
    last, schedule = result.lineage[-1], result.schedule
    changing = [
        name
        for name in params_of(schedule[-1])
        if any(row.get(name) != schedule[-1].get(name) for row in schedule)
    ]
    changes = f"; {', '.join(changing)} changed" if changing else ""
    length = "1 row" if len(schedule) == 1 else f"{len(schedule)} rows"
    path = " -> ".join(str(segment.number) for segment in result.lineage)
    rows = [
        ("model", describe_model(result.model)),
        ("params", describe({}, result.params)),
        ("schedule", f"{length}, {schedule[-1]['to_epoch']} epochs{changes}"),
        ("lineage", f"trials {path}"),
        ("more", "print(result.describe()), print(result.schedule)"),
    ]
    headline = (
        f"Result: value {result.value:.6g}, trial {last.number} ({place_of(last)}); "
        f"{result.n_epochs_trained} epochs trained in {len(result.segments)} trials"
    )
    return [("", headline), *((name, _wrapped(text)) for name, text in rows)]


def _wrapped(text: str) -> str:
    """At most three lines of text."""
    return "\n".join(textwrap.wrap(text, _MAX_TEXT, max_lines=3, placeholder=" …"))


def result_html(result: Result, draw: Callable[[], bytes]) -> str:
    """A result as HTML: value, figure of the lineage, and schedule.

    Args:
        result: The result.
        draw: Draws the figure as SVG. If it fails, the reason takes the place of the figure.
    """
    (_, headline), *rows = overview(result)
    try:
        content = base64.b64encode(draw()).decode("ascii")
        picture = (
            f'<img src="data:image/svg+xml;base64,{content}" alt="Lineage of the run" '
            'style="width:100%;max-width:1000px;background:white">'
        )
    except Exception as error:  # A display must not fail.
        picture = f"<p>No figure: {html.escape(describe_error(error))}</p>"
    table = html_table(("", ""), rows)
    return f"<p><b>{html.escape(headline)}</b></p>{table}{picture}{result.schedule.to_html()}"
