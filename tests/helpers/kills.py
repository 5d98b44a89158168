"""A run in its own process that is killed repeatedly."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, BinaryIO, Literal

import optuna
import torch
from optuna.artifacts import FileSystemArtifactStore
from optuna.storages import RDBStorage
from sqlalchemy import event
from sqlalchemy.engine import Engine

import optuna_miha as miha
from helpers.problems import explicit, new_study, run
from optuna_miha._search.phases import Stretch, next_phase
from optuna_miha._search.startup_race import race_cost
from optuna_miha._study.schema import read_lineage, read_stretches
from optuna_miha._training import spool

_processes = get_context("forkserver")
_processes.set_forkserver_preload(
    ["optuna_miha", "torch._dynamo", "optuna_dashboard", "plotly.express", "psycopg"]
)

TIMEOUT = 60.0
"""Seconds within which a started process has to begin, and a killed one to end."""


@dataclass(frozen=True)
class Kill:
    """When a run is killed.

    Args:
        kind: ``"time"``: by another process; ``"statement"``: during a write to the database;
            ``"checkpoint"``: after half of a checkpoint is written; ``"none"``: never.
        when: Seconds after the start, or the number of the statement or checkpoint.
    """

    kind: Literal["time", "statement", "checkpoint", "none"]
    when: float = 0.0

    @classmethod
    def draw(
        cls, rng: random.Random, kinds: Sequence[str] = ("time", "statement", "checkpoint")
    ) -> Kill:
        """Draw a random moment."""
        kind = rng.choice(kinds)
        if kind == "time":
            return cls("time", rng.uniform(0.0, 3.0))
        if kind == "statement":
            return cls("statement", rng.randint(1, 80))
        return cls("checkpoint", rng.randint(1, 5))


class EpochCounter:
    """A metric that appends a byte to a file at each evaluation, of which an epoch has two.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, output: Any, target: Any) -> float:
        with self.path.open("ab") as file:
            file.write(b".")
        return 0.0

    def count(self) -> float:
        """Epochs trained so far, in any process."""
        return self.path.stat().st_size / 2 if self.path.exists() else 0.0


class CountedClassifier:
    """The ``model_fn`` of the runs.

    Args:
        counter: Counts its epochs.
    """

    def __init__(self, counter: EpochCounter) -> None:
        self.counter = counter

    def __call__(self, trial: Any) -> miha.Recipe:
        recipe = explicit(trial)
        recipe.metrics = {"seen": self.counter}
        return recipe


