"""What workers of unequal speed cost, simulated with the phases of the package's own plan.

Every rung waits for its slowest network. Workers take jobs from one queue, as the processes of
``n_jobs`` and of executors do; whoever waits longest gets the next one.
"""

from __future__ import annotations

import heapq
import random
import statistics
from collections import deque
from collections.abc import Sequence

from optuna_miha._compare.baselines import shares_of

WORKERS = (2, 4, 8)

_SLOW = 0.5
"""Speed of a straggler; that of the others is 1."""

_SIGMA = 0.25
"""Standard deviation of the logarithm of the speeds."""

_DRAWS = 500
"""Sets of log-normal speeds."""


def rung_time(n_networks: int, n_epochs: int, speeds: Sequence[float], n_parts: int) -> float:
    """Time until all networks have trained, in epochs of a worker of speed 1.

    Args:
        n_networks: Number of networks.
        n_epochs: Epochs of each of them.
        speeds: Epochs of each worker per unit of time.
        n_parts: Number of jobs of each network. The next one is queued when the last one ends.
    """
    left = [shares_of(n_epochs, min(n_parts, n_epochs)) for _ in range(n_networks)]
    queue = deque(range(n_networks))
    idle = deque(range(len(speeds)))
    running: list[tuple[float, int, int]] = []
    now = 0.0
    while queue or running:
        while queue and idle:
            network, worker = queue.popleft(), idle.popleft()
            end = now + left[network].pop() / speeds[worker]
            heapq.heappush(running, (end, worker, network))
        now, worker, network = heapq.heappop(running)
        idle.append(worker)
        if left[network]:
            queue.append(network)
    return now


def slowdown(rungs: Sequence[tuple[int, int]], speeds: Sequence[float], n_parts: int) -> float:
    """Time of a run divided by that with workers of speed 1.

    Args:
        rungs: Number of networks and epochs of each, rung by rung.
        speeds: The speed of each worker.
        n_parts: Number of jobs of each network in a rung.
    """
    even = [1.0] * len(speeds)
    return sum(rung_time(*rung, speeds, n_parts) for rung in rungs) / sum(
        rung_time(*rung, even, 1) for rung in rungs
    )


def straggler(n_workers: int) -> list[list[float]]:
    """The speeds of workers, one of which is slow: one set for each place of the slow one."""
    return [
        [_SLOW if worker == slow else 1.0 for worker in range(n_workers)]
        for slow in range(n_workers)
    ]


def log_normal(n_workers: int) -> list[list[float]]:
    """Sets of speeds whose median is 1."""
    draw = random.Random(n_workers)
    return [[draw.lognormvariate(0, _SIGMA) for _ in range(n_workers)] for _ in range(_DRAWS)]


def straggler_table(rungs: dict[int, list[tuple[int, int]]]) -> list[str]:
    """Slowdowns of runs with workers of unequal speed, in Markdown.

    Args:
        rungs: For each number of workers, the rungs of its plan.
    """
    lines = [
        "| workers | speeds | as planned | jobs in halves | in quarters | without the slow worker "
        "| if no rung waited |",
        "|---|---|---|---|---|---|---|",
    ]
    cases = {f"one at {_SLOW:g}": straggler, f"log-normal, σ = {_SIGMA:g}": log_normal}
    for n_workers, own in rungs.items():
        for name, make in cases.items():
            sets = make(n_workers)
            cells = [
                f"{statistics.mean(slowdown(own, speeds, n_parts) for speeds in sets):.2f}"
                for n_parts in (1, 2, 4)
            ]
            cells.append(f"{n_workers / (n_workers - 1):.2f}" if make is straggler else "")
            cells.append(f"{statistics.mean(n_workers / sum(speeds) for speeds in sets):.2f}")
            lines.append(f"| {n_workers} | {name} | {' | '.join(cells)} |")
    return lines
