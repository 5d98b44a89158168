"""Suggested batch sizes, losses, dropout and label smoothing, and all of them together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna
import pytest
import torch
from helpers.networks import choices_of, first_trial, mlp
from helpers.problems import blobs, classifier, new_study, run
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import FixedTrial
from torch import Tensor, nn, optim

import optuna_miha as miha


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

    def test_suggested_size_is_returned(self) -> None:
        assert miha.suggest_batch_size(FixedTrial({"batch_size": 77})) == 77

    @pytest.mark.parametrize("arguments", [{"initial": 0}, {"low": 0}, {"low": 9, "high": 8}])
    def test_invalid_sizes_are_refused(self, arguments: dict[str, int]) -> None:
        name, value = next(iter(arguments.items()))
        with pytest.raises(
            ValueError, match=rf"positive and `low` at most `high`.*{name}={value}"
        ):
            miha.suggest_batch_size(first_trial(), **arguments)


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
    def test_choices_are_the_losses_that_can_replace_the_initial_one(
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
    def test_all_choices_take_the_same_targets(self, initial: nn.Module, targets: Tensor) -> None:
        trial = first_trial()
        miha.suggest_loss(trial, initial=initial)
        for name in choices_of(trial, "loss"):
            loss_fn = miha.suggest_loss(FixedTrial({"loss": name}), initial=initial)
            outputs = torch.randn(4, 3, requires_grad=True)
            loss = loss_fn(outputs, targets)
            assert loss.ndim == 0 and loss.requires_grad

    def test_first_choice_is_the_initial_one(self) -> None:
        choices = {"a": nn.L1Loss(), "b": nn.MSELoss()}
        trial = first_trial()
        assert miha.suggest_loss(trial, choices=choices) is choices["a"]
        assert choices_of(trial, "loss") == ("a", "b")

    def test_initial_loss_can_be_one_of_the_choices(self) -> None:
        choices = {"a": nn.L1Loss(), "b": nn.MSELoss()}
        for initial in ("b", choices["b"]):
            trial = first_trial()
            assert miha.suggest_loss(trial, initial=initial, choices=choices) is choices["b"]
            assert trial.params == {"loss": "b"}
            assert set(choices_of(trial, "loss")) == {"a", "b"}

    def test_initial_loss_is_added_to_the_choices(self) -> None:
        trial, initial = first_trial(), nn.HuberLoss(delta=2.0)
        assert miha.suggest_loss(trial, initial=initial, choices={"a": nn.L1Loss()}) is initial
        assert choices_of(trial, "loss") == ("initial", "a")

    @pytest.mark.slow
    def test_run_validates_with_the_initial_loss_and_reports_its_mutation(self) -> None:
        cross_entropy = nn.functional.cross_entropy
        losses = {"slow": lambda o, t: cross_entropy(o, t) / 10, "quick": cross_entropy}

        def model_fn(trial: Any) -> miha.Recipe:
            recipe = classifier(trial)
            recipe.loss_fn = miha.suggest_loss(trial, choices=losses)
            recipe.optimizer = optim.SGD(recipe.model.parameters(), lr=0.02)
            return recipe

        result = run(
            new_study(), model_fn, plan=miha.Plan(90, startup=1, fixing_epochs=3, anneal="cosine")
        )
        x, y = blobs(30, seed=1)
        with torch.no_grad():
            assert result.value == pytest.approx(losses["slow"](result.model(x), y).item())
        assert result.params == {"loss": "quick"}
        assert any(s.mutation == "loss slow -> quick" for s in result.lineage)
        assert "loss slow -> quick" in result.describe()

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({}, TypeError, r"needs an initial loss or `choices`.*initial=None.*nn.MSELoss"),
            ({"initial": "mse"}, TypeError, r"needs an initial loss.*initial='mse'"),
            (
                {"initial": "mse", "choices": {"l1": nn.L1Loss()}},
                ValueError,
                r"one of \['l1'\], got 'mse'",
            ),
            (
                {"initial": nn.CTCLoss()},
                ValueError,
                r"no list of losses that can replace CTCLoss.*`choices`",
            ),
            ({"choices": {}}, ValueError, "choices"),
        ],
    )
    def test_invalid_arguments_are_refused(
        self, arguments: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            miha.suggest_loss(first_trial(), **arguments)


class TestDropout:
    def test_initial_rate_is_that_of_the_module(self) -> None:
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
    def test_suggested_rate_is_set(self, module: nn.Module) -> None:
        model = nn.Sequential(module)
        miha.suggest_dropout(FixedTrial({"dropout.0": 0.45}), model)
        assert module.p == 0.45

    def test_lower_bound_is_widened_to_the_current_rate(self) -> None:
        trial = first_trial()
        miha.suggest_dropout(trial, nn.Sequential(nn.Dropout(0.1)), low=0.3, high=0.5)
        assert trial.distributions["dropout.0"] == FloatDistribution(0.1, 0.5)
        assert trial.params == {"dropout.0": 0.1}

    @pytest.mark.parametrize(("low", "high"), [(0.5, 0.4), (-0.1, 0.4), (0.0, 1.0)])
    def test_invalid_bounds_are_refused(self, low: float, high: float) -> None:
        with pytest.raises(
            ValueError, match=rf"\[0, 1\) and be ascending, got low={low}, high={high}"
        ):
            miha.suggest_dropout(first_trial(), mlp(), low=low, high=high)


class TestLabelSmoothing:
    @pytest.mark.parametrize(("initial", "high", "upper"), [(0.0, 0.3, 0.3), (0.4, 0.3, 0.4)])
    def test_initial_value_is_suggested_first(
        self, initial: float, high: float, upper: float
    ) -> None:
        trial = first_trial()
        assert miha.suggest_label_smoothing(trial, initial=initial, high=high) == initial
        assert trial.distributions["label_smoothing"] == FloatDistribution(0.0, upper)

    @pytest.mark.parametrize("arguments", [{"initial": -0.1}, {"high": 1.1}])
    def test_values_out_of_range_are_refused(self, arguments: dict[str, float]) -> None:
        name, value = next(iter(arguments.items()))
        with pytest.raises(ValueError, match=rf"lie in \[0, 1\].*{name}={value}"):
            miha.suggest_label_smoothing(first_trial(), **arguments)


def suggest_all(trial: Any) -> dict[str, Any]:
    """Make all suggestions, and return the resulting settings."""
    model = mlp()
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
def test_any_sampler_can_be_used_and_a_fixed_trial_repeats_its_values(
    sampler: Callable[[], optuna.samplers.BaseSampler],
) -> None:
    study = optuna.create_study(sampler=sampler())
    outcomes = []
    for number in range(8):
        trial = study.ask()
        outcomes.append(suggest_all(trial))
        study.tell(trial, float(number))
    assert len({str(outcome) for outcome in outcomes}) > 4
    for trial, outcome in zip(study.trials, outcomes, strict=True):
        assert suggest_all(FixedTrial(trial.params)) == outcome


def test_initial_values_are_kept_among_suggestions_of_the_user() -> None:
    trial = first_trial()
    width = trial.suggest_int("width", 2, 8)
    assert miha.suggest_batch_size(trial, initial=48) == 48
    depth = trial.suggest_int("depth", 1, 3)
    assert (width, depth) == (5, 2)
