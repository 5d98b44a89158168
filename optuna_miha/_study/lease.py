"""The lease of a study, which one coordinator holds at a time."""

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
from optuna_miha._history.error_text import describe_error
from optuna_miha._study.optuna_internals import is_in_memory, study_key
from optuna_miha.exceptions import StudyLockedError

_logger = optuna.logging.get_logger("optuna.miha")

HEARTBEAT_INTERVAL = 20.0
"""Seconds between two renewals of a lease."""

EXPIRY = 60.0
"""Seconds without a renewal, as measured by the observer, after which a lease expires."""

_POLL_INTERVAL = 0.5
"""Seconds between two reads of another coordinator's lease."""

_READBACK_DELAY = 0.1
"""Seconds between writing a lease and reading it back. If two coordinators write at the same time,
both read the later lease."""

_studies: set[object] = set()
"""Keys of the studies whose lease this process holds or requests."""

_lock = threading.Lock()
"""Guards ``_studies`` and ``_active_nonces``."""

_active_nonces: set[str] = set()
"""Nonces of the active coordinators in this process."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A coordinator that runs a study.

    Args:
        nonce: Unique for each coordinator, also within a process.
        host: Host name of the machine.
        table: The process table that ``pid`` refers to: machine, boot and container. Empty if the
            system does not report it.
        pid: Process id.
        started: Start time of the process in the system's ticks, which distinguishes it from a
            later process with the same id. Empty if the system does not report it.
        since: When the lease was taken. Only shown in messages.
    """

    nonce: str
    host: str
    table: str
    pid: int
    started: str
    since: str

    @classmethod
    def this_process(cls) -> Holder:
        """A coordinator in this process, with a new nonce."""
        return cls(
            nonce=uuid.uuid4().hex,
            host=socket.gethostname(),
            table=_process_table(),
            pid=os.getpid(),
            started=_start_time(os.getpid()),
            since=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        )

    def is_known_dead(self) -> bool:
        """Whether it is known to have ended; always false for other machines."""
        if not self.table or not self.started or self.table != _process_table():
            return False
        if _start_time(self.pid) != self.started:
            return True
        # A coordinator of this process could not release its lease if the storage failed.
        return self.pid == os.getpid() and self.nonce not in _active_nonces


class Lease:
    """The right to run a study. It is renewed regularly while it is held.

    Args:
        study: The study.
        holder: The coordinator that holds the lease.
    """

    def __init__(self, study: optuna.Study, holder: Holder) -> None:
        self._study = study
        self._holder = holder
        self._beats = 0
        self._successor: Holder | None = None

    def check(self) -> None:
        """Raise if another coordinator is known to have taken over.

        Raises:
            StudyLockedError: If one has.
        """
        if self._successor is not None:
            raise _locked_error(self._study, self._successor, "It took over from this process.")

    def verify(self) -> None:
        """Read the lease from the study, and raise if another coordinator has taken over.

        Raises:
            StudyLockedError: If one has.
        """
        if not self.is_mine():
            self.check()

    def renew(self) -> None:
        """Verify the lease, then write it.

        Raises:
            StudyLockedError: If another coordinator has taken over.
        """
        self.verify()
        self.write()

    def write(self) -> None:
        """Write the lease with a new beat count, by which observers see that it was renewed."""
        self._beats += 1
        attr = {**asdict(self._holder), "beats": self._beats}
        self._study.set_user_attr(attributes.LEASE, attr)

    def is_mine(self) -> bool:
        """Whether no other coordinator holds the lease, according to the study."""
        other, _ = _read(self._study)
        if other is None or other.nonce == self._holder.nonce:
            return True
        self._successor = other
        return False

    def release(self) -> None:
        """Remove the lease from the study unless another coordinator has taken over."""
        with suppress(Exception):  # Other processes will find that its holder is dead.
            if self._successor is None and self.is_mine():
                self._study.set_user_attr(attributes.LEASE, None)


