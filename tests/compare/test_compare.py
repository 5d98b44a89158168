"""The comparison of several methods: budgets, resuming, selection and tables."""

from __future__ import annotations

import csv
import itertools
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from helpers.problems import blobs
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState
from torch import Tensor, nn

import optuna_miha as miha
from optuna_miha._cli.main import main
from optuna_miha._compare.compare import METHODS, _classic_plan, compare
from optuna_miha._results.comparison import Comparison, Run
from optuna_miha._results.significance import sign_flip_p
from optuna_miha._search.plan import Plan
from optuna_miha.exceptions import MihaError
from optuna_miha.visualization import plot_comparison

pytestmark = pytest.mark.slow

N_EPOCHS = 26
TRIAL_EPOCHS = 7
STEPS = 4
"""Steps of an epoch: 60 samples in batches of 16."""

BASELINES = [method for method in METHODS if not method.startswith("miha")]


class ObservedSGD(torch.optim.SGD):
    """Calls ``on_step`` within each step, where the learning rate is the one of the step."""

    on_step: Any

    def step(self, closure: Any = None) -> Any:
        self.on_step(self)
        return super().step(closure)


class Net:
    """A ``model_fn`` that counts training steps, and can raise an interrupt in one of them.

    The checks before a run take at most two steps with each network; these do not count.

    Args:
        fatal: The step that raises ``KeyboardInterrupt``.
        test: The test data.
        changes: Other arguments of the recipe.
    """

    def __init__(
        self, fatal: int | None = None, test: tuple[Tensor, Tensor] | None = None, **changes: Any
    ) -> None:
        self.fatal = fatal
        self.test = test
        self.changes = changes
        self.n_all_steps = 0
        self.rates_by_network: list[list[float]] = []

    @property
    def rates(self) -> list[float]:
        return [rate for rates in self.rates_by_network if len(rates) > 2 for rate in rates]

    @property
    def n_steps(self) -> int:
        return len(self.rates)

    def __call__(self, trial: Any) -> miha.Recipe:
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        miha.suggest_activations(trial, model, choices=("relu", "tanh"))
        lr = trial.suggest_float("lr", 1e-3, 1e-1, log=True)
        optimizer = ObservedSGD(model.parameters(), lr=lr, momentum=0.9)
        rates: list[float] = []
        self.rates_by_network.append(rates)
        optimizer.on_step = partial(self.count, rates)
        settings: dict[str, Any] = {
            "loss_fn": nn.CrossEntropyLoss(),
            "train_data": blobs(60, seed=0),
            "valid_data": blobs(30, seed=1),
            "test_data": self.test,
            "batch_size": 16,
        }
        return miha.Recipe(model=model, optimizer=optimizer, **(settings | self.changes))

    def count(self, rates: list[float], optimizer: torch.optim.Optimizer) -> None:
        self.n_all_steps += 1
        rates.append(optimizer.param_groups[0]["lr"])
        if self.n_all_steps == self.fatal:
            raise KeyboardInterrupt


def run(net: Any, *methods: str, storage: Any = None, **settings: Any) -> Comparison:
    settings = {"n_epochs": N_EPOCHS, "seeds": 1, "show_progress_bar": False} | settings
    return compare(net, methods=methods or None, storage=storage, **settings)


def without_seconds(comparison: Comparison) -> list[Run]:
    return [replace(one, seconds=0.0) for one in comparison.runs]


def study_of(storage: Any, method: str, seed: int = 0) -> optuna.Study:
    return optuna.load_study(study_name=f"compare-{method}-{seed}", storage=storage)


def history(study: optuna.Study) -> list[Any]:
    return [(t.params, t.intermediate_values, t.value, t.state) for t in study.trials]


# All methods.


