"""Updates of the weights: accumulation, clipping, half precision, schedulers and warm-up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import optuna
import pytest
import torch
from helpers.equality import same
from helpers.jobs import UNUSED_PARAM, values_of
from helpers.networks import recipe, run_context, samples, succeed
from helpers.problems import SHORT, explicit, run
from torch import nn
from torch.optim import lr_scheduler as schedulers

import optuna_miha as miha
from optuna_miha import Recipe
from optuna_miha._training.compute import DEFAULT_ENGINE, Engine
from optuna_miha._training.trainer import train


def plain_network() -> nn.Module:
    """A network without anything that depends on the composition of batches."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def built(lr: float = 0.05, optimizer: Any = torch.optim.SGD, **changes: Any) -> Recipe:
    model = plain_network()
    changes = {"train_data": samples(20), "batch_size": 4} | changes
    return recipe(model=model, optimizer=optimizer(model.parameters(), lr=lr), **changes)


def trained(n_epochs: int = 2, engine: Engine = DEFAULT_ENGINE, **changes: Any) -> Recipe:
    """A recipe whose network was trained, and the rates of the steps, and the norms, on it."""
    made = built(**changes)
    rates: list[float] = []
    norms: list[float] = []
    handles: list[Any] = []

    def observe(optimizer: Any, *_: Any) -> None:
        rates.append(optimizer.param_groups[0]["lr"])
        gradients = [p.grad for p in made.model.parameters() if p.grad is not None]
        norms.append(float(torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients]))))

    def on_batch(batch: Any) -> None:
        if not handles:  # After the hooks of the trainer, which scale the rates.
            handles.append(made.optimizer.register_step_pre_hook(observe))  # type: ignore[union-attr]

    torch.manual_seed(1)
    list(train(made, n_epochs, engine=engine, on_batch=on_batch))
    made.rates, made.norms = rates, norms  # type: ignore[attr-defined]
    return made


LOSSES = [
    nn.CrossEntropyLoss(),
    nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.2]), ignore_index=1),
    nn.CrossEntropyLoss(reduction="sum"),
]


