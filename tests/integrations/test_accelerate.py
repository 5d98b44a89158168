"""Accelerate's loop as a trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.adapters import INPUTS, TARGETS, check_continuation, check_rates, check_run
from helpers.networks import network, run_context, succeed
from torch import nn
from torch.optim.lr_scheduler import LinearLR

import optuna_miha as miha
from optuna_miha.integrations.accelerate import AccelerateTrainer

accelerate = pytest.importorskip("accelerate")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*:UserWarning"),
]


def make_accelerator(**options: Any) -> Any:
    return accelerate.Accelerator(cpu=True, **options)


TRAINER = AccelerateTrainer(make_accelerator, max_grad_norm=1.0)


def recipe(trial: Any, **changes: Any) -> miha.Recipe:
    model = network()
    lr = trial.suggest_float("lr", 1e-3, 1.0, log=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    settings: dict[str, Any] = {
        "loss_fn": nn.CrossEntropyLoss(),
        "train_data": (INPUTS, TARGETS),
        "valid_data": (INPUTS, TARGETS),
        "batch_size": 8,
        "extra_state": {"warm-up": LinearLR(optimizer, total_iters=8)},
    }
    return miha.Recipe(model=model, optimizer=optimizer, **(settings | changes))


def test_rates_of_scheduler_and_annealing_are_in_force_in_every_step() -> None:
    check_rates(recipe, TRAINER, {"lr": 0.2}, lambda step: 1 / 3 + 2 / 3 * min(1, step / 8))


def test_an_interrupted_training_continues_bit_for_bit() -> None:
    check_continuation(recipe, TRAINER, {"lr": 0.2})


def test_a_resumed_run_ends_like_a_whole_one(tmp_path: Path) -> None:
    check_run(recipe, TRAINER, tmp_path)


def test_gradients_are_accumulated_and_clipped() -> None:
    """Two batches of 8 samples train like one of 16."""
    states = []
    for n_steps, batch_size in ((1, 16), (2, 8)):
        trainer = AccelerateTrainer(
            lambda n=n_steps: make_accelerator(gradient_accumulation_steps=n), max_grad_norm=0.1
        )

        def model_fn(trial: Any, batch_size: int = batch_size) -> miha.Recipe:
            made = recipe(trial, batch_size=batch_size, extra_state={})
            made.model = nn.Linear(4, 3)
            made.optimizer = torch.optim.SGD(made.model.parameters(), lr=trial.params["lr"])
            return made

        context = run_context(model_fn, trainer=trainer)
        states.append(succeed(context, params={"lr": 0.5}, n_epochs=1).state)
    one, two = states
    assert one is not None and two is not None
    for name, weight in one["model"].items():
        assert torch.allclose(weight, two["model"][name], atol=1e-6)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="`max_grad_norm` must be positive, got 0"):
        AccelerateTrainer(max_grad_norm=0)
    with pytest.raises(ValueError, match="must have `loss_fn`, got none"):
        TRAINER.check(miha.Recipe(model=nn.Linear(1, 1)))
