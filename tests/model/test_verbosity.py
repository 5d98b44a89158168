"""The verbosity of Optuna's log."""

from __future__ import annotations

from collections.abc import Iterator

import optuna
import pytest

from optuna_miha._model.verbosity import warnings_only


@pytest.fixture(autouse=True)
def verbose() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.INFO)
    yield
    optuna.logging.set_verbosity(before)


def test_creating_a_study_is_not_logged(log: pytest.LogCaptureFixture) -> None:
    with warnings_only():
        optuna.create_study(study_name="quiet")
    optuna.create_study(study_name="verbose")
    assert "quiet" not in log.text
    assert "verbose" in log.text


def test_verbosity_is_restored_after_an_error() -> None:
    with pytest.raises(RuntimeError, match="failed"), warnings_only():
        assert optuna.logging.get_verbosity() == optuna.logging.WARNING
        raise RuntimeError("failed")
    assert optuna.logging.get_verbosity() == optuna.logging.INFO
