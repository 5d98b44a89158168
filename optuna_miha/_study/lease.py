"""Who runs a study: one coordinator at a time."""

from __future__ import annotations

import datetime
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna

from optuna_miha._history import attributes
from optuna_miha._study.optuna_internals import is_in_memory, study_key
from optuna_miha.exceptions import StudyLockedError

_logger = optuna.logging.get_logger("optuna.miha")

HEARTBEAT = 20.0
"""Seconds after which a coordinator tells that it is alive."""

EXPIRY = 60.0
"""Seconds of watching without a sign of life after which a coordinator counts as dead."""

_POLL = 0.5
"""Seconds between two looks at somebody else's lease."""

_READBACK_DELAY = 0.1
"""Seconds between writing a lease and reading it back. Of two that write at the same time, both
then see the later one."""

_here: set[object] = set()
_guard = threading.Lock()

_alive: set[str] = set()
"""Nonces of the coordinators of this process that run."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A process that runs a study.

    Args:
        nonce: Tells this coordinator from any other, of the same process too.
        host: The name of its machine.
        table: The process table in which ``pid`` is meant: machine, boot and container. Empty
            where that cannot be known.
        pid: Its process.
        started: When that process started, as the system counts; so a number that was given to
            another process since is not taken for it. Empty where that cannot be known.
        since: When it took the study, for people to read; nothing is computed from it.
    """

    nonce: str
    host: str
    table: str
    pid: int
    started: str
    since: str

    @classmethod
    def myself(cls) -> Holder:
        """This process, under a new nonce."""
        return cls(
            nonce=uuid.uuid4().hex,
            host=socket.gethostname(),
            table=_process_table(),
            pid=os.getpid(),
            started=_start_of(os.getpid()),
            since=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        )

    def is_surely_dead(self) -> bool:
        """Whether its process is known to be over. Of another machine nothing is known."""
        if not self.table or not self.started or self.table != _process_table():
            return False
        if _start_of(self.pid) != self.started:
            return True
        # This process lives, but that coordinator may not: its storage was away when it ended.
        return self.pid == os.getpid() and self.nonce not in _alive


class Lease:
    """The right to run a study, renewed while it is held.

    Args:
        study: The study.
        holder: Who holds it.
    """

    def __init__(self, study: optuna.Study, holder: Holder) -> None:
        self._study = study
        self._holder = holder
        self._beats = 0
        self._usurper: Holder | None = None

    def check(self) -> None:
        """Refuse to go on if somebody else took over.

        Raises:
            StudyLockedError: If they did.
        """
        if self._usurper is not None:
            raise _locked(self._study, self._usurper, "It took over from this process.")

    def look(self) -> None:
        """The same after a look at the study, where another process may have written.

        Raises:
            StudyLockedError: If somebody else took over.
        """
        if not self.is_mine():
            self.check()

    def confirm(self) -> None:
        """Look whether it is still there, after the storage was away, and renew it.

        Raises:
            StudyLockedError: If somebody else took over.
        """
        self.look()
        self.write()

    def write(self) -> None:
        """Tell that its holder is alive. What counts is that the number changes."""
        self._beats += 1
        attr = {**asdict(self._holder), "beats": self._beats}
        self._study.set_user_attr(attributes.LEASE, attr)

    def is_mine(self) -> bool:
        """Whether the study still says so; who holds it instead is remembered."""
        other, _ = _read(self._study)
        if other is None or other.nonce == self._holder.nonce:
            return True
        self._usurper = other
        return False

    def release(self) -> None:
        """Let go of it, if it is still there to let go."""
        with suppress(Exception):  # A holder that is gone is found to be dead.
            if self._usurper is None and self.is_mine():
                self._study.set_user_attr(attributes.LEASE, None)


