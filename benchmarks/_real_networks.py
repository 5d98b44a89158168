"""Networks of the tasks of real origin; activations and dropout are modules."""

from __future__ import annotations

from _real_signals import N_WORDS
from torch import Tensor, nn


def table_mlp(n_inputs: int, n_outputs: int) -> nn.Module:
    """Build an MLP with hidden layers of 64 and 32 units."""
    return nn.Sequential(
        nn.Linear(n_inputs, 64),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Linear(64, 32),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Linear(32, n_outputs),
    )


class WordAverage(nn.Module):
    """Averaged word vectors and an MLP, from words ``(n_samples, length)`` to scores."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(N_WORDS, 32, padding_idx=0)
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, words: Tensor) -> Tensor:
        """Return the scores of the classes."""
        lengths = (words != 0).sum(1, keepdim=True).clamp(min=1)
        scores: Tensor = self.head(self.words(words).sum(1) / lengths)
        return scores


class WeatherCnn(nn.Module):
    """Two 1-D convolutions and a head, from series ``(n_samples, 24, 9)`` to 1 value."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(9, 16, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv1d(16, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(96, 32),
            nn.ReLU(),
            nn.Linear(32, 1),
        )

    def forward(self, series: Tensor) -> Tensor:
        """Return one output per series."""
        output: Tensor = self.body(series.transpose(1, 2))
        return output


class Forecaster(nn.Module):
    """One GRU layer and a head on its last state, from ``(n_samples, length, 4)`` to 1 value."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(4, 16, batch_first=True)
        self.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, series: Tensor) -> Tensor:
        """Return one output per series."""
        states, _ = self.gru(series)
        output: Tensor = self.head(states[:, -1])
        return output


def digit_cnn() -> nn.Module:
    """Build a CNN from images ``(n_samples, 1, 14, 14)`` to 10 scores."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.25),
        nn.Linear(256, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


def upscaler() -> nn.Module:
    """Build a network that doubles the resolution of images ``(n_samples, 1, 8, 8)``."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 4, 3, padding=1),
        nn.PixelShuffle(2),
    )
