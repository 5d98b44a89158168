"""Loops that run in a thread, one epoch at a time."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

import optuna_miha as miha
from optuna_miha.integrations.handover import epochs_of
from optuna_miha.integrations.session import Session, session_of

CPU = torch.device("cpu")


def test_the_loop_works_only_while_a_result_is_wanted() -> None:
    seen: list[int] = []

    def run(report: Any) -> None:
        for epoch in range(3):
            seen.append(epoch)
            report(miha.EpochResult(value=epoch))

    epochs = epochs_of(run, CPU)
    assert seen == []
    assert next(epochs).value == 0 and seen == [0]
    assert next(epochs).value == 1 and seen == [0, 1]
    assert [result.value for result in epochs] == [2]


def test_a_loop_that_nobody_wants_any_more_ends() -> None:
    ended = []

    def run(report: Any) -> None:
        try:
            for epoch in range(3):
                try:
                    report(miha.EpochResult(value=epoch))
                except Exception:
                    continue
        finally:
            ended.append(True)

    epochs = epochs_of(run, CPU)
    next(epochs)
    epochs.close()  # type: ignore[attr-defined]
    assert ended == [True]
    assert all(thread.name != "optuna-miha-trainer" for thread in threading.enumerate())


def test_errors_of_the_loop_are_raised() -> None:
    def run(report: Any) -> None:
        raise KeyError("broken")

    with pytest.raises(KeyError, match="broken"):
        next(epochs_of(run, CPU))


def test_a_recipe_of_another_origin_is_refused() -> None:
    model = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="must return its recipe, got one without it"):
        session_of(miha.Recipe(model=model), Session, "LightningTrainer")
    session = Session(torch.optim.SGD(model.parameters()))
    recipe = miha.Recipe(
        model=model, optimizer=torch.optim.SGD(model.parameters()), extra_state={"s": session}
    )
    with pytest.raises(ValueError, match="must control the optimizer"):
        session_of(recipe, Session, "LightningTrainer")
