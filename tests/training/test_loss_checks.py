"""Losses and metrics that broadcast, and a `train_step` that uses another network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.networks import run_context
from helpers.problems import blobs, classifier, new_study, run
from torch import nn
from torch.nn import functional as F

import optuna_miha as miha
from optuna_miha._training.loss_checks import check_broadcasting, check_valid_loss

BROADCASTING: dict[str, Any] = {
    "F.mse_loss": F.mse_loss,
    "F.l1_loss": F.l1_loss,
    "nn.PoissonNLLLoss": nn.PoissonNLLLoss(),
    "written out": lambda o, y: ((o - y) ** 2).mean(),
    "sum": lambda o, y: (o - y).abs().sum(),
    "root": lambda o, y: ((o - y) ** 2).mean().sqrt(),
    "number": lambda o, y: float((o - y).abs().mean()),
}

OUTPUT, TARGET = torch.rand(8, 1), torch.arange(8.0)


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("name", BROADCASTING)
def test_broadcasting_is_refused(name: str, swapped: bool) -> None:
    output, target = (OUTPUT[:, 0], TARGET[:, None]) if swapped else (OUTPUT, TARGET)
    with pytest.raises(ValueError, match=r"`f` compares elementwise .* reshape the targets"):
        check_broadcasting("f", BROADCASTING[name], output, target)


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_broadcasting_of_images_and_of_constant_outputs_is_refused() -> None:
    for output, target in (
        (torch.zeros(4, 1, 5, 5), torch.rand(4, 5, 5)),
        (torch.zeros(8, 1), TARGET),
    ):
        with pytest.raises(ValueError, match="compares elementwise"):
            check_broadcasting("f", F.mse_loss, output, target)


ACCEPTED: dict[str, tuple[Any, Any, Any]] = {
    "squeezed": (lambda o, y: F.mse_loss(o.squeeze(1), y), OUTPUT, TARGET),
    "reshaped": (lambda o, y: F.mse_loss(o, y.view_as(o)), OUTPUT, TARGET),
    "classes": (nn.CrossEntropyLoss(), torch.rand(8, 3), torch.arange(8) % 3),
    "as many classes as samples": (nn.CrossEntropyLoss(), torch.rand(8, 8), torch.arange(8)),
    "one class": (nn.CrossEntropyLoss(), OUTPUT, torch.zeros(8, dtype=torch.long)),
    "one target for all outputs": (F.mse_loss, torch.rand(8, 3), TARGET[:, None]),
    "one sample": (F.mse_loss, torch.rand(1, 1), torch.ones(1)),
    "segmentation": (
        nn.CrossEntropyLoss(),
        torch.rand(4, 2, 5, 5),
        torch.randint(2, (4, 5, 5)),
    ),
    "targets that are alike": (lambda o, y: o.mean(), OUTPUT, torch.ones(8)),
    "a loss without targets": (lambda o, y: o.square().mean(), OUTPUT, TARGET),
    "a structure": (lambda o, y: o["x"].mean(), {"x": OUTPUT}, TARGET),
    "the same shape": (nn.MSELoss(), OUTPUT, TARGET[:, None]),
}


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("name", ACCEPTED)
def test_losses_that_compare_otherwise_are_accepted(name: str) -> None:
    function, output, target = ACCEPTED[name]
    check_broadcasting("f", function, output, target)


def test_metric_that_broadcasts_is_refused_by_name() -> None:
    def model_fn(trial: Any) -> miha.Recipe:
        x, y = blobs(60)
        return miha.Recipe(
            model=nn.Linear(4, 1),
            loss_fn=lambda o, t: F.mse_loss(o.squeeze(1), t),
            metrics={"mae": lambda o, t: (o - t).abs().mean()},
            train_data=(x, y.float()),
            valid_data=(x, y.float()),
        )

    with pytest.raises(ValueError, match=r"`metrics\['mae'\]` compares elementwise"):
        run(new_study(), model_fn)


def step_recipe(train_step: Any) -> miha.Recipe:
    recipe = classifier(None)
    recipe.train_step = train_step(recipe.model)
    return recipe


def test_train_step_that_uses_another_network_is_refused() -> None:
    def own(mine: nn.Module) -> Any:
        return lambda model, batch, loss_fn: loss_fn(mine(batch[0]), batch[1])

    def passed(mine: nn.Module) -> Any:
        return lambda model, batch, loss_fn: loss_fn(model(batch[0]), batch[1])

    context = run_context(classifier)
    check_valid_loss(step_recipe(passed), step_recipe(passed), context)
    with pytest.raises(ValueError, match="`train_step` must use the model that is passed"):
        check_valid_loss(step_recipe(own), step_recipe(own), context)
