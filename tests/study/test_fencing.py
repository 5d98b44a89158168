"""A coordinator that was suspended changes nothing after another one has taken over."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from helpers import services
from helpers.equality import same
from helpers.kills import start_process, wait_until
from helpers.problems import SHORT, classifier, history, new_study, run, weights

import optuna_miha as miha
from optuna_miha._cli.main import main
from optuna_miha._history import attributes
from optuna_miha._report.page import write_report
from optuna_miha._study import buffered_trial, lease
from optuna_miha._study.claims import fenced_trials
from optuna_miha._study.schema import read_late, read_lineage
from optuna_miha.exceptions import StudyLockedError

pytestmark = pytest.mark.slow


_in_database = threading.RLock()


def suspend() -> None:
    """Suspend this process while its heartbeat does not use the database.

    SQLite would otherwise keep the lock of a suspended process, and everybody else would wait.
    """
    with _in_database:
        os.kill(os.getpid(), signal.SIGSTOP)


def locked(method: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: lease.Lease) -> Any:
        with _in_database:
            return method(self)

    return call


def stop_before_a_write() -> None:
    """Suspend this process right before it writes a finished trial, which it may write."""
    add = buffered_trial.add_finished_trial

    def add_later(*args: Any, **kwargs: Any) -> Any:
        buffered_trial.add_finished_trial = add
        suspend()
        return add(*args, **kwargs)

    buffered_trial.add_finished_trial = add_later


def coordinate(url: str, folder: Path, moment: str) -> None:
    """Run the study, and be suspended at some moment."""
    lease.HEARTBEAT_INTERVAL, lease.EXPIRY = 0.2, 2.0
    for name in ("is_mine", "write"):
        setattr(lease.Lease, name, locked(getattr(lease.Lease, name)))
    callbacks: list[Callable[..., None]] = []
    if moment == "before a write":
        stop_before_a_write()
    else:
        callbacks.append(lambda study, trial: suspend() if trial.number == 1 else None)
    try:
        run(new_study(url), plan=SHORT, callbacks=callbacks, checkpoint_dir=folder / "files")
    except StudyLockedError as error:
        (folder / "refused").write_text(str(error))


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "moment", [pytest.param("between trials", marks=pytest.mark.long), "before a write"]
)
def test_a_suspended_coordinator_changes_nothing_when_it_wakes_up(
    moment: str,
    kind: str,
    whole: miha.Result,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    log: pytest.LogCaptureFixture,
) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    if kind == "postgresql":
        url = request.getfixturevalue("postgresql").new_database()
    monkeypatch.setattr(lease, "EXPIRY", 2.0)
    files = tmp_path / "files"
    process = start_process(coordinate, url, tmp_path, moment)
    pid = process.pid
    assert pid is not None
    try:
        wait_until(lambda: state_of(pid) in "TZ")
        assert process.is_alive()
        with services.rdb_storage(url) as storage:
            study = new_study(storage)
            result = run(study, plan=SHORT, checkpoint_dir=files)
            after, n_trials = shared_attrs(study), len(study.trials)
            kept = {path.name for path in files.iterdir()}
            os.kill(pid, signal.SIGCONT)
            process.join(60)
            assert process.exitcode == 0
            assert "took over" in (tmp_path / "refused").read_text()
            check(study, result, whole, files)
            assert {path.name for path in files.iterdir()} == kept
            late = set(range(n_trials, len(study.trials)))
            assert len(late) == (moment == "before a write")
            assert late <= fenced_trials(study, study.trials)
            assert shared_attrs(study) == after, "It overwrote an attribute of the study."
            log.clear()
            longer = [run(study, plan=None, n_epochs=n, checkpoint_dir=files) for n in (60, 80)]
            assert longer[-1].n_epochs_trained == 80
            warnings = [r.getMessage() for r in log.records if "not part of the run" in r.msg]
            assert [w.split()[1] for w in warnings] == [str(n) for n in read_late(study)]
            assert set(read_late(study)) == late
            undisturbed = new_study()
            run(undisturbed, plan=SHORT)
            for n_epochs, one in zip((60, 80), longer, strict=True):
                other = run(undisturbed, plan=None, n_epochs=n_epochs)
                assert history(one) == history(other)
                assert same(weights(one), weights(other))
    finally:
        process.kill()
        process.join()


def shared_attrs(study: optuna.Study) -> dict[str, Any]:
    """The attributes of the study, without the claim that belongs to the first coordinator."""
    own = f"{attributes.CLAIM_PREFIX}1:"
    return {key: value for key, value in study.user_attrs.items() if not key.startswith(own)}


def check(study: optuna.Study, result: miha.Result, whole: miha.Result, files: Path) -> None:
    """The study is that of the second coordinator for every reader."""
    for one in (result, miha.load_result(study, classifier, checkpoint_dir=files)):
        assert history(one) == history(whole)
        assert same(weights(one), weights(whole))
        assert one.n_epochs_trained == whole.n_epochs_trained == study.user_attrs["miha:spent"]
    assert read_lineage(study).spent == 40
    report = files.parent / "report.html"
    write_report(study, report)
    assert "40" in report.read_text()


def test_what_a_suspended_coordinator_left_is_not_removed_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A coordinator that was replaced while it cleans up removes no file."""
    monkeypatch.setattr(lease, "EXPIRY", 1.0)
    url = f"sqlite:///{tmp_path}/study.db"
    study = new_study(url)
    run(study, plan=SHORT, keep="all")
    files = {path.name for path in tmp_path.rglob("*.pt")}
    verify = lease.Lease.verify

    def replaced(self: lease.Lease) -> None:
        other = lease.Lease(new_study(url), lease.Holder.this_process())
        other.take()
        time.sleep(0.1)
        verify(self)

    monkeypatch.setattr(lease.Lease, "verify", replaced)
    assert main(["clean", "tiny", "--storage", url, "--keep", "final"]) != 0
    assert "took over" in capsys.readouterr().err
    assert {path.name for path in tmp_path.rglob("*.pt")} == files
