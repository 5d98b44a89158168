"""Figures, a note and files of a run in optuna-dashboard.

They are added if optuna-dashboard is installed. No error in this module may end a run.
"""

from __future__ import annotations

import importlib
import importlib.util
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.artifacts import get_all_artifact_meta, upload_artifact

from optuna_miha._history import attributes
from optuna_miha._history.error_text import describe_error
from optuna_miha._report.notes import HEADING, study_note, trial_note
from optuna_miha._results.result import Result
from optuna_miha._study.dashboard_notes import add_trial_notes, trial_address
from optuna_miha._study.optuna_internals import is_in_memory
from optuna_miha._study.schema import read_lineage
from optuna_miha.visualization import plot_lineage, plot_mutation_gains, plot_schedule
from optuna_miha.visualization._attempts import has_attempts
from optuna_miha.visualization._style import SMALL

_logger = optuna.logging.get_logger("optuna.miha")

_FIGURES = {
    "miha-gains": plot_mutation_gains,
    "miha-lineage": plot_lineage,
    "miha-schedule": plot_schedule,
}
"""Plot functions by the id of their figure. ``optuna-miha dashboard`` shows them in this order."""

_FIGURE_HEIGHT, _FONT = 440, 10
"""Height of a figure and size of its labels, in pixels."""

_MIN_INTERVAL = 5.0
"""Minimum number of seconds between two refreshes."""

_INTERVAL_FACTOR = 20
"""Minimum ratio of the interval to the duration of a refresh, which limits its cost to 5 %."""

_FIRST_DURATION = 2.0
"""Estimated seconds of the first refresh, which imports optuna-dashboard and scikit-learn."""


class Dashboard:
    """Keeps the page of a study in optuna-dashboard up to date.

    It does nothing for a study in memory, which no other process can show, and nothing if
    optuna-dashboard is not installed.

    Args:
        study: The study.
    """

    def __init__(self, study: optuna.Study) -> None:
        self._study = study
        self._is_enabled = not is_in_memory(study) and _is_installed()
        self._last_refresh = time.monotonic()
        self._duration = _FIRST_DURATION
        self._has_warned = False
        self._noted: set[int] = set()

    def refresh(self) -> None:
        """Update the figures and the note, unless the last refresh was too recent."""
        interval = max(_MIN_INTERVAL, _INTERVAL_FACTOR * self._duration)
        if self._is_enabled and time.monotonic() - self._last_refresh >= interval:
            self._refresh()

    def finish(self, result: Result, artifact_store: Any, *, model: bool = True) -> None:
        """Refresh for the last time, and register the model and its schedule as artifacts.

        Only permanent files are registered, because the dashboard cannot delete a study that has
        a registered but missing file. A run that continues with a larger budget adds the files of
        its new result and keeps the previous ones.

        Args:
            result: The result of the run.
            artifact_store: The store that contains the checkpoints of the run.
            model: Whether to register the model, too.
        """
        if self._is_enabled:
            self._refresh()
            register = partial(_register, self._study, result, artifact_store, model)
            self._attempt("The files", register)

    def _refresh(self) -> None:
        start = time.monotonic()
        has_gains = has_attempts(read_lineage(self._study))
        for name, plot in _FIGURES.items():
            if plot is plot_mutation_gains and not has_gains:
                continue
            self._attempt(f"The figure {name}", partial(_save_figure, self._study, name, plot))
        self._attempt("The note", partial(_save_note, self._study))
        self._attempt("The notes of trials", self._save_trial_notes)
        self._last_refresh = time.monotonic()
        self._duration = self._last_refresh - start

    def _save_trial_notes(self) -> None:
        """Describe each finished trial that has no note yet."""
        lineage, address = read_lineage(self._study), trial_address(self._study)
        new = [s for s in lineage if s.number not in self._noted]
        trials = self._study.get_trials(deepcopy=False)
        notes = []
        for segment in new:
            trial = trials[segment.number]
            error = trial.user_attrs.get(attributes.ERROR)
            notes.append((trial, trial_note(lineage, segment, address, error)))
        add_trial_notes(self._study, notes)
        self._noted |= {segment.number for segment in new}

    def _attempt(self, what: str, action: Callable[[], None]) -> None:
        """Call ``action``; if it fails, warn the first time instead of raising."""
        try:
            action()
        except Exception as error:
            log = _logger.debug if self._has_warned else _logger.warning
            self._has_warned = True
            log(f"{what} for optuna-dashboard could not be saved: {describe_error(error)}")


def _is_installed() -> bool:
    names = ("optuna_dashboard", "plotly")
    return all(importlib.util.find_spec(name) is not None for name in names)


def _save_figure(study: optuna.Study, name: str, plot: Callable[[optuna.Study], Any]) -> None:
    module = importlib.import_module("optuna_dashboard")
    figure = plot(study)
    # A card of the dashboard crops figures higher than 450 pixels, and may be narrow.
    figure.update_yaxes(tickfont_size=_FONT)
    figure.update_annotations(font_size=_FONT)
    figure.update_traces(insidetextfont_size=9, selector={"type": "bar"})
    n_breaks = (figure.layout.xaxis.title.text or "").count("<br>")
    figure.update_layout(
        height=_FIGURE_HEIGHT,
        margin_l=figure.layout.margin.l * _FONT / SMALL,
        margin_r=45,
        margin_b=40,
        legend={"orientation": "h", "x": 0, "y": -0.25 - 0.07 * n_breaks, "font_size": _FONT},
    )
    module.save_plotly_graph_object(study, figure, graph_object_id=name)


def _save_note(study: optuna.Study) -> None:
    module = importlib.import_module("optuna_dashboard")
    user_text, _, _ = module.get_note(study).partition(HEADING)
    module.save_note(study, user_text + study_note(read_lineage(study), trial_address(study)))


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
