"""The folder of checkpoints that belongs to a study."""

from __future__ import annotations

import shutil
from pathlib import Path

import optuna
import pytest
from helpers.problems import classifier, new_study
from hypothesis import given
from hypothesis import strategies as st

import optuna_miha as miha
from optuna_miha._history import attributes
from optuna_miha._study.folders import folder_name, locate

PLAN = miha.Plan.no_search(n_epochs=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["n" * 512, "実験" * 256, "é" * 130, "a/b: c?", "...", "𝔘" * 512])
def test_a_study_of_any_name_can_be_run_and_loaded(name: str, tmp_path: Path) -> None:
    study = optuna.create_study(
        storage=f"sqlite:///{tmp_path}/a.db", study_name=name, sampler=miha.MihaSampler(seed=0)
    )
    result = miha.optimize(study, classifier, plan=PLAN, show_progress_bar=False)
    assert miha.load_result(study, classifier).value == result.value
    [folder] = (tmp_path / "a-checkpoints").iterdir()
    assert len(folder.name.encode()) <= 100


def test_a_database_with_a_long_name_can_be_run(tmp_path: Path) -> None:
    study = new_study(f"sqlite:///{tmp_path}/{'d' * 240}.db")
    miha.optimize(study, classifier, plan=PLAN, show_progress_bar=False)
    assert miha.load_result(study, classifier).n_epochs_trained == 2


@given(st.lists(st.text(min_size=1, max_size=300), min_size=2, max_size=2, unique=True))
def test_different_names_have_different_folders_of_safe_names(names: list[str]) -> None:
    one, other = map(folder_name, names)
    assert one != other
    for name in (one, other):
        assert len(name.encode()) <= 100
        assert name.strip(".")
        assert not set(name) & set('/\\\0:*?"<>|')


def test_a_name_that_is_a_folder_already_is_kept() -> None:
    for name in ("tiny", "run-2.b", "実験", "n" * 100):
        assert folder_name(name) == name


@pytest.mark.slow
def test_the_folder_that_an_earlier_version_named_is_found(tmp_path: Path) -> None:
    study = optuna.create_study(storage=f"sqlite:///{tmp_path}/a.db", study_name="a b")
    earlier = tmp_path / "a-checkpoints" / "a_b"
    earlier.mkdir(parents=True)
    study.set_user_attr(attributes.CHECKPOINT_DIR, str(earlier))
    assert locate(study).folder == earlier
    shutil.move(tmp_path, tmp_path.with_name("moved"))
    moved = optuna.load_study(
        storage=f"sqlite:///{tmp_path.with_name('moved')}/a.db", study_name="a b"
    )
    assert locate(moved).folder == tmp_path.with_name("moved") / "a-checkpoints" / "a_b"
