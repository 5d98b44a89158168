"""The learning rate while it is annealed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers.jobs import (
    UNUSED_PARAM,
    fixed_model_fn,
)
from helpers.networks import run_context, succeed
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR

from optuna_miha import EpochResult, Recipe
from optuna_miha._search.learning_rate import warmup_cosine


class Recorder(torch.optim.Optimizer):
    """Records the learning rates that are in force in every step, and changes no weight."""

    def __init__(self, params: Any, lr: float = 1.0) -> None:
        super().__init__(params, {"lr": lr})
        self.rates: list[list[float]] = []

    def step(self, closure: Any = None) -> None:
        self.rates.append([group["lr"] for group in self.param_groups])


def recorded(
    trainer: Any = None, *, n_epochs: int = 4, scheduler: Any = None, **changes: Any
) -> tuple[list[float], Recorder]:
    """The rates in force while a job of ``n_epochs`` anneals a rate of 1, and the optimizer."""
    optimizers: list[Recorder] = []

    def model_fn(trial: Any) -> Recipe:
        built = fixed_model_fn(**changes)(trial)
        built.optimizer = Recorder(built.model.parameters(), lr=1.0)
        if scheduler is not None:
            schedule = scheduler(built.optimizer)
            built.optimizer.register_step_post_hook(lambda *_: schedule.step())
        optimizers.append(built.optimizer)
        return built

    context = run_context(model_fn, trainer=trainer, ema_decay=0.0)
    succeed(context, params=UNUSED_PARAM, n_epochs=n_epochs, anneal=True)
    return [rates[0] for rates in optimizers[-1].rates], optimizers[-1]


def one_step(built: Recipe) -> None:
    x, y = built.train_data
    assert built.optimizer is not None
    built.optimizer.zero_grad()
    built.loss_fn(built.model(x), y).backward()
    built.optimizer.step()


FALLING = [0.5 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(4)]


def test_annealing_raises_the_learning_rate_and_lowers_it_towards_zero() -> None:
    optimizers: list[Recorder] = []

    def model_fn(trial: Any) -> Recipe:
        built = fixed_model_fn()(trial)
        lr = trial.suggest_float("lr", 1e-3, 1.0)
        built.optimizer = Recorder(built.model.parameters(), lr=lr)
        optimizers.append(built.optimizer)
        return built

    context, params = run_context(model_fn, ema_decay=0.0), UNUSED_PARAM | {"lr": 0.02}
    state = succeed(context, params=params, n_epochs=1).state
    succeed(context, params=params, n_epochs=20, state=state, anneal=True)
    succeed(context, params=params, n_epochs=2, state=state)
    # What an optimizer holds is inherited: the first four steps are those of the parent.
    per_step = [rates[0] for rates in optimizers[1].rates[4:]]
    assert len(per_step) == 20 * 4  # 24 samples in batches of 7: four steps per epoch.
    rates = per_step[::4]
    assert per_step == [rate for rate in rates for _ in range(4)]
    falling = [0.5 * (1 + math.cos(math.pi * epoch / 18)) for epoch in range(18)]
    assert rates == pytest.approx([0.02 * part for part in (1 / 3, 2 / 3, *falling)])
    assert rates[2] == 0.02
    assert rates[11] == pytest.approx(0.01)
    assert 0 < rates[-1] < 0.05 * 0.02
    assert {rates[0] for rates in optimizers[2].rates} == {0.02}


def test_annealing_scales_every_group() -> None:
    def model_fn(trial: Any) -> Recipe:
        built = fixed_model_fn()(trial)
        groups = [
            {"params": [p], "lr": 0.1 * i} for i, p in enumerate(built.model.parameters(), 1)
        ]
        built.optimizer = Recorder(groups)
        return built

    rates: list[list[float]] = []

    def trainer(built: Recipe, n_epochs: int) -> Iterator[EpochResult]:
        for _ in range(n_epochs):
            one_step(built)
            rates.append(built.optimizer.rates[-1])
            yield EpochResult(value=0.0)

    succeed(run_context(model_fn, trainer=trainer), params=UNUSED_PARAM, n_epochs=4, anneal=True)
    assert rates[0] == pytest.approx([0.1 * i for i in range(1, 7)])
    assert rates[2] == pytest.approx([0.05 * i for i in range(1, 7)])


@pytest.mark.parametrize("name", [None, "lr", "step_size"])
def test_learning_rate_that_was_not_raised_is_annealed_without_a_rise(
    name: str | None,
) -> None:
    def model_fn(trial: Any) -> Recipe:
        built = fixed_model_fn()(trial)
        lr = 0.02
        if name == "lr":
            lr = trial.suggest_categorical(name, [0.02, 0.2])
        elif name is not None:
            lr = trial.suggest_float(name, 1e-3, 1.0)
        built.optimizer = Recorder(built.model.parameters(), lr=lr)
        return built

    rates: list[float] = []

    def trainer(built: Recipe, n_epochs: int) -> Iterator[EpochResult]:
        for _ in range(n_epochs):
            one_step(built)
            rates.append(built.optimizer.rates[-1][0])
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


def test_rates_between_steps_are_those_of_the_user() -> None:
    seen: list[float] = []

    def trainer(built: Recipe, n_epochs: int) -> Iterator[EpochResult]:
        for _ in range(n_epochs):
            seen.append(built.optimizer.param_groups[0]["lr"])
            one_step(built)
            seen.append(built.optimizer.param_groups[0]["lr"])
            yield EpochResult(value=0.0)

    rates, _ = recorded(trainer)
    assert rates == pytest.approx(FALLING)
    assert set(seen) == {1.0}


def test_annealing_survives_groups_that_are_replaced() -> None:
    """As ``load_state_dict`` does, which Accelerate calls."""

    def trainer(built: Recipe, n_epochs: int) -> Iterator[EpochResult]:
        for _ in range(n_epochs):
            built.optimizer.load_state_dict(built.optimizer.state_dict())
            one_step(built)
            yield EpochResult(value=0.0)

    assert recorded(trainer)[0] == pytest.approx(FALLING)


SCHEDULERS: dict[str, tuple[Any, Any]] = {
    "absolute": (lambda o: LambdaLR(o, lambda step: 1 / (1 + step)), lambda step: 1 / (1 + step)),
    "relative": (lambda o: ExponentialLR(o, 0.5), lambda step: 0.5**step),
}


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_scheduler_of_a_trainer_is_multiplied_by_the_annealing(kind: str) -> None:
    scheduler, factor = SCHEDULERS[kind]

    def trainer(built: Recipe, n_epochs: int) -> Iterator[EpochResult]:
        schedule = scheduler(built.optimizer)
        for _ in range(n_epochs):
            for _ in range(2):
                one_step(built)
                schedule.step()
            yield EpochResult(value=0.0)

    expected = [FALLING[step // 2] * factor(step) for step in range(8)]
    assert recorded(trainer)[0] == pytest.approx(expected)


@pytest.mark.filterwarnings("ignore:Detected call of")
@pytest.mark.parametrize("kind", SCHEDULERS)
def test_scheduler_in_a_hook_is_multiplied_by_the_annealing(kind: str) -> None:
    scheduler, factor = SCHEDULERS[kind]
    rates, _ = recorded(scheduler=scheduler)  # 24 samples in batches of 7: four steps per epoch.
    assert rates == pytest.approx([FALLING[step // 4] * factor(step) for step in range(16)])


def test_rate_that_a_trainer_sets_is_multiplied_by_the_annealing() -> None:
    def trainer(built: Recipe, n_epochs: int) -> Iterator[EpochResult]:
        for epoch in range(n_epochs):
            built.optimizer.param_groups[0]["lr"] = 2.0 + epoch
            one_step(built)
            yield EpochResult(value=0.0)

    expected = [(2 + epoch) * part for epoch, part in enumerate(FALLING)]
    assert recorded(trainer)[0] == pytest.approx(expected)
