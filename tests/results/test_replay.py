"""Training along a schedule reproduces the run that found it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from helpers.equality import same
from helpers.problems import blobs, classifier, explicit, new_study, run, weights
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import optuna_miha as miha
from optuna_miha.exceptions import MihaError

ROUNDS = miha.Plan(40, restarts=False)


def with_loader(trial: Any) -> miha.Recipe:
    """Data from a ``DataLoader``, with accuracy as the monitored value."""
    recipe = explicit(trial)
    return miha.Recipe(
        model=recipe.model,
        loss_fn=recipe.loss_fn,
        optimizer=recipe.optimizer,
        train_data=DataLoader(TensorDataset(*blobs(60)), batch_size=16, shuffle=True),
        valid_data=recipe.valid_data,
        batch_size=recipe.batch_size,
        monitor="accuracy",
    )


def custom_trainer(recipe: miha.Recipe, n_epochs: int) -> Iterator[miha.EpochResult]:
    """Trains with batches of 20."""
    assert recipe.optimizer is not None and recipe.valid_loss_fn is not None
    (x, y), (valid_x, valid_y) = blobs(60), blobs(30, seed=1)
    for _ in range(n_epochs):
        recipe.model.train()
        for rows in torch.randperm(60).split(20):
            recipe.optimizer.zero_grad()
            recipe.loss_fn(recipe.model(x[rows]), y[rows]).backward()
            recipe.optimizer.step()
        recipe.model.eval()
        with torch.no_grad():
            yield miha.EpochResult(
                value=float(recipe.valid_loss_fn(recipe.model(valid_x), valid_y))
            )


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_with_the_seed_of_the_run_the_model_is_bit_identical(seed: int) -> None:
    result = run(new_study(seed=seed), device="cpu")
    replayed = miha.replay(result.schedule, classifier, device="cpu")
    assert same(weights(result), dict(replayed.model.state_dict()))
    assert replayed.value == result.value
    assert replayed.params == result.params
    assert replayed.best_epoch == result.schedule[-1]["to_epoch"]


def with_stream(trial: Any) -> miha.Recipe:
    """A stream that does not know its length."""
    recipe = explicit(trial)
    recipe.train_data = DataLoader(Stream(), batch_size=16)
    return recipe


class Stream(IterableDataset[Any]):
    """The training samples, one by one."""

    def __iter__(self) -> Iterator[Any]:
        x, y = blobs(60)
        return iter([(x[i], y[i]) for i in torch.randperm(60)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_fn", "direction", "settings"),
    [
        (with_loader, "maximize", {}),
        (with_stream, "minimize", {"plan": ROUNDS}),
        (with_loader, "maximize", {"plan": ROUNDS}),
        (explicit, "minimize", {"trainer": custom_trainer, "plan": ROUNDS}),
        (explicit, "minimize", {"trainer": custom_trainer}),
        (explicit, "minimize", {"precision": "bf16"}),
    ],
    ids=[
        "loader",
        "stream in rounds",
        "loader in rounds",
        "trainer in rounds",
        "trainer",
        "bf16",
    ],
)
def test_loaders_trainers_and_precision_are_reproduced(
    model_fn: Any, direction: str, settings: dict[str, Any]
) -> None:
    study = new_study(direction=direction)
    result = run(study, model_fn, device="cpu", **settings)
    options = {name: value for name, value in settings.items() if name != "plan"}
    replayed = miha.replay(result.schedule, model_fn, device="cpu", **options)
    assert same(weights(result), dict(replayed.model.state_dict()))
    assert replayed.value == result.value


def test_crossover_and_a_constant_learning_rate_are_reproduced() -> None:
    plan = miha.Plan.classic(
        runup_epochs=4, n_cycles=3, population_size=3, branch_epochs=2, fixing_epochs=2
    )
    result = run(new_study(), plan=plan, crossover=miha.UniformCrossover(), device="cpu")
    assert all("anneal_to" not in row for row in result.schedule)
    replayed = miha.replay(result.schedule, classifier, ema_decay=0.0, device="cpu")
    assert same(weights(result), dict(replayed.model.state_dict()))


def test_splitting_a_row_does_not_change_training() -> None:
    params = {"lr": 0.01, "batch_size": 16, "optimizer": "adam", "weight_decay": 0.0}
    activation = {"activation.2": "relu"}
    one = [{"from_epoch": 0, "to_epoch": 6, **params, **activation}]
    two = [one[0] | {"to_epoch": 2}, one[0] | {"from_epoch": 2}]
    whole, parts = (miha.replay(rows, explicit, device="cpu") for rows in (one, two))
    assert whole.results == parts.results


@pytest.mark.slow
def test_another_seed_gives_another_network_and_is_logged(
    log: pytest.LogCaptureFixture,
) -> None:
    log.set_level("INFO", logger="optuna.miha")
    result = run(new_study(), device="cpu")
    miha.replay(result.schedule, classifier, seed=0, device="cpu")
    without_seed = [{k: v for k, v in r.items() if k != "run_seed"} for r in result.schedule]
    miha.replay(without_seed, classifier, seed=5, device="cpu")
    assert not [line for line in log.messages if "This replay" in line]
    replayed = miha.replay(result.schedule, classifier, seed=5, device="cpu")
    assert not same(weights(result), dict(replayed.model.state_dict()))
    assert 0 < replayed.value < 2 * result.value
    [line] = [line for line in log.messages if "This replay" in line]
    assert "seed 5" in line and "seed 0" in line


@pytest.mark.slow
@pytest.mark.parametrize("name", ["json", "csv"])
def test_a_schedule_from_a_file_is_replayed(name: str, tmp_path: Path) -> None:
    result = run(new_study(seed=3), device="cpu")
    getattr(result.schedule, f"to_{name}")(tmp_path / "schedule")
    schedule = getattr(miha.Schedule, f"from_{name}")(tmp_path / "schedule")
    replayed = miha.replay(schedule, classifier, device="cpu")
    assert same(weights(result), dict(replayed.model.state_dict()))


@pytest.mark.slow
def test_a_schedule_without_a_seed_is_replayed_with_seed_0() -> None:
    result = run(new_study(), device="cpu")
    rows = [{k: v for k, v in row.items() if k != "run_seed"} for row in result.schedule]
    replayed = miha.replay(rows, classifier, device="cpu")
    assert same(weights(result), dict(replayed.model.state_dict()))


def test_the_learning_rate_rises_and_falls_to_zero_over_the_whole_row() -> None:
    rates = []

    class RecordingSGD(torch.optim.SGD):
        """Records the learning rate of every step."""

        def step(self, closure: Any = None) -> None:
            rates.append(self.param_groups[0]["lr"])
            super().step(closure)

    def trainer(recipe: miha.Recipe, n_epochs: int) -> Iterator[miha.EpochResult]:
        assert recipe.optimizer is not None
        for _ in range(n_epochs):
            recipe.optimizer.step()
            yield miha.EpochResult(value=1.0)

    def model_fn(trial: Any) -> miha.Recipe:
        recipe = classifier(trial)
        lr = trial.suggest_float("lr", 1e-3, 1.0)
        recipe.optimizer = RecordingSGD(recipe.model.parameters(), lr)
        return recipe

    rows = [
        {"from_epoch": 0, "to_epoch": 2, "lr": 0.1},
        {"from_epoch": 2, "to_epoch": 3, "lr": 0.2, "anneal_to": 7},
    ]
    replayed = miha.replay(rows, model_fn, trainer=trainer, device="cpu")
    falling = [0.2, 0.1 * (1 + math.sqrt(0.5)), 0.1, 0.1 * (1 - math.sqrt(0.5))]
    assert rates == pytest.approx([0.1, 0.1, 0.2 / 3, *falling])
    assert len(replayed.results) == 7
    assert replayed.best_epoch == 3


def test_an_error_names_the_row_that_failed() -> None:
    rows = [{"from_epoch": 0, "to_epoch": 2, "lr": 0.01}]
    with pytest.raises(MihaError, match=r"Row 0 of the schedule \(epochs 0 to 2\) failed") as info:
        miha.replay(rows, explicit, device="cpu")
    assert isinstance(info.value.__cause__, ValueError)


def test_a_custom_metric_needs_a_direction() -> None:
    def model_fn(trial: Any) -> miha.Recipe:
        recipe = classifier(trial)
        recipe.metrics, recipe.monitor = {"spread": lambda o, t: o.std()}, "spread"
        trial.suggest_float("unused", 0.0, 1.0)
        return recipe

    rows = [{"from_epoch": 0, "to_epoch": 3, "unused": 0.5}]
    with pytest.raises(ValueError, match="`direction` must be given"):
        miha.replay(rows, model_fn, device="cpu")
    low = miha.replay(rows, model_fn, direction="minimize", device="cpu")
    high = miha.replay(rows, model_fn, direction="maximize", device="cpu")
    assert low.value < high.value


def test_rows_with_a_gap_are_refused() -> None:
    with pytest.raises(ValueError, match="must begin at epoch 0"):
        miha.replay([{"from_epoch": 1, "to_epoch": 2}], explicit)


@pytest.mark.slow
def test_random_generators_and_the_study_are_unchanged() -> None:
    study = new_study()
    result = run(study, device="cpu")
    n_trials = len(study.trials)
    before = torch.get_rng_state()
    miha.replay(result.schedule, classifier, device="cpu")
    assert torch.equal(before, torch.get_rng_state())
    assert len(study.trials) == n_trials
    assert study.direction == optuna.study.StudyDirection.MINIMIZE


@pytest.mark.slow
def test_a_replay_is_saved_and_exported_like_a_result(tmp_path: Path) -> None:
    result = run(new_study(), device="cpu")
    replayed = miha.replay(result.schedule, classifier, device="cpu")
    replayed.save(tmp_path / "model.pt")
    saved = torch.load(tmp_path / "model.pt", weights_only=True)
    assert saved["schedule"] == list(result.schedule)
    replayed.export(tmp_path / "model.pt2", blobs(2)[0])
    program = torch.export.load(tmp_path / "model.pt2").module()
    x, _ = blobs(7, seed=2)
    assert torch.allclose(program(x), replayed.model(x), atol=1e-6)