@contextmanager
def hold_lease(study: optuna.Study) -> Iterator[Lease]:
    """Hold the lease of a study.

    If the coordinator that holds the lease is dead, this process takes over: at once if it ran on
    this machine, otherwise after its lease has not been renewed for a minute. The observer
    measures this time, so that clocks of other machines do not matter.

    Args:
        study: The study.

    Raises:
        StudyLockedError: If another coordinator runs the study.
    """
    key = study_key(study)
    with _lock:
        if key in _studies:
            myself = Holder.this_process()
            raise _locked_error(study, myself, "It is this process itself, in another call.")
        _studies.add(key)
    holder = None
    try:
        holder = Holder.this_process()
        lease = Lease(study, holder)
        _active_nonces.add(holder.nonce)
        if is_in_memory(study):  # Other processes cannot access it.
            yield lease
            return
        _wait_until_free(study)
        lease.write()
        time.sleep(_READBACK_DELAY)
        lease.verify()
        stop = threading.Event()
        thread = threading.Thread(
            target=_renew_until, args=(stop, lease), name="optuna-miha-lease", daemon=True
        )
        thread.start()
        try:
            yield lease
        finally:
            stop.set()
            thread.join()
            lease.release()
    finally:
        with _lock:
            _studies.discard(key)
            if holder is not None:
                _active_nonces.discard(holder.nonce)


def _renew_until(stop: threading.Event, lease: Lease) -> None:
    """Renew the lease regularly until ``stop`` is set or another coordinator takes over."""
    while not stop.wait(HEARTBEAT_INTERVAL):
        try:
            if not lease.is_mine():
                return
            lease.write()
        except Exception as error:  # The next renewal may succeed.
            _logger.debug(f"The lease was not renewed: {describe_error(error)}.")


def _wait_until_free(study: optuna.Study) -> None:
    """Return when the lease is free, or its holder is dead.

    Raises:
        StudyLockedError: If the holder is alive.
    """
    holder, beats = _read(study)
    if holder is None:
        return
    if not holder.is_known_dead():
        if holder.table == _process_table() and holder.started:
            raise _locked_error(study, holder, "It is alive.")
        _logger.warning(
            f"The study {study.study_name!r} has been run by process {holder.pid} on "
            f"{holder.host!r} since {holder.since}. Waiting for up to {EXPIRY:g} s to see whether "
            "it is alive."
        )
        start = time.monotonic()
        while time.monotonic() - start < EXPIRY:
            time.sleep(_POLL_INTERVAL)
            current = _read(study)
            if current[0] is None:
                return
            if current != (holder, beats):
                raise _locked_error(study, current[0], "It is alive.")
    _logger.warning(
        f"Process {holder.pid} on {holder.host!r}, which had run the study {study.study_name!r} "
        f"since {holder.since}, is dead. This process takes over."
    )


def _read(study: optuna.Study) -> tuple[Holder | None, Any]:
    """The holder of the lease and its beat count; an unreadable lease counts as free."""
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


def _locked_error(study: optuna.Study, holder: Holder, detail: str) -> StudyLockedError:
    return StudyLockedError(
        f"The study {study.study_name!r} has been run by process {holder.pid} on {holder.host!r} "
        f"since {holder.since}. {detail} Wait for it or stop it (Ctrl-C there, or "
        f"`kill {holder.pid}`), then run the same script again. The study of a process that died "
        f"is taken over automatically: at once on the same machine, after {EXPIRY:g} s on "
        "another. To use several processors, pass `n_jobs` or an `executor` to a single call."
    )


def _process_table() -> str:
    """Identifies the process table of this process; empty if the system does not report it."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _start_time(pid: int) -> str:
    """Start time of a process in ticks since boot; empty if it does not exist or is a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()  # The name in parentheses may contain anything.
    return "" if fields[0] in "ZX" else fields[19]
