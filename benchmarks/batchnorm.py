"""Which running statistics the average of the weights needs in networks with batch norm.

First, ``optimize`` trains two networks by the default plan, with and without the average, beside
two training loops without a search, at equal epochs. Then four networks train as a segment of the
default plan does. After every epoch the moving average of their weights is validated with several
running statistics: copies of the network's own, their moving average, and estimates from training
data. The test data are evaluated once per run, at its end::

    python benchmarks/batchnorm.py            # 25 minutes on one core. Does what is missing.
    python benchmarks/batchnorm.py --report   # The tables again.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # Before torch is imported.

import numpy as np
import optuna
import torch
from _datasets import Splits, digits
from _expert import SEARCHES, run_expert
from _harness import environment, results_folder, write_json
from _rows import RESULTS, Row, append_row, newest, read_rows
from _selection import examined
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import optuna_miha as miha
from optuna_miha._search.learning_rate import Course
from optuna_miha._training.compute import DEFAULT_ENGINE
from optuna_miha._training.optimizer_steps import OptimizerSteps
from optuna_miha._training.running_statistics import FirstBatches, estimate_running_statistics
from optuna_miha._training.trainer import evaluate, train

DATA = Path(__file__).parents[1] / "examples" / "data" / "mnist_10k.npz"
DECAY = 0.72
"""Decay of the average per epoch, as in the default plan."""
RATES = (0.003, 0.03)
"""Peaks of the learning rate in the second part: the lowest and the highest of the race."""
N_EPOCHS = 10
"""Epochs of the second part."""


class Block(nn.Module):
    """Two convolutions with batch norm beside a shortcut."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(n_out),
            nn.ReLU(),
            nn.Conv2d(n_out, n_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(n_out),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or n_in != n_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out)
            )
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Add both paths."""
        return self.activation(self.main(x) + self.shortcut(x))


def resnet() -> nn.Module:
    """Three blocks of 8, 16 and 32 channels; about 21,000 weights."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        Block(8, 8, 1),
        Block(8, 16, 2),
        Block(16, 32, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def cnn() -> nn.Module:
    """Two convolutions with batch norm."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(144, 10),
    )


def mlp() -> nn.Module:
    """Two hidden layers with batch norm."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 64),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def tabular_mlp() -> nn.Module:
    """A hidden layer; batch norm standardizes the features as well."""
    return nn.Sequential(
        nn.BatchNorm1d(30),
        nn.Linear(30, 32),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.Linear(32, 2),
    )


def mnist(seed: int) -> Splits:
    """1,000 training, 1,000 validation and 10,000 test images, reduced to 14x14 pixels."""
    arrays = np.load(DATA)

    def split(name: str) -> tuple[Tensor, Tensor]:
        images = torch.tensor(arrays[f"x_{name}"]).float().reshape(-1, 1, 28, 28) / 255
        return nn.functional.avg_pool2d(images, 2), torch.tensor(arrays[f"y_{name}"]).long()

    x, y = split("train")
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    train_part, valid_part = order[:1000], order[1000:2000]
    return Splits(
        train=(x[train_part], y[train_part]),
        valid=(x[valid_part], y[valid_part]),
        test=split("test"),
    )


def unscaled_breast_cancer(seed: int) -> Splits:
    """569 tumours with 30 features in their own units, whose means are far from zero."""
    data = load_breast_cancer()
    x, y = torch.tensor(data.data).float(), torch.tensor(data.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    train_part, valid_part, test_part = order.split((250, 120, 199))
    return Splits(
        train=(x[train_part], y[train_part]),
        valid=(x[valid_part], y[valid_part]),
        test=(x[test_part], y[test_part]),
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Splits]]] = {
    "resnet": (resnet, mnist),
    "cnn": (cnn, mnist),
    "mlp": (mlp, digits),
    "tabular": (tabular_mlp, unscaled_breast_cancer),
}
RUN_NETWORKS = ("resnet", "tabular")
"""Networks of the first part."""


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Share of samples whose largest output is their class."""
    return (outputs.argmax(1) == targets).double().mean()


def recipe_of(model: nn.Module, splits: Splits) -> miha.Recipe:
    """The network, with Adam and batches of 32."""
    return miha.Recipe(
        model=model,
        loss_fn=nn.CrossEntropyLoss(),
        train_data=splits.train,
        valid_data=splits.valid,
        test_data=splits.test,
        batch_size=32,
        metrics={"accuracy": accuracy},
    )


def new_average(model: nn.Module, n_steps: int) -> AveragedModel:
    """A moving average of weights and running statistics by the step, as in the default plan."""

    @torch.no_grad()
    def update(averages: list[Tensor], own: list[Tensor], n_averaged: int) -> None:
        weight = max(2 / (int(n_averaged) + 2), 1 - DECAY ** (1 / n_steps))
        for average, value in zip(averages, own, strict=True):
            if value.is_floating_point():
                average.lerp_(value, weight)
            else:
                average.copy_(value)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)


def rounded(values: dict[str, float]) -> Row:
    """The values with five digits after the point."""
    return {name: round(value, 5) for name, value in values.items()}


PLANS = ("plain loop", "one cycle", "no average", "default")
"""The initial configuration at a constant rate; AdamW with its rate and momentum by
``OneCycleLR``; the default plan without an average of the weights; the default plan."""


def run_of(network: str, name: str, seed: int, n_epochs: int) -> Row:
    """Train a network by one of ``PLANS``, and test the weights that validated best."""
    build, load = NETWORKS[network]
    splits = load(seed)

    def model_fn(trial: optuna.Trial) -> miha.Recipe:
        return recipe_of(build(), splits)

    begin = time.process_time()
    if name == "one cycle":
        search = SEARCHES["onecycle"][1]
        run = run_expert(model_fn, n_epochs=n_epochs, seed=seed, method=name, search=search)
        value, test = run.value, run.test
        assert test is not None
    else:
        plan = miha.Plan(n_epochs, ema_decay=0) if name == "no average" else miha.Plan(n_epochs)
        if name == "plain loop":
            plan = miha.Plan.no_search(n_epochs)
        study = optuna.create_study(sampler=miha.MihaSampler(seed=seed), pruner=miha.SlopePruner())
        result = miha.optimize(study, model_fn, plan=plan, device="cpu", show_progress_bar=False)
        value, test = result.value, examined(model_fn, result.model, seed)
    return {
        "network": network,
        "plan": name,
        "seed": seed,
        "n_epochs": n_epochs,
        "value": value,
        "test_loss": test["loss"],
        "test_accuracy": test["accuracy"],
        "cpu_s": time.process_time() - begin,
    }


def epochs_of(network: str, seed: int, lr: float) -> Iterator[Row]:
    """Train a network and yield a row per epoch: the average by several running statistics."""
    build, load = NETWORKS[network]
    torch.manual_seed(seed)
    recipe = recipe_of(build(), load(seed))
    model = recipe.model
    recipe.optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    x, y = recipe.train_data[:2]  # type: ignore[index]
    batches = list(zip(x.split(32), y.split(32), strict=True))
    n_steps = len(batches)
    average, course = new_average(model, n_steps), Course(n_epochs=N_EPOCHS)
    steps = OptimizerSteps(recipe.optimizer)
    steps.follow(
        lambda count: course.factor(count / n_steps), lambda: average.update_parameters(model)
    )
    first = FirstBatches()
    epochs = train(recipe, N_EPOCHS, on_batch=first.add)
    for epoch in range(1, N_EPOCHS + 1):
        seconds = {"epoch": time.perf_counter()}
        next(epochs)
        seconds["epoch"] = time.perf_counter() - seconds["epoch"]
        copied = copy.deepcopy(average.module)
        own = dict(model.named_buffers())
        for name, buffer in copied.named_buffers():
            buffer.copy_(own[name])
        models = {"raw": model, "copied": copied, "averaged": average.module}
        for name, sample in (("estimated", first.take()), ("estimated from all", batches)):
            models[name] = copy.deepcopy(copied)
            begin = time.perf_counter()
            estimate_running_statistics(recipe, models[name], sample, DEFAULT_ENGINE)
            seconds[name] = time.perf_counter() - begin
        values = {name: rounded(evaluate(recipe, each)) for name, each in models.items()}
        labels = {"network": network, "lr": lr, "seed": seed, "epoch": epoch}
        yield {**labels, "values": values, "seconds": rounded(seconds)}


def report(rows: Sequence[Row]) -> Iterator[str]:
    """The lines of the tables of ``docs/decisions/0018``."""
    kinds = ("raw", "copied", "averaged", "estimated", "estimated from all")
    yield "| network, lr, epochs | " + " | ".join(kinds) + " |"
    yield "|---" * (1 + len(kinds)) + "|"
    epochs = [row for row in rows if "epoch" in row]
    for network, lr in itertools.product(NETWORKS, RATES):
        for first, last in ((1, 1), (2, 3), (4, 6), (7, N_EPOCHS)):
            own = [
                row
                for row in epochs
                if (row["network"], row["lr"]) == (network, lr) and first <= row["epoch"] <= last
            ]
            if own:
                cells = [mean(by_seed(own, kind), 3) for kind in kinds]
                span = f"{first} to {last}" if first < last else f"{first}"
                yield f"| {network}, {lr}, {span} | " + " | ".join(cells) + " |"
    yield ""
    yield "| network, plan | test accuracy | test loss | validation loss | CPU seconds |"
    yield "|---|---|---|---|---|"
    for network, plan in itertools.product(RUN_NETWORKS, PLANS):
        runs = [row for row in rows if (row["network"], row.get("plan")) == (network, plan)]
        if runs:
            measured = (("test_accuracy", 4), ("test_loss", 4), ("value", 4), ("cpu_s", 0))
            cells = [mean([row[key] for row in runs], n_digits) for key, n_digits in measured]
            yield f"| {network}, {plan} | " + " | ".join(cells) + " |"
    yield ""
    yield "| network, default minus | test accuracy | test loss | validation loss |"
    yield "|---|---|---|---|"
    for network, plan in itertools.product(RUN_NETWORKS, PLANS[:-1]):
        runs = [
            {row["seed"]: row for row in rows if (row["network"], row.get("plan")) == (network, p)}
            for p in ("default", plan)
        ]
        seeds = sorted(runs[0].keys() & runs[1].keys())
        if seeds:
            cells = [
                mean([runs[0][seed][key] - runs[1][seed][key] for seed in seeds], 4)
                for key in ("test_accuracy", "test_loss", "value")
            ]
            yield f"| {network}, {plan} | " + " | ".join(cells) + " |"


def by_seed(rows: Sequence[Row], kind: str) -> list[float]:
    """The mean accuracy of every seed."""
    seeds = sorted({row["seed"] for row in rows})
    return [
        statistics.mean(row["values"][kind]["accuracy"] for row in rows if row["seed"] == seed)
        for seed in seeds
    ]


def mean(values: Sequence[float], n_digits: int) -> str:
    """The mean of one value per seed, with its standard error."""
    text = f"{statistics.mean(values):.{n_digits}f}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values) / len(values) ** 0.5:.{n_digits}f}"
    return text


def main() -> None:
    """Train what is missing, write the rows, and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, help="folder of results; default: of today")
    parser.add_argument("--seeds", type=int, default=5, help="default %(default)s")
    parser.add_argument("--n-epochs", type=int, default=60, help="of a run; default %(default)s")
    parser.add_argument("--report", action="store_true", help="only print the tables")
    args = parser.parse_args()
    if args.report:
        print("\n".join(report(read_rows(args.out or newest(RESULTS, "batchnorm")))))
        return
    out = args.out or results_folder("batchnorm")
    out.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    torch.set_num_threads(1)
    write_json(out / "env.json", environment() | {"n_epochs": args.n_epochs})
    labels = ("network", "lr", "plan", "seed")
    done = {tuple(row.get(label) for label in labels) for row in read_rows(out)}
    with (out / "raw.jsonl").open("a", encoding="utf-8") as file:
        for seed, network, plan in itertools.product(range(args.seeds), RUN_NETWORKS, PLANS):
            if (network, None, plan, seed) not in done:
                append_row(file, run_of(network, plan, seed, args.n_epochs))
        for seed, network, lr in itertools.product(range(args.seeds), NETWORKS, RATES):
            if (network, lr, None, seed) not in done:
                for row in epochs_of(network, seed, lr):
                    append_row(file, row)
    print("\n".join(report(read_rows(out))))


if __name__ == "__main__":
    main()
