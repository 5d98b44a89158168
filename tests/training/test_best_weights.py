"""The best weights of a job, and the moving average of its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.equality import same
from helpers.jobs import (
    UNUSED_PARAM,
    fixed_model_fn,
    trainer_of_values,
)
from helpers.networks import recipe, run_context, succeed
from optuna.trial import FixedTrial
from torch import nn

from optuna_miha import Recipe
from optuna_miha._model.model_fn import build_recipe
from optuna_miha._model.tensors import copy_tensors
from optuna_miha._training.compute import intra_op_threads
from optuna_miha._training.pickling import pack, unpack
from optuna_miha._training.trainer import evaluate


@pytest.mark.parametrize("ema_decay", [0.0, 0.6, 0.99])
@pytest.mark.parametrize(("monitor", "sign"), [("loss", 1), ("accuracy", -1)])
def test_best_weights_have_the_best_value(ema_decay: float, monitor: str, sign: int) -> None:
    model_fn = fixed_model_fn(monitor=monitor)
    context = run_context(model_fn, ema_decay=ema_decay, sign=sign)
    outcome = succeed(context, params=UNUSED_PARAM, n_epochs=6)
    best = outcome.state["best"]
    candidates = [v for r in outcome.results for v in (r.value, r.ema_value) if v is not None]
    assert best["value"] == sign * min(sign * v for v in candidates)
    epoch = outcome.results[best["epoch"] - 1]
    assert best["value"] in (epoch.value, epoch.ema_value)

    built = build_recipe(model_fn, FixedTrial(UNUSED_PARAM), seed=123)
    built.model.load_state_dict(best["weights"])
    with intra_op_threads(1):
        assert evaluate(built, built.model)[monitor] == best["value"]


@pytest.mark.parametrize("ema_decay", [0.0, 0.6])
@pytest.mark.parametrize("is_moved", [False, True])
def test_best_weights_of_the_last_epoch_are_no_second_copy(
    ema_decay: float, is_moved: bool, tmp_path: Path
) -> None:
    context = run_context(fixed_model_fn(), ema_decay=ema_decay)
    state = succeed(context, params=UNUSED_PARAM, n_epochs=1).state
    assert state["best"]["epoch"] == 1
    if is_moved:
        state = unpack(pack(state))
    torch.save(state, tmp_path / "state.pt")
    for given in (state, torch.load(tmp_path / "state.pt", weights_only=True)):
        parts = {t.data_ptr() for part in ("model", "ema") for t in (given[part] or {}).values()}
        best = given["best"]["weights"]
        assert {t.data_ptr() for t in best.values()} <= parts
    # A later epoch changes the network, but not the best weights that it continued from.
    worse = run_context(fixed_model_fn(), trainer=trainer_of_values(99.0), ema_decay=ema_decay)
    before = copy_tensors(state)
    after = succeed(worse, params=UNUSED_PARAM, n_epochs=1, state=state).state
    assert same(after["best"], before["best"])
    assert same(state, before)


def test_best_weights_are_kept_if_later_epochs_are_worse() -> None:
    context = run_context(fixed_model_fn(), trainer=trainer_of_values(3.0, 1.0, 2.0, 2.5))
    whole = succeed(context, params=UNUSED_PARAM, n_epochs=4)
    best = whole.state["best"]
    assert (best["value"], best["epoch"]) == (1.0, 2)
    # The trainer adds 1 per epoch, and two epochs followed.
    assert torch.allclose(best["weights"]["0.weight"] + 2, whole.state["model"]["0.weight"])
    later = run_context(fixed_model_fn(), trainer=trainer_of_values(1.5, 0.5))
    assert (
        succeed(later, params=UNUSED_PARAM, n_epochs=1, state=whole.state).state["best"]
        is not None
    )
    kept = succeed(later, params=UNUSED_PARAM, n_epochs=1, state=whole.state).state["best"]
    assert same(kept, best)
    better = succeed(later, params=UNUSED_PARAM, n_epochs=2, state=whole.state).state["best"]
    assert (better["value"], better["epoch"]) == (0.5, 6)


def test_average_is_evaluated_after_every_epoch() -> None:
    averaged_run = succeed(
        run_context(fixed_model_fn(), ema_decay=0.6), params=UNUSED_PARAM, n_epochs=3
    )
    plain = succeed(run_context(fixed_model_fn(), ema_decay=0.0), params=UNUSED_PARAM, n_epochs=3)
    assert same(averaged_run.state["model"], plain.state["model"])
    assert plain.state["ema"] is None
    assert [r.ema_value for r in plain.results] == [None] * 3
    values = [r.value for r in averaged_run.results]
    ema_values = [r.ema_value for r in averaged_run.results]
    assert values == [r.value for r in plain.results]
    assert ema_values[1] != values[1]

    built = build_recipe(fixed_model_fn(), FixedTrial(UNUSED_PARAM), seed=0)
    ema = {k.removeprefix("module."): v for k, v in averaged_run.state["ema"].items()}
    del ema["n_averaged"]
    built.model.load_state_dict(ema)
    with intra_op_threads(1):
        assert evaluate(built, built.model)["loss"] == ema_values[-1]


def test_first_average_equals_the_weights_without_batch_norm() -> None:
    def model_fn(trial: Any) -> Recipe:
        model = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.3), nn.Linear(6, 3))
        lr = trial.suggest_float("lr", 0.01, 1.0)
        return recipe(model=model, optimizer=torch.optim.Adam(model.parameters(), lr=lr))

    first, second = succeed(run_context(model_fn), params={"lr": 0.01}, n_epochs=2).results
    assert first.ema_value == first.value
    assert second.ema_value != second.value
