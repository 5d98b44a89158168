"""Networks with sparse gradients: only optimizers that take them are used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna
import pytest
import torch
from torch import Tensor, nn, optim

import optuna_miha as miha


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.EmbeddingBag(20, 4, sparse=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.words(x))
        return scores


def run(build: Callable[[Any, nn.Module], optim.Optimizer | None]) -> miha.Result:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 20, (48, 3), generator=generator)
    y = (x[:, 0] > 9).long()

    def model_fn(trial: Any) -> miha.Recipe:
        model = Bag()
        data = {"train_data": (x, y), "valid_data": (x, y)}
        optimizer = build(trial, model)
        return miha.Recipe(model=model, loss_fn=nn.CrossEntropyLoss(), optimizer=optimizer, **data)

    study = optuna.create_study(sampler=miha.MihaSampler(seed=0))
    try:
        return miha.optimize(
            study,
            model_fn,
            plan=miha.Plan(30, startup=1, anneal="cosine"),
            device="cpu",
            show_progress_bar=False,
        )
    except ValueError:
        assert not study.trials
        assert not study.user_attrs
        raise


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # Torch's own.
@pytest.mark.parametrize(
    "build",
    [
        lambda _, m: optim.SGD(m.parameters(), lr=0.1),
        lambda _, m: optim.SGD(
            [{"params": m.words.parameters()}, {"params": m.head.parameters()}], lr=0.1
        ),
        lambda _, m: optim.Adagrad(m.parameters()),
        lambda trial, m: miha.suggest_optimizer(
            trial, m.parameters(), choices=["sgd", "adagrad"], weight_decay=[0.0]
        ),
    ],
    ids=["sgd", "groups", "adagrad", "suggested"],
)
def test_optimizers_that_take_sparse_gradients_train(build: Any) -> None:
    result = run(build)
    assert len({segment.params["lr"] for segment in result.segments}) > 1
    assert not any(segment.state == "FAIL" for segment in result.segments)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda _, m: None, "sparse gradients needs an optimizer.*SparseAdam"),
        (lambda _, m: optim.Adam(m.parameters()), "Adam failed.*sparse"),
        (lambda _, m: optim.SGD(m.parameters(), lr=0.1, fused=True), "SGD failed.*sparse"),
        (lambda _, m: optim.SGD(m.parameters(), lr=0.1, weight_decay=0.1), "SGD failed"),
        (
            lambda trial, m: miha.suggest_optimizer(trial, m.parameters(), initial="sgd"),
            "only SGD and Adagrad take, got 'adam'.*choices",
        ),
        (
            lambda trial, m: miha.suggest_optimizer(trial, m.parameters(), choices=["sgd"]),
            r"no weight decay.*weight_decay=\[0.0\]",
        ),
    ],
    ids=["none", "adam", "fused", "decay", "class offered", "decay offered"],
)
def test_others_are_refused_before_anything_is_written(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(build)
