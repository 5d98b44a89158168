"""One coordinator at a time: who lives is left alone, who died is taken over."""

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
from helpers.kills import started
from helpers.problems import new_study, run
from optuna.trial import TrialState

import optuna_miha as miha
from optuna_miha._history import attributes
from optuna_miha._study import lease
from optuna_miha._study.lease import Holder, hold_lease
from optuna_miha._training.trainer import train
from optuna_miha.exceptions import StudyLockedError

BRIEF = miha.Plan(24, startup=1)


def coordinate(storage: str, folder: Path) -> None:
    """Run the study, and wait after its first trial."""
    os.chdir(folder)
    with (folder / "said").open("w") as said:
        os.dup2(said.fileno(), 2)
    # As in a terminal; what is started in the background ignores it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def wait(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        (folder / "ready").touch()
        while True:
            time.sleep(0.05)

    run(new_study(storage), plan=BRIEF, callbacks=[wait])


@contextmanager
def coordinator(storage: str, folder: Path) -> Iterator[BaseProcess]:
    """Another process that does so; what it says is in the file ``said``."""
    process = started(coordinate, storage, folder)
    try:
        while not (folder / "ready").exists():
            assert process.is_alive(), (folder / "said").read_text()
            time.sleep(0.02)
        yield process
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_live_coordinator_is_left_alone_and_a_dead_one_taken_over_at_once(
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_coordinator_that_is_told_to_end_leaves_nothing_behind(
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
    assert "Run the same script again to resume" in (tmp_path / "said").read_text()
    study = new_study(storage)
    assert study.user_attrs[attributes.LEASE] is None
    assert not study.get_trials(states=(TrialState.RUNNING,))


def test_the_handler_of_sigterm_is_put_back_and_the_users_own_is_left_alone() -> None:
    seen: list[Any] = []

    def note(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        seen.append(signal.getsignal(signal.SIGTERM))
        study.stop()

    run(new_study(), plan=BRIEF, callbacks=[note])
    assert seen[0] is not signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        run(new_study(), plan=BRIEF, callbacks=[note])
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert seen[1] is signal.SIG_IGN


def test_a_study_in_memory_is_guarded_against_a_second_thread() -> None:
    study = new_study()
    refusals: list[BaseException] = []

    def again() -> None:
        try:
            run(study, plan=BRIEF)
        except StudyLockedError as error:
            refusals.append(error)

    def start(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        thread = threading.Thread(target=again)
        thread.start()
        thread.join()
        study.stop()

    run(study, plan=BRIEF, callbacks=[start])
    assert "this process itself" in str(refusals[0])
    assert run(study, plan=BRIEF).n_epochs_trained == 24  # It was let go.


def write(study: optuna.Study, holder: Holder, beats: int = 1) -> None:
    study.set_user_attr(attributes.LEASE, asdict(holder) | {"beats": beats})


def elsewhere() -> Holder:
    return replace(Holder.this_process(), host="elsewhere", table="another machine")


def test_a_coordinator_elsewhere_that_gives_no_sign_of_life_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "EXPIRY", 1.0)
    study = new_study(f"sqlite:///{tmp_path}/study.db")
    # Whatever its clock says.
    write(study, replace(elsewhere(), since="2999-01-01T00:00:00+00:00"))
    with hold_lease(study):
        assert study.user_attrs[attributes.LEASE]["pid"] == os.getpid()
    assert study.user_attrs[attributes.LEASE] is None


def test_a_coordinator_elsewhere_that_beats_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "EXPIRY", 30.0)
    storage = f"sqlite:///{tmp_path}/study.db"
    study, holder = new_study(storage), elsewhere()
    write(study, holder)
    beat = threading.Timer(0.8, write, (new_study(storage), holder, 2))
    beat.start()
    with pytest.raises(StudyLockedError, match=r"on 'elsewhere' since"), hold_lease(study):
        pass
    beat.join()


def test_a_process_number_that_was_given_away_again_is_not_taken_for_the_coordinator(
    tmp_path: Path,
) -> None:
    study = new_study(f"sqlite:///{tmp_path}/study.db")
    myself = Holder.this_process()
    if not myself.table:
        pytest.skip("This system does not tell when a process started.")
    write(study, replace(myself, started="1"))
    with hold_lease(study):
        pass


@pytest.mark.parametrize("attr", ["mine", 7, {"nonce": 1}, {"beats": 1}, [None]])
def test_a_lease_that_cannot_be_read_keeps_nobody_out(attr: Any, tmp_path: Path) -> None:
    study = new_study(f"sqlite:///{tmp_path}/study.db")
    study.set_user_attr(attributes.LEASE, attr)
    with hold_lease(study):
        pass


def test_of_many_that_start_at_once_one_runs(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/study.db"
    studies = [new_study(storage) for _ in range(4)]
    barrier, over = threading.Barrier(len(studies)), threading.Event()
    entered: list[str] = []
    refused: list[str] = []

    def start(study: optuna.Study) -> None:
        barrier.wait()
        try:
            with hold_lease(study):
                entered.append("one")
                over.wait(30)
        except StudyLockedError:
            refused.append("one")
        if len(refused) == len(studies) - 1:
            over.set()

    threads = [threading.Thread(target=start, args=(study,)) for study in studies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(entered), len(refused)) == (1, 3)


def test_a_coordinator_that_was_taken_for_dead_ends_before_its_next_phase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_INTERVAL", 0.05)
    study = new_study(f"sqlite:///{tmp_path}/study.db")
    other = elsewhere()

    def usurp(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        write(study, other)
        time.sleep(1.0)

    with pytest.raises(StudyLockedError, match="took over"):
        run(study, plan=BRIEF, callbacks=[usurp])
    assert study.user_attrs[attributes.LEASE]["nonce"] == other.nonce, (
        "It is the other's to release."
    )


def test_a_coordinator_that_lost_the_study_leaves_the_others_trials_alone(
    tmp_path: Path,
) -> None:
    study = new_study(f"sqlite:///{tmp_path}/study.db")
    theirs: list[int] = []

    def usurp(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if not theirs:
            write(study, elsewhere())
            running = study.ask()
            running.set_user_attr(attributes.ROLE, "branch")
            theirs.append(running.number)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(study, plan=BRIEF, callbacks=[usurp])
    assert study.trials[theirs[0]].state == TrialState.RUNNING


def test_a_coordinator_whose_trials_were_failed_says_who_took_over(tmp_path: Path) -> None:
    study = new_study(f"sqlite:///{tmp_path}/study.db")

    def usurped(recipe: miha.Recipe, n_epochs: int) -> Iterator[miha.EpochResult]:
        write(study, elsewhere())
        for trial in study.get_trials(states=(TrialState.RUNNING,)):
            study.tell(trial.number, state=TrialState.FAIL)
        yield from train(recipe, n_epochs)

    with pytest.raises(StudyLockedError, match="took over"):
        run(study, plan=BRIEF, trainer=usurped)
