"""A skorch net as a trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.adapters import INPUTS, TARGETS, check_continuation, check_rates, check_run
from helpers.networks import network, run_context, succeed
from torch import nn

from optuna_miha.integrations.skorch import SkorchTrainer

skorch = pytest.importorskip("skorch")
pytest.importorskip("skorch.helper")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*:UserWarning"),
]

TRAINER = SkorchTrainer()


def recipe(trial: Any) -> Any:
    scheduler = skorch.callbacks.LRScheduler("StepLR", step_size=2, gamma=0.5)
    samples = skorch.dataset.Dataset(INPUTS, TARGETS)
    net = skorch.NeuralNetClassifier(
        network(),
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.SGD,
        optimizer__momentum=0.9,
        lr=trial.suggest_float("lr", 1e-3, 1.0, log=True),
        batch_size=8,
        iterator_train__shuffle=True,
        train_split=skorch.helper.predefined_split(samples),
        callbacks=[("schedule", scheduler)],
        verbose=0,
        classes=[0, 1, 2],
    )
    return TRAINER.recipe(net, INPUTS, TARGETS)


def test_rates_of_scheduler_and_annealing_are_in_force_in_every_step() -> None:
    check_rates(recipe, TRAINER, {"lr": 0.2}, lambda step: 0.5 ** (step // 8))


def test_an_interrupted_training_continues_bit_for_bit() -> None:
    check_continuation(recipe, TRAINER, {"lr": 0.2})


def test_a_resumed_run_ends_like_a_whole_one(tmp_path: Path) -> None:
    check_run(recipe, TRAINER, tmp_path)


def test_results_are_those_of_the_history() -> None:
    context = run_context(recipe, trainer=TRAINER)
    [result] = succeed(context, params={"lr": 0.1}, n_epochs=1).results
    assert result.train_loss > 0 and "valid_acc" in result.metrics


def test_only_a_net_of_skorch_is_accepted() -> None:
    with pytest.raises(TypeError, match=r"must be a skorch\.NeuralNet, got Linear"):
        TRAINER.recipe(nn.Linear(1, 1), INPUTS)
