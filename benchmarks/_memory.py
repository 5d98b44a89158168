"""The memory of a process and its descendants, from Linux's ``/proc``."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

_INTERVAL = 0.05
_PROC = Path("/proc")
_MIB = 1024


def peak_memory(process: subprocess.Popen[str]) -> dict[str, float | int | None]:
    """Sample the memory of a process and its descendants until it ends.

    Returns:
        ``peak_pss_mib``, the peak of all processes together with shared pages counted once;
        ``peak_rss_mib``, the same with shared pages counted once per process; and
        ``n_processes``, the largest number of processes. All are :obj:`None` without ``/proc``.
    """
    peak = {"Pss": 0, "Rss": 0}
    most = 0
    while process.poll() is None:
        tree = _tree(process.pid)
        sums = {"Pss": 0, "Rss": 0}
        for pid in tree:
            for name, kib in _rollup(pid).items():
                sums[name] += kib
        peak = {name: max(peak[name], total) for name, total in sums.items()}
        most = max(most, len(tree))
        time.sleep(_INTERVAL)
    known = peak["Pss"] > 0
    return {
        "peak_pss_mib": round(peak["Pss"] / _MIB, 1) if known else None,
        "peak_rss_mib": round(peak["Rss"] / _MIB, 1) if known else None,
        "n_processes": most if known else None,
    }


def _tree(root: int) -> set[int]:
    """The process, its children, their children, and so on."""
    parents = {}
    for path in _PROC.glob("[0-9]*/stat"):
        try:
            # The name, in parentheses, may contain spaces.
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:  # The process has just ended.
            continue
    tree, size = {root}, 0
    while len(tree) > size:
        size = len(tree)
        tree |= {pid for pid, parent in parents.items() if parent in tree}
    return tree


def _rollup(pid: int) -> dict[str, int]:
    """KiB by name; empty if the process has ended or cannot be read."""
    try:
        lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {name: int(rest.split()[0]) for name, _, rest in pairs if name in ("Pss", "Rss")}
