"""Networks and synthetic data of the speed benchmarks."""

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
    """A fully connected network and the size of its data.

    Args:
        widths: Widths of the layers, including input and output.
        n_train: Number of training samples.
        n_valid: Number of validation samples.
    """

    widths: tuple[int, ...]
    n_train: int
    n_valid: int

    def network(self) -> nn.Sequential:
        """Build a new network with ReLU between the layers."""
        layers: list[nn.Module] = []
        for n_in, n_out in zip(self.widths, self.widths[1:], strict=False):
            layers += [nn.Linear(n_in, n_out), nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    def data(self) -> tuple[Pair, Pair]:
        """Generate training and validation data: one noisy pattern per class."""
        generator = torch.Generator().manual_seed(_SEED)
        n_samples, n_in, n_classes = self.n_train + self.n_valid, self.widths[0], self.widths[-1]
        patterns = torch.rand(n_classes, n_in, generator=generator)
        y = torch.randint(n_classes, (n_samples,), generator=generator)
        noise = torch.randn(n_samples, n_in, generator=generator)
        x = (patterns[y] + 0.5 * noise).clamp(0, 1)
        n_train = self.n_train
        # Clones, so that each part owns its memory as separately loaded data would.
        return (x[:n_train].clone(), y[:n_train].clone()), (x[n_train:].clone(), y[n_train:])


PROBLEMS = {
    "fnn": Problem((784, 400, 10), 8_000, 2_000),
    "digits": Problem((64, 128, 64, 10), 1_437, 360),
    "tiny": Problem((4, 12, 3), 60, 30),
}
"""The size of MNIST with MIHA's network, of scikit-learn's digits, and a tiny problem."""


def problem_of(name: str, n_samples: int | None = None) -> Problem:
    """The problem ``name``, cut to ``n_samples`` if given, a fifth of them for validation."""
    problem = PROBLEMS[name]
    if n_samples is None:
        return problem
    return Problem(problem.widths, n_samples - n_samples // 5, n_samples // 5)
