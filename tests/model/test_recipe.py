"""Arguments that a recipe accepts, completes and refuses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from helpers.networks import recipe, samples
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from optuna_miha import Recipe
from optuna_miha._model.recipe import accuracy

X, Y = samples(8)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(X, Y, strict=True)


class Empty(Dataset[Any]):
    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: int) -> Any:
        raise IndexError


@pytest.mark.parametrize(
    ("changes", "error", "parts"),
    [
        ({"model": 3}, TypeError, ["`model` must be a torch.nn.Module", "got int"]),
        (
            {"model": nn.ReLU()},
            ValueError,
            ["`model` must have parameters to train", "ReLU without any"],
        ),
        (
            {"loss_fn": "mse"},
            TypeError,
            ["`loss_fn` must be callable", "got str", "`torch.nn.CrossEntropyLoss()`"],
        ),
        (
            {"train_data": None},
            ValueError,
            ["`train_data` is None", "pass a tuple of tensors, a Dataset or a DataLoader"],
        ),
        (
            {"valid_data": None},
            ValueError,
            ["`valid_data` is None", "hold out part of the training data"],
        ),
        (
            {"train_data": [X.numpy(), Y]},
            TypeError,
            ["`train_data` must be a tuple of at least two tensors", "numpy.ndarray", "as_tensor"],
        ),
        (
            {"valid_data": (X,)},
            TypeError,
            ["`valid_data` must be a tuple of at least two tensors", "got 1 parts"],
        ),
        (
            {"train_data": (X, Y[:5])},
            ValueError,
            ["tensors of `train_data` must be of equal length", "[8, 5]"],
        ),
        (
            {"valid_data": (X[:0], Y[:0])},
            ValueError,
            ["`valid_data` must hold at least one sample", "got none"],
        ),
        (
            {"train_data": X},
            TypeError,
            ["a tuple of tensors, a Dataset or a DataLoader", "got torch.Tensor"],
        ),
        (
            {"train_data": Empty()},
            ValueError,
            ["`train_data` must hold at least one sample", "got an empty dataset"],
        ),
        (
            {"valid_data": DataLoader(Empty())},
            ValueError,
            ["`valid_data` must hold at least one sample", "got an empty dataset"],
        ),
        (
            {"optimizer": "adam"},
            TypeError,
            ["`optimizer` must be a torch.optim.Optimizer", "got str"],
        ),
        (
            {"optimizer": torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)},
            ValueError,
            ["`optimizer` must hold parameters of `model`, got none", "build it from"],
        ),
        ({"batch_size": 0}, ValueError, ["`batch_size` must be a positive integer", "got 0"]),
        ({"batch_size": 2.5}, ValueError, ["`batch_size` must be a positive integer", "got 2.5"]),
        ({"batch_size": True}, ValueError, ["`batch_size` must be a positive integer", "True"]),
        (
            {"monitor": "f1"},
            ValueError,
            ["`monitor` must be one of 'loss', 'accuracy'", "got 'f1'", "add it to `metrics`"],
        ),
    ],
)
def test_invalid_arguments_are_refused_with_a_helpful_message(
    changes: dict[str, Any], error: type[Exception], parts: list[str]
) -> None:
    with pytest.raises(error) as caught:
        recipe(**({"model": nn.Linear(4, 3)} | changes))
    for part in parts:
        assert part in str(caught.value)


def test_optimizer_with_parameters_outside_of_the_model_is_refused() -> None:
    model, foreign = nn.Linear(4, 3), nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([*model.parameters(), foreign])
    with pytest.raises(ValueError, match=r"of `model` only, got others of shapes \[\(3,\)\]"):
        recipe(model=model, optimizer=optimizer)
    model.loss = nn.ParameterList([foreign])
    recipe(model=model, optimizer=optimizer)


def test_arguments_are_keyword_only() -> None:
    with pytest.raises(TypeError, match="positional"):
        Recipe(nn.Linear(4, 3), nn.MSELoss(), (X, Y), (X, Y))  # type: ignore[misc]


@pytest.mark.parametrize(
    ("train_data", "given", "expected"),
    [
        ((X, Y), None, 32),
        ((X, Y), 7, 7),
        (TensorDataset(X, Y), None, 32),
        (DataLoader(TensorDataset(X, Y), batch_size=5), None, 5),
        (DataLoader(TensorDataset(X, Y), batch_size=5), 3, 3),
        (DataLoader(TensorDataset(X, Y), batch_sampler=[[0, 1], [2]]), None, 32),
        (Stream(), None, 32),
    ],
)
def test_batch_size_defaults_to_that_of_the_loader(
    train_data: Any, given: int | None, expected: int
) -> None:
    assert recipe(train_data=train_data, batch_size=given).batch_size == expected


@pytest.mark.parametrize("number", [np.int64(5), torch.tensor(5)])
def test_batch_size_becomes_a_python_integer(number: Any) -> None:
    built = recipe(batch_size=number)
    assert type(built.batch_size) is int and built.batch_size == 5


def test_accuracy_is_built_in_and_can_be_overridden() -> None:
    assert recipe().metrics == {}
    assert recipe(monitor="accuracy").metrics == {"accuracy": accuracy}
    metrics = {"accuracy": lambda outputs, targets: 1.0}
    assert recipe(monitor="accuracy", metrics=metrics).metrics == metrics


def test_monitoring_accuracy_does_not_change_the_users_metrics() -> None:
    metrics = {"error": lambda outputs, targets: 1.0}
    assert recipe(monitor="accuracy", metrics=metrics).metrics.keys() == {"error", "accuracy"}
    assert metrics.keys() == {"error"}


def test_accuracy_is_the_share_of_correct_samples() -> None:
    scores = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 5.0], [1.0, 0.0]])
    assert float(accuracy(scores, torch.tensor([0, 1, 0, 1]))) == 0.5


def test_accuracy_counts_every_pixel() -> None:
    scores = torch.zeros(2, 3, 4)
    scores[:, 1] = 1.0
    targets = torch.ones(2, 4, dtype=torch.long)
    targets[0, 0] = 2
    assert float(accuracy(scores, targets)) == pytest.approx(7 / 8)


@pytest.mark.parametrize(
    ("outputs", "targets"),
    [((8, 1), (8, 1)), ((8, 1), (8,)), ((8,), (8,)), ((8, 3), (8, 3)), ((8, 3), (8, 1))],
    ids=["one column", "one column, indices", "no column", "one-hot", "column of indices"],
)
def test_accuracy_refuses_other_shapes(outputs: tuple[int, ...], targets: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least two classes") as caught:
        accuracy(torch.zeros(outputs), torch.zeros(targets))
    assert f"outputs of shape {outputs} and targets of {targets}" in str(caught.value)
    for repair in ("`targets.argmax(1)`", "((outputs > 0) == targets).double().mean()"):
        assert repair in str(caught.value)


def test_lists_of_tensors_become_tuples() -> None:
    built = recipe(train_data=[X, Y], valid_data=[X, X, Y])
    assert isinstance(built.train_data, tuple)
    assert isinstance(built.valid_data, tuple) and len(built.valid_data) == 3


def test_optimizer_over_a_part_of_the_model_is_accepted() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
    assert recipe(model=model, optimizer=optimizer).optimizer is optimizer


def test_metric_computed_with_numpy_can_be_monitored() -> None:
    metric = {"spread": lambda outputs, targets: float(np.ptp(outputs.numpy()))}
    assert recipe(metrics=metric, monitor="spread").monitor == "spread"


def test_metric_named_loss_is_refused() -> None:
    # It would silently replace the validation loss.
    with pytest.raises(ValueError, match="loss"):
        recipe(metrics={"loss": lambda outputs, targets: 0.0})
