"""Writes the stored study of format 1: a run that was stopped in its first cycle.

It is not to be written anew by a later version: that it was written by an early one is its worth.
"""

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

import optuna  # noqa: E402
from helpers.problems import new_study, run  # noqa: E402

import optuna_miha as miha  # noqa: E402

PLAN = miha.Plan(40, startup=1, fixing_epochs=3, restarts=False, anneal="cosine")


def main() -> None:
    """Run, stop after the fourth trial, and leave nothing of this machine in the file."""

    def stop(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if trial.number == 3:
            study.stop()

    file = HERE / "study.db"
    study = new_study(f"sqlite:///{file}")
    run(study, plan=PLAN, keep="final", callbacks=[stop])
    study.set_user_attr("miha:checkpoint_dir", "gone")
    connection = sqlite3.connect(file)
    connection.execute("VACUUM")
    connection.close()


if __name__ == "__main__":
    main()
