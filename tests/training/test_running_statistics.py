"""Running statistics of averaged weights: how they are estimated, and what does not change."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.equality import memory_of, same
from helpers.jobs import UNUSED_PARAM
from helpers.networks import recipe, run_context, samples, succeed
from optuna.trial import FixedTrial
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import update_bn

from optuna_miha import EpochResult, Recipe
from optuna_miha._model.model_fn import build_recipe
from optuna_miha._training.compute import DEFAULT_ENGINE, Engine, intra_op_threads
from optuna_miha._training.running_statistics import (
    N_SAMPLES,
    FirstBatches,
    estimate_running_statistics,
    has_running_statistics,
)
from optuna_miha._training.trainer import evaluate, train


def normalized(*more: nn.Module, **settings: Any) -> nn.Sequential:
    """A network with two batch norm layers."""
    return nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6, **settings), *more, nn.Linear(6, 3), nn.BatchNorm1d(3)
    )


def batches(*lengths: int) -> list[Any]:
    """Batches whose mean and variance differ from the initial running statistics."""
    return [(9 + 4 * x, y) for x, y in (samples(n, seed=n) for n in lengths)]


def estimate(model: nn.Module, sample: list[Any], **changes: Any) -> None:
    """Estimate the statistics of ``model`` for a recipe with ``changes``."""
    estimate_running_statistics(recipe(**changes), model, sample, DEFAULT_ENGINE)


def test_estimate_equals_update_bn_of_torch() -> None:
    sample = batches(16, 12, 20)
    model, by_torch = normalized(), normalized()
    by_torch.load_state_dict(model.state_dict())
    estimate(model, sample)
    update_bn(sample, by_torch)
    for layer, other in ((model[1], by_torch[1]), (model[3], by_torch[3])):
        assert torch.equal(layer.running_mean, other.running_mean)
        assert torch.equal(layer.running_var, other.running_var)


@pytest.mark.parametrize("momentum", [0.1, 0.5, None])
def test_only_statistics_change(momentum: float | None) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("n", torch.tensor(0))
            self.register_buffer("mask", torch.tensor(float("-inf")))

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.n += 1
            return x + torch.rand(())

    linear = parametrizations.spectral_norm(nn.Linear(6, 6))
    model = normalized(linear, nn.Dropout(0.5), Counting(), momentum=momentum)
    model(torch.randn(8, 4))  # Makes the number of tracked batches 1.
    built = recipe()
    before, random_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    estimate_running_statistics(built, model, batches(16, 16), DEFAULT_ENGINE)
    assert torch.equal(torch.get_rng_state(), random_state)
    after = model.state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {f"{i}.running_{name}" for i in (1, 6) for name in ("mean", "var")}
    assert (model[1].momentum, model[6].momentum) == (momentum, 0.1)
    assert all(module.training for module in model.modules())


class Frozen(nn.Sequential):
    """A network whose first batch norm layer stays in evaluation mode."""

    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        self[1].eval()
        return self


def frozen() -> nn.Module:
    return Frozen(*normalized())


def without_momentum() -> nn.Module:
    return normalized(momentum=0.0)


def untracked_later() -> nn.Module:
    model = normalized()
    model[1].track_running_stats = False
    return model


@pytest.mark.parametrize("build", [frozen, without_momentum, untracked_later])
def test_frozen_statistics_are_kept(build: Callable[[], Any]) -> None:
    model = build()
    model[1].running_mean.fill_(3.0)
    before = copy.deepcopy(model[1].state_dict())
    others = copy.deepcopy(model[3].state_dict())
    estimate(model, batches(16))
    assert same(model[1].state_dict(), before)
    assert not torch.equal(model[3].running_mean, others["running_mean"])


def test_both_uses_of_a_shared_layer_count() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x) + self.norm(x + 2)

    model = Twice()
    (batch,) = batches(16)
    expected = batch[0].mean(0) + 1
    estimate(model, [batch])
    assert torch.allclose(model.norm.running_mean, expected)


def test_train_step_passes_batches_through_the_network() -> None:
    def step(model: nn.Module, batch: Any, loss_fn: Any) -> Tensor:
        return loss_fn(model(batch["x"]), batch["y"])

    stepped, plain = normalized(), normalized()
    plain.load_state_dict(stepped.state_dict())
    sample = batches(16, 16)
    estimate(stepped, [{"x": x, "y": y} for x, y in sample], train_step=step)
    estimate(plain, sample)
    assert same(stepped.state_dict(), plain.state_dict())


def test_statistics_are_estimated_in_the_precision_of_training() -> None:
    seen: list[torch.dtype] = []
    model = normalized()
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    engine = Engine(precision="bf16")
    estimate_running_statistics(recipe(), model, batches(16), engine)
    assert seen == [torch.bfloat16]
    assert model[1].running_mean.dtype == torch.float32


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.BatchNorm1d(4), True),
        (nn.BatchNorm3d(4), True),
        (nn.BatchNorm1d(4, track_running_stats=False), False),
        (nn.LayerNorm(4), False),
        (nn.GroupNorm(2, 4), False),
        (parametrizations.spectral_norm(nn.Linear(4, 4)), False),
    ],
)
def test_only_tracking_batch_norm_has_running_statistics(layer: nn.Module, expected: bool) -> None:
    assert has_running_statistics(nn.Sequential(nn.Linear(4, 4), layer)) is expected


def test_batches_are_copied_until_there_are_enough_samples() -> None:
    first = FirstBatches()
    length = N_SAMPLES // 2
    given = batches(length, length + 1, length + 2)
    for batch in given:
        first.add(batch)
    kept = first.take()
    assert same(kept, given[:2])
    assert not memory_of(kept) & memory_of(given)
    assert first.take() == []


def test_short_last_batch_is_left_out() -> None:
    first = FirstBatches()
    given = batches(16, 8, 7)
    for batch in given:
        first.add(batch)
    assert same(first.take(), given[:2])


def shifted(shift: float = 0.0) -> Callable[[Any], Recipe]:
    """A ``model_fn`` of a network that normalizes its inputs, which have a mean of ``shift``."""

    def model_fn(trial: Any) -> Recipe:
        trial.suggest_float("unused", 0.0, 1.0)
        model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU())
        model += nn.Sequential(nn.Linear(16, 3))
        (x, y), (x_valid, y_valid) = samples(96), samples(48, seed=1)
        built = recipe(
            model=model,
            batch_size=16,
            train_data=(x + shift, y),
            valid_data=(x_valid + shift, y_valid),
        )
        built.optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        return built

    return model_fn


def test_average_is_validated_with_its_own_statistics() -> None:
    n_epochs = 3
    outcome = succeed(run_context(shifted()), params=UNUSED_PARAM, n_epochs=n_epochs)
    with intra_op_threads(1):
        built = build_recipe(shifted(), FixedTrial(UNUSED_PARAM), seed=0)
        torch.manual_seed(0)
        mean: dict[str, Tensor] = {}
        seen: list[Any] = []
        for epoch, _ in enumerate(train(built, n_epochs, on_batch=seen.append)):
            weights = {k: v.detach().clone() for k, v in built.model.named_parameters()}
            mean = {k: torch.lerp(mean.get(k, v), v, 0.4) for k, v in weights.items()}
            by_hand = copy.deepcopy(built)
            by_hand.model.load_state_dict(mean, strict=False)
            update_bn(seen, by_hand.model)
            seen.clear()
            value = evaluate(by_hand, by_hand.model)["loss"]
            assert value == pytest.approx(outcome.results[epoch].ema_value, rel=1e-5)
    kept = outcome.state["ema"]["module.2.running_var"]
    assert torch.allclose(kept, by_hand.model[2].running_var)
    assert not torch.allclose(kept, outcome.state["model"]["2.running_var"])

    best = outcome.state["best"]
    built.model.load_state_dict(best["weights"])
    with intra_op_threads(1):
        assert evaluate(built, built.model)["loss"] == best["value"]


def test_average_does_not_depend_on_the_mean_of_the_inputs() -> None:
    def values(shift: float) -> list[EpochResult]:
        return list(succeed(run_context(shifted(shift)), params=UNUSED_PARAM, n_epochs=3).results)

    for far, near in zip(values(50.0), values(0.0), strict=True):
        assert far.ema_value == pytest.approx(near.ema_value, rel=0.02)
        # The running statistics of the network still depend on their initial values.
        assert far.value > 2 * near.value


def test_inherited_statistics_are_replaced_after_an_epoch() -> None:
    context = run_context(shifted())
    parent = succeed(context, params=UNUSED_PARAM, n_epochs=2).state
    older = copy.deepcopy(parent)  # As in checkpoints of versions that copied the buffers.
    for name in parent["ema"]:
        if "running" in name:
            older["ema"][name] = parent["model"][name.removeprefix("module.")].clone()
    assert not same(older["ema"], parent["ema"])
    heirs = [
        succeed(context, state=state, params=UNUSED_PARAM, n_epochs=1) for state in (parent, older)
    ]
    assert heirs[0].results == heirs[1].results
    assert same(heirs[0].state["ema"], heirs[1].state["ema"])


def test_batches_are_copied_before_the_network_changes_them() -> None:
    class Centre(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sub_(50.0)

    def in_place(trial: Any) -> Recipe:
        built = shifted(50.0)(trial)
        built.model.insert(0, Centre())
        return built

    def values(model_fn: Callable[[Any], Recipe]) -> list[float | None]:
        return [
            r.ema_value
            for r in succeed(run_context(model_fn), params=UNUSED_PARAM, n_epochs=2).results
        ]

    assert values(in_place) == pytest.approx(values(shifted()), rel=1e-3)
