"""Jobs: pure, resumable bit by bit, and never the cause of an exception."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from helpers.equality import memory_of, same
from helpers.networks import network, objects, recipe, run_context, succeed
from optuna.trial import FixedTrial
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import optuna_miha as miha
from optuna_miha import EpochResult, Recipe
from optuna_miha._model.model_fn import build_recipe
from optuna_miha._model.optimizers import make_optimizer
from optuna_miha._search.learning_rate import pace
from optuna_miha._training.compute import intra_op_threads
from optuna_miha._training.job import Job, Outcome, run_job
from optuna_miha._training.trainer import evaluate, train

MUTABLE = {"activation.2": "relu", "optimizer": "adam", "lr": 0.01, "weight_decay": 0.0}
MUTABLE |= {"batch_size": 7}


def mutable(trial: Any) -> Recipe:
    """Every `suggest_*` that a branch may mutate."""
    model = network()
    miha.suggest_activations(trial, model)
    return recipe(
        model=model,
        optimizer=miha.suggest_optimizer(trial, model.parameters()),
        batch_size=miha.suggest_batch_size(trial, low=4),
    )


def fixed(
    optimizer: str = "adam", *, loader: bool = False, **changes: Any
) -> Callable[[Any], Recipe]:
    """A ``model_fn`` whose only parameter is one that nothing depends on."""

    def model_fn(trial: Any) -> Recipe:
        trial.suggest_float("unused", 0.0, 1.0)
        model = network()
        data: Any = objects(24)
        if loader:
            data = DataLoader(TensorDataset(*data), batch_size=7, shuffle=True)
        made = recipe(**({"model": model, "train_data": data, "batch_size": 7} | changes))
        made.optimizer = make_optimizer(
            optimizer, model.parameters(), lr=0.02, weight_decay=1e-3, momentum=0.9
        )
        return made

    return model_fn


UNUSED = {"unused": 0.5}


def values_of(*outcomes: Outcome) -> list[tuple[float, float, float | None]]:
    return [(r.value, r.train_loss, r.ema_value) for o in outcomes for r in o.results]


@pytest.mark.parametrize("loader", [False, True])
@pytest.mark.parametrize("ema_decay", [0.6, 0.0])
def test_the_same_job_has_the_same_outcome_bit_by_bit(loader: bool, ema_decay: float) -> None:
    context = run_context(fixed(loader=loader), ema_decay=ema_decay)
    one = succeed(context, params=UNUSED, n_epochs=3)
    torch.rand(5)
    other = succeed(context, params=UNUSED, n_epochs=3)
    assert values_of(one) == values_of(other)
    assert same(one.state, other.state)
    another = succeed(run_context(fixed(loader=loader), seed=1), params=UNUSED, n_epochs=3)
    assert values_of(another) != values_of(one)


@pytest.mark.parametrize("loader", [False, True], ids=["tensors", "loader"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "nadam", "adadelta"])
def test_two_jobs_in_a_row_are_one_long_job_bit_by_bit(optimizer: str, loader: bool) -> None:
    context = run_context(fixed(optimizer, loader=loader))
    whole = succeed(context, params=UNUSED, n_epochs=5)
    first = succeed(context, params=UNUSED, n_epochs=2)
    second = succeed(context, params=UNUSED, n_epochs=3, state=first.state)
    assert values_of(first, second) == values_of(whole)
    assert same(second.state, whole.state)
    assert whole.state["epoch"] == 5
    assert not same(first.state["model"], whole.state["model"])


def test_a_loader_that_validates_in_random_order_changes_nothing() -> None:
    valid = TensorDataset(*objects(16, seed=1))
    plain = run_context(fixed(valid_data=DataLoader(valid, batch_size=16)))
    shuffled = run_context(fixed(valid_data=DataLoader(valid, batch_size=16, shuffle=True)))
    one = succeed(plain, params=UNUSED, n_epochs=2)
    other = succeed(shuffled, params=UNUSED, n_epochs=2)
    assert same(one.state["model"], other.state["model"])


def test_random_numbers_of_python_and_numpy_in_the_data_are_continued_too() -> None:
    def collate(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        noise = random.gauss(0, 0.1) + 0.1 * float(np.random.randn())
        return torch.stack([x for x, _ in items]) + noise, torch.stack([y for _, y in items])

    def model_fn(trial: Any) -> Recipe:
        made = fixed()(trial)
        dataset = TensorDataset(*objects(24))
        made.train_data = DataLoader(dataset, batch_size=8, shuffle=True, collate_fn=collate)
        return made

    context = run_context(model_fn)
    whole = succeed(context, params=UNUSED, n_epochs=4)
    first = succeed(context, params=UNUSED, n_epochs=1)
    second = succeed(context, params=UNUSED, n_epochs=3, state=first.state)
    assert values_of(first, second) == values_of(whole)
    assert same(second.state, whole.state)


def test_a_job_equals_training_by_hand() -> None:
    outcome = succeed(run_context(fixed(), ema_decay=0.0), params=UNUSED, n_epochs=3)
    made = build_recipe(fixed(), FixedTrial(UNUSED), seed=0)
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    with intra_op_threads(1):
        results = list(train(made, 3))
    assert list(outcome.results) == results
    assert same(outcome.state["model"], made.model.state_dict())


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
def test_a_mutated_job_starts_from_the_parents_weights(mutation: dict[str, Any]) -> None:
    parent = succeed(run_context(mutable), params=MUTABLE, n_epochs=2)
    untouched = copy.deepcopy(parent.state)
    begun: list[dict[str, Tensor]] = []

    def watching(made: Recipe, n_epochs: int) -> Iterator[EpochResult]:
        begun.append(copy.deepcopy(made.model.state_dict()))
        return train(made, n_epochs)

    params = MUTABLE | mutation
    succeed(run_context(mutable, trainer=watching), params=params, n_epochs=1, state=parent.state)
    assert same(begun[0], parent.state["model"])

    mutated = succeed(run_context(mutable), params=params, n_epochs=2, state=parent.state)
    control = succeed(run_context(mutable), params=MUTABLE, n_epochs=2, state=parent.state)
    assert not same(mutated.state["model"], control.state["model"])
    assert mutated.state["epoch"] == 4
    assert same(parent.state, untouched)


def test_the_mutated_hyperparameters_are_in_force() -> None:
    seen: dict[str, Any] = {}

    def watching(made: Recipe, n_epochs: int) -> Iterator[EpochResult]:
        seen["group"] = dict(made.optimizer.param_groups[0])
        seen["activation"] = made.model[2]
        seen["batch_size"] = made.batch_size
        return train(made, n_epochs)

    parent = succeed(run_context(mutable), params=MUTABLE, n_epochs=1)
    params = {"activation.2": "silu", "optimizer": "adamw", "lr": 0.25, "weight_decay": 1e-2}
    params |= {"batch_size": 13}
    context = run_context(mutable, trainer=watching)
    succeed(context, params=params, n_epochs=1, state=parent.state)
    assert (seen["group"]["lr"], seen["group"]["weight_decay"]) == (0.25, 1e-2)
    assert isinstance(seen["activation"], nn.SiLU)
    assert seen["batch_size"] == 13


def test_jobs_of_the_same_parent_do_not_disturb_each_other() -> None:
    context = run_context(mutable)
    parent = succeed(context, params=MUTABLE, n_epochs=1)
    alone = succeed(context, params=MUTABLE, n_epochs=2, state=copy.deepcopy(parent.state))
    for lr in (1.0, 1e-4):
        succeed(context, params=MUTABLE | {"lr": lr}, n_epochs=2, state=parent.state)
    after = succeed(context, params=MUTABLE, n_epochs=2, state=parent.state)
    assert same(alone.state, after.state)
    trained = {k: v for k, v in after.state.items() if k in ("model", "ema", "optimizer")}
    assert not memory_of(trained) & memory_of(parent.state)


def scripted(*values: float) -> Callable[..., Iterator[EpochResult]]:
    """A trainer whose epochs have these values."""

    def trainer(made: Recipe, n_epochs: int) -> Iterator[EpochResult]:
        for value in values[:n_epochs]:
            with torch.no_grad():
                made.model[0].weight += 1
            yield EpochResult(value=value)

    return trainer


@pytest.mark.parametrize(
    ("sign", "patience", "birth", "values", "trained"),
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
    sign: int, patience: int | None, birth: float, values: list[float], trained: int
) -> None:
    context = run_context(fixed(), trainer=scripted(*values), sign=sign)
    outcome = succeed(
        context, params=UNUSED, n_epochs=len(values), patience=patience, birth_cost=birth
    )
    assert [result.value for result in outcome.results] == values[:trained]
    assert outcome.begun == trained
    assert outcome.state["epoch"] == trained


def rated(**changes: Any) -> Callable[[Any], Recipe]:
    """The same with a learning rate that is suggested."""

    def model_fn(trial: Any) -> Recipe:
        made = fixed(**changes)(trial)
        assert made.optimizer is not None
        made.optimizer.param_groups[0]["lr"] = trial.suggest_float("lr", 1e-3, 1.0)
        return made

    return model_fn


def test_annealing_rises_to_the_learning_rate_and_falls_towards_zero() -> None:
    seen: list[list[float]] = []

    def step(model: nn.Module, batch: Any, loss_fn: Any) -> Tensor:
        if model.training:
            seen[-1].append(optimizers[-1].param_groups[0]["lr"])
        return loss_fn(model(batch[0]), batch[1])

    optimizers: list[torch.optim.Optimizer] = []

    def model_fn(trial: Any) -> Recipe:
        made = rated(train_step=step)(trial)
        assert made.optimizer is not None
        optimizers.append(made.optimizer)
        seen.append([])
        return made

    context, params = run_context(model_fn, ema_decay=0.0), UNUSED | {"lr": 0.02}
    state = succeed(context, params=params, n_epochs=1).state
    succeed(context, params=params, n_epochs=20, state=state, anneal=True)
    succeed(context, params=params, n_epochs=2, state=state)
    per_step = seen[1]
    assert len(per_step) == 20 * 4  # 24 objects by 7: four steps an epoch.
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
        made = fixed()(trial)
        groups = [{"params": [p], "lr": 0.1 * i} for i, p in enumerate(made.model.parameters(), 1)]
        made.optimizer = torch.optim.SGD(groups)
        return made

    rates: list[list[float]] = []

    def watching(made: Recipe, n_epochs: int) -> Iterator[EpochResult]:
        for _ in range(n_epochs):
            rates.append([group["lr"] for group in made.optimizer.param_groups])
            yield EpochResult(value=0.0)

    succeed(run_context(model_fn, trainer=watching), params=UNUSED, n_epochs=4, anneal=True)
    assert rates[0] == pytest.approx([0.1 * i for i in range(1, 7)])
    assert rates[2] == pytest.approx([0.05 * i for i in range(1, 7)])


@pytest.mark.parametrize("name", [None, "lr", "learning_rate"])
def test_a_learning_rate_that_nobody_has_raised_is_annealed_without_a_rise(
    name: str | None,
) -> None:
    def model_fn(trial: Any) -> Recipe:
        made = fixed()(trial)
        assert made.optimizer is not None
        if name == "lr":
            made.optimizer.param_groups[0]["lr"] = trial.suggest_categorical(name, [0.02, 0.2])
        elif name is not None:
            made.optimizer.param_groups[0]["lr"] = trial.suggest_float(name, 1e-3, 1.0)
        return made

    rates: list[float] = []

    def watching(made: Recipe, n_epochs: int) -> Iterator[EpochResult]:
        for _ in range(n_epochs):
            rates.append(made.optimizer.param_groups[0]["lr"])
            yield EpochResult(value=0.0)

    params = UNUSED if name is None else UNUSED | {name: 0.02}
    succeed(run_context(model_fn, trainer=watching), params=params, n_epochs=20, anneal=True)
    falling = [0.5 * (1 + math.cos(math.pi * epoch / 20)) for epoch in range(20)]
    assert rates == pytest.approx([0.02 * part for part in falling])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_no_number_is_an_error_and_no_exception(bad: float) -> None:
    context = run_context(fixed(), trainer=scripted(1.0, bad, 0.5))
    outcome = run_job(context, Job(params=UNUSED, state=None, n_epochs=3))
    assert outcome.state is None
    assert outcome.exception is None
    assert outcome.error == f"The monitored value is {bad} after 2 epochs."
    assert len(outcome.results) == outcome.begun == 2


@pytest.mark.parametrize("ema_decay", [0.0, 0.6])
def test_a_loss_that_becomes_nan_is_an_error_and_no_exception(ema_decay: float) -> None:
    model_fn = fixed(loss_fn=lambda outputs, targets: (outputs * math.nan).sum())
    outcome = run_job(
        run_context(model_fn, ema_decay=ema_decay), Job(params=UNUSED, state=None, n_epochs=3)
    )
    assert outcome.state is None and outcome.exception is None
    assert outcome.error == "The monitored value is nan after 1 epochs."
    assert len(outcome.results) == 1


def test_an_exception_in_model_fn_is_returned() -> None:
    def model_fn(trial: Any) -> Recipe:
        raise ZeroDivisionError("mine")

    outcome = run_job(run_context(model_fn), Job(params=UNUSED, state=None, n_epochs=2))
    assert outcome.error == "ZeroDivisionError: mine"
    assert isinstance(outcome.exception, ZeroDivisionError)
    assert (outcome.results, outcome.begun, outcome.state) == ((), 0, None)


def test_an_exception_in_training_is_returned_with_the_epochs_before_it() -> None:
    calls: list[int] = []

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 6:
            raise ZeroDivisionError("mine")
        return nn.functional.cross_entropy(outputs, targets)

    context = run_context(fixed(loss_fn=loss_fn))
    outcome = run_job(context, Job(params=UNUSED, state=None, n_epochs=3))
    assert outcome.error == "ZeroDivisionError: mine"
    assert len(outcome.results) == 1
    assert outcome.begun == 2
    assert outcome.state is None


def test_a_parameter_that_the_job_lacks_is_an_error() -> None:
    outcome = run_job(run_context(fixed()), Job(params={"lr": 1.0}, state=None, n_epochs=1))
    assert outcome.error is not None and "unused" in outcome.error


def test_another_architecture_than_the_parents_is_an_error() -> None:
    parent = succeed(run_context(fixed()), params=UNUSED, n_epochs=1)
    outcome = run_job(run_context(_wider), Job(params=UNUSED, state=parent.state, n_epochs=1))
    assert isinstance(outcome.exception, miha.exceptions.InheritanceError)
    assert "'4.weight'" in str(outcome.error)


def _wider(trial: Any) -> Recipe:
    trial.suggest_float("unused", 0.0, 1.0)
    model = network()
    model[4] = nn.Linear(6, 4)
    return recipe(model=model)


@pytest.mark.parametrize("interrupted", [False, True])
def test_random_state_and_threads_are_restored_even_by_an_interrupt(interrupted: bool) -> None:
    def trainer(made: Recipe, n_epochs: int) -> Iterator[EpochResult]:
        yield from train(made, 1)
        if interrupted:
            raise KeyboardInterrupt

    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    n_threads = torch.get_num_threads()
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    torch.set_num_threads(2)
    try:
        context = run_context(fixed(), trainer=trainer)
        job = Job(params=UNUSED, state=None, n_epochs=2)
        if interrupted:
            with pytest.raises(KeyboardInterrupt):
                run_job(context, job)
        else:
            assert run_job(context, job).error is None
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(n_threads)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert same(after, states)


def test_training_has_one_thread() -> None:
    seen: list[int] = []

    def watching(made: Recipe, n_epochs: int) -> Iterator[EpochResult]:
        seen.append(torch.get_num_threads())
        return train(made, n_epochs)

    n_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        succeed(run_context(fixed(), trainer=watching), params=UNUSED, n_epochs=1)
    finally:
        torch.set_num_threads(n_threads)
    assert seen == [1]


@pytest.mark.parametrize("ema_decay", [0.0, 0.6, 0.99])
@pytest.mark.parametrize(("monitor", "sign"), [("loss", 1), ("accuracy", -1)])
def test_the_best_weights_have_the_best_value(ema_decay: float, monitor: str, sign: int) -> None:
    model_fn = fixed(monitor=monitor)
    context = run_context(model_fn, ema_decay=ema_decay, sign=sign)
    outcome = succeed(context, params=UNUSED, n_epochs=6)
    best = outcome.state["best"]
    candidates = [v for r in outcome.results for v in (r.value, r.ema_value) if v is not None]
    assert best["value"] == sign * min(sign * v for v in candidates)
    epoch = outcome.results[best["epoch"] - 1]
    assert best["value"] in (epoch.value, epoch.ema_value)

    made = build_recipe(model_fn, FixedTrial(UNUSED), seed=123)
    made.model.load_state_dict(best["weights"])
    with intra_op_threads(1):
        assert evaluate(made, made.model)[monitor] == best["value"]


def test_the_best_weights_are_kept_while_later_epochs_are_worse() -> None:
    context = run_context(fixed(), trainer=scripted(3.0, 1.0, 2.0, 2.5))
    whole = succeed(context, params=UNUSED, n_epochs=4)
    best = whole.state["best"]
    assert (best["value"], best["epoch"]) == (1.0, 2)
    # The scripted trainer adds 1 per epoch, and two epochs followed.
    assert torch.allclose(best["weights"]["0.weight"] + 2, whole.state["model"]["0.weight"])
    later = run_context(fixed(), trainer=scripted(1.5, 0.5))
    assert succeed(later, params=UNUSED, n_epochs=1, state=whole.state).state["best"] is not None
    kept = succeed(later, params=UNUSED, n_epochs=1, state=whole.state).state["best"]
    assert same(kept, best)
    better = succeed(later, params=UNUSED, n_epochs=2, state=whole.state).state["best"]
    assert (better["value"], better["epoch"]) == (0.5, 6)


def test_the_average_is_evaluated_after_every_epoch() -> None:
    averaged_run = succeed(run_context(fixed(), ema_decay=0.6), params=UNUSED, n_epochs=3)
    plain = succeed(run_context(fixed(), ema_decay=0.0), params=UNUSED, n_epochs=3)
    assert same(averaged_run.state["model"], plain.state["model"])
    assert plain.state["ema"] is None
    assert [r.ema_value for r in plain.results] == [None] * 3
    values = [r.value for r in averaged_run.results]
    ema_values = [r.ema_value for r in averaged_run.results]
    assert values == [r.value for r in plain.results]
    assert ema_values[0] == values[0]  # One epoch: the average is the weights.
    assert ema_values[1] != values[1]

    made = build_recipe(fixed(), FixedTrial(UNUSED), seed=0)
    ema = {k.removeprefix("module."): v for k, v in averaged_run.state["ema"].items()}
    del ema["n_averaged"]
    made.model.load_state_dict(ema)
    with intra_op_threads(1):
        assert evaluate(made, made.model)["loss"] == ema_values[-1]


def test_validation_uses_the_losses_of_the_initial_configuration() -> None:
    def constant(outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.tensor(42.0)

    outcome = succeed(run_context(fixed(), valid_loss_fn=constant), params=UNUSED, n_epochs=1)
    assert outcome.results[0].value == outcome.results[0].ema_value == 42.0
    own = fixed(valid_loss_fn=lambda outputs, targets: torch.tensor(7.0))
    outcome = succeed(run_context(own, valid_loss_fn=constant), params=UNUSED, n_epochs=1)
    assert outcome.results[0].value == 7.0


def test_a_trainer_of_the_users_own_needs_no_average() -> None:
    context = run_context(fixed(), trainer=scripted(3.0, 2.0), ema_decay=0.6)
    first = succeed(context, params=UNUSED, n_epochs=2)
    assert [(r.value, r.ema_value) for r in first.results] == [(3.0, None), (2.0, None)]
    assert first.state["ema"] is None
    second = succeed(context, params=UNUSED, n_epochs=1, state=first.state)
    moved = second.state["model"]["0.weight"] - first.state["model"]["0.weight"]
    assert torch.allclose(moved, torch.ones_like(moved))


def test_a_trainer_that_stops_early_ends_the_job() -> None:
    context = run_context(fixed(), trainer=scripted(3.0, 2.0))
    outcome = succeed(context, params=UNUSED, n_epochs=5)
    assert len(outcome.results) == outcome.begun == outcome.state["epoch"] == 2


def test_a_trainer_that_would_go_on_is_stopped() -> None:
    def endless(made: Recipe, n_epochs: int) -> Iterator[EpochResult]:
        while True:
            yield EpochResult(value=1.0)

    outcome = succeed(run_context(fixed(), trainer=endless), params=UNUSED, n_epochs=3)
    assert len(outcome.results) == 3


def test_a_trainer_that_yields_nothing_is_an_error() -> None:
    context = run_context(fixed(), trainer=scripted())
    outcome = run_job(context, Job(params=UNUSED, state=None, n_epochs=2))
    assert isinstance(outcome.exception, ValueError)
    assert "must yield a result after each of 2 epochs, got none" in str(outcome.error)
    assert (outcome.results, outcome.begun, outcome.state) == ((), 0, None)


@pytest.mark.parametrize("yielded", [0.5, {"value": 0.5}])
def test_a_trainer_that_yields_something_else_is_told_what_to_yield(yielded: Any) -> None:
    def trainer(made: Recipe, n_epochs: int) -> Iterator[Any]:
        for _ in range(n_epochs):
            yield yielded

    context = run_context(fixed(), trainer=trainer)
    outcome = run_job(context, Job(params=UNUSED, state=None, n_epochs=2))
    assert isinstance(outcome.exception, TypeError)
    assert "EpochResult" in str(outcome.error)
    assert type(yielded).__name__ in str(outcome.error)


def test_every_epoch_is_announced_once_in_order() -> None:
    seen: list[EpochResult] = []
    job = Job(params=UNUSED, state=None, n_epochs=3)
    outcome = run_job(run_context(fixed()), job, seen.append)
    assert tuple(seen) == outcome.results
    assert len(seen) == 3


@pytest.mark.parametrize("n_epochs", range(1, 41))
def test_annealing_ends_far_below_its_peak(n_epochs: int) -> None:
    rates = [pace(epoch, n_epochs) for epoch in range(n_epochs)]
    top = rates.index(max(rates))
    assert max(rates) == (1 if n_epochs >= 5 else pytest.approx(1 / 3))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[0] == pytest.approx(1 / 3)
    assert n_epochs == 1 or rates[-1] < 0.2
