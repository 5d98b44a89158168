"""Small networks of the quality benchmark; activations and dropout are modules."""

from __future__ import annotations

import torch
from _datasets import COUNTING_LENGTH, N_TOKENS
from torch import Tensor, nn


def mlp(
    n_inputs: int, n_outputs: int, *, hidden: int = 64, activation: type[nn.Module] = nn.ReLU
) -> nn.Module:
    """Build an MLP with two hidden layers; inputs of any shape are flattened.

    Args:
        n_inputs: Values per sample.
        n_outputs: Width of the last layer.
        hidden: Width of the first hidden layer; the second has half of it, at least 32.
        activation: Class of the activations.
    """
    second = max(hidden // 2, 32)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(n_inputs, hidden),
        activation(),
        nn.Dropout(0.0),
        nn.Linear(hidden, second),
        activation(),
        nn.Dropout(0.0),
        nn.Linear(second, n_outputs),
    )


def image_cnn() -> nn.Module:
    """Build a CNN from images ``(n_samples, 1, 8, 8)`` to 10 scores."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.0),
        nn.Linear(64, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


def series_cnn(activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    """Build a 1-D CNN from series ``(n_samples, 1, 64)`` to 6 scores."""
    return nn.Sequential(
        nn.Conv1d(1, 16, 7, stride=2, padding=3),
        activation(),
        nn.Conv1d(16, 16, 5, stride=2, padding=2),
        activation(),
        nn.Flatten(),
        nn.Dropout(0.0),
        nn.Linear(256, 32),
        activation(),
        nn.Linear(32, 6),
    )


def autoencoder() -> nn.Module:
    """Build an autoencoder with 16, 32 and 16 channels, from ``(n_samples, 2, 16, 16)`` to 1."""
    return nn.Sequential(
        nn.Conv2d(2, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(16, 1, 4, stride=2, padding=1),
    )


class Recurrent(nn.Module):
    """One GRU layer and a head on its last state, from ``(n_samples, length, 2)`` to 1 value."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(2, 16, batch_first=True)
        self.head = nn.Sequential(nn.Dropout(0.0), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, series: Tensor) -> Tensor:
        """Return one output per series."""
        states, _ = self.gru(series)
        output: Tensor = self.head(states[:, -1])
        return output


class Transformer(nn.Module):
    """One encoder layer over tokens ``(n_samples, 12)``; scores from the first position."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(N_TOKENS, 16)
        self.positions = nn.Parameter(0.1 * torch.randn(COUNTING_LENGTH, 16))
        self.layer = nn.TransformerEncoderLayer(
            16, nhead=2, dim_feedforward=32, dropout=0.0, activation=nn.ReLU(), batch_first=True
        )
        self.scores = nn.Linear(16, N_TOKENS)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return one score per class."""
        states = self.layer(self.embedding(tokens) + self.positions)
        scores: Tensor = self.scores(states[:, 0])
        return scores