@pytest.mark.parametrize("method", METHODS)
def test_method_spends_exactly_the_budget_and_returns_its_best_epoch(method: str) -> None:
    storage, valid = InMemoryStorage(), blobs(30, seed=1)
    net = Net(test=valid)
    (one,) = run(net, method, storage=storage).runs
    assert (one.method, one.seed, one.n_epochs, one.epochs) == (method, 0, N_EPOCHS, N_EPOCHS)
    assert net.n_steps == STEPS * N_EPOCHS
    study = study_of(storage, method)
    if method in BASELINES:
        values = [v for t in study.trials for v in t.intermediate_values.values()]
        assert len(values) == N_EPOCHS
        assert one.value == min(values)
    else:
        assert one.value == study.best_value
    # The test data are the validation data, so this holds only for the weights of the best epoch.
    assert one.test == {"loss": one.value}
    assert one.curve[-1][1] == one.value
    epochs, best_values = zip(*one.curve, strict=True)
    assert list(epochs) == sorted(epochs)
    assert epochs[-1] <= N_EPOCHS
    assert list(best_values) == sorted(set(best_values), reverse=True)
    searches = method in ("tpe-median", "hyperband", "random", "tpe-retrain")
    assert one.trial_epochs == (TRIAL_EPOCHS if searches else None)
    assert one.seconds > 0
    assert Run.from_dict(json.loads(json.dumps(study.user_attrs["compare:run"]))) == one


def test_runs_depend_only_on_the_seed() -> None:
    first = run(Net(), seeds=[3])
    torch.rand(7)
    assert without_seconds(run(Net(), seeds=[3])) == without_seconds(first)
    other = run(Net(), "miha", "no-search", seeds=[4])
    assert {one.value for one in other.runs}.isdisjoint(one.value for one in first.runs)


