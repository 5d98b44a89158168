"""Recovery from lost checkpoints, diverged training and failing stores."""

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
from optuna_miha._search.phases import Stretch, next_phase
from optuna_miha._study import checkpoint_store
from optuna_miha._study.schema import read_lost
from optuna_miha.exceptions import CheckpointError, CheckpointLostError, MihaError


class StopAfter:
    """A callback that stops the study after the ``n``-th trial."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __call__(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        self.n -= 1
        if self.n == 0:
            study.stop()


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoint files from which training can continue, the newest first."""
    files = [path for path in folder.iterdir() if not path.name.startswith("member-")]
    return sorted(files, key=lambda path: path.stat().st_mtime_ns, reverse=True)


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n_trials", "n_lost", "damage"),
    [
        (1, 1, flip_bit),
        (4, 1, truncate),
        (5, 1, Path.unlink),
        (5, 2, flip_bit),
        (99, 1, flip_bit),
        (99, 2, truncate),
    ],
)
def test_run_that_lost_its_last_checkpoints_gives_the_same_result(
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
    lost = read_lost(study)
    assert not set(lost) & {s.number for s in result.segments}, "lost trials are excluded"
    [warning] = [r.getMessage() for r in log.records if r.getMessage().startswith("Lost")]
    assert f"trial {max(lost) if n_lost == 1 else ''}" in warning
    assert any(path.name in warning for path in broken)
    assert run(study, plan=SHORT, checkpoint_dir=tmp_path).value == result.value


def test_swapped_checkpoints_are_detected_by_their_hash(
    whole: miha.Result, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    study = new_study()
    run(study, plan=SHORT, callbacks=[StopAfter(5)], checkpoint_dir=tmp_path)
    newest, before = checkpoints(tmp_path)[:2]
    newest_content, before_content = newest.read_bytes(), before.read_bytes()
    newest.write_bytes(before_content)
    before.write_bytes(newest_content)
    result = run(study, plan=SHORT, checkpoint_dir=tmp_path)
    assert history(result) == history(whole)
    assert same(weights(result), weights(whole))
    # Only those two were trained again, from their newest ancestor with a valid checkpoint.
    assert len(read_lost(study)) == 2
    assert len(study.trials) == len(whole.segments) + 2
    for path in (newest, before):
        assert f"Checkpoint {path.name} is damaged" in log.text


@pytest.mark.slow
def test_training_starts_from_scratch_if_no_checkpoint_is_valid(
    whole: miha.Result, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    study = new_study()
    run(study, plan=SHORT, callbacks=[StopAfter(5)], checkpoint_dir=tmp_path, keep="final")
    for path in checkpoints(tmp_path):
        flip_bit(path)
    result = run(study, plan=SHORT, checkpoint_dir=tmp_path, keep="final")
    assert history(result) == history(whole)
    assert same(weights(result), weights(whole))
    assert "The run continues from scratch" in log.text


def test_no_trial_is_excluded_if_no_checkpoint_file_is_found(tmp_path: Path) -> None:
    study = new_study()
    run(study, plan=SHORT, callbacks=[StopAfter(5)], checkpoint_dir=tmp_path / "right")
    with pytest.raises(CheckpointLostError, match="All other files of the study"):
        run(study, plan=SHORT, checkpoint_dir=tmp_path / "wrong")
    assert not read_lost(study)
    assert run(study, plan=SHORT, checkpoint_dir=tmp_path / "right").n_epochs_trained == 40


def test_load_result_with_a_damaged_checkpoint_gives_advice(tmp_path: Path) -> None:
    study = new_study()
    run(study, plan=SHORT, checkpoint_dir=tmp_path)
    flip_bit(checkpoints(tmp_path)[0])
    with pytest.raises(CheckpointError) as caught:
        miha.load_result(study, classifier)
    for advice in ("is damaged", "from a backup", "`optuna_miha.optimize`"):
        assert advice in str(caught.value)


def counting_epochs(trial: Any) -> miha.Recipe:
    """A network that counts its epochs in the buffer ``age``."""
    recipe = classifier(trial)
    recipe.model.register_buffer("age", nn.Linear(1, 1).weight.detach() * 0)
    params = list(recipe.model.parameters())
    recipe.optimizer = miha.suggest_optimizer(trial, params, initial=SGD(params, lr=1.0))
    return recipe


def diverging(min_age: int, max_lr: float) -> Any:
    """A trainer without data: beyond ``min_age`` and ``max_lr`` the value is NaN."""

    def train(recipe: miha.Recipe, n_epochs: int) -> Iterator[miha.EpochResult]:
        age, [group] = recipe.model.age, recipe.optimizer.param_groups
        lr = group["lr"]
        for _ in range(n_epochs):
            age += 1
            failed = age.item() > min_age and lr > max_lr
            yield miha.EpochResult(value=math.nan if failed else 1 / age.item())

    return train


@pytest.mark.parametrize(
    ("min_age", "max_lr", "n_failed"), [(0, 0.5, 1), (0, 0.2, 2), (17, 0.2, 2)]
)
def test_diverged_trunk_is_retried_from_its_parent_with_a_lower_lr(
    min_age: int, max_lr: float, n_failed: int, log: pytest.LogCaptureFixture
) -> None:
    plan = miha.Plan(40, startup=1, fixing_epochs=6, mutations=(), restarts=False, anneal="cosine")
    study = new_study()
    result = run(study, counting_epochs, plan=plan, trainer=diverging(min_age, max_lr))
    failed = [s for s in result.segments if s.state == TrialState.FAIL and s.role != "branch"]
    phase = failed[0].role, failed[0].cycle
    [retried] = [s for s in result.segments if (s.role, s.cycle, s.branch) == (*phase, n_failed)]
    assert len(failed) == n_failed
    assert {s.parent for s in failed} == {retried.parent}
    peak_factor = 3 if retried.role == "final" else 1
    assert retried.params["lr"] == pytest.approx(peak_factor * 0.3**n_failed, rel=1e-3)
    assert retried.mutation.startswith("lr 1 ->")
    assert retried.state == TrialState.COMPLETE
    assert result.n_epochs_trained == 40
    assert result.segments[-1].role == "final"
    assert math.isfinite(result.segments[-1].last_score)
    assert "Training diverged" in log.text


def test_final_phase_that_diverges_at_any_lr_is_retried_three_times() -> None:
    plan = miha.Plan(40, startup=1, fixing_epochs=6, mutations=(), restarts=False, anneal="cosine")
    study = new_study()
    result = run(study, counting_epochs, plan=plan, trainer=diverging(6, 0.0))
    finals = [s for s in result.segments if s.role == "final"]
    assert [s.state for s in finals] == [TrialState.FAIL] * 4
    assert result.value == pytest.approx(1 / 6)


@pytest.mark.parametrize("error", [RuntimeError("no room left"), None])
def test_failed_final_phase_logs_the_unspent_epochs(
    error: Exception | None, log: pytest.LogCaptureFixture
) -> None:
    def train(recipe: miha.Recipe, n_epochs: int) -> Iterator[miha.EpochResult]:
        for epoch in range(1, n_epochs + 1):
            if epoch == 9 and error is not None:  # Only the final phase has so many epochs.
                raise error
            yield miha.EpochResult(value=math.nan if epoch == 9 else 1 / epoch)

    plan = miha.Plan(40, startup=1, fixing_epochs=6, mutations=(), restarts=False, anneal="cosine")
    study = new_study()
    first = run(study, without_lr, plan=plan, trainer=train, catch=(RuntimeError,))
    [final] = [t for t in study.trials if t.user_attrs["miha:role"] == "final"]
    unspent = 40 - first.n_epochs_trained
    assert unspent > 0
    [warning] = [r.getMessage() for r in log.records if "The final phase failed" in r.message]
    assert f"{unspent} of 40 epochs are unspent" in warning
    assert f"trial {final.number}: {final.user_attrs['miha:error']}" in warning

    log.clear()
    assert run(study, without_lr, plan=None, n_epochs=50).n_epochs_trained == 50
    assert "The final phase failed" not in log.text


def without_lr(trial: Any) -> miha.Recipe:
    """A search space without a learning rate that could be lowered."""
    trial.suggest_float("unused", 0.0, 1.0)
    return classifier(trial)


@pytest.mark.slow
def test_run_in_which_every_trial_failed_names_the_error_and_can_be_continued() -> None:
    def fail(recipe: miha.Recipe, n_epochs: int) -> Iterator[miha.EpochResult]:
        raise RuntimeError("no room left")
        yield

    study = new_study()
    message = r"(\d+) of \1 trials failed .* RuntimeError: no room left\)\. Fix `model_fn`"
    with pytest.raises(MihaError, match=message):
        run(study, without_lr, plan=SHORT, trainer=fail, catch=(RuntimeError,))
    assert {t.state for t in study.trials} == {TrialState.FAIL}
    assert math.isfinite(run(study, without_lr, plan=None, n_epochs=50).value)


def test_diverged_trunk_is_not_retried_without_a_learning_rate() -> None:
    bad = segment(0, scores=(math.nan,), value=None, fitness=math.nan, state=TrialState.FAIL)
    lineage = Lineage(StudyDirection.MINIMIZE, [bad])
    phase = next_phase(SHORT, Stretch(first_cycle=0, start=0, end=40), lineage)
    assert phase is not None
    assert phase.role == "branch"


class FailingStore(FileSystemArtifactStore):
    """A store whose disk is full during ``n`` writes, starting with the ``first``."""

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


@pytest.mark.slow
def test_write_to_a_store_that_fails_temporarily_is_retried(
    whole: miha.Result, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    store = FailingStore(tmp_path, first=4, n=2)
    result = run(new_study(), plan=SHORT, artifact_store=store)
    assert same(weights(result), weights(whole))
    assert "No space left on device" in log.text


@pytest.mark.parametrize("first", [1, 2, 6])
def test_store_that_stays_full_ends_the_call_and_the_run_can_be_resumed(
    first: int, whole: miha.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_store, "RETRY_DELAYS", (0.01, 0.01, 0.01))
    study, store = new_study(), FailingStore(tmp_path, first=first, n=4)
    with pytest.raises(CheckpointError, match=r"in 4 attempts: OSError: .*No space left"):
        run(study, plan=SHORT, artifact_store=store)
    assert not study.get_trials(states=(TrialState.RUNNING,))
    referenced = {
        attr["id"]
        for trial in study.trials
        for key in (attributes.CHECKPOINT, attributes.MEMBER)
        if (attr := trial.user_attrs.get(key)) is not None
    }
    assert all((tmp_path / name).stat().st_size > 100 for name in referenced)
    result = run(study, plan=SHORT, artifact_store=store)
    assert history(result) == history(whole)
    assert same(weights(result), weights(whole))


@pytest.mark.slow
def test_run_waits_for_a_database_that_is_locked_beyond_the_busy_timeout(
    whole: miha.Result, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "study.db"
    storage = RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 0.5}})
    locks: list[threading.Thread] = []

    def lock(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if not locks:
            locked = threading.Event()
            locks.append(threading.Thread(target=hold_lock, args=(path, locked, 1.5)))
            locks[0].start()
            locked.wait()

    result = run(new_study(storage), plan=SHORT, callbacks=[lock])
    locks[0].join()
    assert history(result) == history(whole)
    assert "The storage of the study failed" not in log.text


def hold_lock(path: Path, locked: threading.Event, seconds: float) -> None:
    connection = sqlite3.connect(path, timeout=30, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    locked.set()
    time.sleep(seconds)
    connection.execute("ROLLBACK")
    connection.close()
