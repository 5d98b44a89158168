"""What the projects of this folder share: options, the run, and a plain run to compare with."""

import argparse
from collections.abc import Callable
from typing import Any

import optuna
import torch
from sklearn.datasets import load_digits
from torch import nn

import optuna_miha as miha


def one_cycle(fraction: float) -> float:
    """A warm-up over a tenth of the run, and a linear decay."""
    return min(fraction / 0.1, (1 - fraction) / 0.9) if fraction else 0.01


def digits(seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Training, validation and test data: 900, 400 and 497 images of 8x8 pixels."""
    x, y = load_digits(return_X_y=True)
    images = torch.as_tensor(x / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    parts = torch.split(order, [900, 400, 497])
    return [(images[part], torch.as_tensor(y)[part]) for part in parts]


def main(
    model_fn: Callable[[Any], miha.Recipe],
    test: Callable[[nn.Module], float],
    *,
    name: str,
    n_epochs: int,
    direction: str = "minimize",
) -> None:
    """Run a project by the command line, and print its metric on the test data.

    With ``--plain``, three learning rates are tried for a third of the epochs each, by a schedule
    of one rise and a linear decay, and the best by validation is tested: what the author of a
    script would do without this package, at the same cost.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--n-epochs", type=int, default=n_epochs)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plain", action="store_true")
    options = parser.parse_args()

    def run(plan: miha.Plan, factor: float | None = None) -> miha.Result:
        def scheduled(trial: Any) -> miha.Recipe:
            recipe = model_fn(trial)
            if factor is not None:
                recipe.lr_schedule = lambda fraction: factor * one_cycle(fraction)
            return recipe

        sampler = miha.MihaSampler(seed=options.seed)
        study = optuna.create_study(direction=direction, sampler=sampler)
        return miha.optimize(study, scheduled, plan=plan, device="cpu")

    if options.plain:
        plan = miha.Plan.no_search(options.n_epochs // 3)
        best = min if direction == "minimize" else max
        result = best((run(plan, factor) for factor in (1 / 3, 1, 3)), key=lambda r: r.value)
    else:
        result = run(miha.Plan(options.n_epochs))
        print(result.describe())
    with torch.no_grad():
        print(f"{name}: {test(result.model):.4f}")
