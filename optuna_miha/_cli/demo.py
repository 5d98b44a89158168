"""The main job on data that comes with scikit-learn."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import torch
from torch import Tensor, nn

from optuna_miha._model.model_fn import ModelFn
from optuna_miha._model.recipe import Recipe, accuracy
from optuna_miha._run.optimize import optimize
from optuna_miha._search.plan import Plan
from optuna_miha._search.pruner import SlopePruner
from optuna_miha._search.sampler import MihaSampler


@dataclass(frozen=True)
class _Digits:
    """8x8 images as ``(n_samples, 64)`` in [0, 1] and their classes, in three parts."""

    train: tuple[Tensor, Tensor]
    valid: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def demo(
    folder: Path, *, n_epochs: int, n_jobs: int, seed: int, show_progress_bar: bool = True
) -> int:
    """Train on digits, and print what came of it.

    Args:
        folder: Where the study and the model go; created if need be.
        n_epochs: The whole budget, in epochs.
        n_jobs: Worker processes.
        seed: Seed of the run, and of which digits it trains on.
        show_progress_bar: Whether to show them, over the epochs.

    Returns:
        The exit code.
    """
    try:
        digits = _load_digits(seed)
    except ImportError:
        print(
            "The demo needs scikit-learn: pip install 'optuna-miha[demo]'.",
            file=sys.stderr,
        )
        return 1
    folder.mkdir(parents=True, exist_ok=True)
    storage = f"sqlite:///{folder}/digits.db"
    model_fn = _make_model_fn(digits)

    def study(name: str) -> optuna.Study:
        return optuna.create_study(
            storage=storage,
            study_name=name,
            load_if_exists=True,
            sampler=MihaSampler(seed=seed),
            pruner=SlopePruner(),
        )

    result = optimize(
        study("digits"),
        model_fn,
        n_epochs=n_epochs,
        n_jobs=n_jobs,
        show_progress_bar=show_progress_bar,
    )
    model_file, schedule_file = folder / "model.pt", folder / "schedule.csv"
    result.save(model_file)
    result.schedule.to_csv(schedule_file)

    plan = Plan.no_search(result.n_epochs_trained)
    baseline = optimize(
        study(f"initial configuration, {plan.n_epochs}"),
        model_fn,
        plan=plan,
        show_progress_bar=show_progress_bar,
    )
    ours, theirs = (_test_accuracy(r.model, digits) for r in (result, baseline))
    print(f"\n{result.describe()}\n")
    print(f"test accuracy          {ours:.4f}  ({result.n_epochs_trained} epochs in all)")
    print(f"initial configuration  {theirs:.4f}  (as many epochs, the best by validation)\n")
    print(f"study     {folder / 'digits.db'}")
    print(f"model     {model_file}")
    print(f"schedule  {schedule_file}\n")
    command, report = _command("optuna-miha"), folder / "report.html"
    print(f"look at it       {command} dashboard {storage}")
    print(f"on one page      {command} report digits --storage {storage} -o {report}")
    again = f"demo --folder {folder} --seed {seed} --n-epochs {2 * n_epochs}"
    print(f"resume or go on  {command} {again}")
    return 0


def _command(name: str) -> str:
    """The name of a console script, with its folder where the shell would not find it."""
    if shutil.which(name) is not None:
        return name
    return os.path.relpath(Path(sys.executable).with_name(name))


def _load_digits(seed: int) -> _Digits:
    from sklearn.datasets import load_digits

    images, classes = load_digits(return_X_y=True)
    x = torch.as_tensor(images / 16, dtype=torch.float32)
    y = torch.as_tensor(classes)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    parts = [(x[part], y[part]) for part in torch.split(order, [1000, 397, 400])]
    return _Digits(*parts)


def _make_model_fn(digits: _Digits) -> ModelFn:
    """Nothing but the network and its data: the default search space applies."""

    def model_fn(trial: Any) -> Recipe:
        model = nn.Sequential(
            nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
        )
        return Recipe(
            model=model,
            loss_fn=nn.CrossEntropyLoss(),
            train_data=digits.train,
            valid_data=digits.valid,
        )

    return model_fn


@torch.no_grad()
def _test_accuracy(model: nn.Module, digits: _Digits) -> float:
    inputs, targets = digits.test
    device = next(model.parameters()).device
    return float(accuracy(model(inputs.to(device)).cpu(), targets))
