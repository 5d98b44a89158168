"""A demonstration on the digits of scikit-learn."""

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
from optuna_miha._results.optional_imports import try_import
from optuna_miha._run.optimize import optimize
from optuna_miha._search.plan import Plan
from optuna_miha._search.pruner import SlopePruner
from optuna_miha._search.sampler import MihaSampler


@dataclass(frozen=True)
class _Digits:
    """Images of shape ``(n_samples, 64)`` in [0, 1] and their classes, in three splits."""

    train: tuple[Tensor, Tensor]
    valid: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def demo(
    folder: Path, *, n_epochs: int, n_jobs: int, seed: int, show_progress_bar: bool = True
) -> int:
    """Train on digits, compare with the initial configuration, and print the result.

    Args:
        folder: Folder for the study and the model; it is created if it does not exist.
        n_epochs: The total budget, in epochs.
        n_jobs: Number of worker processes.
        seed: Seed of the run and of the data split.
        show_progress_bar: Whether to show progress bars.

    Returns:
        The exit code.

    Raises:
        ImportError: If scikit-learn is not installed.
    """
    digits = _load_digits(seed)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"The folder {folder} cannot be created ({error.strerror}): pass another --folder."
        ) from error
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
    print(f"test accuracy          {ours:.4f}  ({result.n_epochs_trained} epochs in total)")
    print(f"initial configuration  {theirs:.4f}  (same number of epochs, best by validation)\n")
    print(f"study     {folder / 'digits.db'}")
    print(f"model     {model_file}")
    print(f"schedule  {schedule_file}\n")
    command, report = _command("optuna-miha"), folder / "report.html"
    print(f"dashboard  {command} dashboard {storage}")
    print(f"report     {command} report digits --storage {storage} -o {report}")
    arguments = f"demo --folder {folder} --seed {seed} --n-epochs {2 * n_epochs}"
    print(f"continue   {command} {arguments}")
    return 0


def _command(name: str) -> str:
    """The name of a console script, with its folder if it is not on the search path."""
    if shutil.which(name) is not None:
        return name
    return os.path.relpath(Path(sys.executable).with_name(name))


def _load_digits(seed: int) -> _Digits:
    extra = "'optuna-miha[demo]'"
    with try_import("scikit-learn", needed_by="The demo", install=extra):
        from sklearn.datasets import load_digits

    images, classes = load_digits(return_X_y=True)
    x = torch.as_tensor(images / 16, dtype=torch.float32)
    y = torch.as_tensor(classes)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    splits = [(x[split], y[split]) for split in torch.split(order, [1000, 397, 400])]
    return _Digits(*splits)


def _make_model_fn(digits: _Digits) -> ModelFn:
    """Make a ``model_fn`` that suggests nothing, so that the default search space applies."""

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
