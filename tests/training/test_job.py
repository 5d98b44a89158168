"""Jobs: reproducible, resumable bit for bit, and independent of each other."""

from __future__ import annotations

import copy
import gc
import math
import random
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from helpers.equality import memory_of, same
from helpers.jobs import (
    PARAMS,
    UNUSED_PARAM,
    fixed_model_fn,
    model_fn_with_suggestions,
    trainer_of_values,
    values_of,
)
from helpers.networks import CPU, network, recipe, run_context, samples, succeed
from optuna.study import StudyDirection
from optuna.trial import FixedTrial
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from optuna_miha import EpochResult, Recipe
from optuna_miha._model.model_fn import build_recipe
from optuna_miha._search.learning_rate import Course
from optuna_miha._training.compute import Engine, intra_op_threads
from optuna_miha._training.context import Context
from optuna_miha._training.job import Job, run_job
from optuna_miha._training.trainer import train


@pytest.mark.parametrize("loader", [False, True])
@pytest.mark.parametrize("ema_decay", [0.6, 0.0])
def test_outcome_is_reproducible_bit_for_bit(loader: bool, ema_decay: float) -> None:
    context = run_context(fixed_model_fn(loader=loader), ema_decay=ema_decay)
    one = succeed(context, params=UNUSED_PARAM, n_epochs=3)
    torch.rand(5)
    other = succeed(context, params=UNUSED_PARAM, n_epochs=3)
    assert values_of(one) == values_of(other)
    assert same(one.state, other.state)
    another = succeed(
        run_context(fixed_model_fn(loader=loader), seed=1), params=UNUSED_PARAM, n_epochs=3
    )
    assert values_of(another) != values_of(one)


@pytest.mark.parametrize("loader", [False, True], ids=["tensors", "loader"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "nadam", "adadelta"])
def test_two_successive_jobs_equal_one_long_job_bit_for_bit(optimizer: str, loader: bool) -> None:
    context = run_context(fixed_model_fn(optimizer, loader=loader))
    whole = succeed(context, params=UNUSED_PARAM, n_epochs=5)
    first = succeed(context, params=UNUSED_PARAM, n_epochs=2)
    second = succeed(context, params=UNUSED_PARAM, n_epochs=3, state=first.state)
    assert values_of(first, second) == values_of(whole)
    assert same(second.state, whole.state)
    assert whole.state["epoch"] == 5
    assert not same(first.state["model"], whole.state["model"])


@pytest.mark.parametrize("trains", ["tensors", "a trainer", "a stream"])
def test_parts_of_an_annealed_segment_equal_the_whole_bit_for_bit(trains: str) -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return zip(*samples(24), strict=True)

    def trainer(built: Recipe, n_epochs: int) -> Iterator[EpochResult]:
        return train(built, n_epochs, engine=Engine())

    is_stream = trains == "a stream"
    changes = {"train_data": DataLoader(Stream(), batch_size=7)} if is_stream else {}
    context = run_context(
        fixed_model_fn(**changes), trainer=trainer if trains == "a trainer" else None
    )
    job = {"params": UNUSED_PARAM, "course": Course(n_epochs=5)}
    whole = succeed(context, n_epochs=5, **job)
    first = succeed(context, n_epochs=2, **job)
    rest = job | {"course": Course(n_epochs=5, begin=2)}
    second = succeed(context, n_epochs=3, state=first.state, **rest)
    assert values_of(first, second) == values_of(whole)
    assert same(second.state, whole.state)


def test_shuffled_validation_does_not_affect_training() -> None:
    valid = TensorDataset(*samples(16, seed=1))
    plain = run_context(fixed_model_fn(valid_data=DataLoader(valid, batch_size=16)))
    shuffled = run_context(
        fixed_model_fn(valid_data=DataLoader(valid, batch_size=16, shuffle=True))
    )
    one = succeed(plain, params=UNUSED_PARAM, n_epochs=2)
    other = succeed(shuffled, params=UNUSED_PARAM, n_epochs=2)
    assert same(one.state["model"], other.state["model"])


