"""The tasks of the quality benchmark: small networks as a user would write them.

They differ in what limits the result: noise, few samples, an unlucky split, slow training, or a
deliberately poor initial configuration. An epoch takes milliseconds on one core, so that thousands
of runs are feasible. The half of each task was fixed before any method was run on it: tuning uses
only ``development``, and ``confirmation`` checks the outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import _datasets as data
import _networks as networks
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import optuna_miha as miha

ModelFn: TypeAlias = Callable[[Any], miha.Recipe]
Start: TypeAlias = Callable[[Iterable[Tensor]], Optimizer]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task.

    Args:
        name: Name on the command line and in tables.
        kind: Category; the tasks of a category alternate between the halves.
        description: Data and network in one line.
        make: Returns the ``model_fn`` of a seed, which determines data and split. The initial
            weights are drawn within ``model_fn`` from the random state set by its caller.
        deliberately_poor: Whether the initial configuration is deliberately poor.
        half: Whether tuning may use the task (``"development"``) or not (``"confirmation"``).
    """

    name: str
    kind: str
    description: str
    make: Callable[[int], ModelFn]
    deliberately_poor: bool = False
    half: Literal["development", "confirmation"]


def hidden_mse(restored: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over the hidden pixels of each field, averaged over the fields.

    Args:
        restored: ``(n_samples, 1, height, width)``.
        target: Whole field and mask, ``(n_samples, 2, height, width)``.
    """
    field, hidden = target.unbind(1)
    errors = (restored.squeeze(1) - field).square() * hidden
    return (errors.sum((1, 2)) / hidden.sum((1, 2))).mean()


def accuracy(scores: Tensor, classes: Tensor) -> Tensor:
    """Share of samples whose largest score belongs to their class."""
    return (scores.argmax(1) == classes).double().mean()


def classifier(
    trial: Any,
    *,
    splits: data.Splits,
    network: Callable[[], nn.Module],
    start: Start | str = "adam",
    batch_size: int = 32,
    per: Literal["layer", "neuron"] = "layer",
) -> miha.Recipe:
    """Build the recipe of a classification; everything usual may mutate."""
    model = network()
    miha.suggest_activations(trial, model, per=per)
    miha.suggest_dropout(trial, model)
    optimizer = _suggest_optimizer(trial, model, start)
    smoothing = miha.suggest_label_smoothing(trial)
    return miha.Recipe(
        model=model,
        loss_fn=nn.CrossEntropyLoss(label_smoothing=smoothing),
        optimizer=optimizer,
        batch_size=miha.suggest_batch_size(trial, initial=batch_size),
        train_data=splits.train,
        valid_data=splits.valid,
        test_data=splits.test,
        metrics={"accuracy": accuracy},
    )


def regressor(
    trial: Any,
    *,
    splits: data.Splits,
    network: Callable[[], nn.Module],
    loss_fn: Callable[..., Tensor] = nn.functional.mse_loss,
    start: Start | str = "adam",
    batch_size: int = 32,
    per: Literal["layer", "neuron"] = "layer",
) -> miha.Recipe:
    """Build the recipe of a regression; everything usual may mutate."""
    model = network()
    miha.suggest_activations(trial, model, per=per)
    miha.suggest_dropout(trial, model)
    return miha.Recipe(
        model=model,
        loss_fn=loss_fn,
        optimizer=_suggest_optimizer(trial, model, start),
        batch_size=miha.suggest_batch_size(trial, initial=batch_size),
        train_data=splits.train,
        valid_data=splits.valid,
        test_data=splits.test,
    )


def _suggest_optimizer(trial: Any, model: nn.Module, start: Start | str) -> Optimizer:
    initial = start if isinstance(start, str) else start(model.parameters())
    return miha.suggest_optimizer(trial, model.parameters(), initial=initial)


def makes(
    recipe: Callable[..., miha.Recipe],
    draw: Callable[[int], data.Splits],
    network: Callable[[], nn.Module],
    **options: Any,
) -> Callable[[int], ModelFn]:
    """Return a picklable function from a seed to its ``model_fn``."""
    return partial(_make, recipe=recipe, draw=draw, network=network, options=options)


def _make(
    seed: int,
    *,
    recipe: Callable[..., miha.Recipe],
    draw: Callable[[int], data.Splits],
    network: Callable[[], nn.Module],
    options: dict[str, Any],
) -> ModelFn:
    return partial(recipe, splits=draw(seed), network=network, **options)


_TASKS = [
    Task(
        name="clusters",
        kind="tabular classification",
        description="20 features, 4 classes, 10 % random labels; MLP 20-64-32-4",
        make=makes(classifier, data.clusters, partial(networks.mlp, 20, 4)),
        half="development",
    ),
    Task(
        name="breast-cancer",
        kind="tabular classification",
        description="569 tumours, 30 features, only 80 validation samples; MLP 30-64-32-2",
        make=makes(classifier, data.breast_cancer, partial(networks.mlp, 30, 2)),
        half="confirmation",
    ),
    Task(
        name="diabetes",
        kind="tabular regression",
        description="442 patients, 10 features; MLP 10-64-32-1",
        make=makes(regressor, data.diabetes, partial(networks.mlp, 10, 1)),
        half="development",
    ),
    Task(
        name="friedman1",
        kind="tabular regression",
        description="Friedman's first function, 500 training samples; MLP 10-64-32-1",
        make=makes(regressor, data.friedman1, partial(networks.mlp, 10, 1)),
        half="confirmation",
    ),
    Task(
        name="noisy-regression",
        kind="tabular regression",
        description="Friedman's second function, equally strong heavy-tailed noise; MLP 4-64-32-1",
        make=makes(regressor, data.noisy_regression, partial(networks.mlp, 4, 1)),
        half="development",
    ),
    Task(
        name="digits-mlp",
        kind="images",
        description="8x8 digits, 600 training samples; MLP 64-128-64-10",
        make=makes(classifier, data.digits, partial(networks.mlp, 64, 10, hidden=128)),
        half="confirmation",
    ),
    Task(
        name="digits-cnn",
        kind="images",
        description="8x8 digits, 600 training samples; two convolutions of 8 and 16 channels",
        make=makes(classifier, data.digits, networks.image_cnn),
        half="development",
    ),
    Task(
        name="gap-filling",
        kind="images",
        description="16x16 fields, a third hidden; convolutional autoencoder 16-32-16",
        make=makes(regressor, data.gaps, networks.autoencoder, loss_fn=hidden_mse),
        half="confirmation",
    ),
    Task(
        name="motifs",
        kind="sequences",
        description="one of 6 motifs in noisy series of 64; two 1-D convolutions of 16 channels",
        make=makes(classifier, data.motifs, networks.series_cnn),
        half="development",
    ),
    Task(
        name="adding",
        kind="sequences",
        description="noisy sum of the two marked values among 12; GRU of 16 units",
        make=makes(regressor, data.adding, networks.Recurrent),
        half="confirmation",
    ),
    Task(
        name="counting",
        kind="sequences",
        description="how often the first of 12 tokens reappears; transformer layer of width 16",
        make=makes(classifier, data.counting, networks.Transformer),
        half="development",
    ),
    Task(
        name="digits-poor",
        kind="poor starts",
        description="digits-mlp starting from sigmoids and SGD at a learning rate of 1e-5",
        make=makes(
            classifier,
            data.digits,
            partial(networks.mlp, 64, 10, hidden=128, activation=nn.Sigmoid),
            start=partial(torch.optim.SGD, lr=1e-5),
        ),
        deliberately_poor=True,
        half="confirmation",
    ),
    Task(
        name="motifs-poor",
        kind="poor starts",
        description="motifs starting from tanh and Adadelta at a learning rate of 0.01",
        make=makes(
            classifier,
            data.motifs,
            partial(networks.series_cnn, nn.Tanh),
            start=partial(torch.optim.Adadelta, lr=0.01),
        ),
        deliberately_poor=True,
        half="development",
    ),
    Task(
        name="friedman1-poor",
        kind="poor starts",
        description="friedman1 starting from SGD at a learning rate of 1e-3 and batches of 256",
        make=makes(
            regressor,
            data.friedman1,
            partial(networks.mlp, 10, 1),
            start=partial(torch.optim.SGD, lr=1e-3),
            batch_size=256,
        ),
        deliberately_poor=True,
        half="confirmation",
    ),
]

TASKS = {task.name: task for task in _TASKS}
"""All tasks by name, grouped by kind."""
