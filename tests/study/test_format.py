"""Studies of earlier versions can be loaded and resumed."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
from helpers.problems import classifier, history, new_study, run

import optuna_miha as miha
from optuna_miha._history import attributes
from optuna_miha._model.suggest_optimizer import suggest_optimizer
from optuna_miha._study.schema import FORMAT

STORED = Path(__file__).parents[1] / "data" / "format1"
PLAN = miha.Plan(40, startup=1, fixing_epochs=3, restarts=False, anneal="cosine")


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A copy of the stored study together with its checkpoints, and its default search space."""
    decays = (0.0, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
    monkeypatch.setitem(suggest_optimizer.__kwdefaults__, "weight_decay", decays)
    shutil.copytree(STORED, tmp_path / "copy")
    return f"sqlite:///{tmp_path}/copy/study.db"


def test_a_stored_study_is_loaded(storage: str) -> None:
    study = new_study(storage)
    assert study.user_attrs[attributes.FORMAT] == 1
    result = miha.load_result(study, classifier)
    assert result.n_epochs_trained == 15
    assert result.value == study.best_value
    assert len(result.schedule) == 2
    assert all(len(s.train_losses) == s.trained for s in result.segments)


@pytest.mark.slow
def test_a_stored_study_is_resumed_from_its_checkpoint(storage: str) -> None:
    study = new_study(storage)
    before = history(miha.load_result(study, classifier))
    result = run(study, keep="final", plan=PLAN)
    assert result.n_epochs_trained == 40
    assert history(result)[: len(before)] == before
    assert result.segments[-1].role == "final"


@pytest.mark.slow
def test_a_study_without_a_format_attribute_has_the_first_format(storage: str) -> None:
    with sqlite3.connect(storage.removeprefix("sqlite:///")) as connection:
        connection.execute("DELETE FROM study_user_attributes WHERE key = ?", (attributes.FORMAT,))
    study = new_study(storage)
    assert attributes.FORMAT not in study.user_attrs
    assert run(study, keep="final", plan=PLAN).n_epochs_trained == 40


def test_a_stored_study_with_another_default_space_is_refused(
    storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    study = new_study(storage)
    before = study.user_attrs
    with pytest.raises(miha.exceptions.SearchSpaceChangedError, match="weight_decay"):
        run(study, keep="final", plan=PLAN)
    assert study.user_attrs == before


def test_a_new_study_stores_its_format() -> None:
    study = new_study()
    run(study, plan=miha.Plan(24, startup=1, anneal="cosine"))
    assert study.user_attrs[attributes.FORMAT] == FORMAT


def test_the_stored_study_is_small_and_contains_no_local_paths() -> None:
    files = [path for path in STORED.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert sum(path.stat().st_size for path in files) < 300_000
    assert any(path.suffix == ".pt" for path in files)
    content = (STORED / "study.db").read_bytes()
    assert str(Path(__file__).parents[2]).encode() not in content