def test_random_states_of_python_and_numpy_are_continued() -> None:
    def collate(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        noise = random.gauss(0, 0.1) + 0.1 * float(np.random.randn())
        return torch.stack([x for x, _ in items]) + noise, torch.stack([y for _, y in items])

    def model_fn(trial: Any) -> Recipe:
        built = fixed_model_fn()(trial)
        dataset = TensorDataset(*samples(24))
        built.train_data = DataLoader(dataset, batch_size=8, shuffle=True, collate_fn=collate)
        return built

    context = run_context(model_fn)
    whole = succeed(context, params=UNUSED_PARAM, n_epochs=4)
    first = succeed(context, params=UNUSED_PARAM, n_epochs=1)
    second = succeed(context, params=UNUSED_PARAM, n_epochs=3, state=first.state)
    assert values_of(first, second) == values_of(whole)
    assert same(second.state, whole.state)


def test_job_equals_manual_training() -> None:
    outcome = succeed(
        run_context(fixed_model_fn(), ema_decay=0.0), params=UNUSED_PARAM, n_epochs=3
    )
    built = build_recipe(fixed_model_fn(), FixedTrial(UNUSED_PARAM), seed=0)
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    with intra_op_threads(1):
        results = list(train(built, 3))
    assert list(outcome.results) == results
    assert same(outcome.state["model"], built.model.state_dict())


@pytest.mark.parametrize(
    "mutation",
    [
        {"batch_size": 11},
        {"activation.2": "tanh"},
        {"optimizer": "adamw", "weight_decay": 1e-1},
        {"optimizer": "sgd", "momentum": 0.9},
        {"lr": 0.5},
        {"weight_decay": 1e-1},
    ],
    ids=str,
)
def test_mutated_job_starts_from_the_weights_of_the_parent(mutation: dict[str, Any]) -> None:
    parent = succeed(run_context(model_fn_with_suggestions), params=PARAMS, n_epochs=2)
    untouched = copy.deepcopy(parent.state)
    initial_weights: list[dict[str, Tensor]] = []

    def trainer(built: Recipe, n_epochs: int) -> Iterator[EpochResult]:
        initial_weights.append(copy.deepcopy(built.model.state_dict()))
        return train(built, n_epochs)

    params = PARAMS | mutation
    succeed(
        run_context(model_fn_with_suggestions, trainer=trainer),
        params=params,
        n_epochs=1,
        state=parent.state,
    )
    assert same(initial_weights[0], parent.state["model"])

    mutated = succeed(
        run_context(model_fn_with_suggestions), params=params, n_epochs=2, state=parent.state
    )
    control = succeed(
        run_context(model_fn_with_suggestions), params=PARAMS, n_epochs=2, state=parent.state
    )
    assert not same(mutated.state["model"], control.state["model"])
    assert mutated.state["epoch"] == 4
    assert same(parent.state, untouched)


def test_mutated_hyperparameters_are_used() -> None:
    seen: dict[str, Any] = {}

    def trainer(built: Recipe, n_epochs: int) -> Iterator[EpochResult]:
        seen["group"] = dict(built.optimizer.param_groups[0])
        seen["activation"] = built.model[2]
        seen["batch_size"] = built.batch_size
        return train(built, n_epochs)

    parent = succeed(run_context(model_fn_with_suggestions), params=PARAMS, n_epochs=1)
    params = {"activation.2": "silu", "optimizer": "adamw", "lr": 0.25, "weight_decay": 1e-2}
    params |= {"batch_size": 13}
    context = run_context(model_fn_with_suggestions, trainer=trainer)
    succeed(context, params=params, n_epochs=1, state=parent.state)
    assert (seen["group"]["lr"], seen["group"]["weight_decay"]) == (0.25, 1e-2)
    assert isinstance(seen["activation"], nn.SiLU)
    assert seen["batch_size"] == 13


def test_jobs_with_the_same_parent_are_independent() -> None:
    context = run_context(model_fn_with_suggestions)
    parent = succeed(context, params=PARAMS, n_epochs=1)
    alone = succeed(context, params=PARAMS, n_epochs=2, state=copy.deepcopy(parent.state))
    for lr in (1.0, 1e-4):
        succeed(context, params=PARAMS | {"lr": lr}, n_epochs=2, state=parent.state)
    again = succeed(context, params=PARAMS, n_epochs=2, state=parent.state)
    assert same(alone.state, again.state)
    trained = {k: v for k, v in again.state.items() if k in ("model", "ema", "optimizer")}
    assert not memory_of(trained) & memory_of(parent.state)


@pytest.mark.parametrize(
    ("sign", "patience", "birth", "values", "n_trained"),
    [
        (1, None, math.inf, [1, 2, 3, 4, 5], 5),
        (1, 2, math.inf, [5, 4, 4, 4, 3], 4),
        (1, 2, math.inf, [5, 4, 6, 3, 6, 6, 1], 6),
        (1, 2, 1.0, [3, 2, 1, 1], 2),
        (1, 1, 4.0, [3, 2, 5, 1], 3),
        (-1, 2, math.inf, [1, 2, 2, 2, 3], 4),
        (-1, 2, -3.0, [1, 2, 9], 2),
        (1, 2, math.inf, [5, 4, 3, 2, 1], 5),
    ],
)
def test_patience_ends_a_job_after_epochs_without_improvement(
    sign: int, patience: int | None, birth: float, values: list[float], n_trained: int
) -> None:
    context = run_context(fixed_model_fn(), trainer=trainer_of_values(*values), sign=sign)
    outcome = succeed(
        context, params=UNUSED_PARAM, n_epochs=len(values), patience=patience, birth_cost=birth
    )
    assert [result.value for result in outcome.results] == values[:n_trained]
    assert outcome.begun == n_trained
    assert outcome.state["epoch"] == n_trained


@pytest.mark.parametrize("interrupted", [False, True])
def test_random_state_and_threads_are_restored_also_after_an_interrupt(interrupted: bool) -> None:
    def trainer(built: Recipe, n_epochs: int) -> Iterator[EpochResult]:
        yield from train(built, 1)
        if interrupted:
            raise KeyboardInterrupt

    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    n_threads = torch.get_num_threads()
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    torch.set_num_threads(2)
    try:
        context = run_context(fixed_model_fn(), trainer=trainer)
        job = Job(params=UNUSED_PARAM, state=None, n_epochs=2)
        if interrupted:
            with pytest.raises(KeyboardInterrupt):
                run_job(context, job)
        else:
            assert run_job(context, job).error is None
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(n_threads)
    restored = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert same(restored, states)


def test_training_uses_one_thread() -> None:
    seen: list[int] = []

    def trainer(built: Recipe, n_epochs: int) -> Iterator[EpochResult]:
        seen.append(torch.get_num_threads())
        return train(built, n_epochs)

    n_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        succeed(run_context(fixed_model_fn(), trainer=trainer), params=UNUSED_PARAM, n_epochs=1)
    finally:
        torch.set_num_threads(n_threads)
    assert seen == [1]


def test_validation_loss_is_that_of_the_context() -> None:
    def constant(outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.tensor(42.0)

    for own in (None, lambda outputs, targets: torch.tensor(7.0)):
        context = run_context(fixed_model_fn(valid_loss_fn=own), valid_loss_fn=constant)
        outcome = succeed(context, params=UNUSED_PARAM, n_epochs=1)
        assert outcome.results[0].value == outcome.results[0].ema_value == 42.0


def test_suggested_weight_in_a_train_step_does_not_change_the_validation() -> None:
    def model_fn(trial: Any) -> Recipe:
        beta = trial.suggest_float("beta", 0.0, 10.0)

        def train_step(model: nn.Module, batch: Any, loss_fn: Any) -> Tensor:
            return loss_fn(model(batch[0]), batch[1]) + beta

        return recipe(train_step=train_step)

    initial = model_fn(FixedTrial({"beta": 1.0}))
    context = Context.of(
        initial, model_fn, direction=StudyDirection.MINIMIZE, seed=0, devices=(CPU,)
    )
    values = [
        succeed(context, params={"beta": beta}, n_epochs=1).results[0] for beta in (1.0, 9.0)
    ]
    assert values[0].value == values[1].value
    assert values[1].train_loss == pytest.approx(values[0].train_loss + 8)


@pytest.mark.parametrize("valid_loss_fn", [None, nn.MSELoss()])
def test_context_is_built_from_the_initial_recipe(valid_loss_fn: nn.Module | None) -> None:
    initial = recipe(valid_loss_fn=valid_loss_fn)
    context = Context.of(
        initial, fixed_model_fn(), direction=StudyDirection.MAXIMIZE, seed=3, devices=(CPU,)
    )
    assert context.valid_loss_fn is (valid_loss_fn or initial.loss_fn)
    assert (context.sign, context.seed, context.devices) == (-1, 3, (CPU,))
    assert (context.trainer, context.ema_decay, context.engine) == (None, 0.0, Engine())


def test_user_defined_trainer_has_no_average() -> None:
    context = run_context(fixed_model_fn(), trainer=trainer_of_values(3.0, 2.0), ema_decay=0.6)
    first = succeed(context, params=UNUSED_PARAM, n_epochs=2)
    assert [(r.value, r.ema_value) for r in first.results] == [(3.0, None), (2.0, None)]
    assert first.state["ema"] is None
    second = succeed(context, params=UNUSED_PARAM, n_epochs=1, state=first.state)
    moved = second.state["model"]["0.weight"] - first.state["model"]["0.weight"]
    assert torch.allclose(moved, torch.ones_like(moved))


def test_epochs_are_reported_once_in_order() -> None:
    seen: list[EpochResult] = []
    job = Job(params=UNUSED_PARAM, state=None, n_epochs=3)
    outcome = run_job(run_context(fixed_model_fn()), job, seen.append)
    assert tuple(seen) == outcome.results
    assert len(seen) == 3


def test_frozen_batch_norm_is_frozen_in_the_average_too() -> None:
    def model_fn(trial: Any) -> Recipe:
        built = fixed_model_fn()(trial)
        built.model[1].requires_grad_(False).eval()
        return built

    outcome = succeed(run_context(model_fn), params=UNUSED_PARAM, n_epochs=3)
    assert outcome.state is not None
    for part, prefix in (("model", ""), ("ema", "module.")):
        assert torch.equal(outcome.state[part][f"{prefix}1.running_mean"], torch.zeros(6))


def test_the_network_of_a_job_is_freed_without_a_search_for_cycles() -> None:
    alive: list[Any] = []

    def model_fn(trial: Any) -> Recipe:
        model = network()
        alive.append(weakref.ref(model))
        return recipe(
            model=model,
            optimizer=torch.optim.Adam(model.parameters(), trial.suggest_float("lr", 1e-4, 1e-2)),
            warmup_steps=2,
        )

    context = run_context(model_fn)
    gc.disable()
    try:
        state = succeed(context, params={"lr": 1e-3}, n_epochs=1).state
        succeed(context, params={"lr": 1e-3}, n_epochs=1, state=state)
        assert [reference() for reference in alive] == [None, None]
    finally:
        gc.enable()