@pytest.mark.parametrize("loss_fn", LOSSES, ids=["mean", "weighted", "sum"])
def test_accumulated_batches_equal_one_large_batch(loss_fn: nn.Module) -> None:
    """The second group of each epoch has two batches instead of three."""
    lr = 0.01 if loss_fn.reduction == "sum" else 0.1
    large = trained(loss_fn=loss_fn, lr=lr, batch_size=12)
    small = trained(loss_fn=loss_fn, lr=lr, batch_size=4, accumulate=3)
    assert len(small.rates) == len(large.rates) == 4  # type: ignore[attr-defined]
    for one, other in zip(small.model.parameters(), large.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("precision", [None, "fp16"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_gradients_of_each_step_are_clipped(precision: Any, accumulate: int) -> None:
    engine = Engine(precision=precision)
    free = trained(engine=engine, accumulate=accumulate)
    clipped = trained(engine=engine, accumulate=accumulate, grad_clip=0.1)
    assert min(free.norms) > 0.11  # type: ignore[attr-defined]
    assert clipped.norms == pytest.approx([0.1] * len(clipped.norms), rel=1e-3)  # type: ignore[attr-defined]


def test_overflow_in_half_precision_skips_steps_of_optimizer_and_scheduler() -> None:
    big = nn.CrossEntropyLoss()
    made = built(
        loss_fn=lambda output, target: 10 * big(output, target),
        scheduler=lambda o: schedulers.ExponentialLR(o, 0.5),
        scheduler_interval="step",
    )
    list(train(made, 2, engine=Engine(precision="fp16")))
    lr = made.optimizer.param_groups[0]["lr"]  # type: ignore[union-attr]
    assert 0.05 * 0.5**10 < lr < 0.05
    assert all(p.isfinite().all() for p in made.model.parameters())


OPTIONS: dict[str, dict[str, Any]] = {
    "one cycle": {
        "optimizer": torch.optim.Adam,
        "scheduler": lambda o: schedulers.OneCycleLR(o, o.param_groups[0]["lr"], 40),
        "scheduler_interval": "step",
    },
    "sequential": {
        "scheduler": lambda o: schedulers.SequentialLR(
            o, [schedulers.LinearLR(o, 0.1, 1, 3), schedulers.CosineAnnealingLR(o, 9)], [3]
        ),
        "scheduler_interval": "step",
    },
    "plateau": {"scheduler": lambda o: schedulers.ReduceLROnPlateau(o, patience=0, threshold=9)},
    "warm-up": {"warmup_steps": 9},
    "accumulation": {"accumulate": 3, "grad_clip": 0.5},
    "fp16": {"engine": Engine(precision="fp16")},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_two_successive_jobs_equal_one_long_job_bit_for_bit(options: dict[str, Any]) -> None:
    """Also the schedule as a function of the run's fraction, of which each job has a part."""
    engine = options.get("engine", DEFAULT_ENGINE)
    changes = {k: v for k, v in options.items() if k != "engine"}

    def model_fn(trial: Any) -> Recipe:
        trial.suggest_float("unused", 0.0, 1.0)
        return built(**changes, lr_schedule=lambda fraction: 1 - fraction)

    context = run_context(model_fn, engine=engine)
    whole = succeed(context, params=UNUSED_PARAM, n_epochs=4)
    first = succeed(context, params=UNUSED_PARAM, n_epochs=2, share=(0.0, 0.5))
    second = succeed(context, params=UNUSED_PARAM, n_epochs=2, state=first.state, share=(0.5, 1.0))
    assert values_of(first, second) == values_of(whole)
    assert same(second.state, whole.state)
    # Without the state, the second job would be another one.
    state = {k: v for k, v in first.state.items() if k != "extra"}  # type: ignore[union-attr]
    other = succeed(context, params=UNUSED_PARAM, n_epochs=2, state=state, share=(0.5, 1.0))
    affects_values = "scheduler" in options or "warmup_steps" in options
    assert (values_of(other) != values_of(second)) == affects_values


def test_rates_in_force_are_products_of_scheduler_warm_up_and_schedule() -> None:
    made = trained(
        n_epochs=1,
        lr=1.0,
        scheduler=lambda o: schedulers.ExponentialLR(o, 0.5),
        scheduler_interval="step",
        warmup_steps=2,
        lr_schedule=lambda fraction: 1 + 5 * fraction,
    )
    expected = [0.5 * 1 * 1, 1 * 0.5 * 2, 0.25 * 3, 0.125 * 4, 0.0625 * 5]
    assert made.rates == expected  # type: ignore[attr-defined]
    assert made.optimizer.param_groups[0]["lr"] == 0.5**5  # type: ignore[union-attr]


def test_mutated_rate_continues_the_inherited_schedule() -> None:
    def model_fn(trial: Any) -> Recipe:
        lr = trial.suggest_float("lr", 0.0, 1.0)
        made = built(
            lr=lr, scheduler=lambda o: schedulers.StepLR(o, 2, 0.1), scheduler_interval="step"
        )
        made.optimizer.register_step_pre_hook(  # type: ignore[union-attr]
            lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"])
        )
        return made

    rates: list[float] = []
    context = run_context(model_fn)
    parent = succeed(context, params={"lr": 0.1}, n_epochs=1)
    succeed(context, params={"lr": 0.3}, n_epochs=1, state=parent.state)
    assert rates == pytest.approx(
        [0.1, 0.1, 0.01, 0.01, 0.001, 0.003, 0.0003, 0.0003, 3e-05, 3e-05], rel=1e-6
    )


def scheduled(calls: list[float]) -> Callable[[Any], Recipe]:
    """A ``model_fn`` whose schedule appends the fraction of each step to ``calls``."""

    def schedule(fraction: float) -> float:
        calls.append(fraction)
        return 1.0

    def model_fn(trial: Any) -> Recipe:
        made = explicit(trial)
        made.lr_schedule = schedule
        return made

    return model_fn


def test_schedule_covers_the_run_and_is_the_same_for_siblings() -> None:
    calls: list[float] = []
    study = optuna.create_study(sampler=miha.MihaSampler(seed=0))
    run(study, scheduled(calls), plan=SHORT)
    trials = study.trials
    roles = [trial.user_attrs["miha:role"] for trial in trials]
    before = sum(t.user_attrs["miha:trained"] for t in trials[: roles.index("branch")])
    assert calls[0] == 0.0
    assert 0.9 < calls[-1] < 1.0
    assert Counter(calls)[before / 40] == SHORT.population_size == roles.count("branch")


def test_schedule_follows_the_spent_epochs_of_race_and_rounds() -> None:
    calls: list[float] = []
    seen: dict[tuple[str, int], list[float]] = {}

    def note(report: miha.EpochReport) -> None:
        seen.setdefault((report.role, report.cycle), []).append(calls[-1])

    study = optuna.create_study(sampler=miha.MihaSampler(seed=0))
    plan = miha.Plan(120, restarts=False)
    run(study, scheduled(calls), plan=plan, epoch_callbacks=[note])
    spent = 0
    for fractions in seen.values():  # In the order of the phases; an epoch of three is 3 of 120.
        assert fractions[0] == pytest.approx(spent / 120, abs=3 / 120)
        spent += len(fractions)
        assert max(fractions) == fractions[-1] == pytest.approx(spent / 120, abs=3 / 120)
    assert spent == 120
    assert [role for role, _ in seen] == ["startup", "branch", "branch"]


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def fixed_cycle(optimizer: Any) -> Any:
    return schedulers.OneCycleLR(optimizer, max_lr=0.1, total_steps=1000)


def of_another_optimizer(optimizer: Any) -> Any:
    return schedulers.StepLR(optimizer_of(nn.Linear(1, 1)), 3)


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "not a scheduler": ({"scheduler": lambda o: 0.5}, {}, "must return a torch.optim.lr_sched"),
    "another optimizer": ({"scheduler": of_another_optimizer}, {}, "of another optimizer"),
    "rate of its own": ({"scheduler": fixed_cycle}, {}, "must follow the suggested `lr`"),
    "accumulation": ({"accumulate": 6}, {}, "batches of an epoch, which is 5, got 6"),
    "own trainer": ({"grad_clip": 1.0}, {"trainer": lambda r, n: iter(())}, "built-in training"),
}


@pytest.mark.parametrize(("options", "settings", "message"), REFUSED.values(), ids=REFUSED)
def test_options_are_refused_before_anything_is_written(
    options: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    def model_fn(trial: Any) -> Recipe:
        return built(lr=trial.suggest_float("lr", 1e-3, 1.0, log=True), **options)

    study = optuna.create_study()
    with pytest.raises((ValueError, TypeError), match=message):
        run(study, model_fn, **settings)
    assert not study.trials
    assert not study.user_attrs


def test_upper_bound_of_suggested_accumulation_is_checked() -> None:
    def model_fn(trial: Any) -> Recipe:
        return built(accumulate=trial.suggest_int("accumulate", 1, 9))

    study = optuna.create_study()
    with pytest.raises(ValueError, match="upper bound of the suggested `accumulate`"):
        run(study, model_fn)
    assert not study.user_attrs


def test_accumulation_mutates() -> None:
    def model_fn(trial: Any) -> Recipe:
        return built(accumulate=trial.suggest_int("accumulate", 1, 5))

    study = optuna.create_study(sampler=miha.MihaSampler(seed=0))
    run(study, model_fn, plan=SHORT)
    assert len({t.params["accumulate"] for t in study.trials}) > 1


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"grad_clip": 0}, ValueError, "positive norm"),
    ({"grad_clip": "1"}, TypeError, "must be a number"),
    ({"accumulate": 0}, ValueError, "at least 1"),
    ({"accumulate": 1.5}, TypeError, "integer"),
    ({"warmup_steps": -1}, ValueError, "at least 0"),
    ({"scheduler_interval": "batch"}, ValueError, '"step" or "epoch"'),
    ({"lr_schedule": 0.5}, TypeError, "must be a function"),
]


@pytest.mark.parametrize(("options", "error", "message"), WRONG)
def test_wrong_options_are_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        built(**options)


def test_replay_of_a_schedule_of_the_run_is_refused() -> None:
    row = {"from_epoch": 0, "to_epoch": 1, "lr": 0.1}
    with pytest.raises(ValueError, match="without `lr_schedule`"):
        miha.replay([row], lambda trial: built(lr_schedule=lambda fraction: 1.0))


def test_scheduler_instead_of_a_function_is_refused() -> None:
    scheduler = schedulers.StepLR(optimizer_of(plain_network()), 3)
    with pytest.raises(TypeError, match="function that creates"):
        built(scheduler=scheduler)
