"""Processes that run in turns, so that all of them meet the same machine.

The speed of a machine that others use, too, changes by a third from one ten seconds to the next.
Variants that are measured one after the other differ by that much; variants that take turns of a
quarter of a second do not.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from typing import TypeAlias

Span: TypeAlias = tuple[float, float]
"""Begin and end, as :func:`time.time` has them."""

_TURN = 0.25


def run_in_turns(processes: Sequence[subprocess.Popen[str]]) -> list[list[Span]]:
    """Let one process run at a time, with all that it started, until all have ended.

    Args:
        processes: Each the first one of a process group of its own.

    Returns:
        For each of them when it ran.
    """
    turns: list[list[Span]] = [[] for _ in processes]
    for process in processes:
        _send(process, signal.SIGSTOP)
    try:
        while any(process.poll() is None for process in processes):
            for process, own in zip(processes, turns, strict=True):
                if process.poll() is not None:
                    continue
                start = time.time()
                _send(process, signal.SIGCONT)
                time.sleep(_TURN)
                _send(process, signal.SIGSTOP)
                own.append((start, time.time()))
    finally:
        for process in processes:
            if process.poll() is None:
                _send(process, signal.SIGKILL)
    return turns


def _send(process: subprocess.Popen[str], number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:  # It has just ended.
        pass


def seconds_within(spans: Iterable[Span], turns: Iterable[Span]) -> float:
    """How much of ``turns`` lies within ``spans``; neither overlap among themselves."""
    turns = list(turns)
    return sum(
        max(0.0, min(end, last) - max(start, first))
        for start, end in spans
        for first, last in turns
    )


def merged(spans: Iterable[Span]) -> list[Span]:
    """The same time, without overlaps."""
    found: list[Span] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((start, end))
    return found
