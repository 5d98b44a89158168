"""Data of the quality benchmark: generated, or bundled with scikit-learn.

Every function takes a seed, which determines the generated data and the split, and returns
tensors whose first axis is samples. Standardisation uses the statistics of the training samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from sklearn import datasets
from torch import Tensor

Pair: TypeAlias = tuple[Tensor, Tensor]

N_TEST = 4000
"""Test samples of generated data: enough for the test loss to be close to the expected loss."""

MOTIF_LENGTH = 16
SERIES_LENGTH = 64
N_TOKENS = 6
"""Number of tokens of the counting task, and of its classes: counts of 5 or more share one."""
COUNTING_LENGTH = 12
ADDING_LENGTH = 12
FIELD_SIZE = 16


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Inputs and targets, in three disjoint parts.

    Args:
        train: Training data.
        valid: Validation data, by which everything is selected.
        test: Test data, evaluated once at the end.
    """

    train: Pair
    valid: Pair
    test: Pair


def clusters(seed: int) -> Splits:
    """Four classes in 20 dimensions, 8 of them informative; 10 % of the labels are random."""
    x, y = datasets.make_classification(
        n_samples=800 + 400 + N_TEST,
        n_features=20,
        n_informative=8,
        n_redundant=4,
        n_classes=4,
        n_clusters_per_class=2,
        flip_y=0.1,
        random_state=seed,
    )
    return _classification(x, y, seed, n_train=800, n_valid=400)


def breast_cancer(seed: int) -> Splits:
    """569 tumours, 30 features, 2 classes; only 80 validation samples."""
    x, y = datasets.load_breast_cancer(return_X_y=True)
    return _classification(x, y, seed, n_train=250, n_valid=80)


def diabetes(seed: int) -> Splits:
    """442 patients, 10 features; the target is the progression of the disease."""
    x, y = datasets.load_diabetes(return_X_y=True)
    return _regression(x, y, seed, n_train=220, n_valid=90)


def friedman1(seed: int) -> Splits:
    """``10 sin(pi x0 x1) + 20 (x2 - .5)^2 + 10 x3 + 5 x4`` with 10 features and unit noise."""
    x, y = datasets.make_friedman1(500 + 250 + N_TEST, n_features=10, noise=1.0, random_state=seed)
    return _regression(x, y, seed, n_train=500, n_valid=250)


def noisy_regression(seed: int) -> Splits:
    """Friedman's second function plus heavy-tailed noise of about the same variance."""
    x, y = datasets.make_friedman2(500 + 250 + N_TEST, random_state=seed)
    noise = np.random.default_rng(seed).standard_t(5, len(y))
    # Student's t with 5 degrees of freedom has a variance of 5/3.
    y = y + noise * y.std() / math.sqrt(5 / 3)
    return _regression(x, y, seed, n_train=500, n_valid=250)


