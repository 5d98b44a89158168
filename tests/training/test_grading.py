"""Branches that validate themselves by a suggested value."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import optuna
import pytest
import torch
from helpers.problems import SHORT, classifier, new_study, run
from optuna.trial import FixedTrial
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import optuna_miha as miha
from optuna_miha._training.data_checks import has_same_targets


class Autoencoder(nn.Module):
    """A network that holds the weight of a term of its loss, and may apply it itself."""

    def __init__(self, beta: float, scale: float = 1.0) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(4, 2), nn.Linear(2, 4)
        self.beta, self.scale = beta, scale

    def forward(self, x: Tensor, with_loss: bool = False) -> Any:
        code = self.encoder(x)
        output = self.scale * self.decoder(code)
        if with_loss:
            return (output - x).pow(2).mean() + self.beta * code.pow(2).mean(), output
        return output, code


def step_with(weight: Any) -> Any:
    def train_step(model: Any, batch: Any, loss_fn: Any) -> Tensor:
        output, code = model(batch[0])
        return (output - batch[0]).pow(2).mean() + weight(model) * code.pow(2).mean()

    return train_step


def own_loss(model: Any, batch: Any, loss_fn: Any) -> Tensor:
    loss: Tensor = model(batch[0], with_loss=True)[0]
    return loss


def vae(train_step: Any = None, *, suggests_scale: bool = False) -> Any:
    def model_fn(trial: Any) -> miha.Recipe:
        beta = trial.suggest_float("beta", 0.1, 10.0)
        scale = trial.suggest_float("scale", 0.5, 2.0) if suggests_scale else 1.0
        step = train_step or step_with(lambda model: beta)
        return replace(classifier(trial), model=Autoencoder(beta, scale), train_step=step)

    return model_fn


@pytest.mark.parametrize("step", [step_with(lambda model: model.beta), own_loss])
def test_weight_of_a_term_in_the_network_is_refused(step: Any) -> None:
    study = new_study()
    with pytest.raises(ValueError, match=r"same weights and outputs when 'beta' changes from"):
        run(study, vae(step), plan=SHORT)
    assert study.user_attrs == {}


def test_weight_of_a_term_in_the_train_step_and_a_value_of_the_network_are_accepted() -> None:
    result = run(new_study(), vae(suggests_scale=True), plan=SHORT)
    assert {"beta", "scale"} <= result.params.keys()


def thresholded(fixed: float | None) -> Any:
    def model_fn(trial: Any) -> miha.Recipe:
        suggested = trial.suggest_float("threshold", 0.1, 0.9)
        threshold = suggested if fixed is None else fixed

        def hits(outputs: Tensor, targets: Tensor) -> Tensor:
            return ((outputs.softmax(1)[:, 0] > threshold) == (targets == 0)).double().mean()

        return replace(classifier(trial), metrics={"hits": hits}, monitor="hits")

    return model_fn


def test_metric_that_depends_on_a_suggested_value_is_refused() -> None:
    study = new_study(direction="maximize")
    with pytest.raises(ValueError, match=r"'hits' for the same outputs when 'threshold' changes"):
        run(study, thresholded(None), plan=SHORT)
    assert study.user_attrs == {}


def test_metric_of_its_own_is_accepted() -> None:
    study = new_study(direction="maximize")
    assert isinstance(study, optuna.Study)
    run(study, thresholded(0.3), plan=SHORT)


def test_metric_that_draws_numbers_is_accepted() -> None:
    def model_fn(trial: Any) -> miha.Recipe:
        noise = torch.Generator().manual_seed(0)
        trial.suggest_float("unused", 0.0, 1.0)
        metric = {"noise": lambda outputs, targets: torch.rand((), generator=noise)}
        return replace(classifier(trial), metrics=metric, monitor="noise")

    run(new_study(), model_fn, plan=SHORT)


def test_metric_of_a_train_step_that_depends_on_a_suggested_value_is_refused() -> None:
    def train_step(model: Any, batch: Any, loss_fn: Any) -> Any:
        outputs = model(batch[0])
        return loss_fn(outputs, batch[1]), outputs, batch[1]

    def model_fn(trial: Any) -> miha.Recipe:
        return replace(thresholded(None)(trial), train_step=train_step)

    study = new_study(direction="maximize")
    with pytest.raises(ValueError, match="when 'threshold' changes"):
        run(study, model_fn, plan=SHORT)
    assert study.user_attrs == {}


class Scaled(Dataset[Any]):
    """Reads single samples, and divides their targets."""

    def __init__(self, data: Any, scale: float) -> None:
        self.data, self.scale = data, scale

    def __len__(self) -> int:
        return len(self.data[0])

    def __getitem__(self, index: int) -> Any:
        return self.data[0][index], self.data[1][index] / self.scale


def regression(change: Any) -> Any:
    """Suggests a value by which ``change`` makes the validation data."""

    def model_fn(trial: Any) -> miha.Recipe:
        x, y = classifier(trial).train_data[:2]  # type: ignore[index]
        data = (x, y[:, None].float())
        model = nn.Linear(4, 1)
        scale = trial.suggest_float("scale", 0.1, 10.0)
        return miha.Recipe(
            model=model,
            loss_fn=nn.MSELoss(),
            optimizer=torch.optim.SGD(model.parameters(), lr=trial.suggest_float("lr", 0.01, 0.1)),
            train_data=data,
            valid_data=change(data, scale),
        )

    return model_fn


@pytest.mark.parametrize(
    "change",
    [
        lambda data, scale: (data[0], data[1] / scale),
        lambda data, scale: DataLoader(Scaled(data, scale), batch_size=8),
        lambda data, scale: (data[0][: round(9 + scale)], data[1][: round(9 + scale)]),
    ],
    ids=["tensors", "loader", "number"],
)
def test_suggested_validation_targets_are_refused(change: Any) -> None:
    study = new_study()
    with pytest.raises(ValueError, match=r"same samples and targets .* when 'scale' changes from"):
        run(study, regression(change), plan=SHORT, initial_params={"scale": 1.0})
    assert not study.trials
    assert study.user_attrs == {}


def test_a_suggested_value_may_change_validation_inputs_and_batches() -> None:
    def change(data: Any, scale: float) -> Any:
        scaled = TensorDataset(data[0] / scale, data[1])
        return DataLoader(scaled, batch_size=round(1 + scale))

    model_fn = regression(change)
    one, other = (model_fn(FixedTrial({"lr": 0.1, "scale": s})) for s in (1.0, 2.0))
    assert has_same_targets(one, other)
