"""Training on an accelerator; with ``MIHA_TEST_DEVICE=cpu``, the same tests run on the CPU."""

from __future__ import annotations

import os
from typing import Any

import optuna
import pytest
import torch
from helpers.equality import same
from helpers.networks import network, run_context, samples, succeed
from torch import nn

import optuna_miha as miha
from optuna_miha._model.tensors import map_tensors
from optuna_miha._search.learning_rate import warmup_cosine

NAME = os.environ.get("MIHA_TEST_DEVICE")
FOUND = torch.accelerator.current_accelerator(check_available=True)
DEVICE = torch.device(NAME) if NAME else FOUND

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(DEVICE is None, reason="there is no accelerator"),
]


def model_fn(trial: Any, optimizer: Any = torch.optim.AdamW) -> miha.Recipe:
    model = network()  # With dropout, which draws from the generator of the device.
    lr = trial.suggest_float("lr", 1e-3, 1e-1, log=True)
    data = {"train_data": samples(24, seed=0), "valid_data": samples(16, seed=1)}
    return miha.Recipe(
        model=model,
        loss_fn=nn.CrossEntropyLoss(),
        optimizer=optimizer(model.parameters(), lr=lr),
        batch_size=8,
        **data,
    )


def on_device(**changes: Any) -> Any:
    assert DEVICE is not None
    return run_context(model_fn, devices=(DEVICE,), **changes)


def test_an_interrupted_training_continues_bit_for_bit() -> None:
    """From a checkpoint in main memory: weights, average, moments and random state."""
    context, params = on_device(), {"lr": 0.01}
    whole = succeed(context, params=params, n_epochs=4)
    first = succeed(context, params=params, n_epochs=2)
    stored = map_tensors(first.state, torch.Tensor.cpu)
    second = succeed(context, params=params, n_epochs=2, state=stored)
    assert whole.state is not None and second.state is not None
    for part in ("model", "ema", "optimizer", "rng", "best"):
        assert same(
            map_tensors(whole.state[part], torch.Tensor.cpu),
            map_tensors(second.state[part], torch.Tensor.cpu),
        ), part


def test_siblings_inherit_the_same_state_and_do_not_share_it() -> None:
    context = on_device()
    state = succeed(context, params={"lr": 0.01}, n_epochs=1).state
    branches = [
        succeed(context, params={"lr": lr}, n_epochs=1, state=state) for lr in (0.01, 0.05)
    ]
    again = succeed(context, params={"lr": 0.01}, n_epochs=1, state=state)
    assert branches[0].results == again.results
    assert branches[0].results != branches[1].results


def test_annealing_is_in_force_on_the_device() -> None:
    moved: list[torch.Tensor] = []

    def trainer(recipe: miha.Recipe, n_epochs: int) -> Any:
        [weight] = [p for p in recipe.model.parameters() if p.shape == (6, 4)]
        for _ in range(n_epochs):
            before = weight.detach().clone()
            for parameter in recipe.model.parameters():
                parameter.grad = torch.ones_like(parameter)
            recipe.optimizer.step()  # type: ignore[union-attr]
            moved.append((before - weight.detach()).mean().cpu())
            yield miha.EpochResult(value=1.0)

    def with_sgd(trial: Any) -> miha.Recipe:
        return model_fn(trial, torch.optim.SGD)

    assert DEVICE is not None
    context = run_context(with_sgd, trainer=trainer, devices=(DEVICE,))
    succeed(context, params={"lr": 0.1}, n_epochs=6, anneal=True)
    expected = [0.1 * warmup_cosine(epoch, 6) for epoch in range(6)]
    assert [float(step) for step in moved] == pytest.approx(expected, rel=1e-4)


def test_random_state_of_the_device_is_left_as_it_was() -> None:
    assert DEVICE is not None
    torch.rand(1, device=DEVICE)
    module = torch if DEVICE.type == "cpu" else torch.get_device_module(DEVICE)
    before = module.get_rng_state()
    succeed(on_device(), params={"lr": 0.01}, n_epochs=1)
    assert torch.equal(module.get_rng_state(), before)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_run_in_low_precision_finishes(precision: Any) -> None:
    study = optuna.create_study(sampler=miha.MihaSampler(seed=0))
    settings: dict[str, Any] = {"device": DEVICE, "show_progress_bar": False}
    result = miha.optimize(study, model_fn, n_epochs=24, precision=precision, **settings)
    assert next(result.model.parameters()).device.type == DEVICE.type  # type: ignore[union-attr]
    assert result.value < 1.2