def digits(seed: int) -> Splits:
    """1,797 digits of 8x8 pixels in [0, 1]: ``(n_samples, 1, 8, 8)``."""
    x, y = datasets.load_digits(return_X_y=True)
    images = torch.as_tensor(x / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    return split(images, torch.as_tensor(y), seed, n_train=600, n_valid=300)


def motifs(seed: int) -> Splits:
    """Noisy series ``(n_samples, 1, 64)`` that contain one of six short motifs."""
    generator = torch.Generator().manual_seed(seed)
    n_samples = 600 + 300 + N_TEST
    classes = torch.randint(6, (n_samples,), generator=generator)
    starts = torch.randint(SERIES_LENGTH - MOTIF_LENGTH, (n_samples, 1), generator=generator)
    strengths = 1 + 0.5 * torch.rand(n_samples, 1, generator=generator)
    drift = torch.randn(n_samples, 1, generator=generator) * torch.linspace(-1, 1, SERIES_LENGTH)
    series = drift + 0.6 * torch.randn(n_samples, SERIES_LENGTH, generator=generator)
    positions = starts + torch.arange(MOTIF_LENGTH)
    series = series.scatter_add(1, positions, strengths * _motifs()[classes])
    return split(series.unsqueeze(1), classes, seed, n_train=600, n_valid=300)


def adding(seed: int) -> Splits:
    """The adding problem: predict the sum of the two marked values of ``(n_samples, 12, 2)``.

    The target has measurement noise with a standard deviation of 0.1, so that the loss has a
    positive lower bound, as in practice.

    Reference:
        S. Hochreiter and J. Schmidhuber, *Long short-term memory*, 1997, section 5.4.
    """
    generator = torch.Generator().manual_seed(seed)
    n_samples = 400 + 200 + N_TEST
    values = 2 * torch.rand(n_samples, ADDING_LENGTH, generator=generator) - 1
    marked = torch.rand(n_samples, ADDING_LENGTH, generator=generator).argsort(1)[:, :2]
    marks = torch.zeros_like(values).scatter(1, marked, 1.0)
    sums = (values * marks).sum(1, keepdim=True)
    sums += 0.1 * torch.randn(n_samples, 1, generator=generator)
    splits = split(torch.stack([values, marks], 2), sums, seed, n_train=400, n_valid=200)
    return standardised_targets(splits)


def counting(seed: int) -> Splits:
    """How often the first of 12 tokens reappears; five or more times are one class."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(N_TOKENS, (500 + 250 + N_TEST, COUNTING_LENGTH), generator=generator)
    counts = (tokens[:, 1:] == tokens[:, :1]).sum(1).clamp(max=N_TOKENS - 1)
    return split(tokens, counts, seed, n_train=500, n_valid=250)


def gaps(seed: int) -> Splits:
    """Smooth fields on a gradient, about a third of whose pixels are hidden.

    Returns:
        Inputs (field with hidden pixels set to 0, and mask) and targets (whole field, and mask),
        both ``(n_samples, 2, 16, 16)``. The mask is 1 where a pixel is hidden.
    """
    generator = torch.Generator().manual_seed(seed)
    n_samples = 300 + 150 + 1000
    season = 2 * math.pi * torch.rand(n_samples, 1, 1, generator=generator)
    slope = torch.cos(season) * torch.linspace(-1.5, 1.5, FIELD_SIZE)[:, None]
    fields = _smooth_noise(n_samples, 1.5, generator) + slope
    fields = (fields - fields.mean()) / fields.std()
    hidden = (_smooth_noise(n_samples, 2.0, generator) > 0.4).float()
    hidden[:, FIELD_SIZE // 2, FIELD_SIZE // 2] = 1.0  # At least one hidden pixel in every field.
    seen = torch.stack([fields * (1 - hidden), hidden], 1)
    whole = torch.stack([fields, hidden], 1)
    return split(seen, whole, seed, n_train=300, n_valid=150)


def _classification(x: Any, y: Any, seed: int, *, n_train: int, n_valid: int) -> Splits:
    inputs, classes = torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(y).long()
    splits = split(inputs, classes, seed, n_train=n_train, n_valid=n_valid)
    return _standardised_inputs(splits)


def _regression(x: Any, y: Any, seed: int, *, n_train: int, n_valid: int) -> Splits:
    inputs, targets = (torch.as_tensor(part, dtype=torch.float32) for part in (x, y))
    splits = split(inputs, targets.unsqueeze(1), seed, n_train=n_train, n_valid=n_valid)
    return standardised_targets(_standardised_inputs(splits))


def split(x: Tensor, y: Tensor, seed: int, *, n_train: int, n_valid: int) -> Splits:
    """Split a permutation into ``n_train``, ``n_valid`` and the remaining, test samples."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    train, valid, test = torch.split(order, [n_train, n_valid, len(x) - n_train - n_valid])
    return Splits(train=(x[train], y[train]), valid=(x[valid], y[valid]), test=(x[test], y[test]))


def _standardised_inputs(splits: Splits) -> Splits:
    mean, std = splits.train[0].mean(0), splits.train[0].std(0)
    parts = {name: ((x - mean) / std, y) for name, (x, y) in vars(splits).items()}
    return Splits(**parts)


def standardised_targets(splits: Splits) -> Splits:
    mean, std = splits.train[1].mean(), splits.train[1].std()
    parts = {name: (x, (y - mean) / std) for name, (x, y) in vars(splits).items()}
    return Splits(**parts)


def _motifs() -> Tensor:
    """Six motifs ``(6, 16)`` of different shapes and equal energy."""
    time = torch.linspace(0, 1, MOTIF_LENGTH)
    window = torch.sin(math.pi * time)
    rising = torch.sin(2 * math.pi * (time + 2 * time**2))
    slow, fast = torch.sin(4 * math.pi * time), torch.sin(8 * math.pi * time)
    shapes = [rising, rising.flip(0), slow, fast, slow.sign(), window]
    motifs = torch.stack([window * shape for shape in shapes])
    return motifs / motifs.square().mean(1, keepdim=True).sqrt()


def _smooth_noise(n_samples: int, length: float, generator: torch.Generator) -> Tensor:
    """Gaussian random fields of the given correlation length, in pixels; mean 0, variance 1."""
    noise = torch.randn(n_samples, FIELD_SIZE, FIELD_SIZE, generator=generator)
    kx, ky = torch.fft.rfftfreq(FIELD_SIZE), torch.fft.fftfreq(FIELD_SIZE)[:, None]
    spectrum = torch.exp(-0.5 * (2 * math.pi * length) ** 2 * (kx**2 + ky**2))
    field = torch.fft.irfft2(torch.fft.rfft2(noise) * spectrum, s=(FIELD_SIZE, FIELD_SIZE))
    return torch.div(field, field.std())
