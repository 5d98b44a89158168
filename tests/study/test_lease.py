"""A study has one coordinator at a time; only a dead one is replaced."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import optuna
import pytest
from helpers import services
from helpers.kills import start_process
from helpers.problems import new_study, run
from optuna.trial import TrialState

import optuna_miha as miha
from optuna_miha._history import attributes
from optuna_miha._study import lease
from optuna_miha._study.holder import Holder
from optuna_miha._study.lease import Lease, hold_lease
from optuna_miha._training.trainer import train
from optuna_miha.exceptions import StudyLockedError

pytestmark = pytest.mark.slow

BRIEF = miha.Plan(24, startup=1, anneal="cosine")


def coordinate(storage: str, folder: Path) -> None:
    """Run the study, and wait after its first trial."""
    os.chdir(folder)
    with (folder / "stderr").open("w") as stderr:
        os.dup2(stderr.fileno(), 2)
    # As in a terminal; background processes ignore SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def wait(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        (folder / "ready").touch()
        while True:
            time.sleep(0.05)

    run(new_study(storage), plan=BRIEF, callbacks=[wait])


@contextmanager
def coordinator(storage: str, folder: Path) -> Iterator[BaseProcess]:
    """A process that coordinates the study; its standard error is in the file ``stderr``."""
    process = start_process(coordinate, storage, folder)
    try:
        while not (folder / "ready").exists():
            assert process.is_alive(), (folder / "stderr").read_text()
            time.sleep(0.02)
        yield process
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.long)])
def test_a_live_coordinator_locks_the_study_and_a_dead_one_is_replaced_at_once(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    if kind == "postgresql":
        url = request.getfixturevalue("postgresql").new_database()
    with coordinator(url, tmp_path) as process, services.rdb_storage(url) as storage:
        before = new_study(storage).trials
        with pytest.raises(StudyLockedError) as caught:
            run(new_study(storage), plan=BRIEF)
        assert f"process {process.pid} on" in str(caught.value)
        assert f"kill {process.pid}" in str(caught.value)
        assert new_study(storage).trials == before
        process.kill()
        process.join()
        start = time.monotonic()
        with hold_lease(new_study(storage)):
            pass
        assert time.monotonic() - start < lease.EXPIRY / 2
        assert run(new_study(storage), plan=BRIEF).n_epochs_trained == 24


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)]
)
def test_a_coordinator_that_gets_a_signal_releases_the_study(
    number: signal.Signals, tmp_path: Path
) -> None:
    storage = f"sqlite:///{tmp_path}/study.db"
    with coordinator(storage, tmp_path) as process:
        assert new_study(storage).user_attrs[attributes.LEASE]["pid"] == process.pid
        assert process.pid is not None
        os.kill(process.pid, number)
        process.join(60)
        assert not process.is_alive()
    assert process.exitcode == 143 if number == signal.SIGTERM else process.exitcode != 0
    assert "Run the same script again to resume" in (tmp_path / "stderr").read_text()
    study = new_study(storage)
    assert study.user_attrs[attributes.LEASE] is None
    assert not study.get_trials(states=(TrialState.RUNNING,))


def test_the_handler_of_sigterm_is_restored_and_a_handler_of_the_user_is_kept() -> None:
    seen: list[Any] = []

    def record_handler(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        seen.append(signal.getsignal(signal.SIGTERM))
        study.stop()

    run(new_study(), plan=BRIEF, callbacks=[record_handler])
    assert seen[0] is not signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        run(new_study(), plan=BRIEF, callbacks=[record_handler])
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert seen[1] is signal.SIG_IGN


def test_a_study_in_memory_cannot_be_run_by_a_second_thread() -> None:
    study = new_study()
    errors: list[BaseException] = []

    def run_again() -> None:
        try:
            run(study, plan=BRIEF)
        except StudyLockedError as error:
            errors.append(error)

    def start(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        thread = threading.Thread(target=run_again)
        thread.start()
        thread.join()
        study.stop()

    run(study, plan=BRIEF, callbacks=[start])
    assert "this process itself" in str(errors[0])
    assert run(study, plan=BRIEF).n_epochs_trained == 24  # The lease is released.


def write_lease(study: optuna.Study, holder: Holder, beats: int = 1) -> None:
    study.set_user_attr(attributes.LEASE, asdict(holder) | {"beats": beats})


def test_a_claim_counts_until_it_is_released_or_superseded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "EXPIRY", 1.0)
    study = new_study(f"sqlite:///{tmp_path}/study.db")
    suspended = Lease(study, remote_holder())
    suspended.take()
    start = time.monotonic()
    with hold_lease(study) as held:
        assert time.monotonic() - start >= 1.0
        assert held.is_mine()
        assert not suspended.is_mine()
        with pytest.raises(StudyLockedError, match="took over"):
            suspended.renew()
    suspended.release()  # Of no effect.
    monkeypatch.setattr(lease, "EXPIRY", 60.0)
    with hold_lease(study):
        pass
    assert lease.read_claims(study.user_attrs)[-1].key[0] == 3


def test_a_suspended_coordinator_on_this_machine_is_replaced_but_not_one_that_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    with coordinator(url, tmp_path) as process:
        monkeypatch.setattr(lease, "EXPIRY", 1.0)  # Shorter than its heartbeat.
        with pytest.raises(StudyLockedError, match="It is alive"), hold_lease(new_study(url)):
            pass
        assert process.pid is not None
        os.kill(process.pid, signal.SIGSTOP)
        with hold_lease(new_study(url)) as held:
            os.kill(process.pid, signal.SIGCONT)
            assert held.is_mine()


def remote_holder() -> Holder:
    """A coordinator on another machine."""
    return replace(Holder.this_process(), host="elsewhere", table="another machine")


def test_a_remote_coordinator_that_does_not_renew_its_lease_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "EXPIRY", 1.0)
    study = new_study(f"sqlite:///{tmp_path}/study.db")
    # The other machine's clock does not matter.
    write_lease(study, replace(remote_holder(), since="2999-01-01T00:00:00+00:00"))
    with hold_lease(study):
        assert study.user_attrs[attributes.LEASE]["pid"] == os.getpid()
    assert study.user_attrs[attributes.LEASE] is None


def test_a_remote_coordinator_that_renews_its_lease_locks_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "EXPIRY", 30.0)
    storage = f"sqlite:///{tmp_path}/study.db"
    study, holder = new_study(storage), remote_holder()
    write_lease(study, holder)
    beat = threading.Timer(0.8, write_lease, (new_study(storage), holder, 2))
    beat.start()
    with pytest.raises(StudyLockedError, match=r"on 'elsewhere' since"), hold_lease(study):
        pass
    beat.join()


def test_a_later_process_with_the_same_id_does_not_count_as_the_coordinator(
    tmp_path: Path,
) -> None:
    study = new_study(f"sqlite:///{tmp_path}/study.db")
    myself = Holder.this_process()
    if not myself.table:
        pytest.skip("This system does not report the start time of a process.")
    write_lease(study, replace(myself, started="1"))
    with hold_lease(study):
        pass


@pytest.mark.parametrize("attr", ["mine", 7, {"nonce": 1}, {"beats": 1}, [None]])
def test_an_unreadable_lease_counts_as_free(attr: Any, tmp_path: Path) -> None:
    study = new_study(f"sqlite:///{tmp_path}/study.db")
    study.set_user_attr(attributes.LEASE, attr)
    with hold_lease(study):
        pass


def test_only_one_of_several_simultaneous_coordinators_runs(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/study.db"
    studies = [new_study(storage) for _ in range(4)]
    barrier, stop = threading.Barrier(len(studies)), threading.Event()
    entered: list[optuna.Study] = []
    refused: list[optuna.Study] = []

    def start(study: optuna.Study) -> None:
        barrier.wait()
        try:
            with hold_lease(study):
                entered.append(study)
                stop.wait(30)
        except StudyLockedError:
            refused.append(study)
        if len(refused) == len(studies) - 1:
            stop.set()

    threads = [threading.Thread(target=start, args=(study,)) for study in studies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(entered), len(refused)) == (1, 3)


def test_a_coordinator_that_was_replaced_ends_before_its_next_phase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_INTERVAL", 0.05)
    study = new_study(f"sqlite:///{tmp_path}/study.db")
    other = remote_holder()

    def take_over(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        Lease(study, other).take()
        time.sleep(1.0)

    with pytest.raises(StudyLockedError, match="took over"):
        run(study, plan=BRIEF, callbacks=[take_over])
    last = lease.read_claims(study.user_attrs)[-1]
    assert other.nonce.startswith(last.key[1])
    assert not last.is_released, "The lease of the other coordinator is not released."


def test_a_coordinator_that_was_replaced_does_not_fail_the_trials_of_its_successor(
    tmp_path: Path,
) -> None:
    study = new_study(f"sqlite:///{tmp_path}/study.db")
    successor_trials: list[int] = []

    def take_over(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if not successor_trials:
            Lease(study, remote_holder()).take()
            running = study.ask()
            running.set_user_attr(attributes.ROLE, "branch")
            successor_trials.append(running.number)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(study, plan=BRIEF, callbacks=[take_over])
    assert study.trials[successor_trials[0]].state == TrialState.RUNNING


def test_a_coordinator_whose_trials_were_failed_reports_the_takeover(tmp_path: Path) -> None:
    study = new_study(f"sqlite:///{tmp_path}/study.db")

    def take_over_and_train(recipe: miha.Recipe, n_epochs: int) -> Iterator[miha.EpochResult]:
        Lease(study, remote_holder()).take()
        for trial in study.get_trials(states=(TrialState.RUNNING,)):
            study.tell(trial.number, state=TrialState.FAIL)
        yield from train(recipe, n_epochs)

    with pytest.raises(StudyLockedError, match="took over"):
        run(study, plan=BRIEF, trainer=take_over_and_train)
