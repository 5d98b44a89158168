"""Training loops without optuna_miha, for comparison."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from _problems import BATCH_SIZE, Pair, Problem
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

_EVALUATION_BATCH_SIZE = 512
_EMA_DECAY = 0.72
"""Per epoch, the default of optuna_miha."""


def epochs_by_dataloader(
    problem: Problem, train: Pair, valid: Pair, n_epochs: int
) -> Iterator[None]:
    """A common loop: a ``DataLoader``, Adam with its defaults, ``.item()`` at every step.

    Yields:
        After each epoch.
    """
    model = problem.network()
    loss_fn = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters())
    train_loader = DataLoader(TensorDataset(*train), batch_size=BATCH_SIZE, shuffle=True)
    valid_loader = DataLoader(TensorDataset(*valid), batch_size=_EVALUATION_BATCH_SIZE)
    for _ in range(n_epochs):
        model.train()
        running_loss = 0.0
        for x, y in train_loader:
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()
            running_loss += loss.item() * len(x)
        model.eval()
        valid_loss = 0.0
        with torch.no_grad():
            for x, y in valid_loader:
                valid_loss += loss_fn(model(x), y).item() * len(x)
        yield


def epochs_by_hand(
    problem: Problem,
    train: Pair,
    valid: Pair,
    n_epochs: int,
    n_checkpoints: int = 0,
    path: Path | None = None,
    seconds: list[float] | None = None,
    *,
    is_plain: bool = False,
) -> Iterator[None]:
    """A tuned loop for tensors in memory that does the same work as optuna_miha.

    It gathers once per epoch, uses fused Adam, does not synchronize on the loss at every step,
    sets the learning rate and averages the weights at every step, validates the average, and
    writes checkpoints at even intervals.

    Args:
        problem: The network.
        train: Training data.
        valid: Validation data.
        n_epochs: Epochs to train.
        n_checkpoints: Number of checkpoints to write.
        path: File of the checkpoints; each overwrites the one before.
        seconds: Filled with the seconds that each checkpoint took.
        is_plain: Whether to keep the rate, and to validate the weights instead of an average.

    Yields:
        After each epoch.
    """
    model = problem.network()
    ema = model if is_plain else copy.deepcopy(model)
    weights, averages = ([p.detach() for p in net.parameters()] for net in (model, ema))
    n_steps = math.ceil(len(train[0]) / BATCH_SIZE)
    share, step = 1 - _EMA_DECAY ** (1 / n_steps), 0
    loss_fn = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    valid_batches = _batches(valid, _EVALUATION_BATCH_SIZE)
    written = 0
    for epoch in range(1, n_epochs + 1):
        model.train()
        total = torch.zeros(())
        order = torch.randperm(len(train[0]))
        x, y = (tensor.index_select(0, order) for tensor in train)
        for inputs, target in _batches((x, y), BATCH_SIZE):
            if not is_plain:
                phase = math.pi * step / (n_epochs * n_steps)
                optimizer.param_groups[0]["lr"] = 0.5e-3 * (1 + math.cos(phase))
                step += 1
            loss = loss_fn(model(inputs), target)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(target)
            if not is_plain:
                torch._foreach_lerp_(averages, weights, share)
        _validation_loss(ema, valid_batches, loss_fn)
        if path is not None and written < n_checkpoints * epoch // n_epochs:
            start = time.perf_counter()
            parts = {"model": model, "ema": ema, "optimizer": optimizer}
            torch.save({name: part.state_dict() for name, part in parts.items()}, path)
            written += 1
            if seconds is not None:
                seconds.append(time.perf_counter() - start)
        yield


def train_by_hand(problem: Problem, train: Pair, valid: Pair, n_epochs: int) -> None:
    """Run the tuned loop without checkpoints."""
    for _ in epochs_by_hand(problem, train, valid, n_epochs):
        pass


class Turns:
    """The tuned loop, run one epoch at a time in alternation with the measured variant.

    A change in the speed of the machine then affects both. The time of each is counted separately.

    Args:
        epochs: The tuned loop.
    """

    def __init__(self, epochs: Iterator[None]) -> None:
        self._epochs = epochs
        self.wall_s = 0.0
        self.cpu_s = 0.0

    def take(self) -> None:
        """Train one epoch and restore the state of torch's random generator."""
        rng = torch.get_rng_state()
        wall, cpu = time.perf_counter(), time.process_time()
        next(self._epochs)
        self.wall_s += time.perf_counter() - wall
        self.cpu_s += time.process_time() - cpu
        torch.set_rng_state(rng)


def _batches(tensors: Pair, size: int) -> list[tuple[Tensor, ...]]:
    return list(zip(*(torch.split(tensor, size) for tensor in tensors), strict=True))


@torch.no_grad()
def _validation_loss(
    model: nn.Module, batches: list[tuple[Tensor, ...]], loss_fn: nn.Module
) -> float:
    model.eval()
    losses = torch.stack([loss_fn(model(x), y) * len(y) for x, y in batches])
    return float(losses.sum()) / sum(len(y) for _, y in batches)
