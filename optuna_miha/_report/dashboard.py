"""What optuna-dashboard shows of a run beside its trials: figures, a note, and files.

It is there if optuna-dashboard is installed. Nothing in here may end a run.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.artifacts import get_all_artifact_meta, upload_artifact

from optuna_miha._history.lineage import Lineage
from optuna_miha._results.result import Result
from optuna_miha._results.summary import cycles_of, sentences
from optuna_miha._study.optuna_internals import is_in_memory
from optuna_miha._study.schema import read_lineage
from optuna_miha.visualization import plot_lineage, plot_schedule
from optuna_miha.visualization._style import number

_logger = optuna.logging.get_logger("optuna.miha")

HEADING = "## Run of optuna_miha"
"""From here on the study's note is ours; what a person wrote above it stays."""

_FIGURES = {"miha-lineage": plot_lineage, "miha-schedule": plot_schedule}
"""By the names under which the dashboard keeps them."""

_HEIGHT = 440

_SECONDS = 5.0
"""Nobody looks more often than that."""

_SHARE = 20
"""Times as long as a refresh takes must pass before it: it costs the run 5 % at most."""

_FIRST_SECONDS = 2.0
"""What the first refresh takes, about: it imports optuna-dashboard, and scikit-learn with it."""

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>()#+.!|~$&-])")


class Dashboard:
    """Keeps the page of one study up to date.

    Does nothing for a study in memory, which no other process can look at, and nothing without
    optuna-dashboard.

    Args:
        study: The study.
    """

    def __init__(self, study: optuna.Study) -> None:
        self._study = study
        self._is_on = not is_in_memory(study) and _is_installed()
        self._last = time.monotonic()
        self._seconds = _FIRST_SECONDS
        self._has_warned = False

    def refresh(self) -> None:
        """Draw figures and write the note anew, unless that was done a moment ago."""
        pause = max(_SECONDS, _SHARE * self._seconds)
        if self._is_on and time.monotonic() - self._last >= pause:
            self._refresh()

    def finish(self, result: Result, artifact_store: Any, *, model: bool = True) -> None:
        """Do so for the last time, and register the model and its schedule as artifacts.

        Only what stays for good is registered, because the dashboard cannot delete a study
        with a registered file that is gone. A run that goes on with a larger budget adds the
        files of its new result, and leaves the former ones.

        Args:
            result: What the run found.
            artifact_store: Where its checkpoints lie.
            model: Whether the model is registered too; its checkpoint takes up room already.
        """
        if self._is_on:
            self._refresh()
            register = partial(_register, self._study, result, artifact_store, model)
            self._attempt("The files", register)

    def _refresh(self) -> None:
        start = time.monotonic()
        for name, draw in _FIGURES.items():
            self._attempt(f"The figure {name}", partial(_show, self._study, name, draw))
        self._attempt("The note", partial(_annotate, self._study))
        self._last = time.monotonic()
        self._seconds = self._last - start

    def _attempt(self, what: str, action: Callable[[], None]) -> None:
        """Do something whose failure is no reason to stop training; warn once."""
        try:
            action()
        except Exception as error:
            log = _logger.debug if self._has_warned else _logger.warning
            self._has_warned = True
            log(f"{what} for optuna-dashboard could not be saved: {type(error).__name__}: {error}")


def _is_installed() -> bool:
    names = ("optuna_dashboard", "plotly")
    return all(importlib.util.find_spec(name) is not None for name in names)


def _show(study: optuna.Study, name: str, draw: Callable[[optuna.Study], Any]) -> None:
    module = importlib.import_module("optuna_dashboard")
    figure = draw(study)
    # A card of the dashboard is 450 pixels high, cuts what is below, and may be narrow.
    figure.update_yaxes(tickfont_size=10)
    figure.update_traces(insidetextfont_size=9, selector={"type": "bar"})
    figure.update_layout(
        height=_HEIGHT,
        margin_r=45,
        margin_b=40,
        legend={"orientation": "h", "x": 0, "y": -0.25, "font_size": 10},
    )
    module.save_plotly_graph_object(study, figure, graph_object_id=name)


def _annotate(study: optuna.Study) -> None:
    module = importlib.import_module("optuna_dashboard")
    theirs, _, _ = module.get_note(study).partition(HEADING)
    lineage = read_lineage(study)
    module.save_note(study, theirs + note(lineage))


def note(lineage: Lineage) -> str:
    """The run in Markdown.

    Args:
        lineage: Its record; at least one segment is complete.
    """
    best = lineage.best()
    assert best is not None
    lines = [HEADING, ""]
    for line in sentences(lineage, best):
        lines += [_plain(line), ""]
    cycles = cycles_of(lineage)
    if cycles:
        lines += ["| cycle | best change | value | trial |", "|---|---|---|---|"]
    for cycle in cycles:
        trial = "" if cycle.winner is None else str(cycle.winner.number)
        cells = (str(cycle.number), _plain(cycle.change), _plain(cycle.course), trial)
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| parameter of the best network | value |", "|---|---|"]
    lines += [f"| {_plain(name)} | {_plain(number(v))} |" for name, v in best.params.items()]
    lines += ["", "*This part is written anew as the run goes on; write above its heading.*"]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, in one line."""
    return _MARKDOWN.sub(r"\\\1", " ".join(text.replace("->", "→").split()))


def _register(study: optuna.Study, result: Result, artifact_store: Any, model: bool) -> None:
    known = {meta.filename for meta in get_all_artifact_meta(study)}
    epochs = result.n_epochs_trained
    files: dict[str, Callable[[Path], None]] = {
        f"schedule-{epochs}-epochs.csv": result.schedule.to_csv,
    }
    if model:
        files[f"model-{epochs}-epochs.pt"] = result.save
    with tempfile.TemporaryDirectory() as folder:
        for name, write in files.items():
            if name not in known:
                path = Path(folder, name)
                write(path)
                upload_artifact(
                    artifact_store=artifact_store, file_path=str(path), study_or_trial=study
                )
