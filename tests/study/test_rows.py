"""Rows of the database that were deleted or changed: every door names the trial."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
from helpers.problems import SHORT, classifier, new_study, run

import optuna_miha as miha
from optuna_miha._cli.main import main
from optuna_miha._report.page import write_report
from optuna_miha._study.schema import read_lineage
from optuna_miha.exceptions import RecordError
from optuna_miha.visualization import plot_lineage, plot_schedule


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stored")
    run(new_study(f"sqlite:///{folder}/a.db"), plan=SHORT)
    return folder


def report(study: optuna.Study) -> None:
    write_report(study, Path("report.html"))


DOORS: list[Callable[[optuna.Study], Any]] = [
    lambda study: run(study, plan=SHORT),
    lambda study: miha.load_result(study, classifier),
    read_lineage,
    plot_lineage,
    plot_schedule,
    report,
]

ROW = "(SELECT trial_id FROM trials WHERE number = 1)"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("DELETE FROM trials WHERE number = 1", "trial 1 is missing"),
        ("DELETE FROM trials WHERE number = 0", "trial 0 is missing"),
        (f"UPDATE trial_params SET distribution_json = '{{}}' WHERE trial_id = {ROW}", "Trial 1 "),
        (f"UPDATE trial_params SET distribution_json = 'x' WHERE trial_id = {ROW}", "Trial 1 "),
        (
            "UPDATE trial_params SET param_value = 77 "
            f"WHERE param_name = 'lr' AND trial_id = {ROW}",
            "'lr' of trial 1 must be in its range",
        ),
        (
            f"UPDATE trial_params SET param_value = 77 WHERE trial_id = {ROW}",
            "Trial 1 of the study 'tiny' must be as Optuna wrote it",
        ),
        (
            f"UPDATE trial_user_attributes SET value_json = '[' WHERE trial_id = {ROW}",
            "Trial 1 ",
        ),
        ("UPDATE trials SET state = 'GREAT' WHERE number = 1", "Trial 1 "),
    ],
)
def test_every_door_names_the_trial(
    statement: str,
    expected: str,
    stored: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(stored, tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    with closing(sqlite3.connect(tmp_path / "copy" / "a.db")) as connection, connection:
        assert connection.execute(statement).rowcount >= 1
    url = f"sqlite:///{tmp_path}/copy/a.db"
    for door in DOORS:
        with pytest.raises(RecordError) as caught:
            door(new_study(url))
        assert expected in str(caught.value)
        assert "start a study with another name" in str(caught.value)
    assert main(["clean", "tiny", "--storage", url]) != 0
    assert expected in capsys.readouterr().err


def test_a_study_with_invalid_attributes_is_named(stored: Path, tmp_path: Path) -> None:
    shutil.copytree(stored, tmp_path / "copy")
    with closing(sqlite3.connect(tmp_path / "copy" / "a.db")) as connection, connection:
        connection.execute("UPDATE study_user_attributes SET value_json = '['")
    for door in DOORS:
        with pytest.raises(RecordError, match="The study 'tiny' must be as Optuna wrote it"):
            door(new_study(f"sqlite:///{tmp_path}/copy/a.db"))


def test_a_value_that_its_checkpoint_contradicts_is_named(stored: Path, tmp_path: Path) -> None:
    shutil.copytree(stored, tmp_path / "copy")
    with closing(sqlite3.connect(tmp_path / "copy" / "a.db")) as connection, connection:
        connection.execute(f"UPDATE trial_values SET value = 1e-9 WHERE trial_id = {ROW}")
    for door in DOORS[:2]:
        with pytest.raises(RecordError, match="The value of trial 1 must be"):
            door(new_study(f"sqlite:///{tmp_path}/copy/a.db"))
