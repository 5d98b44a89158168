"""Checkpoints that are lost, training that diverges, stores that fail."""

from __future__ import annotations

import errno
import math
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from helpers.equality import same
from helpers.problems import SHORT, classifier, history, new_study, run, weights
from helpers.segments import segment
from optuna.artifacts import FileSystemArtifactStore
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState
from torch import nn
from torch.optim import SGD

import optuna_miha as miha
from optuna_miha._history import attributes
from optuna_miha._history.lineage import Lineage
from optuna_miha._history.segment import Segment
from optuna_miha._search.phases import Stretch, next_phase
from optuna_miha._study import checkpoint_store
from optuna_miha.exceptions import CheckpointError, CheckpointLostError, MihaError


class StopAfter:
    """A callback that stops the study when it has seen so many trials."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __call__(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        self.n -= 1
        if self.n == 0:
            study.stop()


def checkpoints(folder: Path) -> list[Path]:
    """Those that training can go on from, the newest first."""
    files = [path for path in folder.iterdir() if not path.name.startswith("member-")]
    return sorted(files, key=lambda path: path.stat().st_mtime_ns, reverse=True)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    ("n_trials", "n_lost", "damage"),
    [(1, 1, flip), (4, 1, cut), (5, 1, Path.unlink), (5, 2, flip), (99, 1, flip), (99, 2, cut)],
)
def test_without_its_last_checkpoints_a_run_ends_as_if_they_had_not_been_lost(
    n_trials: int,
    n_lost: int,
    damage: Callable[[Path], None],
    whole: miha.Result,
    tmp_path: Path,
    log: pytest.LogCaptureFixture,
) -> None:
    study = new_study()
    run(study, plan=SHORT, callbacks=[StopAfter(n_trials)], checkpoint_dir=tmp_path)
    for path in (broken := checkpoints(tmp_path)[:n_lost]):
        damage(path)
    result = run(study, plan=SHORT, checkpoint_dir=tmp_path)
    assert history(result) == history(whole)
    assert same(weights(result), weights(whole))
    lost = study.user_attrs[attributes.LOST]
    assert not set(lost) & {s.number for s in result.segments}, "nothing is selected from it"
    [warning] = [r.getMessage() for r in log.records if r.getMessage().startswith("Lost")]
    assert f"trial {max(lost) if n_lost == 1 else ''}" in warning
    assert any(path.name in warning for path in broken)
    assert run(study, plan=SHORT, checkpoint_dir=tmp_path).value == result.value


def test_of_two_checkpoints_that_were_swapped_both_are_known_by_their_hash(
    whole: miha.Result, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    study = new_study()
    run(study, plan=SHORT, callbacks=[StopAfter(5)], checkpoint_dir=tmp_path)
    newest, before = checkpoints(tmp_path)[:2]
    one, other = newest.read_bytes(), before.read_bytes()
    newest.write_bytes(other)
    before.write_bytes(one)
    result = run(study, plan=SHORT, checkpoint_dir=tmp_path)
    assert history(result) == history(whole)
    assert same(weights(result), weights(whole))
    # Those two alone were trained again, from the newest ancestor that is whole.
    assert len(study.user_attrs[attributes.LOST]) == 2
    assert len(study.trials) == len(whole.segments) + 2
    for path in (newest, before):
        assert f"Checkpoint {path.name} is damaged" in log.text


def test_where_nothing_else_is_whole_training_starts_from_scratch(
    whole: miha.Result, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    study = new_study()
    run(study, plan=SHORT, callbacks=[StopAfter(5)], checkpoint_dir=tmp_path, keep="final")
    for path in checkpoints(tmp_path):
        flip(path)
    result = run(study, plan=SHORT, checkpoint_dir=tmp_path, keep="final")
    assert history(result) == history(whole)
    assert same(weights(result), weights(whole))
    assert "The run continues from scratch" in log.text


def test_where_not_one_checkpoint_is_found_nothing_is_thrown_away(tmp_path: Path) -> None:
    study = new_study()
    run(study, plan=SHORT, callbacks=[StopAfter(5)], checkpoint_dir=tmp_path / "right")
    with pytest.raises(CheckpointLostError, match="All other files of the study"):
        run(study, plan=SHORT, checkpoint_dir=tmp_path / "wrong")
    assert attributes.LOST not in study.user_attrs
    assert run(study, plan=SHORT, checkpoint_dir=tmp_path / "right").n_epochs_trained == 40


def test_loading_a_damaged_result_says_what_can_be_done(tmp_path: Path) -> None:
    study = new_study()
    run(study, plan=SHORT, checkpoint_dir=tmp_path)
    flip(checkpoints(tmp_path)[0])
    with pytest.raises(CheckpointError) as caught:
        miha.load_result(study, classifier)
    for advice in ("is damaged", "from a backup", "`optuna_miha.optimize`"):
        assert advice in str(caught.value)


def aging(trial: Any) -> miha.Recipe:
    """A network that counts its epochs."""
    recipe = classifier(trial)
    recipe.model.register_buffer("age", nn.Linear(1, 1).weight.detach() * 0)
    params = list(recipe.model.parameters())
    recipe.optimizer = miha.suggest_optimizer(trial, params, initial=SGD(params, lr=1.0))
    return recipe


def diverging(least: int, most: float) -> Any:
    """A trainer that knows no data: from an age on, too high a learning rate makes NaN."""

    def train(recipe: miha.Recipe, n_epochs: int) -> Iterator[miha.EpochResult]:
        age, [group] = recipe.model.age, recipe.optimizer.param_groups
        lr = group["lr"]  # Of the first epoch: of what is annealed, a third.
        for _ in range(n_epochs):
            age += 1
            failed = age.item() > least and lr > most
            yield miha.EpochResult(value=math.nan if failed else 1 / age.item())

    return train


@pytest.mark.parametrize(("least", "most", "n_failed"), [(0, 0.5, 1), (0, 0.2, 2), (17, 0.2, 2)])
def test_a_trunk_that_diverges_goes_on_from_where_it_was_good_with_a_lower_lr(
    least: int, most: float, n_failed: int, log: pytest.LogCaptureFixture
) -> None:
    plan = miha.Plan(40, startup=1, fixing_epochs=6, mutations=(), restarts=False)
    study = new_study()
    result = run(study, aging, plan=plan, trainer=diverging(least, most))
    failed = [s for s in result.segments if s.state == TrialState.FAIL and s.role != "branch"]
    [again] = [
        s for s in result.segments if (s.role, s.cycle, s.branch) == (*place(failed[0]), n_failed)
    ]
    assert len(failed) == n_failed
    assert {s.parent for s in failed} == {again.parent}
    raised = 3 if again.role == "final" else 1
    assert again.params["lr"] == pytest.approx(raised * 0.3**n_failed, rel=1e-3)
    assert again.mutation.startswith("lr 1 ->")
    assert again.state == TrialState.COMPLETE
    assert result.n_epochs_trained == 40
    assert result.segments[-1].role == "final"
    assert math.isfinite(result.segments[-1].last_score)
    assert "Training diverged" in log.text


def place(one: Segment) -> tuple[str, int]:
    return one.role, one.cycle


def test_what_diverges_at_any_lr_ends() -> None:
    plan = miha.Plan(40, startup=1, fixing_epochs=6, mutations=(), restarts=False)
    study = new_study()
    result = run(study, aging, plan=plan, trainer=diverging(6, 0.0))
    finals = [s for s in result.segments if s.role == "final"]
    assert [s.state for s in finals] == [TrialState.FAIL] * 4
    assert result.value == pytest.approx(1 / 6)


@pytest.mark.parametrize("error", [RuntimeError("no room left"), None])
def test_a_final_phase_that_fails_says_what_is_unspent(
    error: Exception | None, log: pytest.LogCaptureFixture
) -> None:
    def train(recipe: miha.Recipe, n_epochs: int) -> Iterator[miha.EpochResult]:
        for epoch in range(1, n_epochs + 1):
            if epoch == 9 and error is not None:  # The others are shorter.
                raise error
            yield miha.EpochResult(value=math.nan if epoch == 9 else 1 / epoch)

    plan = miha.Plan(40, startup=1, fixing_epochs=6, mutations=(), restarts=False)
    study = new_study()
    first = run(study, no_rate, plan=plan, trainer=train, catch=(RuntimeError,))
    [final] = [t for t in study.trials if t.user_attrs["miha:role"] == "final"]
    unspent = 40 - first.n_epochs_trained
    assert unspent > 0
    [warning] = [r.getMessage() for r in log.records if "The final phase failed" in r.message]
    assert f"{unspent} of 40 epochs are unspent" in warning
    assert f"trial {final.number}: {final.user_attrs['miha:error']}" in warning

    log.clear()
    assert run(study, no_rate, plan=None, n_epochs=50).n_epochs_trained == 50
    assert "The final phase failed" not in log.text


def no_rate(trial: Any) -> miha.Recipe:
    """A network whose learning rate cannot be lowered."""
    trial.suggest_float("unused", 0.0, 1.0)
    return classifier(trial)


def test_where_every_trial_failed_the_error_is_told_and_more_epochs_make_it_good() -> None:
    def fail(recipe: miha.Recipe, n_epochs: int) -> Iterator[miha.EpochResult]:
        raise RuntimeError("no room left")
        yield

    study = new_study()
    said = r"(\d+) of \1 trials failed .* RuntimeError: no room left\)\. Mend `model_fn`"
    with pytest.raises(MihaError, match=said):
        run(study, no_rate, plan=SHORT, trainer=fail, catch=(RuntimeError,))
    assert {t.state for t in study.trials} == {TrialState.FAIL}
    assert math.isfinite(run(study, no_rate, plan=None, n_epochs=50).value)


def test_a_trunk_is_not_tried_again_where_no_lr_can_be_lowered() -> None:
    bad = segment(0, scores=(math.nan,), value=None, fitness=math.nan, state=TrialState.FAIL)
    lineage = Lineage(StudyDirection.MINIMIZE, [bad])
    phase = next_phase(SHORT, Stretch(first_cycle=0, start=0, end=40), lineage)
    assert phase is not None
    assert phase.role == "branch"


class Failing(FileSystemArtifactStore):
    """A store in a folder on a disk that is full for a while; what it writes then is half."""

    def __init__(self, folder: Path, first: int, n: int) -> None:
        super().__init__(folder)
        self.folder, self.first, self.n = folder, first, n
        self.n_calls = 0

    def write(self, artifact_id: str, content_body: Any) -> None:
        self.n_calls += 1
        if self.first <= self.n_calls < self.first + self.n:
            (self.folder / artifact_id).write_bytes(content_body.read(100))
            raise OSError(errno.ENOSPC, "No space left on device")
        super().write(artifact_id, content_body)


def test_a_store_that_fails_for_a_moment_is_tried_again(
    whole: miha.Result, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    store = Failing(tmp_path, first=4, n=2)
    result = run(new_study(), plan=SHORT, artifact_store=store)
    assert same(weights(result), weights(whole))
    assert "No space left on device" in log.text


@pytest.mark.parametrize("first", [1, 2, 6])
def test_a_store_that_stays_full_ends_the_call_and_the_run_can_be_resumed(
    first: int, whole: miha.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_store, "RETRY_DELAYS", (0.01, 0.01, 0.01))
    study, store = new_study(), Failing(tmp_path, first=first, n=4)
    with pytest.raises(CheckpointError, match=r"in 4 attempts: OSError: .*No space left"):
        run(study, plan=SHORT, artifact_store=store)
    assert not study.get_trials(states=(TrialState.RUNNING,))
    named = {
        attr["id"]
        for trial in study.trials
        for key in (attributes.CHECKPOINT, attributes.MEMBER)
        if (attr := trial.user_attrs.get(key)) is not None
    }
    assert all((tmp_path / name).stat().st_size > 100 for name in named)
    result = run(study, plan=SHORT, artifact_store=store)
    assert history(result) == history(whole)
    assert same(weights(result), weights(whole))


def test_a_database_that_is_locked_for_longer_than_its_connections_wait_is_waited_for(
    whole: miha.Result, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "study.db"
    storage = RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 0.5}})
    locks: list[threading.Thread] = []

    def lock(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if not locks:
            locked = threading.Event()
            locks.append(threading.Thread(target=hold, args=(path, locked, 1.5)))
            locks[0].start()
            locked.wait()

    result = run(new_study(storage), plan=SHORT, callbacks=[lock])
    locks[0].join()
    assert history(result) == history(whole)
    assert "The storage of the study failed" not in log.text


def hold(path: Path, locked: threading.Event, seconds: float) -> None:
    connection = sqlite3.connect(path, timeout=30, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    locked.set()
    time.sleep(seconds)
    connection.execute("ROLLBACK")
    connection.close()
