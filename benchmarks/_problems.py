"""What is trained: networks and synthetic data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

Pair: TypeAlias = tuple[Tensor, Tensor]

BATCH_SIZE = 32
_SEED = 0


@dataclass(frozen=True)
class Problem:
    """A fully connected network and how many objects it learns from.

    Args:
        widths: Of its layers, input and output included.
        n_train: Training objects.
        n_valid: Validation objects.
    """

    widths: tuple[int, ...]
    n_train: int
    n_valid: int

    def network(self) -> nn.Sequential:
        """A new network with ReLU between the layers."""
        layers: list[nn.Module] = []
        for n_in, n_out in zip(self.widths, self.widths[1:], strict=False):
            layers += [nn.Linear(n_in, n_out), nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    def data(self) -> tuple[Pair, Pair]:
        """Classes with a noisy pattern each; how long an epoch takes depends on sizes alone."""
        generator = torch.Generator().manual_seed(_SEED)
        n_objects, n_in, n_classes = self.n_train + self.n_valid, self.widths[0], self.widths[-1]
        patterns = torch.rand(n_classes, n_in, generator=generator)
        y = torch.randint(n_classes, (n_objects,), generator=generator)
        noise = torch.randn(n_objects, n_in, generator=generator)
        x = (patterns[y] + 0.5 * noise).clamp(0, 1)
        n_train = self.n_train
        # Copies, so that each part owns its memory, as data do that were loaded apart.
        return (x[:n_train].clone(), y[:n_train].clone()), (x[n_train:].clone(), y[n_train:])


PROBLEMS = {
    "fnn": Problem((784, 400, 10), 8_000, 2_000),
    "digits": Problem((64, 128, 64, 10), 1_437, 360),
    "tiny": Problem((4, 12, 3), 60, 30),
}
"""MNIST by MIHA's network, scikit-learn's digits, and next to nothing."""


def problem_of(name: str, n_objects: int | None = None) -> Problem:
    """A problem, cut to ``n_objects`` where that is given; a fifth of them validates."""
    problem = PROBLEMS[name]
    if n_objects is None:
        return problem
    return Problem(problem.widths, n_objects - n_objects // 5, n_objects // 5)
