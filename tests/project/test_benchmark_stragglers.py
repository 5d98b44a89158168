"""The simulation of workers of unequal speed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def stragglers() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import _stragglers  # type: ignore[import-not-found]

        yield _stragglers


@pytest.mark.parametrize(
    ("n_networks", "n_epochs", "speeds", "n_parts", "expected"),
    [
        (2, 10, [1.0, 0.5], 1, 20),
        (2, 10, [1.0, 0.5], 2, 15),  # The other worker trains the second half.
        (3, 10, [1.0, 1.0], 1, 20),
        (3, 10, [1.0, 1.0], 2, 15),
        (5, 1, [1.0, 1.0], 4, 3),  # An epoch is not divided.
    ],
)
def test_a_rung_waits_for_its_slowest_network(
    stragglers: Any,
    n_networks: int,
    n_epochs: int,
    speeds: list[float],
    n_parts: int,
    expected: float,
) -> None:
    assert stragglers.rung_time(n_networks, n_epochs, speeds, n_parts) == expected


def test_one_slow_worker_of_several_doubles_the_time_of_a_run(stragglers: Any) -> None:
    rungs = {4: [(4, 5), (4, 10)]}
    assert stragglers.slowdown(rungs[4], [1.0, 1.0, 1.0, 0.5], 1) == 2
    *_, straggler, log_normal = stragglers.straggler_table(rungs)
    assert straggler.startswith("| 4 | one at 0.5 | 2.00 | ")
    assert straggler.endswith(" | 1.33 | 1.14 |")
    assert log_normal.startswith("| 4 | log-normal")