@pytest.mark.parametrize("method", METHODS)
def test_interrupted_run_gives_the_same_result_as_an_uninterrupted_one(
    method: str, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/compare.db"
    for fraction in (0.2, 0.5):
        with pytest.raises(KeyboardInterrupt):
            run(Net(fatal=int(fraction * STEPS * N_EPOCHS)), method, storage=url)
    resumed = run(Net(), method, storage=url)
    memory = InMemoryStorage()
    whole = run(Net(), method, storage=memory)
    assert without_seconds(resumed) == without_seconds(whole)
    if method in BASELINES:
        study = study_of(url, method)
        assert history(study) == history(study_of(memory, method))
        # Only the checkpoint of the best trial remains.
        (checkpoint,) = Path(study.user_attrs["miha:checkpoint_dir"]).iterdir()
        assert checkpoint.is_file()


def test_finished_runs_are_not_trained_again() -> None:
    storage = InMemoryStorage()
    fewer = run(Net(), "miha", "hyperband", storage=storage)
    net = Net()
    assert run(net, "miha", "hyperband", storage=storage) == fewer
    assert net.n_steps == 0
    more = run(net, "no-search", "miha", storage=storage, seeds=[0, 2])
    assert net.n_steps == STEPS * 3 * N_EPOCHS
    assert [(one.method, one.seed) for one in more.runs] == [
        ("no-search", 0),
        ("no-search", 2),
        ("miha", 0),
        ("miha", 2),
    ]
    assert more.runs[2] == fewer.runs[0]


def test_test_data_do_not_influence_training_or_selection() -> None:
    x, y = blobs(30, seed=2)
    storages = InMemoryStorage(), InMemoryStorage()
    one, other = (
        run(Net(test=(x, targets)), storage=storage)
        for storage, targets in zip(storages, (y, y.roll(1)), strict=True)
    )
    none = run(Net())
    without = [replace(r, test=None) for r in without_seconds(one)]
    assert (
        without == [replace(r, test=None) for r in without_seconds(other)] == without_seconds(none)
    )
    for method in METHODS:
        first, second = (study_of(storage, method) for storage in storages)
        assert history(first) == history(second)
    assert all(
        a.test["loss"] < b.test["loss"]
        for a, b in zip(one.runs, other.runs, strict=True)
        if a.test is not None and b.test is not None
    )


def test_test_data_added_later_are_evaluated_without_training() -> None:
    storage, valid = InMemoryStorage(), blobs(30, seed=1)
    before = run(Net(), "miha", "tpe-median", storage=storage)
    net = Net(test=valid)
    after = run(net, "miha", "tpe-median", storage=storage)
    assert net.n_steps == 0
    assert [r.test for r in after.runs] == [{"loss": r.value} for r in before.runs]
    assert [replace(r, test=None) for r in after.runs] == list(before.runs)


def test_every_method_maximizes_accuracy() -> None:
    valid = blobs(30, seed=1)
    comparison = run(Net(test=valid, monitor="accuracy"))
    assert comparison.direction == "maximize"
    for one in comparison.runs:
        assert one.test is not None
        assert one.test["accuracy"] == one.value
        values = [value for _, value in one.curve]
        assert values == sorted(set(values))


def test_custom_metric_needs_a_direction() -> None:
    net = Net(metrics={"mine": lambda outputs, targets: outputs.mean()}, monitor="mine")
    with pytest.raises(ValueError, match=r"`direction` must be given .* got None .*'mine'"):
        run(net, "no-search")
    least, most = (
        run(net, "no-search", direction=direction).runs[0]
        for direction in ("minimize", "maximize")
    )
    assert least.value < most.value


# Baselines.


@pytest.mark.parametrize("method", ["tpe-median", "hyperband", "random", "tpe-retrain"])
def test_search_starts_with_the_initial_configuration(method: str) -> None:
    storage = InMemoryStorage()
    run(Net(), method, storage=storage)
    first, second, *_ = study_of(storage, method).trials
    assert first.params == {"activation.2": "relu", "lr": 0.01}
    assert second.params != first.params
    assert len(first.intermediate_values) == TRIAL_EPOCHS


def test_methods_without_search_train_one_network() -> None:
    storage, constant, cosine = InMemoryStorage(), Net(), Net()
    (alone,) = run(constant, "no-search", storage=storage).runs
    run(cosine, "no-search-cosine", storage=storage)
    for method in ("no-search", "no-search-cosine"):
        (trial,) = study_of(storage, method).trials
        assert trial.params == {"activation.2": "relu", "lr": 0.01}
        assert len(trial.intermediate_values) == N_EPOCHS
    study = optuna.create_study(sampler=miha.MihaSampler(seed=0))
    plan = Plan.no_search(N_EPOCHS)
    result = miha.optimize(study, Net(), plan=plan, show_progress_bar=False)
    assert alone.value == result.value
    assert set(constant.rates) == {0.01}
    expected = [0.005 * (1 + math.cos(math.pi * i / N_EPOCHS)) for i in range(N_EPOCHS)]
    assert cosine.rates[::STEPS] == pytest.approx(expected)


def test_rates_are_annealed_one_after_another() -> None:
    storage, net = InMemoryStorage(), Net()
    run(net, "rates-cosine", storage=storage)
    trials = study_of(storage, "rates-cosine").trials
    lengths = [len(trial.intermediate_values) for trial in trials]
    assert lengths == [9, 9, 8]
    assert [trial.params["lr"] for trial in trials] == pytest.approx([0.01 / 3, 0.01, 0.03])
    for trial, start in zip(trials, (0, 9, 18), strict=True):
        assert net.rates[STEPS * start] == trial.params["lr"]
        assert net.rates[STEPS * start + STEPS * 7] < 0.2 * trial.params["lr"]


def test_tpe_retrain_retrains_the_best_configuration_with_half_of_the_budget() -> None:
    storage, net = InMemoryStorage(), Net()
    run(net, "tpe-retrain", storage=storage)
    *search, last = study_of(storage, "tpe-retrain").trials
    assert sum(len(t.intermediate_values) for t in search) == N_EPOCHS // 2
    assert len(last.intermediate_values) == N_EPOCHS - N_EPOCHS // 2
    best = min(search, key=lambda t: min(t.intermediate_values.values()))
    assert last.params == best.params
    assert net.rates[-1] < 0.02 * last.params["lr"]


@pytest.mark.parametrize("n_epochs", [1, 2, 5])
def test_baselines_work_with_tiny_budgets(n_epochs: int) -> None:
    for one in run(Net(), *BASELINES, n_epochs=n_epochs).runs:
        assert one.epochs == n_epochs
        assert math.isfinite(one.value)


def test_hopeless_and_diverged_trials_are_pruned_and_the_search_continues() -> None:
    class Diverging(Net):
        def __call__(self, trial: Any) -> miha.Recipe:
            recipe = super().__call__(trial)
            if trial.params["lr"] > 0.02:
                recipe.loss_fn = lambda output, target: math.nan * output.sum()
            return recipe

    storage = InMemoryStorage()
    comparison = run(Diverging(), "tpe-median", "hyperband", storage=storage, n_epochs=98)
    for one in comparison.runs:
        assert one.epochs == 98
        assert math.isfinite(one.value)
        trials = study_of(storage, one.method).trials
        lengths = {s: [len(t.intermediate_values) for t in trials if t.state == s] for s in STATES}
        assert set(lengths[TrialState.COMPLETE][:-1]) == {14}
        assert 1 in lengths[TrialState.PRUNED]
    pruned = [n for t in trials if (n := len(t.intermediate_values)) > 1 and t.state == STATES[1]]
    assert pruned, "Hyperband pruned only trials that diverged."


STATES = (TrialState.COMPLETE, TrialState.PRUNED)


def test_method_that_always_diverges_has_no_value_and_no_curve() -> None:
    def step(model: nn.Module, batch: Any, loss_fn: Any) -> Tensor:
        loss: Tensor = loss_fn(model(batch[0]), batch[1])
        return math.nan * loss if model.training else loss

    net, storage = Net(train_step=step, test=blobs(30, seed=2)), InMemoryStorage()
    comparison = run(net, "miha", "miha-classic", "no-search", storage=storage)
    for one in comparison.runs:
        assert math.isnan(one.value)
        assert (one.test, one.curve) == (None, ())
        assert 0 < one.epochs <= N_EPOCHS
    assert without_seconds(
        run(net, "miha", "miha-classic", "no-search", storage=storage)
    ) == without_seconds(comparison)


def test_error_other_than_divergence_ends_the_comparison() -> None:
    class Raising(Net):
        def count(self, *_: Any) -> None:
            self.n_all_steps += 1
            if self.n_all_steps > 50:
                raise MihaError("not now")

    storage = InMemoryStorage()
    with pytest.raises(MihaError, match="not now"):
        run(Raising(), "miha", storage=storage)
    assert "compare:run" not in study_of(storage, "miha").user_attrs


def test_classic_plan_spends_the_budget_up_to_one_epoch() -> None:
    for n_epochs in [13, 14, 15, 23, 24, 50, 199, 200, 600]:
        plan = _classic_plan(n_epochs)
        unspent = n_epochs - plan.n_epochs
        assert unspent == (1 if n_epochs < 24 and n_epochs % 2 == 0 else 0)
        assert plan.runup_epochs is not None
        assert plan.runup_epochs >= 1
    plan = _classic_plan(200)
    assert (plan.runup_epochs, plan.n_cycles) == (23, 14)


# Several workers.


@pytest.mark.parametrize("method", ["hyperband", "tpe-retrain"])
def test_interrupted_run_of_several_workers_gives_the_same_result(method: str) -> None:
    storage, memory = InMemoryStorage(), InMemoryStorage()
    with pytest.raises(KeyboardInterrupt):
        run(Net(fatal=60), method, storage=storage, n_epochs=27, n_workers=3)
    net = Net(test=blobs(30, seed=1))
    whole = run(net, method, storage=memory, n_epochs=27, n_workers=3)
    assert net.n_steps == STEPS * 27
    (one,) = whole.runs
    assert (one.n_workers, one.epochs, one.test) == (3, 27, {"loss": one.value})
    assert one.value == one.curve[-1][1]
    resumed = run(Net(test=blobs(30, seed=1)), method, storage=storage, n_epochs=27, n_workers=3)
    assert without_seconds(resumed) == without_seconds(whole)
    assert history(study_of(storage, method)) == history(study_of(memory, method))


def test_workers_that_alternate_do_not_disturb_each_other() -> None:
    storage, alone = InMemoryStorage(), InMemoryStorage()
    run(Net(), "no-search", storage=storage, n_workers=2)
    run(Net(), "no-search", storage=alone, n_epochs=N_EPOCHS // 2)
    (expected,) = study_of(alone, "no-search").trials
    first, second = study_of(storage, "no-search").trials
    assert first.intermediate_values == expected.intermediate_values
    assert second.params == first.params
    assert set(second.intermediate_values.values()).isdisjoint(first.intermediate_values.values())


def test_searches_of_several_workers_propose_before_others_report() -> None:
    storage, one = InMemoryStorage(), InMemoryStorage()
    run(Net(), "tpe-median", "random", storage=storage, n_epochs=72, n_workers=6)
    run(Net(), "tpe-median", storage=one, n_epochs=72)
    searched, alone = (study_of(s, "tpe-median").trials for s in (storage, one))
    by_number = sorted(searched, key=lambda trial: trial.user_attrs["compare:number"])
    params = [trial.params for trial in by_number]
    # The first five are random in any case; the sixth would know the outcome of the others.
    assert params[:5] == [trial.params for trial in alone[:5]]
    assert params[5] != alone[5].params
    assert all(len(t.intermediate_values) == 12 for t in study_of(storage, "random").trials)


def test_rates_of_several_workers_are_annealed_side_by_side() -> None:
    storage, net = InMemoryStorage(), Net()
    run(net, "rates-cosine", storage=storage, n_workers=4)
    trials = sorted(study_of(storage, "rates-cosine").trials, key=lambda t: t.params["lr"])
    rates = [0.01 / 3, 0.01 / 3 ** (1 / 3), 0.01 * 3 ** (1 / 3), 0.03]
    assert [trial.params["lr"] for trial in trials] == pytest.approx(rates)
    assert sorted(len(trial.intermediate_values) for trial in trials) == [6, 6, 7, 7]


def test_classic_plan_of_several_workers_takes_as_long_as_the_others() -> None:
    plan = _classic_plan(200, 4)
    assert (plan.population_size, plan.runup_epochs, plan.n_cycles) == (4, 5, 8)
    assert plan.runup_epochs is not None
    assert plan.n_cycles is not None
    assert 2 * plan.runup_epochs + plan.n_cycles * (2 + 3) == 50
    assert _classic_plan(200, 3).population_size == 6


def test_methods_of_several_workers_are_compared_in_one_table() -> None:
    comparison = run(Net(), "miha", "no-search", n_workers=2)
    assert "Each method had 2 workers of 13 epochs" in comparison.describe()
    for one in comparison.runs:
        assert one.epochs == N_EPOCHS
        epochs, values = zip(*one.curve, strict=True)
        assert list(epochs) == sorted(epochs)
        assert values[-1] == one.value


# Invalid arguments and storages.


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"methods": ["miha", "grid"]}, ValueError, "`methods` must be .* got 'grid'"),
        ({"methods": "miha"}, TypeError, "`methods` must be a sequence .* got 'miha'"),
        ({"methods": []}, ValueError, "`methods` must be one or more"),
        ({"methods": ["random", "random"]}, ValueError, "each once, got"),
        ({"seeds": 0}, ValueError, "`seeds` must be a positive number .* got 0"),
        ({"seeds": [1, 1]}, ValueError, "`seeds` must be .* different"),
        ({"seeds": [-1]}, ValueError, "`seeds` must be .* non-negative integers"),
        ({"n_epochs": 0}, ValueError, "`n_epochs` must be a positive .* got 0"),
        (
            {"n_epochs": 12, "methods": ["miha-classic"]},
            ValueError,
            "n_epochs=12 is too small .* at least 13",
        ),
        ({"n_workers": 0}, ValueError, "`n_workers` must be a positive .* got 0"),
        ({"n_epochs": 2, "n_workers": 3}, ValueError, "3 workers.*`n_workers` to 2"),
        ({"n_epochs": 23, "n_workers": 3, "methods": ["miha"]}, ValueError, "need 24 for a race"),
        ({"n_epochs": 26, "n_workers": 3, "methods": ["miha-classic"]}, ValueError, "least 27"),
        ({"direction": "maximize"}, ValueError, '`direction` must be "minimize" .*leave it out'),
        ({"direction": "down"}, ValueError, "`direction` must be .* got 'down'"),
        ({"storage": Path("x.db")}, TypeError, "`storage` must be a URL .*sqlite:///"),
    ],
)
def test_invalid_arguments_are_rejected_before_training_and_leave_no_file(
    settings: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    net = Net()
    defaults = {"show_progress_bar": False, "storage": f"sqlite:///{tmp_path}/compare.db"}
    with pytest.raises(error, match=message):
        compare(net, **(defaults | settings))
    assert net.n_steps == 0
    assert not list(tmp_path.iterdir())


def test_storage_with_incompatible_runs_is_rejected() -> None:
    storage = InMemoryStorage()
    run(Net(), "random", storage=storage)
    with pytest.raises(ValueError, match=r"n_epochs=30, but .*'compare-random-0' .* with 26"):
        run(Net(), "no-search", "random", storage=storage, n_epochs=30)
    with pytest.raises(ValueError, match=r"n_workers=2, but .*'compare-random-0' .* with 1"):
        run(Net(), "random", storage=storage, n_workers=2)
    assert optuna.get_all_study_names(storage) == ["compare-random-0"]

    class Wider(Net):
        def __call__(self, trial: Any) -> miha.Recipe:
            trial.suggest_int("width", 1, 8)
            return super().__call__(trial)

    with pytest.raises(miha.exceptions.SearchSpaceChangedError, match="'width'"):
        run(Wider(), "random", storage=storage)
    with pytest.raises(ValueError, match=r"must maximize .* created to minimize"):
        run(Net(monitor="accuracy"), "random", storage=storage)
    optuna.create_study(storage=storage, study_name="compare-no-search-0").add_trial(
        optuna.trial.create_trial(value=1.0)
    )
    with pytest.raises(ValueError, match="'compare-no-search-0' must be one that `compare`"):
        run(Net(), "no-search", storage=storage)
    assert run(Net(), "no-search", storage=storage, name="mine").runs[0].epochs == N_EPOCHS


@pytest.mark.parametrize(
    ("in_memory", "advice"),
    [(False, "call `compare` again with the same arguments"), (True, "pass a `storage`")],
)
def test_interrupted_comparison_logs_how_to_resume(
    in_memory: bool,
    advice: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(optuna.logging.get_logger("optuna"), "propagate", True)
    with pytest.raises(KeyboardInterrupt):
        storage = None if in_memory else InMemoryStorage()
        run(Net(fatal=STEPS * 30), "random", "no-search", storage=storage)
    message = caplog.text
    assert "stopped by KeyboardInterrupt in the run 'compare-no-search-0'" in message
    assert "after 1 of 2 runs" in message
    assert advice in message


@pytest.mark.parametrize(
    ("data", "error"),
    [((torch.zeros(3, 4),), TypeError), ((torch.zeros(3, 4), torch.zeros(2)), ValueError)],
)
def test_test_data_are_checked_like_validation_data(data: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="`test_data`"):
        Net(test=data)(optuna.trial.FixedTrial({"activation.2": "relu", "lr": 0.01}))


# Statistics.


def test_sign_flip_p_counts_all_sign_flips_of_few_differences() -> None:
    assert sign_flip_p([1.0] * 5) == 2 / 32
    assert sign_flip_p([-2.0, -1.0, -3.0]) == 2 / 8
    assert sign_flip_p([1.0, -1.0]) == 1
    assert sign_flip_p([0.0, 0.0, 0.0]) == 1
    assert sign_flip_p([0.1, 0.2, 0.3, -0.4]) == pytest.approx(14 / 16)
    assert math.isnan(sign_flip_p([]))
    differences = [0.3, -0.1, 0.7, 0.2, 0.45, -0.05, 0.6]
    flips = list(itertools.product([-1, 1], repeat=len(differences)))
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in flips]
    expected = sum(s >= sum(differences) - 1e-12 for s in sums) / len(flips)
    assert sign_flip_p(differences) == expected
    assert sign_flip_p([1000 * d for d in differences]) == expected


def test_sign_flip_p_samples_sign_flips_of_many_differences() -> None:
    differences = [0.1 * i - 0.9 for i in range(24)]  # Mean 0.25, standard error 0.14.
    assert 0.06 < sign_flip_p(differences) < 0.12
    assert sign_flip_p(differences) == sign_flip_p(differences)
    assert 0 < sign_flip_p([1.0] * 30) < 1e-4


def make_run(method: str, seed: int, value: float, loss: float | None, **changes: Any) -> Run:
    test = None if loss is None else {"loss": loss, "accuracy": 1 - loss}
    settings: dict[str, Any] = {
        "n_epochs": 100,
        "epochs": 100,
        "seconds": 2.0 + seed,
        "curve": ((1, 10 * value), (40, 2 * value), (90 + seed, value)),
        "trial_epochs": None,
    }
    return Run(method=method, seed=seed, value=value, test=test, **(settings | changes))


COMPARISON = Comparison(
    runs=(
        *(make_run("miha", seed, 0.5 + 0.1 * seed, 0.20 + 0.01 * seed) for seed in range(3)),
        *(make_run("random", seed, 0.8, loss) for seed, loss in [(0, 0.25), (1, 0.24), (2, 0.28)]),
        make_run("random", 7, 0.8, 0.9),
        make_run("no-search", 0, math.nan, None, epochs=99, curve=()),
    )
)


def test_table_has_means_standard_deviations_and_paired_differences() -> None:
    ours, theirs, failed = COMPARISON.table()
    assert (ours["method"], ours["n"], ours["epochs"], ours["seconds"]) == ("miha", 3, 100, 3.0)
    assert ours["value"] == pytest.approx(0.6)
    assert ours["value sd"] == pytest.approx(0.1)
    assert ours["test loss"] == pytest.approx(0.21)
    assert ours["test accuracy"] == pytest.approx(0.79)
    assert ours["test accuracy sd"] == pytest.approx(0.01)
    assert ours["test loss vs miha"] is None
    assert theirs["n"] == 4
    # Over the seeds 0, 1, 2: differences of 0.05, 0.03 and 0.06.
    assert theirs["test loss vs miha n"] == 3
    assert theirs["test loss vs miha"] == pytest.approx(0.14 / 3)
    assert theirs["test loss vs miha se"] == pytest.approx(0.00881917)
    assert theirs["test loss vs miha p"] == 0.25
    assert theirs["test accuracy vs miha"] == pytest.approx(-0.14 / 3)
    assert failed["value"] is None
    assert failed["test loss"] is None
    assert failed["test loss vs miha n"] == 0
    assert failed["epochs"] == 99


def test_describe_returns_an_aligned_table() -> None:
    header, *rows, note = COMPARISON.describe().splitlines()
    assert note == "Mean ± standard deviation over n seeds; smaller loss is better."
    column = header.index("test loss vs miha")
    assert [row.split()[0] for row in rows] == ["miha", "random", "no-search"]
    assert rows[1][column:].startswith("+0.04667 ± 0.0088")
    assert "0.6 ± 0.1" in rows[0]
    alone = Comparison(runs=tuple(replace(one, test=None) for one in COMPARISON.runs))
    assert "they do not show which model is better" in alone.describe()
    assert "test" not in alone.describe().splitlines()[0]


def test_figure_has_one_line_per_method() -> None:
    figure = plot_comparison(COMPARISON)
    lines = {trace.name: trace for trace in figure.data if trace.showlegend is not False}
    assert list(lines) == ["miha", "random"]  # The third has no finite value.
    assert list(lines["miha"].x) == [1, 40, 90, 91, 92, 100]
    assert list(lines["miha"].y) == pytest.approx([6, 1.2, 3.1 / 3, 2.5 / 3, 0.6, 0.6])
    assert figure.layout.yaxis.type == "log"
    upper = next(trace for trace in figure.data if trace.legendgroup == "miha")
    assert upper.y[-1] == pytest.approx(0.6 + 0.1 / math.sqrt(3))
    flat = Comparison(runs=(make_run("miha", 0, 0.5, None, curve=((1, 0.6), (2, 0.5))),))
    assert plot_comparison(flat).layout.yaxis.type == "linear"
    every = Comparison(runs=tuple(make_run(method, 0, 0.5, None) for method in METHODS))
    names = [trace for trace in plot_comparison(every).data if trace.showlegend is not False]
    assert [trace.name for trace in names] == list(METHODS)
    assert len({(trace.line.color, trace.line.dash) for trace in names}) == len(METHODS)


def test_missing_plotly_is_named_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    with pytest.raises(ImportError, match="pip install plotly"):
        plot_comparison(COMPARISON)


def test_json_and_csv_files_contain_all_runs(tmp_path: Path) -> None:
    COMPARISON.to_json(tmp_path / "runs.json")
    content = json.loads((tmp_path / "runs.json").read_text("utf-8"))
    runs = [Run.from_dict(stored) for stored in content["runs"]]
    assert runs[:-1] == list(COMPARISON.runs[:-1])
    assert math.isnan(runs[-1].value)
    assert content["table"] == COMPARISON.table()
    COMPARISON.to_csv(tmp_path / "runs.csv")
    with (tmp_path / "runs.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(COMPARISON.runs)
    assert (rows[4]["method"], rows[4]["seed"], rows[4]["test loss"]) == ("random", "1", "0.24")
    assert rows[-1]["value"] == rows[-1]["test loss"] == ""


# The command.

MODULE = """
import torch
from torch import nn
import optuna_miha as miha

def model_fn(trial):
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long()
    return miha.Recipe(
        model=nn.Linear(3, 2), loss_fn=nn.CrossEntropyLoss(), monitor="accuracy",
        train_data=(x[:20], y[:20]), valid_data=(x[20:30], y[20:30]),
        test_data=(x[30:], y[30:]),
    )

number = 3
"""


def test_command_trains_prints_a_table_and_writes_files(tmp_path: Path) -> None:
    (tmp_path / "tiny_net.py").write_text(MODULE, encoding="utf-8")
    command = [sys.executable, "-m", "optuna_miha", "compare", "tiny_net:model_fn"]
    command += ["--n-epochs", "21", "--seeds", "2", "--methods", "miha", "no-search"]
    command += ["--storage", "sqlite:///runs.db", "--plot", "runs.html", "--csv", "runs.csv"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    header, ours, theirs, _ = done.stdout.splitlines()
    assert header.startswith("method")
    assert "test accuracy" in header
    assert (ours.split()[0], theirs.split()[0]) == ("miha", "no-search")
    assert "84/84" in done.stderr
    assert "plotly" in (tmp_path / "runs.html").read_text("utf-8")
    assert len((tmp_path / "runs.csv").read_text("utf-8").splitlines()) == 5
    names = optuna.get_all_study_names(f"sqlite:///{tmp_path}/runs.db")
    assert set(names) == {f"compare-{m}-{s}" for m in ("miha", "no-search") for s in (0, 1)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny_net2"], "must be MODULE:FUNCTION, such as .* got 'tiny_net2'"),
        (["no_such_net:f"], "no module 'no_such_net'"),
        (["tiny_net2:nothing"], "'tiny_net2:nothing' must name a function .* no such name"),
        (["tiny_net2:number"], "must name a function .* got int"),
        (["broken_net:f"], "'broken_net' cannot be imported: No module named 'no_such_part'"),
        (["tiny_net2:model_fn", "--seeds", "0"], "`seeds` must be"),
        (["tiny_net2:model_fn", "--n-epochs", "9"], "n_epochs=9 is too small"),
        (["tiny_net2:model_fn", "--plot", "nowhere/x.html"], "The folder of nowhere/x.html"),
    ],
)
def test_command_explains_invalid_arguments(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "tiny_net2.py").write_text(MODULE, encoding="utf-8")
    (tmp_path / "broken_net.py").write_text("import no_such_part\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["compare", *arguments, "--storage", "sqlite:///runs.db"]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_command_rejects_an_unknown_method(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["compare", "net:f", "--methods", "grid"])
    assert caught.value.code == 2
    assert "'grid'" in capsys.readouterr().err
