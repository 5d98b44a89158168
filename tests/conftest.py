"""What all tests have in common: a quiet Optuna, no deadlines, no slow disk, one thread each."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, settings
from sqlalchemy import event
from sqlalchemy.engine import Engine

# Before torch is imported, and for what the tests start: several processes share the cores, and
# threads that wait for each other there take many times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

optuna.logging.set_verbosity(optuna.logging.WARNING)

settings.register_profile(
    "suite",
    deadline=None,  # The machine may be busy; how long an example takes proves nothing.
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("suite")


@event.listens_for(Engine, "connect")
def _leave_writing_to_the_system(connection: Any, _: object) -> None:
    """SQLite does not wait for the disk, which only matters when the power fails."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous=OFF")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the long one of the last files, which one process alone would be left with."""
    items.sort(key=lambda item: item.path.name != "test_pools.py")


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What Optuna and this package log."""
    optuna.logging.enable_propagation()
    yield caplog
    optuna.logging.disable_propagation()


@pytest.fixture(scope="session")
def whole() -> Any:
    """The result of a run of the plan ``SHORT`` that nothing disturbed."""
    from helpers import problems

    return problems.run(problems.new_study(), plan=problems.SHORT)


@pytest.fixture(scope="session")
def whole_tiny() -> Any:
    """The same of the plan ``TINY``."""
    from helpers import problems

    return problems.run(problems.new_study())


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Any]:
    """A PostgreSQL cluster for all tests that leave it running; each takes a new database."""
    from helpers import (
        services,  # With clients of several servers, which most tests need not wait for.
    )

    with services.postgresql() as cluster:
        yield cluster
