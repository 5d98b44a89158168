"""Training the same `model_fn` with plain Optuna."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
import torch
from helpers.networks import network, recipe
from optuna.trial import TrialState

import optuna_miha as miha
from optuna_miha import Recipe
from optuna_miha._training.compute import intra_op_threads
from optuna_miha._training.trainer import train


def model_fn(trial: Any, **changes: Any) -> Recipe:
    model = network()
    miha.suggest_activations(trial, model)
    optimizer = miha.suggest_optimizer(trial, model.parameters())
    batch_size = miha.suggest_batch_size(trial, low=4)
    return recipe(model=model, optimizer=optimizer, batch_size=batch_size, **changes)


GOOD = {"activation.2": "relu", "optimizer": "adam", "lr": 0.03, "weight_decay": 0.0}
GOOD |= {"batch_size": 8}
STUCK = GOOD | {"optimizer": "sgd", "momentum": 0.0, "lr": 1e-5}


def tpe_study(**settings: Any) -> optuna.Study:
    defaults = {
        "sampler": optuna.samplers.TPESampler(seed=0, n_startup_trials=2),
        "pruner": optuna.pruners.MedianPruner(n_startup_trials=1, n_warmup_steps=2),
    }
    return optuna.create_study(**(defaults | settings))


def test_objective_reports_every_epoch_and_returns_the_best_value() -> None:
    study = tpe_study(pruner=optuna.pruners.NopPruner())
    study.optimize(miha.plain_objective(model_fn, n_epochs=3), n_trials=5)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 5
    for trial in study.trials:
        assert list(trial.intermediate_values) == [1, 2, 3]
        assert trial.value == min(trial.intermediate_values.values())
        assert trial.params.keys() >= {"activation.2", "optimizer", "lr", "batch_size"}
    assert len({str(trial.params) for trial in study.trials}) == 5


def test_hopeless_trials_are_pruned() -> None:
    study = tpe_study()
    study.enqueue_trial(GOOD)
    study.enqueue_trial(STUCK)
    study.optimize(miha.plain_objective(model_fn, n_epochs=6), n_trials=2)
    good, stuck = study.trials
    assert good.state == TrialState.COMPLETE
    assert stuck.state == TrialState.PRUNED
    assert len(good.intermediate_values) == 6
    assert 0 < len(stuck.intermediate_values) < 6
    assert study.best_trial.number == good.number


def test_trial_trains_from_scratch_with_the_given_seed() -> None:
    study = tpe_study()
    for _ in range(2):
        study.enqueue_trial(GOOD)
    study.optimize(miha.plain_objective(model_fn, n_epochs=4, seed=3), n_trials=1)
    torch.rand(5)
    study.optimize(miha.plain_objective(model_fn, n_epochs=4, seed=3), n_trials=1)
    one, other = study.trials
    assert one.intermediate_values == other.intermediate_values

    torch.manual_seed(3)
    expected = model_fn(optuna.trial.FixedTrial(GOOD))
    torch.manual_seed(3)
    with intra_op_threads(1):
        values = [result.value for result in train(expected, 4)]
    assert list(one.intermediate_values.values()) == values


def test_accuracy_can_be_maximized() -> None:
    study = tpe_study(direction="maximize", pruner=optuna.pruners.NopPruner())
    objective = miha.plain_objective(lambda trial: model_fn(trial, monitor="accuracy"), n_epochs=4)
    study.enqueue_trial(GOOD)
    study.optimize(objective, n_trials=1)
    [trial] = study.trials
    assert trial.value == max(trial.intermediate_values.values())
    assert 0 < trial.value <= 1


def test_recipe_without_suggestions_gets_the_default_search_space() -> None:
    study = tpe_study()
    study.optimize(miha.plain_objective(lambda trial: recipe(), n_epochs=1), n_trials=2)
    names = {"activation.2", "dropout.3", "optimizer", "lr", "weight_decay", "batch_size"}
    assert all(trial.params.keys() >= names for trial in study.trials)


@pytest.mark.parametrize(
    ("monitor", "direction", "right"),
    [("loss", "maximize", "minimize"), ("accuracy", "minimize", "maximize")],
)
def test_study_with_the_wrong_direction_is_rejected(
    monitor: str, direction: str, right: str
) -> None:
    study = tpe_study(direction=direction)
    objective = miha.plain_objective(lambda trial: model_fn(trial, monitor=monitor), n_epochs=1)
    with pytest.raises(ValueError) as caught:
        study.optimize(objective, n_trials=1)
    message = str(caught.value)
    assert f"must {right} the monitored {monitor!r}" in message
    assert f'direction="{direction}"' in message
    assert f'direction="{right}"' in message


def test_custom_metric_may_have_any_direction() -> None:
    metrics = {"mine": lambda outputs, targets: float(outputs.mean())}
    for direction in ("minimize", "maximize"):
        study = tpe_study(direction=direction)
        study.optimize(
            miha.plain_objective(
                lambda trial: model_fn(trial, metrics=metrics, monitor="mine"), n_epochs=1
            ),
            n_trials=1,
        )
        assert study.trials[0].state == TrialState.COMPLETE


@pytest.mark.parametrize("n_epochs", [0, -3])
def test_non_positive_number_of_epochs_is_rejected(n_epochs: int) -> None:
    with pytest.raises(ValueError, match=f"`n_epochs` must be at least 1, got {n_epochs}"):
        miha.plain_objective(model_fn, n_epochs=n_epochs)


def test_random_state_and_number_of_threads_are_restored() -> None:
    n_threads, rng = torch.get_num_threads(), torch.get_rng_state()
    study = tpe_study()
    study.optimize(miha.plain_objective(model_fn, n_epochs=1), n_trials=1)
    assert torch.get_num_threads() == n_threads
    assert torch.equal(torch.get_rng_state(), rng)


def test_trial_without_a_finite_value_fails() -> None:
    def nan_loss(outputs: Any, targets: Any) -> Any:
        return (outputs * float("nan")).sum()

    study = tpe_study()
    objective = miha.plain_objective(lambda trial: model_fn(trial, loss_fn=nan_loss), n_epochs=2)
    study.optimize(objective, n_trials=1)
    assert study.trials[0].state != TrialState.COMPLETE
