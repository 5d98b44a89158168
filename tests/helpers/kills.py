"""A run in a process of its own that is killed again and again."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from optuna_miha._history import attributes
from optuna_miha._search.phases import Stretch, next_phase
from optuna_miha._search.plan import race_cost
from optuna_miha._study.schema import read_lineage

_processes = get_context("forkserver")
_processes.set_forkserver_preload(
    ["optuna_miha", "torch._dynamo", "optuna_dashboard", "plotly.express", "psycopg"]
)

PATIENCE = 60.0
"""Seconds within which what was started has to begin, and what was killed to end."""


@dataclass(frozen=True)
class Blow:
    """When a run is killed.

    Args:
        kind: ``"time"``, by another process; ``"row"``, while it writes to the database;
            ``"file"``, when it has written half a checkpoint; ``"none"``, never.
        when: Seconds after its start; or the how manieth statement, or checkpoint.
    """

    kind: Literal["time", "row", "file", "none"]
    when: float = 0.0

    @classmethod
    def drawn(cls, rng: random.Random, kinds: Sequence[str] = ("time", "row", "file")) -> Blow:
        """At a random moment."""
        kind = rng.choice(kinds)
        if kind == "time":
            return cls("time", rng.uniform(0.0, 3.0))
        return cls("row", rng.randint(1, 80)) if kind == "row" else cls("file", rng.randint(1, 5))


class Epochs:
    """A metric that leaves a byte in a file each time it is asked for: twice per epoch.

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
        """Epochs so far, in whichever process."""
        return self.path.stat().st_size / 2 if self.path.exists() else 0.0


class Counted:
    """The ``model_fn`` of the runs.

    Args:
        epochs: Counts its epochs.
    """

    def __init__(self, epochs: Epochs) -> None:
        self.epochs = epochs

    def __call__(self, trial: Any) -> miha.Recipe:
        recipe = explicit(trial)
        recipe.metrics = {"seen": self.epochs}
        return recipe


class Dying(FileSystemArtifactStore):
    """A store whose process dies when it has written half of one of its files.

    Args:
        folder: Its folder.
        fatal: Which file.
    """

    def __init__(self, folder: Path, fatal: int) -> None:
        super().__init__(folder)
        self.folder, self.n_left = folder, fatal

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        self.n_left -= 1
        if self.n_left == 0:
            content = content_body.read()
            (self.folder / artifact_id).write_bytes(content[: len(content) // 2])
            _die()
        super().write(artifact_id, content_body)


def _die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_at_statement(fatal: int) -> None:
    """Die within a transaction, after a statement of it or right before its end."""
    n_left = fatal

    def count(*_: object) -> None:
        nonlocal n_left
        n_left -= 1
        if n_left == 0:
            _die()

    event.listen(Engine, "after_cursor_execute", count)
    event.listen(Engine, "commit", count)


def attempt(url: str, folder: Path, plan: miha.Plan, n_jobs: int, blow: Blow) -> None:
    """What the script of a run does; the same every time."""
    os.setsid()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    fatal = int(blow.when) if blow.kind == "file" else 0
    study = new_study(RDBStorage(url))
    (folder / "begun").touch()
    if blow.kind == "row":
        _die_at_statement(int(blow.when))
    run(
        study,
        Counted(Epochs(folder / "epochs")),
        plan=plan,
        n_jobs=n_jobs,
        artifact_store=Dying(checkpoints, fatal),
    )


def started(target: Callable[..., None], *args: object) -> BaseProcess:
    """A process of its own that calls a function, and has all modules loaded."""
    process = _processes.Process(target=target, args=args)
    process.start()
    return process


def strike(url: str, folder: Path, plan: miha.Plan, n_jobs: int, blow: Blow) -> bool:
    """Run until it is over or killed; returns whether it was killed."""
    (folder / "begun").unlink(missing_ok=True)
    process = started(attempt, url, folder, plan, n_jobs, blow)
    if blow.kind == "time":
        wait_until((folder / "begun").exists)
        time.sleep(blow.when)
        process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), f"{process.exitcode} after {blow}"
    pid = process.pid
    assert pid is not None
    wait_until(lambda: not session(pid))
    return process.exitcode != 0


def wait_until(is_so: Any) -> None:
    """Return when it is so; fail when it is not in spite of patience."""
    start = time.monotonic()
    while not is_so():
        assert time.monotonic() - start < PATIENCE, "it took too long"
        time.sleep(0.02)


def session(pid: int) -> list[int]:
    """The living processes that belong to the session of a process, such as its workers."""
    members = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # It ended meanwhile.
            continue
        if int(fields[3]) == pid and fields[0] not in "ZX":
            members.append(int(path.parent.name))
    return members


def survive(
    url: str, folder: Path, plan: miha.Plan, *, n_jobs: int, n_kills: int, rng: random.Random
) -> int:
    """Kill a run at random moments, resume it each time, and at last let it end.

    After each kill, what was trained and is not on record is no more than the phase under way.

    Returns:
        How often it was killed. It may have been over before the last times.
    """
    epochs = Epochs(folder / "epochs")
    counted, recorded = 0.0, 0
    for n in range(n_kills):
        # The first one must find it running.
        blow = Blow.drawn(rng) if n else Blow.drawn(rng, ["row", "file"])
        if not strike(url, folder, plan, n_jobs, blow):
            return n
        spent, under_way = progress(url, plan)
        # Before it trains, a run validates once.
        assert epochs.count() - counted <= spent - recorded + under_way + 1
        counted, recorded = epochs.count(), spent
    assert not strike(url, folder, plan, n_jobs, Blow("none"))
    return n_kills


def progress(url: str, plan: miha.Plan) -> tuple[int, int]:
    """Epochs that are on record, and those of the phase that comes next, or is under way."""
    storage = RDBStorage(url)
    try:
        study = new_study(storage)
        lineage = read_lineage(study)
        [stretch] = study.user_attrs.get(attributes.STRETCHES) or [
            {"first_cycle": 0, "start": 0, "end": plan.n_epochs}
        ]
        phase = next_phase(plan, Stretch(**stretch), lineage)
        if phase is None:
            return lineage.spent, 0
        if phase.role == "startup":
            return lineage.spent, race_cost(phase.size)
        return lineage.spent, phase.size * phase.n_epochs
    finally:
        storage.remove_session()
        storage.engine.dispose()


def record(result: miha.Result) -> list[tuple[Any, ...]]:
    """All that a run tells of its segments, apart from trial numbers, file names and times."""
    places = {s.number: (s.role, s.cycle, s.branch) for s in result.segments}
    rows = [
        (
            places[s.number],
            None if s.parent is None else places[s.parent],
            (s.birth, s.trained, s.mutation, s.state.name, s.value, repr(s.fitness)),
            sorted(s.params.items()),
            (s.scores, s.train_losses),
            None if s.member is None else s.member["value"],
        )
        for s in result.segments
    ]
    return sorted(rows, key=lambda row: row[0])


def states(result: miha.Result, folder: Path) -> dict[tuple[str, int, int], Any]:
    """The checkpoints that remain, by the place of their segment."""
    return {
        (s.role, s.cycle, s.branch): torch.load(folder / s.checkpoint["id"], weights_only=True)
        for s in result.segments
        if s.checkpoint is not None and (folder / s.checkpoint["id"]).exists()
    }
