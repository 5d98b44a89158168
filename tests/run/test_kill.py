"""A run that is killed repeatedly at random times gives the same result as an undisturbed one."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from helpers import services
from helpers.equality import same
from helpers.kills import (
    CountedClassifier,
    EpochCounter,
    full_history,
    kill_and_resume,
    remaining_states,
)
from helpers.problems import SHORT, TINY, new_study, run, weights
from optuna.trial import TrialState

import optuna_miha as miha

pytestmark = pytest.mark.slow


def run_undisturbed(plan: miha.Plan, folder: Path) -> tuple[miha.Result, Path]:
    """The result of a run that is never killed, and the folder of its checkpoints."""
    counted = CountedClassifier(EpochCounter(folder / "epochs"))
    return run(new_study(), counted, plan=plan, checkpoint_dir=folder), folder


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> tuple[miha.Result, Path]:
    return run_undisturbed(SHORT, tmp_path_factory.mktemp("short"))


def new_database(kind: str, folder: Path, request: pytest.FixtureRequest) -> str:
    if kind == "sqlite":
        return f"sqlite:///{folder}/study.db"
    cluster: services.PostgreSQL = request.getfixturevalue("postgresql")
    return cluster.new_database()


def check_same(url: str, folder: Path, undisturbed: tuple[miha.Result, Path]) -> None:
    """Check that a killed run has the history, weights and checkpoints of an undisturbed one."""
    expected, expected_folder = undisturbed
    with services.rdb_storage(url) as storage:
        study = new_study(storage)
        counted = CountedClassifier(EpochCounter(folder / "epochs"))
        result = miha.load_result(study, counted, checkpoint_dir=folder / "checkpoints")
        assert not study.get_trials(states=(TrialState.RUNNING, TrialState.WAITING))
    assert full_history(result) == full_history(expected)
    assert same(weights(result), weights(expected))
    assert result.value == expected.value
    states = remaining_states(result, folder / "checkpoints")
    expected_states = remaining_states(expected, expected_folder)
    assert states.keys() == expected_states.keys()
    for key, state in states.items():
        expected_state = expected_states[key]
        assert same(state["best"]["weights"], expected_state["best"]["weights"])
        assert same(state["model"], expected_state["model"])


@pytest.mark.parametrize(
    ("kind", "n_jobs", "n_kills"),
    [
        ("sqlite", 1, 1),
        pytest.param("sqlite", 1, 3, marks=pytest.mark.long),
        pytest.param("sqlite", 2, 1, marks=pytest.mark.long),
        ("postgresql", 1, 1),
        pytest.param("postgresql", 2, 1, marks=pytest.mark.long),
    ],
)
def test_run_killed_at_random_times_gives_a_bit_identical_result(
    kind: str,
    n_jobs: int,
    n_kills: int,
    short: tuple[miha.Result, Path],
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    url = new_database(kind, tmp_path, request)
    rng = random.Random(f"{kind} {n_jobs}")
    assert kill_and_resume(url, tmp_path, SHORT, n_jobs=n_jobs, n_kills=n_kills, rng=rng)
    check_same(url, tmp_path, short)


@pytest.mark.long
def test_a_killed_run_with_states_by_reference_gives_a_bit_identical_result(
    short: tuple[miha.Result, Path], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"n_jobs": 1, "n_kills": 2, "rng": random.Random(3)}
    url = f"sqlite:///{tmp_path}/study.db"
    assert kill_and_resume(url, tmp_path, SHORT, by_reference=True, **options)
    check_same(url, tmp_path, short)
    files = [
        sorted(file.name.rsplit("-", 2)[0] for file in folder.glob("*-*-*.pt"))
        for folder in (tmp_path / "checkpoints", short[1])
    ]
    assert files[0] == files[1]


@pytest.mark.long
@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_fifty_kills_do_not_change_the_result(
    kind: str,
    n_jobs: int,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    (tmp_path / "whole").mkdir()
    whole = run_undisturbed(TINY, tmp_path / "whole")
    rng = random.Random(f"{kind} {n_jobs} long")
    n_kills = n_runs = 0
    while n_kills < 50:
        folder = tmp_path / str(n_runs)
        folder.mkdir()
        url = new_database(kind, folder, request)
        n_kills += kill_and_resume(url, folder, TINY, n_jobs=n_jobs, n_kills=8, rng=rng)
        check_same(url, folder, whole)
        n_runs += 1
    print(f"{n_kills} kills in {n_runs} runs")
