"""The learning rate while it is annealed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers.jobs import (
    UNUSED_PARAM,
    fixed_model_fn,
)
from helpers.networks import run_context, succeed
from torch import Tensor, nn

from optuna_miha import EpochResult, Recipe
from optuna_miha._search.learning_rate import warmup_cosine


def model_fn_with_lr(**changes: Any) -> Callable[[Any], Recipe]:
    """``fixed_model_fn`` with a suggested learning rate."""

    def model_fn(trial: Any) -> Recipe:
        built = fixed_model_fn(**changes)(trial)
        assert built.optimizer is not None
        built.optimizer.param_groups[0]["lr"] = trial.suggest_float("lr", 1e-3, 1.0)
        return built

    return model_fn


def test_annealing_raises_the_learning_rate_and_lowers_it_towards_zero() -> None:
    seen: list[list[float]] = []

    def step(model: nn.Module, batch: Any, loss_fn: Any) -> Tensor:
        if model.training:
            seen[-1].append(optimizers[-1].param_groups[0]["lr"])
        return loss_fn(model(batch[0]), batch[1])

    optimizers: list[torch.optim.Optimizer] = []

    def model_fn(trial: Any) -> Recipe:
        built = model_fn_with_lr(train_step=step)(trial)
        assert built.optimizer is not None
        optimizers.append(built.optimizer)
        seen.append([])
        return built

    context, params = run_context(model_fn, ema_decay=0.0), UNUSED_PARAM | {"lr": 0.02}
    state = succeed(context, params=params, n_epochs=1).state
    succeed(context, params=params, n_epochs=20, state=state, anneal=True)
    succeed(context, params=params, n_epochs=2, state=state)
    per_step = seen[1]
    assert len(per_step) == 20 * 4  # 24 samples in batches of 7: four steps per epoch.
    rates = per_step[::4]
    assert per_step == [rate for rate in rates for _ in range(4)]
    falling = [0.5 * (1 + math.cos(math.pi * epoch / 18)) for epoch in range(18)]
    assert rates == pytest.approx([0.02 * part for part in (1 / 3, 2 / 3, *falling)])
    assert rates[2] == 0.02
    assert rates[11] == pytest.approx(0.01)
    assert 0 < rates[-1] < 0.05 * 0.02
    assert set(seen[2]) == {0.02}


def test_annealing_scales_every_group() -> None:
    def model_fn(trial: Any) -> Recipe:
        built = fixed_model_fn()(trial)
        groups = [
            {"params": [p], "lr": 0.1 * i} for i, p in enumerate(built.model.parameters(), 1)
        ]
        built.optimizer = torch.optim.SGD(groups)
        return built

    rates: list[list[float]] = []

    def trainer(built: Recipe, n_epochs: int) -> Iterator[EpochResult]:
        for _ in range(n_epochs):
            rates.append([group["lr"] for group in built.optimizer.param_groups])
            yield EpochResult(value=0.0)

    succeed(run_context(model_fn, trainer=trainer), params=UNUSED_PARAM, n_epochs=4, anneal=True)
    assert rates[0] == pytest.approx([0.1 * i for i in range(1, 7)])
    assert rates[2] == pytest.approx([0.05 * i for i in range(1, 7)])


@pytest.mark.parametrize("name", [None, "lr", "learning_rate"])
def test_learning_rate_that_was_not_raised_is_annealed_without_a_rise(
    name: str | None,
) -> None:
    def model_fn(trial: Any) -> Recipe:
        built = fixed_model_fn()(trial)
        assert built.optimizer is not None
        if name == "lr":
            built.optimizer.param_groups[0]["lr"] = trial.suggest_categorical(name, [0.02, 0.2])
        elif name is not None:
            built.optimizer.param_groups[0]["lr"] = trial.suggest_float(name, 1e-3, 1.0)
        return built

    rates: list[float] = []

    def trainer(built: Recipe, n_epochs: int) -> Iterator[EpochResult]:
        for _ in range(n_epochs):
            rates.append(built.optimizer.param_groups[0]["lr"])
            yield EpochResult(value=0.0)

    params = UNUSED_PARAM if name is None else UNUSED_PARAM | {name: 0.02}
    succeed(run_context(model_fn, trainer=trainer), params=params, n_epochs=20, anneal=True)
    falling = [0.5 * (1 + math.cos(math.pi * epoch / 20)) for epoch in range(20)]
    assert rates == pytest.approx([0.02 * part for part in falling])


@pytest.mark.parametrize("n_epochs", range(1, 41))
def test_annealing_ends_far_below_its_peak(n_epochs: int) -> None:
    rates = [warmup_cosine(epoch, n_epochs) for epoch in range(n_epochs)]
    top = rates.index(max(rates))
    assert max(rates) == (1 if n_epochs >= 5 else pytest.approx(1 / 3))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[0] == pytest.approx(1 / 3)
    assert n_epochs == 1 or rates[-1] < 0.2
