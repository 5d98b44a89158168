"""Checks that every adapter of another package's loop must pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna
import pytest
import torch

import optuna_miha as miha
from helpers.equality import same
from helpers.networks import run_context, succeed
from optuna_miha._search.learning_rate import warmup_cosine

N_SAMPLES = 32
N_STEPS = 4
"""Steps of an epoch: batches of 8."""

INPUTS = torch.randn(N_SAMPLES, 4, generator=torch.Generator().manual_seed(0))
TARGETS = INPUTS[:, :3].argmax(dim=1)


class Watched:
    """A trainer that notes the settings of the first group that are in force in each step."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.steps: list[dict[str, Any]] = []

    def __call__(self, recipe: Any, n_epochs: int, context: Any) -> Any:
        recipe.optimizer.register_step_pre_hook(self._note)  # After the hook that anneals.
        return self.trainer(recipe, n_epochs, context)

    def _note(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        group = optimizer.param_groups[0]
        self.steps.append({"lr": float(group["lr"]), "weight_decay": group["weight_decay"]})


def check_rates(
    model_fn: Any, trainer: Any, params: dict[str, Any], schedule: Callable[[int], float]
) -> None:
    """The rate of each step is the user's times the run's."""
    watched = Watched(trainer)
    context = run_context(model_fn, trainer=watched)
    succeed(context, params=params, n_epochs=6, anneal=True)
    expected = [
        params["lr"] * schedule(step) * warmup_cosine(step // N_STEPS, 6)
        for step in range(6 * N_STEPS)
    ]
    assert [step["lr"] for step in watched.steps] == pytest.approx(expected)
    if "weight_decay" in params:
        assert {step["weight_decay"] for step in watched.steps} == {params["weight_decay"]}


def check_continuation(model_fn: Any, trainer: Any, params: dict[str, Any]) -> None:
    """Training that is interrupted between two epochs ends like that which is not."""
    context = run_context(model_fn, trainer=trainer)
    whole = succeed(context, params=params, n_epochs=3)
    first = succeed(context, params=params, n_epochs=1)
    second = succeed(context, params=params, n_epochs=2, state=first.state)
    assert whole.state is not None and second.state is not None
    for part in ("model", "optimizer", "extra"):
        assert same(whole.state[part], second.state[part]), part
    assert first.results + second.results == whole.results


def check_run(model_fn: Any, trainer: Any, folder: Any) -> None:
    """A run that is stopped after every trial ends like that which is not."""

    def run(name: str, **arguments: Any) -> miha.Result:
        study = optuna.create_study(
            storage=f"sqlite:///{folder}/{name}.db",
            study_name=name,
            sampler=miha.MihaSampler(seed=0),
            load_if_exists=True,
        )
        settings: dict[str, Any] = {"device": "cpu", "show_progress_bar": False}
        return miha.optimize(study, model_fn, n_epochs=24, trainer=trainer, **settings | arguments)

    def stop(study: optuna.Study, trial: Any) -> None:
        study.stop()

    whole = run("whole")
    for _ in range(20):
        parts = run("parts", callbacks=[stop])
        if parts.n_epochs_trained >= 24:
            break
    assert same(dict(whole.model.state_dict()), dict(parts.model.state_dict()))
    assert whole.schedule == parts.schedule
