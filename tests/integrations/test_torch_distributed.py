"""Two ranks train each branch together, as real processes that communicate by gloo."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
import torch.distributed as dist
from helpers import ranks
from helpers.equality import same
from helpers.problems import new_study
from optuna.trial import TrialState
from torch import multiprocessing

import optuna_miha as miha
from optuna_miha.integrations.torch_distributed import optimize_on_ranks

pytestmark = pytest.mark.slow


def found_by(function: Callable[..., None], folder: Path) -> list[dict[str, Any]]:
    """Call a function on two ranks; returns what each of them found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(function, args=(folder, port), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, Any]]:
    return found_by(ranks.main, folder)


def load(folder: Path, name: str) -> optuna.Study:
    return new_study(f"sqlite:///{folder}/{name}.db")


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_all_ranks_have_the_same_weights_and_random_numbers_of_their_own(
    found: Any, name: str
) -> None:
    first, second = (part[name] for part in found)
    check_weights(first, second)
    assert not set(first["draws"]) & set(second["draws"])


def check_weights(first: Any, second: Any) -> None:
    assert len(first["weights"]) >= ranks.N_EPOCHS
    assert same(first["weights"], second["weights"])


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_a_resumed_run_equals_an_uninterrupted_one(folder: Path, found: Any, name: str) -> None:
    assert same(found[0][name]["whole"], found[0][name]["parts"])
    whole, parts = load(folder, f"{name}-whole"), load(folder, f"{name}-parts")
    states = [trial.state for trial in whole.trials]
    assert [trial.state for trial in parts.trials] == states
    assert set(states) <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert miha.load_result(parts, ranks.model_fn).n_epochs_trained == ranks.N_EPOCHS


def test_weights_that_differ_are_refused(found: Any) -> None:
    for part in found:
        assert "All ranks must have the same weights at the end of epoch 1" in part["alone"]
        assert "DistributedDataParallel" in part["alone"]


def test_a_rank_in_another_phase_is_named(found: Any) -> None:
    for part in found:
        assert "All ranks must train the same epochs, but rank 0 is at" in part["ends early"]
        assert "rank 1 at the end of its trainer" in part["ends early"]


def test_a_rank_that_fails_ends_the_run_and_nothing_is_lost(folder: Path, found: Any) -> None:
    assert "no more data" in found[1]["fails"]
    assert "Start the script again to resume" in found[1]["fails"]
    assert found[0]["fails"]
    study = load(folder, "fails")
    states = [trial.state for trial in study.trials]
    assert TrialState.COMPLETE in states
    assert miha.load_result(study, ranks.model_fn).n_epochs_trained > 0


def test_a_process_group_is_needed() -> None:
    with pytest.raises(RuntimeError, match="torchrun"):
        optimize_on_ranks(new_study(), ranks.model_fn, trainer=ranks.alone)


@pytest.mark.parametrize("arguments", [{"n_jobs": 2}, {"executor": None}])
def test_other_ways_to_use_several_processes_are_refused(arguments: Any) -> None:
    dist.init_process_group(store=dist.HashStore(), rank=0, world_size=1, backend="gloo")
    try:
        with pytest.raises(TypeError, match="all ranks train one branch"):
            optimize_on_ranks(new_study(), ranks.model_fn, trainer=ranks.alone, **arguments)
    finally:
        dist.destroy_process_group()


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # Those of Accelerate.
def test_accelerate_trains_on_all_ranks(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    first, second = (part["accelerate"] for part in found_by(ranks.accelerate, tmp_path))
    check_weights(first, second)
    assert same(first["whole"], first["parts"])
