"""A demonstration on noisy series, in which one of six motifs is to be found."""

from __future__ import annotations

import math
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import torch
from torch import Tensor, nn

from optuna_miha._history.segment import place_of
from optuna_miha._history.text_table import text_table
from optuna_miha._model.model_fn import ModelFn
from optuna_miha._model.recipe import Recipe, accuracy
from optuna_miha._report.page import write_report
from optuna_miha._results.result import Result
from optuna_miha._run.optimize import optimize
from optuna_miha._search.plan import Plan
from optuna_miha._search.pruner import SlopePruner
from optuna_miha._search.sampler import MihaSampler
from optuna_miha.visualization import plot_lineage, write_picture

_N_TRAIN, _N_VALID, _N_TEST = 1000, 500, 1000
_LENGTH, _MOTIF_LENGTH = 64, 16


@dataclass(frozen=True)
class _Series:
    """Series of shape ``(n_samples, 1, 64)`` and the classes of their motifs, in three splits."""

    train: tuple[Tensor, Tensor]
    valid: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def demo(
    folder: Path, *, n_epochs: int, n_jobs: int, seed: int, show_progress_bar: bool = True
) -> int:
    """Train on series, compare with the initial configuration, and print the result.

    Args:
        folder: Folder for the study and the model; it is created if it does not exist.
        n_epochs: The total budget, in epochs.
        n_jobs: Number of worker processes.
        seed: Seed of the run and of the data.
        show_progress_bar: Whether to show progress bars.

    Returns:
        The exit code.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"The folder {folder} cannot be created ({error.strerror}): pass another --folder."
        ) from error
    series = _make_series(seed)
    model_fn = _make_model_fn(series)
    storage = f"sqlite:///{folder}/motifs.db"

    def study(name: str) -> optuna.Study:
        return optuna.create_study(
            storage=storage,
            study_name=name,
            load_if_exists=True,
            sampler=MihaSampler(seed=seed),
            pruner=SlopePruner(),
        )

    motifs = study("motifs")
    result = optimize(
        motifs,
        model_fn,
        n_epochs=n_epochs,
        n_jobs=n_jobs,
        show_progress_bar=show_progress_bar,
    )
    plan = Plan.no_search(result.n_epochs_trained)
    baseline = optimize(
        study(f"no search, {plan.n_epochs}"),
        model_fn,
        plan=plan,
        show_progress_bar=show_progress_bar,
    )
    print(f"\n{_wrapped(result.describe())}\n")
    print("\n".join(_comparison([("optuna_miha", result), ("no search", baseline)], series)))
    print(f"\n{_wrapped(_origin(result))}\n\n{_wrapped(str(result.schedule))}\n")
    for name, file in _write_files(motifs, result, folder).items():
        print(f"{name:9} {file}")
    command = _command("optuna-miha")
    print(f"dashboard {command} dashboard {storage}")
    arguments = f"demo --folder {folder} --seed {seed} --n-epochs {2 * n_epochs}"
    print(f"continue  {command} {arguments}")
    return 0


def _comparison(results: Sequence[tuple[str, Result]], series: _Series) -> list[str]:
    """A table of losses and accuracies on the test data, which took no part in the run."""
    rows = [["", "test loss", "test accuracy", "epochs trained"]]
    for name, result in results:
        loss, correct = _test(result.model, series)
        rows.append([name, f"{loss:.3f}", f"{correct:.3f}", str(result.n_epochs_trained)])
    return text_table(rows)


def _origin(result: Result) -> str:
    """Say which part of the run the result comes from."""
    first, last, n_epochs = result.lineage[0], result.lineage[-1], result.schedule[-1]["to_epoch"]
    if last.role == "restart":
        return (
            "The result is a restart: the network overfits early, so that a new one is trained "
            f"for {n_epochs} epochs with the best hyperparameters that the run has found, or with "
            "a change of them."
        )
    if first is last:
        return (
            f"The result is a network of the {place_of(last)}, trained for {n_epochs} epochs: "
            "nothing that followed was better."
        )
    return (
        f"The result is one network, trained for {n_epochs} epochs in {len(result.lineage)} "
        f"segments, from the {place_of(first)} to a {place_of(last)}. The other epochs of the run "
        "trained networks that lost, or came after the best epoch."
    )


def _wrapped(text: str) -> str:
    """Break lines of words at the width of the terminal; rows of a table stay as they are."""
    if not sys.stdout.isatty():
        return text
    wrap = textwrap.TextWrapper(
        shutil.get_terminal_size().columns - 1,
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    lines = text.splitlines()
    return "\n".join(line if "  " in line else wrap.fill(line) for line in lines)


def _write_files(study: optuna.Study, result: Result, folder: Path) -> dict[str, str]:
    """Write model, schedule and figures.

    Returns:
        The files by name, or the reason why there is none.
    """
    files = {"study": "motifs.db", "model": "model.pt", "schedule": "schedule.csv"}
    paths = {name: str(folder / file) for name, file in files.items()}
    result.save(paths["model"])
    result.schedule.to_csv(paths["schedule"])
    try:
        write_picture(plot_lineage(study), folder / "lineage.png")
        write_report(study, folder / "report.html")
    except ImportError as error:
        return paths | {"figure": str(error)}
    report = (folder / "report.html").absolute().as_uri()
    return paths | {"figure": str(folder / "lineage.png"), "report": report}


def _command(name: str) -> str:
    """The name of a console script, with its folder if it is not on the search path."""
    if shutil.which(name) is not None:
        return name
    return os.path.relpath(Path(sys.executable).with_name(name))


def _make_series(seed: int) -> _Series:
    """Make series of noise and drift, each of which contains one of six motifs somewhere."""
    generator = torch.Generator().manual_seed(seed)
    n_samples = _N_TRAIN + _N_VALID + _N_TEST
    classes = torch.randint(6, (n_samples,), generator=generator)
    starts = torch.randint(_LENGTH - _MOTIF_LENGTH, (n_samples, 1), generator=generator)
    strengths = 1 + 0.5 * torch.rand(n_samples, 1, generator=generator)
    drift = torch.randn(n_samples, 1, generator=generator) * torch.linspace(-1, 1, _LENGTH)
    x = drift + 0.6 * torch.randn(n_samples, _LENGTH, generator=generator)
    x.scatter_add_(1, starts + torch.arange(_MOTIF_LENGTH), strengths * _motifs()[classes])
    parts = [_N_TRAIN, _N_VALID, _N_TEST]
    splits = zip(torch.split(x.unsqueeze(1), parts), torch.split(classes, parts), strict=True)
    return _Series(*splits)


def _motifs() -> Tensor:
    """Six motifs of shape ``(6, 16)``, of different shapes and equal energy."""
    time = torch.linspace(0, 1, _MOTIF_LENGTH)
    window = torch.sin(math.pi * time)
    rising = torch.sin(2 * math.pi * (time + 2 * time**2))
    slow, fast = torch.sin(4 * math.pi * time), torch.sin(8 * math.pi * time)
    shapes = [rising, rising.flip(0), slow, fast, slow.sign(), window]
    motifs = torch.stack([window * shape for shape in shapes])
    return motifs / motifs.square().mean(1, keepdim=True).sqrt()


def _make_model_fn(series: _Series) -> ModelFn:
    """Make a ``model_fn`` that suggests nothing, so that the default search space applies."""

    def model_fn(trial: Any) -> Recipe:
        model = nn.Sequential(
            nn.Conv1d(1, 16, 7, stride=2, padding=3),
            nn.ReLU(),
            nn.Conv1d(16, 16, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.0),
            nn.Linear(256, 32),
            nn.ReLU(),
            nn.Linear(32, 6),
        )
        return Recipe(
            model=model,
            loss_fn=nn.CrossEntropyLoss(),
            train_data=series.train,
            valid_data=series.valid,
        )

    return model_fn


@torch.no_grad()
def _test(model: nn.Module, series: _Series) -> tuple[float, float]:
    """Loss and accuracy on the test data."""
    inputs, targets = series.test
    outputs = model(inputs.to(next(model.parameters()).device)).cpu()
    loss = nn.functional.cross_entropy(outputs, targets)
    return float(loss), float(accuracy(outputs, targets))
