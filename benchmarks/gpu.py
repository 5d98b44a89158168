"""Time, throughput and memory on an accelerator, beside a loop written by hand.

    python benchmarks/gpu.py                          # The accelerator; about six minutes.
    python benchmarks/gpu.py --device cpu --quick     # Proves that the script works.

Writes ``gpu.json`` and prints three tables: milliseconds per training step for three networks in
each precision, branches per second with 1, 2 and 4 worker processes on the device, and the peak of
the memory.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import torch
from torch import Tensor, nn

import optuna_miha as miha
from optuna_miha._training.compute import Engine
from optuna_miha._training.trainer import move, train

PRECISIONS = (None, "bf16", "fp16")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Residual(nn.Module):
    """A block of ResNet-18."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(n_out),
            nn.ReLU(),
            nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(n_out),
        )
        shortcut = nn.Conv2d(n_in, n_out, 1, stride, bias=False)
        self.shortcut = nn.Identity() if (n_in, stride) == (n_out, 1) else shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Add the body to the shortcut."""
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet18(width: int = 64) -> nn.Module:
    """ResNet-18 for images of 32 x 32."""
    widths = [width, width, width, 2 * width, 2 * width, 4 * width, 4 * width]
    widths += [8 * width, 8 * width]
    blocks = [Residual(one, two, 2 if two > one else 1) for one, two in itertools.pairwise(widths)]
    stem = nn.Conv2d(3, width, 3, 1, 1, bias=False)
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, 10)]
    return nn.Sequential(stem, nn.BatchNorm2d(width), nn.ReLU(), *blocks, *pool)


class Transformer(nn.Module):
    """Four layers of width 128 over 64 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, 128)
        layer = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.1, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 4)
        self.head = nn.Linear(128, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        """Classify the mean over the tokens."""
        return self.head(self.layers(self.embed(tokens)).mean(dim=1))


def fnn() -> nn.Module:
    """Three hidden layers of 256 units."""
    sizes = [64, 256, 256, 256]
    layers: list[nn.Module] = []
    for one, two in itertools.pairwise(sizes):
        layers += [nn.Linear(one, two), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(256, 10))


class Compiled(nn.Module):
    """The fully connected network, whose passes torch captures as graphs where it can."""

    def __init__(self, quick: bool) -> None:
        super().__init__()
        self.layers = fnn()
        options = {"backend": "eager"} if quick else {"mode": "reduce-overhead"}
        self.compile(dynamic=False, **options)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        """Call the layers."""
        output: Tensor = self.layers(x)
        return output


def networks(quick: bool) -> dict[str, tuple[Callable[[], nn.Module], Tensor]]:
    """Each network, and inputs of 16 batches of 128 samples; quick: of 2 batches of 16."""
    n = 32 if quick else 2048
    return {
        "fnn": (fnn, torch.randn(n, 64)),
        "fnn, compiled": (partial(Compiled, quick), torch.randn(n, 64)),
        "resnet18": (lambda: resnet18(8 if quick else 64), torch.randn(n, 3, 32, 32)),
        "transformer": (Transformer, torch.randint(0, 256, (n, 64))),
    }


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def make_recipe(make: Callable[[], nn.Module], inputs: Tensor, batch_size: int) -> miha.Recipe:
    """A recipe with AdamW."""
    targets = torch.arange(len(inputs)) % 10
    data = {"train_data": (inputs, targets), "valid_data": (inputs[:2], targets[:2])}
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return miha.Recipe(
        model=model,
        loss_fn=nn.CrossEntropyLoss(),
        optimizer=optimizer,
        batch_size=batch_size,
        **data,
    )


def by_hand(recipe: miha.Recipe, device: torch.device, precision: str | None) -> None:
    """One epoch as a script would train it."""
    assert isinstance(recipe.train_data, tuple) and recipe.optimizer is not None
    inputs, targets = recipe.train_data
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    recipe.model.train()
    for rows in torch.randperm(len(inputs), device=device).split(recipe.batch_size or 1):
        with torch.autocast(device.type, DTYPES.get(precision or ""), precision is not None):
            loss = recipe.loss_fn(recipe.model(inputs[rows]), targets[rows])
        recipe.optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(recipe.optimizer)
        scaler.update()
    loss.item()


def step_times(device: torch.device, quick: bool) -> list[dict[str, Any]]:
    """Milliseconds per step of the built-in trainer and of a loop by hand; least of the epochs."""
    rows = []
    batch_size, n_epochs = (16, 2) if quick else (128, 8)
    for name, (make, inputs) in networks(quick).items():
        for precision in PRECISIONS:
            times: dict[str, list[float]] = {"package": [], "by hand": []}
            n_steps = -(-len(inputs) // batch_size)
            recipe = move(make_recipe(make, inputs, batch_size), device)
            epochs = train(recipe, n_epochs, engine=Engine(precision=precision))
            other = move(make_recipe(make, inputs, batch_size), device)
            for _ in range(n_epochs):
                calls = partial(next, epochs), partial(by_hand, other, device, precision)
                for kind, call in zip(times, calls, strict=True):
                    synchronize(device)
                    start = time.perf_counter()
                    call()
                    synchronize(device)
                    times[kind].append(1000 * (time.perf_counter() - start) / n_steps)
            least = {kind: min(values) for kind, values in times.items()}
            rows.append({"network": name, "precision": precision or "fp32", **least})
    return rows


def model_fn(trial: Any, n_samples: int) -> miha.Recipe:
    """The fully connected network, with a learning rate that mutates."""
    recipe = make_recipe(fnn, torch.randn(n_samples, 64), 128)
    lr = trial.suggest_float("lr", 1e-4, 1e-2, log=True)
    recipe.optimizer = torch.optim.AdamW(recipe.model.parameters(), lr=lr)
    return recipe


def throughput(device: torch.device, quick: bool) -> list[dict[str, Any]]:
    """Branches per second of a run with several worker processes on one device."""
    rows = []
    make = partial(model_fn, n_samples=256 if quick else 4096)
    for n_jobs in (1, 2) if quick else (1, 2, 4):
        study = optuna.create_study(sampler=miha.MihaSampler(seed=0))
        n_epochs = 24 if quick else 200
        start = time.perf_counter()
        result = miha.optimize(
            study, make, n_epochs=n_epochs, n_jobs=n_jobs, device=device, show_progress_bar=False
        )
        seconds = time.perf_counter() - start
        n_branches = sum(segment.role == "branch" for segment in result.segments)
        rows.append({"workers": n_jobs, "branches per second": n_branches / seconds})
    return rows


def memory(device: torch.device, quick: bool) -> list[dict[str, Any]]:
    """Peak of the allocated memory in MiB during an epoch; empty on a CPU."""
    if device.type == "cpu":
        return []
    rows, module = [], torch.get_device_module(device)
    for name, (make, inputs) in networks(quick).items():
        for precision in PRECISIONS:
            recipe = move(make_recipe(make, inputs, 128), device)
            module.reset_peak_memory_stats(device)
            next(train(recipe, 1, engine=Engine(precision=precision)))
            peak = module.max_memory_allocated(device) / 2**20
            rows.append({"network": name, "precision": precision or "fp32", "peak MiB": peak})
    return rows


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """Print a table."""
    print(f"\n{title}")
    for row in rows:
        values = (f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
        print("  " + ", ".join(values))


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default=None, help="default: the accelerator")
    parser.add_argument("--quick", action="store_true", help="small networks, few epochs")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if options.device is None and accelerator is None:
        raise SystemExit("There is no accelerator: pass `--device cpu --quick` to try the script.")
    device = torch.device(options.device or accelerator)
    module = torch.get_device_module(device) if device.type != "cpu" else None
    results = {
        "device": platform.processor() if module is None else module.get_device_name(device),
        "torch": torch.__version__,
        "steps": step_times(device, options.quick),
        "throughput": throughput(device, options.quick),
        "memory": memory(device, options.quick),
    }
    options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    show("milliseconds per step", results["steps"])
    show("branches per second", results["throughput"])
    show("peak of the memory", results["memory"])


if __name__ == "__main__":
    main()