class KillingStore(FileSystemArtifactStore):
    """A store that kills its process after it has written half of a file.

    Args:
        folder: The folder of the store.
        fatal: The number of this file, from 1; 0 for no kill.
    """

    def __init__(self, folder: Path, fatal: int) -> None:
        super().__init__(folder)
        self.folder, self.n_left = folder, fatal

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        self.n_left -= 1
        if self.n_left == 0:
            content = content_body.read()
            (self.folder / artifact_id).write_bytes(content[: len(content) // 2])
            _kill_this_process()
        super().write(artifact_id, content_body)


def _kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_at_statement(fatal: int) -> None:
    """Kill this process within a transaction: after a statement or right before the commit."""
    n_left = fatal

    def count(*_: object) -> None:
        nonlocal n_left
        n_left -= 1
        if n_left == 0:
            _kill_this_process()

    event.listen(Engine, "after_cursor_execute", count)
    event.listen(Engine, "commit", count)


def run_script(
    url: str, folder: Path, plan: miha.Plan, n_jobs: int, kill: Kill, *, by_reference: bool = False
) -> None:
    """The script of a run, which is the same at every start."""
    os.setsid()
    if by_reference:
        spool.LARGE_STATE = 1
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    fatal = int(kill.when) if kill.kind == "checkpoint" else 0
    study = new_study(RDBStorage(url))
    (folder / "started").touch()
    if kill.kind == "statement":
        _kill_at_statement(int(kill.when))
    run(
        study,
        CountedClassifier(EpochCounter(folder / "epochs")),
        plan=plan,
        n_jobs=n_jobs,
        artifact_store=KillingStore(checkpoints, fatal),
    )


def start_process(target: Callable[..., None], *args: object) -> BaseProcess:
    """Call a function in a new process that has imported all modules."""
    process = _processes.Process(target=target, args=args)
    process.start()
    return process


def run_and_kill(
    url: str, folder: Path, plan: miha.Plan, n_jobs: int, kill: Kill, *, by_reference: bool
) -> bool:
    """Run until the run ends or is killed; returns whether it was killed."""
    (folder / "started").unlink(missing_ok=True)
    script = partial(run_script, by_reference=by_reference)
    process = start_process(script, url, folder, plan, n_jobs, kill)
    if kill.kind == "time":
        wait_until((folder / "started").exists)
        time.sleep(kill.when)
        process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), f"{process.exitcode} after {kill}"
    pid = process.pid
    assert pid is not None
    wait_until(lambda: not session_members(pid))
    return process.exitcode != 0


def wait_until(condition: Callable[[], object]) -> None:
    """Return when the condition holds; fail after the timeout."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < TIMEOUT, "the condition does not hold"
        time.sleep(0.02)


def session_members(pid: int) -> list[int]:
    """The living processes in the session of a process, such as its workers."""
    members = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # The process has ended.
            continue
        if int(fields[3]) == pid and fields[0] not in "ZX":
            members.append(int(path.parent.name))
    return members


def kill_and_resume(
    url: str,
    folder: Path,
    plan: miha.Plan,
    *,
    n_jobs: int,
    n_kills: int,
    rng: random.Random,
    by_reference: bool = False,
) -> int:
    """Kill a run at random moments, resume it each time, and let it end after the last kill.

    After each kill, at most the epochs of the current phase are trained and not stored.

    Returns:
        The number of kills, which is smaller than ``n_kills`` if the run ended before.
    """
    counter = EpochCounter(folder / "epochs")
    counted, stored = 0.0, 0
    for n in range(n_kills):
        # The first kill must not come before the run starts.
        kill = Kill.draw(rng) if n else Kill.draw(rng, ["statement", "checkpoint"])
        if not run_and_kill(url, folder, plan, n_jobs, kill, by_reference=by_reference):
            return n
        spent, current = progress(url, plan)
        # A run validates once before it trains.
        assert counter.count() - counted <= spent - stored + current + 1
        counted, stored = counter.count(), spent
    assert not run_and_kill(url, folder, plan, n_jobs, Kill("none"), by_reference=by_reference)
    return n_kills


def progress(url: str, plan: miha.Plan) -> tuple[int, int]:
    """The number of stored epochs, and that of the current phase."""
    storage = RDBStorage(url)
    try:
        study = new_study(storage)
        lineage = read_lineage(study)
        [stretch] = read_stretches(study) or [Stretch(first_cycle=0, start=0, end=plan.n_epochs)]
        phase = next_phase(plan, stretch, lineage)
        if phase is None:
            return lineage.spent, 0
        if phase.role == "startup":
            return lineage.spent, race_cost(phase.size)
        return lineage.spent, phase.size * phase.n_epochs
    finally:
        storage.remove_session()
        storage.engine.dispose()


def full_history(result: miha.Result) -> list[tuple[Any, ...]]:
    """Everything stored of the segments, except for trial numbers, file names and times."""
    positions = {s.number: (s.role, s.cycle, s.branch) for s in result.segments}
    rows = [
        (
            positions[s.number],
            None if s.parent is None else positions[s.parent],
            (s.birth, s.trained, s.mutation, s.state.name, s.value, repr(s.fitness)),
            sorted(s.params.items()),
            (s.scores, s.train_losses),
            None if s.member is None else s.member["value"],
        )
        for s in result.segments
    ]
    return sorted(rows, key=lambda row: row[0])


def remaining_states(result: miha.Result, folder: Path) -> dict[tuple[str, int, int], Any]:
    """The states of the remaining checkpoints, by role, cycle and branch index."""
    return {
        (s.role, s.cycle, s.branch): torch.load(folder / s.checkpoint["id"], weights_only=True)
        for s in result.segments
        if s.checkpoint is not None and (folder / s.checkpoint["id"]).exists()
    }
