"""What the two ranks of a test do, each in a process of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import TensorDataset

import optuna_miha as miha
from helpers.networks import network, samples
from helpers.problems import After, history, new_study, weights
from optuna_miha.exceptions import WorkerError
from optuna_miha.integrations import ranks
from optuna_miha.integrations.accelerate import AccelerateTrainer
from optuna_miha.integrations.torch_distributed import optimize_on_ranks

sys.path.append(str(Path(__file__).parents[2] / "examples"))
import several_gpus  # The trainers that the documentation shows.

N_EPOCHS = 10


def model_fn(trial: Any) -> miha.Recipe:
    return miha.Recipe(
        model=network(),
        loss_fn=nn.CrossEntropyLoss(),
        train_data=TensorDataset(*samples(24, seed=0)),
        valid_data=TensorDataset(*samples(24, seed=1)),
        batch_size=6,
    )


def alone(recipe: Any, n_epochs: int, context: Any) -> Iterator[miha.EpochResult]:
    yield from several_gpus.train_epochs(recipe.model, recipe, n_epochs, context)


def ends_early(recipe: Any, n_epochs: int, context: Any) -> Iterator[miha.EpochResult]:
    for _ in range(n_epochs - dist.get_rank()):
        yield miha.EpochResult(value=1.0)


def fails_on_rank_1(recipe: Any, n_epochs: int, context: Any) -> Iterator[miha.EpochResult]:
    """Fail on one rank, in a branch, while the other one waits for it."""
    if context.role == "branch" and dist.get_rank() == 1:
        raise ValueError("no more data")
    yield from several_gpus.ddp(recipe, n_epochs, context)


class Noted:
    """A trainer that keeps the weights of this rank after every epoch, and its random numbers."""

    def __init__(self, trainer: Callable[..., Any]) -> None:
        self.trainer = trainer
        self.weights: list[Any] = []
        self.draws: list[float] = []

    def __call__(self, recipe: Any, n_epochs: int, context: Any) -> Iterator[miha.EpochResult]:
        for result in self.trainer(recipe, n_epochs, context):
            self.weights.append({k: v.detach().clone() for k, v in _whole(recipe.model)})
            yield replace(result, value=result.value + dist.get_rank())  # That of rank 0 counts.
        self.draws.append(float(torch.rand(())))


def _whole(model: nn.Module) -> Any:
    state = model.state_dict()  # With whole tensors, also if the parameters are sharded.
    return [(name, state[name]) for name, _ in model.named_parameters()]


def run_of(folder: Path, name: str, trainer: Any, *, stop_after: int | None = None) -> Any:
    """Call ``optimize_on_ranks``; rank 0 has the study."""
    study = None
    if dist.get_rank() == 0:
        study = new_study(f"sqlite:///{folder}/{name}.db")
    callbacks = [] if stop_after is None else [After(stop_after, lambda: study.stop())]
    return optimize_on_ranks(
        study,
        model_fn,
        trainer=trainer,
        n_epochs=N_EPOCHS,
        device="cpu",
        callbacks=callbacks,
        show_progress_bar=False,
        timeout=60,
    )


def error_of(folder: Path, name: str, trainer: Any) -> str:
    try:
        run_of(folder, name, trainer)
    except WorkerError as error:
        return str(error)
    return ""


def join(rank: int, port: int) -> None:
    """Join the process group of two ranks."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    sys.modules["optuna_dashboard"] = None  # type: ignore[assignment]  # Its import takes seconds.
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))


def both(folder: Path, name: str, trainer: Any) -> dict[str, Any]:
    """Run without an interruption, and with one."""
    noted = Noted(trainer)
    whole = run_of(folder, f"{name}-whole", noted)
    for stop_after in (1, None):
        parts = run_of(folder, f"{name}-parts", trainer, stop_after=stop_after)
    found: dict[str, Any] = {"weights": noted.weights, "draws": noted.draws}
    if whole is not None and parts is not None:
        found["whole"] = [weights(whole), str(history(whole))]
        found["parts"] = [weights(parts), str(history(parts))]
    return found


def main(rank: int, folder: Path, port: int) -> None:
    """Everything in one pair of processes, because starting them takes seconds."""
    join(rank, port)
    found: dict[str, Any] = {
        "ddp": both(folder, "ddp", several_gpus.ddp),
        "fsdp": both(folder, "fsdp", several_gpus.fsdp),
        "alone": error_of(folder, "alone", alone),
        "ends early": error_of(folder, "ends-early", ends_early),
    }
    ranks._GRACE = 1.0
    found["fails"] = error_of(folder, "fails", fails_on_rank_1)
    torch.save(found, folder / f"{rank}.pt")
    os._exit(0)  # The group is broken.


def accelerate(rank: int, folder: Path, port: int) -> None:
    """Train with Accelerate, which wraps the network in DistributedDataParallel."""
    from accelerate import Accelerator

    join(rank, port)
    trainer = AccelerateTrainer(lambda: Accelerator(cpu=True))
    torch.save({"accelerate": both(folder, "accelerate", trainer)}, folder / f"{rank}.pt")
    dist.destroy_process_group()
