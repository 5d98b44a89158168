"""The loss over batches is the loss over all samples at once."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.networks import CPU, recipe
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from optuna_miha._results.ensemble import _Validation
from optuna_miha._training.trainer import evaluate, train

N = 1100  # Three batches of validation, the last of which is small.
_g = torch.Generator().manual_seed(0)
X = torch.randn(N, 4, generator=_g)
CLASSES = torch.arange(N) // 400  # Sorted, so that the batches have different classes.
MASKED = torch.where(torch.arange(N) < 700, -100, CLASSES)
ZERO = torch.where(torch.arange(N) % 3 < 2, 0, CLASSES)
VALUES = torch.randn(N, 3, generator=_g) + torch.arange(N)[:, None] / N
WEIGHTS = torch.tensor([1.0, 20.0, 3.0])

KNOWN: dict[str, tuple[Any, Tensor]] = {
    "plain": (nn.CrossEntropyLoss(), CLASSES),
    "class weights": (nn.CrossEntropyLoss(weight=WEIGHTS), CLASSES),
    "ignored": (nn.CrossEntropyLoss(), MASKED),
    "ignored class": (nn.CrossEntropyLoss(weight=WEIGHTS, ignore_index=0), ZERO),
    "smoothed": (nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=0.2), MASKED),
    "probabilities": (nn.CrossEntropyLoss(weight=WEIGHTS), VALUES.softmax(1)),
    "sum": (nn.CrossEntropyLoss(reduction="sum", weight=WEIGHTS), CLASSES),
    "sum of squares": (nn.MSELoss(reduction="sum"), VALUES),
    "mean of squares": (nn.MSELoss(), VALUES),
    "positive weights": (nn.BCEWithLogitsLoss(pos_weight=WEIGHTS), VALUES.sigmoid()),
    "function": (F.cross_entropy, MASKED),
    "partial": (functools.partial(F.cross_entropy, weight=WEIGHTS, ignore_index=2), CLASSES),
    "partial sum": (functools.partial(F.mse_loss, reduction="sum"), VALUES),
    "own function": (lambda outputs, targets: (outputs - targets).abs().mean(), VALUES),
}


def built(loss_fn: Any, **changes: Any) -> Any:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    return recipe(model=model, loss_fn=loss_fn, optimizer=optimizer, **changes)


@pytest.mark.parametrize("name", KNOWN)
def test_validation_loss_is_that_of_all_samples(name: str) -> None:
    loss_fn, targets = KNOWN[name]
    trained = built(loss_fn, valid_data=(X, targets))
    expected = pytest.approx(loss_fn(trained.model(X), targets).item(), rel=1e-5)
    assert evaluate(trained, trained.model)["loss"] == expected
    validation = _Validation(trained, CPU, seed=0)
    assert validation.value(validation.outputs(trained.model)) == expected


@pytest.mark.parametrize("form", [lambda *d: d, lambda *d: DataLoader(TensorDataset(*d), 300)])
@pytest.mark.parametrize("name", KNOWN)
def test_training_loss_is_that_of_all_samples(name: str, form: Callable[..., Any]) -> None:
    loss_fn, targets = KNOWN[name]
    data = form(X, targets)
    trained = built(loss_fn, train_data=data, valid_data=(X[:9], targets[:9]), batch_size=300)
    [result] = train(trained, 1)  # Its learning rate is 0.
    expected = loss_fn(trained.model(X), targets).item()
    assert result.train_loss == pytest.approx(expected, rel=1e-5)


def test_values_without_weights_are_bitwise_means_over_samples() -> None:
    targets = torch.arange(N)[:, None].expand(N, 5) % 3  # As the pixels of an image.
    for loss_fn, y in ((nn.CrossEntropyLoss(), targets), (nn.MSELoss(), VALUES)):
        model = nn.Sequential(nn.Linear(4, 15), nn.Unflatten(1, (3, 5)))
        if y is VALUES:
            model = nn.Sequential(nn.Linear(4, 3))
        parts = list(zip(X.split(512), y.split(512), strict=True))
        losses = [loss_fn(model(x), part).item() for x, part in parts]
        total = sum(loss * len(x) for loss, (x, _) in zip(losses, parts, strict=True))
        value = evaluate(recipe(model=model, loss_fn=loss_fn, valid_data=(X, y)), model)["loss"]
        assert value == total / N


class TimeFirst(nn.Module):
    """Maps (time, samples, features) to (time, samples, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        return y


def collate_time_first(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.stack([x for x, _ in samples], 1), torch.stack([y for _, y in samples], 1)


def test_batches_with_time_first_give_the_mean_of_all_samples() -> None:
    x, y = X[:990].view(110, 9, 4), VALUES[:990].view(110, 9, 3)
    loader = DataLoader(TensorDataset(x, y), 100, collate_fn=collate_time_first)
    model = TimeFirst()
    value = evaluate(recipe(model=model, loss_fn=nn.MSELoss(), valid_data=loader), model)["loss"]
    assert value == pytest.approx(F.mse_loss(model(x), y).item(), rel=1e-5)


def test_batches_without_any_target_do_not_count() -> None:
    trained = built(nn.CrossEntropyLoss(), valid_data=(X, torch.full((N,), -100)))
    assert math.isnan(evaluate(trained, trained.model)["loss"])
