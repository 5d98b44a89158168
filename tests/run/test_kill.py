"""A run that is killed at any moment, again and again, ends as if it had not been."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from helpers import services
from helpers.equality import same
from helpers.kills import Counted, Epochs, record, states, survive
from helpers.networks import same as states_are_equal
from helpers.problems import SHORT, TINY, new_study, run, weights
from optuna.trial import TrialState

import optuna_miha as miha


def undisturbed(plan: miha.Plan, folder: Path) -> tuple[miha.Result, Path]:
    """A run that is never killed, and its checkpoints."""
    counted = Counted(Epochs(folder / "epochs"))
    return run(new_study(), counted, plan=plan, checkpoint_dir=folder), folder


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> tuple[miha.Result, Path]:
    return undisturbed(SHORT, tmp_path_factory.mktemp("short"))


def new_database(kind: str, folder: Path, request: pytest.FixtureRequest) -> str:
    if kind == "sqlite":
        return f"sqlite:///{folder}/study.db"
    cluster: services.PostgreSQL = request.getfixturevalue("postgresql")
    return cluster.new_database()


def check(url: str, folder: Path, whole: tuple[miha.Result, Path]) -> None:
    """What the killed run left is what the other one did."""
    expected, their_folder = whole
    with services.rdb_storage(url) as storage:
        study = new_study(storage)
        counted = Counted(Epochs(folder / "epochs"))
        result = miha.load_result(study, counted, checkpoint_dir=folder / "checkpoints")
        assert not study.get_trials(states=(TrialState.RUNNING, TrialState.WAITING))
    assert record(result) == record(expected)
    assert same(weights(result), weights(expected))
    assert result.value == expected.value
    ours, theirs = states(result, folder / "checkpoints"), states(expected, their_folder)
    assert ours.keys() == theirs.keys()
    for place, state in ours.items():
        assert states_are_equal(state["best"]["weights"], theirs[place]["best"]["weights"])
        assert states_are_equal(state["model"], theirs[place]["model"])


@pytest.mark.parametrize(
    ("kind", "n_jobs", "n_kills"),
    [("sqlite", 1, 3), ("sqlite", 2, 1), ("postgresql", 1, 1), ("postgresql", 2, 1)],
)
def test_a_run_that_is_killed_at_random_moments_ends_bit_identically(
    kind: str,
    n_jobs: int,
    n_kills: int,
    short: tuple[miha.Result, Path],
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    url = new_database(kind, tmp_path, request)
    rng = random.Random(f"{kind} {n_jobs}")
    assert survive(url, tmp_path, SHORT, n_jobs=n_jobs, n_kills=n_kills, rng=rng)
    check(url, tmp_path, short)


@pytest.mark.long
@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_fifty_kills_change_nothing(
    kind: str,
    n_jobs: int,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    (tmp_path / "whole").mkdir()
    whole = undisturbed(TINY, tmp_path / "whole")
    rng = random.Random(f"{kind} {n_jobs} long")
    n_kills = n_runs = 0
    while n_kills < 50:
        folder = tmp_path / str(n_runs)
        folder.mkdir()
        url = new_database(kind, folder, request)
        n_kills += survive(url, folder, TINY, n_jobs=n_jobs, n_kills=8, rng=rng)
        check(url, folder, whole)
        n_runs += 1
    print(f"{n_kills} kills in {n_runs} runs")
