"""The `suggest_*` functions: names, initial values, ranges, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna
import pytest
import torch
from helpers.networks import choices_of, first_trial
from helpers.problems import blobs, classifier, new_study, run
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import FixedTrial
from torch import Tensor, nn, optim

import optuna_miha as miha
from optuna_miha._search.space import OFFERED_OPTIMIZERS


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(4, 6),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(6, 6),
        nn.Tanh(),
        nn.Linear(6, 1),
        nn.Sigmoid(),
    )


PARAMS = list(nn.Linear(4, 3).parameters())


class TestOptimizer:
    def test_it_starts_from_adam_at_its_default(self) -> None:
        trial = first_trial()
        optimizer = miha.suggest_optimizer(trial, PARAMS)
        assert trial.params == {"optimizer": "adam", "lr": 1e-3, "weight_decay": 0.0}
        assert type(optimizer) is optim.Adam
        assert optimizer.param_groups[0]["lr"] == 1e-3
        assert choices_of(trial, "optimizer") == OFFERED_OPTIMIZERS
        lr = trial.distributions["lr"]
        assert lr == FloatDistribution(1e-5, 3.0, log=True)

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("adamw", {"lr": 1e-3}),
            ("sgd", {"lr": 0.03, "momentum": 0.9}),
            ("adadelta", {"lr": 1.0}),
            ("rmsprop", {"lr": 1e-3}),
        ],
    )
    def test_a_name_starts_at_its_default(self, name: str, expected: dict[str, Any]) -> None:
        trial = first_trial()
        optimizer = miha.suggest_optimizer(trial, PARAMS, initial=name)
        assert trial.params == {"optimizer": name, "weight_decay": 0.0} | expected
        assert type(optimizer).__name__.lower() == name

    def test_momentum_is_suggested_for_sgd_alone_and_used(self) -> None:
        trial = FixedTrial({"optimizer": "sgd", "lr": 0.5, "weight_decay": 1e-3, "momentum": 0.4})
        optimizer = miha.suggest_optimizer(trial, PARAMS)
        group = optimizer.param_groups[0]
        assert type(optimizer) is optim.SGD
        assert (group["lr"], group["weight_decay"], group["momentum"]) == (0.5, 1e-3, 0.4)
        assert trial.distributions["momentum"] == FloatDistribution(0.0, 0.99)

    def test_an_optimizer_as_initial_is_where_it_starts(self) -> None:
        trial = first_trial()
        mine = optim.SGD(PARAMS, lr=7.0, momentum=0.25, weight_decay=0.3)
        optimizer = miha.suggest_optimizer(trial, PARAMS, initial=mine)
        expected = {"optimizer": "sgd", "lr": 7.0, "weight_decay": 0.3, "momentum": 0.25}
        assert trial.params == expected
        group = optimizer.param_groups[0]
        assert (group["lr"], group["weight_decay"], group["momentum"]) == (7.0, 0.3, 0.25)
        assert trial.distributions["lr"].high == 7.0
        assert choices_of(trial, "weight_decay")[-1] == 0.3

    @pytest.mark.parametrize(
        ("mine", "settings"),
        [
            (optim.Adam(PARAMS, betas=(0.5, 0.9)), {"betas": (0.5, 0.9)}),
            (optim.AdamW(PARAMS, eps=1e-4), {"eps": 1e-4}),
            (optim.Adam(PARAMS, amsgrad=True), {"amsgrad": True}),
            (optim.SGD(PARAMS, lr=0.1, momentum=0.9, nesterov=True), {"nesterov": True}),
            (optim.RMSprop(PARAMS, alpha=0.9, momentum=0.5), {"alpha": 0.9, "momentum": 0.5}),
        ],
        ids=["betas", "eps", "amsgrad", "nesterov", "rmsprop"],
    )
    def test_the_users_other_settings_stay_while_the_class_does(
        self, mine: optim.Optimizer, settings: dict[str, Any]
    ) -> None:
        optimizer = miha.suggest_optimizer(first_trial(), PARAMS, initial=mine)
        assert type(optimizer) is type(mine)
        group = optimizer.param_groups[0]
        assert {name: group[name] for name in settings} == settings

    def test_an_initial_outside_of_the_choices_joins_them(self) -> None:
        trial = first_trial()
        optimizer = miha.suggest_optimizer(
            trial, PARAMS, initial="nadam", choices=["adam"], lr=(0.1, 0.2)
        )
        assert choices_of(trial, "optimizer") == ("nadam", "adam")
        assert type(optimizer) is optim.NAdam
        assert trial.distributions["lr"] == FloatDistribution(1e-3, 0.2, log=True)

    def test_weight_decays_are_a_choice_with_the_initial_one_added(self) -> None:
        trial = first_trial()
        miha.suggest_optimizer(trial, PARAMS, weight_decay=[1e-2, 1e-4])
        assert choices_of(trial, "weight_decay") == (0.0, 1e-4, 1e-2)

    def test_param_groups_pass_through(self) -> None:
        weight, bias = nn.Linear(4, 3).parameters()
        groups = [{"params": [weight], "lr": 0.5}, {"params": [bias]}]
        optimizer = miha.suggest_optimizer(first_trial(), groups)
        assert [group["lr"] for group in optimizer.param_groups] == [0.5, 1e-3]

    @pytest.mark.parametrize(
        ("bad", "error", "message"),
        [
            ({"initial": "adamm"}, ValueError, r"one of .*'adam'.*got 'adamm'"),
            ({"choices": ["adam", "lion"]}, ValueError, r"one of .*'adam'.*got 'lion'"),
            ({"lr": (1.0, 0.1)}, ValueError, r"`lr` must be two positive.*\(1.0, 0.1\)"),
            ({"lr": (0.0, 0.1)}, ValueError, r"`lr` must be two positive.*\(0.0, 0.1\)"),
            (
                {"initial": optim.LBFGS(PARAMS)},
                TypeError,
                r"one of torch's.*got LBFGS.*suggest_float",
            ),
        ],
    )
    def test_what_cannot_be_suggested_is_refused(
        self, bad: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            miha.suggest_optimizer(first_trial(), PARAMS, **bad)


class TestBatchSize:
    @pytest.mark.parametrize(
        ("settings", "initial", "low", "high"),
        [
            ({}, 32, 16, 256),
            ({"initial": 4}, 4, 4, 256),
            ({"initial": 1000}, 1000, 16, 1000),
            ({"initial": 8, "low": 2, "high": 10}, 8, 2, 10),
        ],
    )
    def test_bounds_are_widened_to_the_initial_size(
        self, settings: dict[str, int], initial: int, low: int, high: int
    ) -> None:
        trial = first_trial()
        assert miha.suggest_batch_size(trial, **settings) == initial
        assert trial.params == {"batch_size": initial}
        assert trial.distributions["batch_size"] == IntDistribution(low, high, log=True)

    def test_the_suggested_size_is_returned(self) -> None:
        assert miha.suggest_batch_size(FixedTrial({"batch_size": 77})) == 77

    @pytest.mark.parametrize("bad", [{"initial": 0}, {"low": 0}, {"low": 9, "high": 8}])
    def test_sizes_that_make_no_sense_are_refused(self, bad: dict[str, int]) -> None:
        name, value = next(iter(bad.items()))
        with pytest.raises(
            ValueError, match=rf"positive and `low` at most `high`.*{name}={value}"
        ):
            miha.suggest_batch_size(first_trial(), **bad)


class TestLoss:
    @pytest.mark.parametrize(
        ("initial", "name", "others"),
        [
            (nn.CrossEntropyLoss(), "cross_entropy", {"multi_margin"}),
            (nn.MSELoss(), "mse", {"l1", "smooth_l1", "huber"}),
            (nn.HuberLoss(), "huber", {"mse", "l1", "smooth_l1"}),
            (nn.BCEWithLogitsLoss(), "bce_with_logits", {"multilabel_soft_margin"}),
        ],
    )
    def test_the_family_of_the_initial_loss_is_offered(
        self, initial: nn.Module, name: str, others: set[str]
    ) -> None:
        trial = first_trial()
        assert miha.suggest_loss(trial, initial=initial) is initial
        assert trial.params == {"loss": name}
        assert set(choices_of(trial, "loss")) == {name} | others

    @pytest.mark.parametrize(
        ("initial", "targets"),
        [
            (nn.CrossEntropyLoss(), torch.tensor([0, 2, 1, 0])),
            (nn.SmoothL1Loss(), torch.randn(4, 3)),
            (nn.BCEWithLogitsLoss(), torch.randint(0, 2, (4, 3)).float()),
        ],
    )
    def test_relatives_take_the_same_targets(self, initial: nn.Module, targets: Tensor) -> None:
        trial = first_trial()
        miha.suggest_loss(trial, initial=initial)
        for name in choices_of(trial, "loss"):
            loss_fn = miha.suggest_loss(FixedTrial({"loss": name}), initial=initial)
            outputs = torch.randn(4, 3, requires_grad=True)
            loss = loss_fn(outputs, targets)
            assert loss.ndim == 0 and loss.requires_grad

    def test_own_choices_start_from_the_first(self) -> None:
        mine = {"a": nn.L1Loss(), "b": nn.MSELoss()}
        trial = first_trial()
        assert miha.suggest_loss(trial, choices=mine) is mine["a"]
        assert choices_of(trial, "loss") == ("a", "b")

    def test_an_initial_loss_is_found_among_own_choices(self) -> None:
        mine = {"a": nn.L1Loss(), "b": nn.MSELoss()}
        for initial in ("b", mine["b"]):
            trial = first_trial()
            assert miha.suggest_loss(trial, initial=initial, choices=mine) is mine["b"]
            assert trial.params == {"loss": "b"}
            assert set(choices_of(trial, "loss")) == {"a", "b"}

    def test_an_initial_loss_joins_own_choices(self) -> None:
        trial, initial = first_trial(), nn.HuberLoss(delta=2.0)
        assert miha.suggest_loss(trial, initial=initial, choices={"a": nn.L1Loss()}) is initial
        assert choices_of(trial, "loss") == ("initial", "a")

    def test_a_run_is_judged_by_the_initial_loss_and_says_when_the_loss_changed(self) -> None:
        cross_entropy = nn.functional.cross_entropy
        losses = {"slow": lambda o, t: cross_entropy(o, t) / 10, "quick": cross_entropy}

        def model_fn(trial: Any) -> miha.Recipe:
            recipe = classifier(trial)
            recipe.loss_fn = miha.suggest_loss(trial, choices=losses)
            recipe.optimizer = optim.SGD(recipe.model.parameters(), lr=0.02)
            return recipe

        result = run(new_study(), model_fn, plan=miha.Plan(90, startup=1, fixing_epochs=3))
        x, y = blobs(30, seed=1)
        with torch.no_grad():
            assert result.value == pytest.approx(losses["slow"](result.model(x), y).item())
        assert result.params == {"loss": "quick"}
        assert any(s.mutation == "loss slow -> quick" for s in result.lineage)
        assert "loss slow -> quick" in result.describe()

    @pytest.mark.parametrize(
        ("bad", "error", "message"),
        [
            ({}, TypeError, r"needs an initial loss or `choices`.*initial=None.*nn.MSELoss"),
            ({"initial": "mse"}, TypeError, r"needs an initial loss.*initial='mse'"),
            (
                {"initial": "mse", "choices": {"l1": nn.L1Loss()}},
                ValueError,
                r"one of \['l1'\], got 'mse'",
            ),
            ({"initial": nn.CTCLoss()}, ValueError, r"no list of losses.*CTCLoss.*`choices`"),
            ({"choices": {}}, ValueError, "choices"),
        ],
    )
    def test_what_cannot_be_suggested_is_refused(
        self, bad: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            miha.suggest_loss(first_trial(), **bad)


class TestDropout:
    def test_every_dropout_starts_from_its_own_rate(self) -> None:
        model = nn.Sequential(nn.Dropout(0.2), nn.Sequential(nn.Dropout2d(0.8)), nn.Linear(2, 2))
        trial = first_trial()
        miha.suggest_dropout(trial, model)
        assert trial.params == {"dropout.0": 0.2, "dropout.1.0": 0.8}
        assert trial.distributions["dropout.0"] == FloatDistribution(0.0, 0.6)
        assert trial.distributions["dropout.1.0"] == FloatDistribution(0.0, 0.8)

    @pytest.mark.parametrize(
        "module",
        [
            nn.Dropout(0.2),
            nn.Dropout1d(0.2),
            nn.Dropout2d(0.2),
            nn.Dropout3d(0.2),
            nn.AlphaDropout(0.2),
            nn.FeatureAlphaDropout(0.2),
        ],
    )
    def test_the_suggested_rate_is_set(self, module: nn.Module) -> None:
        model = nn.Sequential(module)
        miha.suggest_dropout(FixedTrial({"dropout.0": 0.45}), model)
        assert module.p == 0.45

    def test_bounds_are_widened_downwards_too(self) -> None:
        trial = first_trial()
        miha.suggest_dropout(trial, nn.Sequential(nn.Dropout(0.1)), low=0.3, high=0.5)
        assert trial.distributions["dropout.0"] == FloatDistribution(0.1, 0.5)
        assert trial.params == {"dropout.0": 0.1}

    @pytest.mark.parametrize(("low", "high"), [(0.5, 0.4), (-0.1, 0.4), (0.0, 1.0)])
    def test_bounds_that_are_not_rates_are_refused(self, low: float, high: float) -> None:
        with pytest.raises(ValueError, match=rf"\[0, 1\) and ascend, got low={low}, high={high}"):
            miha.suggest_dropout(first_trial(), net(), low=low, high=high)


class TestLabelSmoothing:
    @pytest.mark.parametrize(("initial", "high", "upper"), [(0.0, 0.3, 0.3), (0.4, 0.3, 0.4)])
    def test_it_starts_from_the_initial_value(
        self, initial: float, high: float, upper: float
    ) -> None:
        trial = first_trial()
        assert miha.suggest_label_smoothing(trial, initial=initial, high=high) == initial
        assert trial.distributions["label_smoothing"] == FloatDistribution(0.0, upper)

    @pytest.mark.parametrize("bad", [{"initial": -0.1}, {"high": 1.1}])
    def test_values_out_of_range_are_refused(self, bad: dict[str, float]) -> None:
        name, value = next(iter(bad.items()))
        with pytest.raises(ValueError, match=rf"lie in \[0, 1\].*{name}={value}"):
            miha.suggest_label_smoothing(first_trial(), **bad)


def everything(trial: Any) -> dict[str, Any]:
    """All suggestions, and what came of them."""
    model = net()
    miha.suggest_activations(trial, model)
    miha.suggest_dropout(trial, model)
    optimizer = miha.suggest_optimizer(trial, model.parameters())
    return {
        "activations": [type(model[i]).__name__ for i in (1, 4)],
        "dropout": model[2].p,
        "optimizer": type(optimizer).__name__,
        "lr": optimizer.param_groups[0]["lr"],
        "weight_decay": optimizer.param_groups[0]["weight_decay"],
        "batch_size": miha.suggest_batch_size(trial),
        "loss": type(miha.suggest_loss(trial, initial=nn.MSELoss())).__name__,
        "label_smoothing": miha.suggest_label_smoothing(trial),
    }


SAMPLERS: list[Callable[[], optuna.samplers.BaseSampler]] = [
    lambda: optuna.samplers.TPESampler(seed=0, n_startup_trials=3),
    lambda: optuna.samplers.RandomSampler(seed=0),
    lambda: miha.MihaSampler(seed=0),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=["tpe", "random", "miha"])
def test_any_sampler_can_answer_and_a_fixed_trial_repeats_it(
    sampler: Callable[[], optuna.samplers.BaseSampler],
) -> None:
    study = optuna.create_study(sampler=sampler())
    made = []
    for number in range(8):
        trial = study.ask()
        made.append(everything(trial))
        study.tell(trial, float(number))
    assert len({str(outcome) for outcome in made}) > 4
    for trial, outcome in zip(study.trials, made, strict=True):
        assert everything(FixedTrial(trial.params)) == outcome


def test_initial_values_survive_where_other_suggestions_are_made_between() -> None:
    trial = first_trial()
    width = trial.suggest_int("width", 2, 8)
    assert miha.suggest_batch_size(trial, initial=48) == 48
    depth = trial.suggest_int("depth", 1, 3)
    assert (width, depth) == (5, 2)
