"""The process of a coordinator, and whether it is alive."""

from __future__ import annotations

import datetime
import os
import socket
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

active_nonces: set[str] = set()
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
        if not self._is_in_this_table():
            return False
        if _start_time(self.pid) != self.started:
            return True
        # A coordinator of this process could not release its lease if the storage failed.
        return self.pid == os.getpid() and self.nonce not in active_nonces

    def is_known_awake(self) -> bool:
        """Whether it is known to be neither dead nor suspended; false for other machines."""
        return (
            self._is_in_this_table()
            and not self.is_known_dead()
            and _stat_of(self.pid)[:1] not in (["T"], ["t"])
        )

    def _is_in_this_table(self) -> bool:
        return bool(self.table and self.started and self.table == _process_table())


def parse_holder(attr: Any) -> Holder | None:
    """The holder in an attribute; :obj:`None` if it cannot be read."""
    try:
        holder = Holder(**attr)
    except TypeError:
        return None
    texts = (holder.nonce, holder.host, holder.table, holder.started, holder.since)
    is_plain = all(isinstance(text, str) for text in texts) and type(holder.pid) is int
    return holder if is_plain else None


def _process_table() -> str:
    """Identifies the process table of this process; empty if the system does not report it."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _start_time(pid: int) -> str:
    """Start time of a process in ticks since boot; empty if it does not exist or is a zombie."""
    fields = _stat_of(pid)
    return "" if not fields or fields[0] in "ZX" else fields[19]


def _stat_of(pid: int) -> list[str]:
    """What the system reports of a process, from its state on; empty if it does not exist."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    return stat.rpartition(")")[2].split()  # The name in parentheses may contain anything.
