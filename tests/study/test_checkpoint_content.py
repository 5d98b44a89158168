"""A checkpoint with a missing or foreign part counts as damaged."""

from __future__ import annotations

import hashlib
import io
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.equality import same
from helpers.problems import SHORT, After, classifier, history, new_study, run, weights
from optuna.artifacts import FileSystemArtifactStore

import optuna_miha as miha
from optuna_miha._history import attributes
from optuna_miha._study.checkpoint_store import CheckpointStore
from optuna_miha.exceptions import CheckpointLostError

PARTS = ("model", "ema", "optimizer", "rng", "epoch", "best")


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The state of a run."""
    folder = tmp_path_factory.mktemp("run")
    result = run(new_study(), plan=miha.Plan.no_search(n_epochs=2), checkpoint_dir=folder)
    [name] = [s.checkpoint["id"] for s in result.lineage if s.checkpoint is not None]
    content: dict[str, Any] = torch.load(folder / name, weights_only=True)
    return content


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(FileSystemArtifactStore(tmp_path))


def test_a_complete_state_is_loaded(state: dict[str, Any], store: CheckpointStore) -> None:
    assert same(store.load_state(store.save(state, "trunk")), state)


def test_an_optimizer_may_have_values_of_its_own_beside_those_of_parameters(
    state: dict[str, Any], store: CheckpointStore
) -> None:
    entries = state["optimizer"]["state"] | {"total_step": 3}
    stepped = state | {"optimizer": state["optimizer"] | {"state": entries}}
    assert same(store.load_state(store.save(stepped, "trunk")), stepped)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("value", ["absent", "text", {3: 4}, [1], -1])
def test_an_incomplete_state_is_refused_by_its_part(
    part: str, value: Any, state: dict[str, Any], store: CheckpointStore
) -> None:
    damaged = {name: content for name, content in state.items() if name != part}
    if value != "absent":
        damaged[part] = value
    reference = store.save(damaged, "trunk")
    with pytest.raises(CheckpointLostError, match=f"is damaged: .* the part '{part}'|'{part}'"):
        store.load_state(reference)


@pytest.mark.parametrize(
    ("part", "entry", "value"),
    [
        ("best", "weights", None),
        ("best", "value", float("nan")),
        ("best", "epoch", 1.5),
        ("optimizer", "state", {0: 1}),
        ("optimizer", "class", 3),
        ("rng", "torch", torch.zeros(3)),
        ("rng", "numpy", {}),
        ("rng", "python", (3,)),
    ],
)
def test_a_foreign_entry_is_refused(
    part: str, entry: str, value: Any, state: dict[str, Any], store: CheckpointStore
) -> None:
    damaged = state | {part: state[part] | {entry: value}}
    before = torch.get_rng_state()
    with pytest.raises(CheckpointLostError, match=f"the part '{part}' is not what a run writes"):
        store.load_state(store.save(damaged, "trunk"))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("content", [{}, {"weights": None}, {"weights": [1]}, {"weights": {1: 2}}])
def test_weights_that_are_none_are_refused(
    content: dict[str, Any], store: CheckpointStore
) -> None:
    reference = store.save(content, "member")
    with pytest.raises(CheckpointLostError, match="the part 'weights'"):
        store.load_weights(reference)


def rewrite(path: Path, database: Path, without: str) -> None:
    """Remove a part of a checkpoint, and store the new hash in the study."""
    content = torch.load(path, weights_only=True)
    del content[without]
    buffer = io.BytesIO()
    torch.save(content, buffer)
    path.write_bytes(buffer.getvalue())
    new = hashlib.sha256(buffer.getvalue()).hexdigest()
    with closing(sqlite3.connect(database)) as connection, connection:
        rows = connection.execute(
            "SELECT trial_user_attribute_id, value_json FROM trial_user_attributes WHERE key = ?",
            (attributes.CHECKPOINT,),
        )
        for row, text in list(rows):
            reference = json.loads(text)
            if reference["id"] == path.name:
                changed = json.dumps(reference | {"sha256": new})
                connection.execute(
                    "UPDATE trial_user_attributes SET value_json = ? "
                    "WHERE trial_user_attribute_id = ?",
                    (changed, row),
                )


def newest(folder: Path) -> Iterator[Path]:
    files = [path for path in folder.glob("*-*-*-*.pt") if "member" not in path.name]
    return iter(sorted(files, key=lambda path: -path.stat().st_mtime_ns))


@pytest.mark.slow
@pytest.mark.parametrize("part", ["rng", "best"])
def test_a_run_without_a_part_of_its_checkpoint_trains_it_again(
    part: str, whole: miha.Result, tmp_path: Path
) -> None:
    url, folder = f"sqlite:///{tmp_path}/a.db", tmp_path / "a-checkpoints" / "tiny"
    study = new_study(url)
    run(study, plan=SHORT, callbacks=[After(5, study.stop)])
    rewrite(next(newest(folder)), tmp_path / "a.db", part)
    result = run(new_study(url), plan=SHORT)
    assert history(result) == history(whole)
    assert same(weights(result), weights(whole))
    assert miha.load_result(new_study(url), classifier).value == whole.value
