"""Memory of a run with many trials.

Trains a tiny network on an SQLite file. A cycle has three branches and a trunk segment, of one
epoch each. The memory of the process is written every ``--every`` trials::

    python benchmarks/memory.py --n-trials 10000 --output memory.csv
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from pathlib import Path
from typing import Any

import optuna
import torch
from torch import Tensor, nn

import optuna_miha as miha

X = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(32) % 3


class Aging(nn.Module):
    """A network that counts its epochs. The count is monitored, so that every cycle improves."""

    age: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        self.register_buffer("age", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Classify."""
        if self.training:
            self.age += 1
        return self.layers(x)


def model_fn(trial: Any) -> miha.Recipe:
    """Build a recipe with one step per epoch."""
    model = Aging()
    return miha.Recipe(
        model=model,
        loss_fn=nn.CrossEntropyLoss(),
        train_data=(X, Y),
        valid_data=(X, Y),
        metrics={"age": lambda output, target: model.age.item()},
        monitor="age",
        optimizer=miha.suggest_optimizer(trial, model.parameters()),
        batch_size=32,
    )


class Memory:
    """A callback that writes a row every ``every`` trials.

    Args:
        path: The CSV file.
        every: Number of trials between two rows.
    """

    def __init__(self, path: Path, every: int) -> None:
        self._file = path.open("w", newline="")
        self._rows = csv.writer(self._file)
        self._rows.writerow(["trials", "seconds", "rss_mib"])
        self._every = every
        self._start = time.monotonic()

    def __call__(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        """Write a row after every ``every``-th trial."""
        if (trial.number + 1) % self._every == 0:
            seconds = time.monotonic() - self._start
            self._rows.writerow([trial.number + 1, f"{seconds:.0f}", f"{rss_mib():.1f}"])
            self._file.flush()


def rss_mib() -> float:
    """Resident memory of this process in MiB, from Linux's ``/proc``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith("VmRSS:")]
    return int(line.split()[1]) / 1024


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n-trials", type=int, default=10_000)
    parser.add_argument("--every", type=int, default=100, help="trials between two rows")
    parser.add_argument("--output", type=Path, default=Path("memory.csv"))
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    n_cycles = args.n_trials // 4
    plan = miha.Plan(
        4 * n_cycles + 2,
        population_size=3,
        branch_epochs=1,
        fixing_epochs=1,
        startup=1,
        final_share=0.0,
        n_cycles=n_cycles,
        restarts=False,
        anneal="cosine",
    )
    with tempfile.TemporaryDirectory() as folder:
        study = optuna.create_study(
            storage=miha.create_storage(Path(folder, "study.db")),
            study_name="memory",
            direction="maximize",
            sampler=miha.MihaSampler(seed=0),
            pruner=miha.SlopePruner(),
        )
        memory = Memory(args.output, args.every)
        miha.optimize(study, model_fn, plan=plan, callbacks=[memory], show_progress_bar=False)
        print(f"{len(study.get_trials(deepcopy=False))} trials, {rss_mib():.0f} MiB")


if __name__ == "__main__":
    main()
