"""Private names of Optuna that optuna-dashboard needs: ids, and the notes of finished trials.

``tests/report/test_dashboard.py`` fails when the notes do not appear.
"""

from __future__ import annotations

from collections.abc import Iterable

from optuna import Study
from optuna.trial import FrozenTrial

_MAX_NOTE = 2045
"""Characters that optuna-dashboard stores of a note in one attribute."""


def trial_address(study: Study) -> str:
    """The address of a trial in optuna-dashboard, without its number at the end."""
    return f"/dashboard/studies/{study._study_id}/trials?numbers="


def add_trial_notes(study: Study, notes: Iterable[tuple[FrozenTrial, str]]) -> None:
    """Store notes for optuna-dashboard, whose ``save_note`` takes running trials only.

    Each note is two transactions. A trial that has a note keeps it.
    """
    known = study._storage.get_study_system_attrs(study._study_id)
    for trial, note in notes:
        key = f"dashboard:{trial._trial_id}:note"
        if f"{key}_ver" not in known:
            for suffix, value in (("_str:0", note[:_MAX_NOTE]), ("_ver", 1)):
                study._storage.set_study_system_attr(study._study_id, key + suffix, value)