@contextmanager
def held(study: optuna.Study) -> Iterator[Lease]:
    """Hold the lease of a study.

    A study that somebody runs is refused; one whose coordinator is dead is taken over. That is
    known at once where the coordinator ran on this machine, and otherwise after watching its
    lease for a minute without a change. Durations are those that the observer measures, so that
    no clock of another machine matters.

    Args:
        study: The study.

    Raises:
        StudyLockedError: If another coordinator runs the study.
    """
    key = study_key(study)
    with _guard:
        if key in _here:
            raise _locked(study, Holder.myself(), "It is this process itself, in another call.")
        _here.add(key)
    holder = None
    try:
        holder = Holder.myself()
        lease = Lease(study, holder)
        _alive.add(holder.nonce)
        if is_in_memory(study):  # No other process can see it.
            yield lease
            return
        _wait_until_free(study)
        lease.write()
        time.sleep(_READBACK_DELAY)
        lease.look()
        over = threading.Event()
        thread = threading.Thread(
            target=_renew, args=(lease, over), name="optuna-miha-lease", daemon=True
        )
        thread.start()
        try:
            yield lease
        finally:
            over.set()
            thread.join()
            lease.release()
    finally:
        with _guard:
            _here.discard(key)
            if holder is not None:
                _alive.discard(holder.nonce)


def _renew(lease: Lease, over: threading.Event) -> None:
    while not over.wait(HEARTBEAT):
        try:
            if not lease.is_mine():
                return
            lease.write()
        except Exception as error:  # The next one may get through.
            _logger.debug(f"The lease was not renewed: {error!r}.")


def _wait_until_free(study: optuna.Study) -> None:
    """Return when nobody holds the study, or its holder is dead."""
    holder, beats = _read(study)
    if holder is None:
        return
    if not holder.is_surely_dead():
        if holder.table == _process_table() and holder.started:
            raise _locked(study, holder, "It is alive.")
        _logger.warning(
            f"The study {study.study_name!r} was taken by process {holder.pid} on {holder.host!r} "
            f"on {holder.since}. Watching for up to {EXPIRY:g} s whether it is alive."
        )
        start = time.monotonic()
        while time.monotonic() - start < EXPIRY:
            time.sleep(_POLL)
            present = _read(study)
            if present[0] is None:
                return
            if present != (holder, beats):
                raise _locked(study, present[0], "It is alive.")
    _logger.warning(
        f"Process {holder.pid} on {holder.host!r}, which ran the study {study.study_name!r} since "
        f"{holder.since}, is dead: this process takes over."
    )


def _read(study: optuna.Study) -> tuple[Holder | None, Any]:
    """Who holds the study, and how often they have said so.

    What cannot be read is nobody's: a lease must not be what keeps a study from its owner.
    """
    attr = study.user_attrs.get(attributes.LEASE)
    if not isinstance(attr, dict):
        return None, None
    content = {k: v for k, v in attr.items() if k != "beats"}
    try:
        holder = Holder(**content)
    except TypeError:
        return None, None
    texts = (holder.nonce, holder.host, holder.table, holder.started, holder.since)
    is_plain = all(isinstance(text, str) for text in texts) and type(holder.pid) is int
    return (holder, attr.get("beats")) if is_plain else (None, None)


def _locked(study: optuna.Study, holder: Holder, how: str) -> StudyLockedError:
    return StudyLockedError(
        f"The study {study.study_name!r} is run by process {holder.pid} on {holder.host!r} since "
        f"{holder.since}. {how} Wait for it or stop it (Ctrl-C, or `kill {holder.pid}` there), "
        "then run the same script again: one that is dead is taken over by itself, at once on "
        f"the same machine, after {EXPIRY:g} s from another. To use several processors, give "
        "`n_jobs` or an `executor` to one call."
    )


def _process_table() -> str:
    """What process numbers of this machine refer to; empty where the system does not say."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _start_of(pid: int) -> str:
    """When a process started, in ticks since the machine did; empty if there is no such process.

    A process that has ended, but whose end nobody took note of yet, counts as none.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()  # The name before may hold anything.
    return "" if fields[0] in "ZX" else fields[19]
