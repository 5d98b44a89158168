"""Networks of the quality benchmark: small, with modules for activations and dropout."""

from __future__ import annotations

import torch
from _datasets import COUNTING_LENGTH, N_TOKENS
from torch import Tensor, nn


def mlp(
    n_inputs: int, n_outputs: int, *, hidden: int = 64, activation: type[nn.Module] = nn.ReLU
) -> nn.Module:
    """Two hidden layers; takes inputs of any shape with ``n_inputs`` values per object.

    Args:
        n_inputs: Values per object.
        n_outputs: Width of the last layer.
        hidden: Width of the first hidden layer; the second has half of it, but at least 32.
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
    """Ten scores of an image ``(n_objects, 1, 8, 8)``."""
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
    """Six scores of a series ``(n_objects, 1, 64)``."""
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
    """Four layers with 16, 32 and 16 channels between them: ``(n_objects, 2, 16, 16)`` to 1."""
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
    """One GRU layer, and a head on its last state: ``(n_objects, length, 2)`` to 1."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(2, 16, batch_first=True)
        self.head = nn.Sequential(nn.Dropout(0.0), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, series: Tensor) -> Tensor:
        """One output per series."""
        states, _ = self.gru(series)
        output: Tensor = self.head(states[:, -1])
        return output


class Transformer(nn.Module):
    """One encoder layer over tokens ``(n_objects, 12)``; scores from the first place."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(N_TOKENS, 16)
        self.places = nn.Parameter(0.1 * torch.randn(COUNTING_LENGTH, 16))
        self.layer = nn.TransformerEncoderLayer(
            16, nhead=2, dim_feedforward=32, dropout=0.0, activation=nn.ReLU(), batch_first=True
        )
        self.scores = nn.Linear(16, N_TOKENS)

    def forward(self, tokens: Tensor) -> Tensor:
        """One score per class."""
        states = self.layer(self.embedding(tokens) + self.places)
        scores: Tensor = self.scores(states[:, 0])
        return scores
