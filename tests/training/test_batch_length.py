"""The number of samples in batches of many forms."""

from __future__ import annotations

from collections import UserDict, namedtuple
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import zeros
from torch.nn.utils.rnn import pack_sequence

from optuna_miha._training.batch_length import batch_length

Pair = namedtuple("Pair", ["x", "y"])


class Name(str):
    """A string, which must not be treated as a container."""

    def __iter__(self) -> Iterator[str]:
        raise AssertionError("a string was iterated")


class Samples:
    """An object of the user with a length."""

    def __len__(self) -> int:
        return 5


PACKED = pack_sequence([zeros(n, 2) for n in (7, 6, 3, 3, 1)])
"""Five sequences."""

GRAPHS = SimpleNamespace(num_graphs=5, x=zeros(17, 3))

BATCHES: dict[str, Any] = {
    "tuple": (zeros(5, 2), zeros(5)),
    "tensor": zeros(5, 2),
    "named tuple": Pair(zeros(5, 1), zeros(5)),
    "several inputs": (zeros(9, 2), zeros(3, 5), zeros(5)),
    "time first": (zeros(11, 5, 2), zeros(5)),
    "packed inputs": (PACKED, zeros(5)),
    "packed": PACKED,
    "packed targets": [zeros(11, 5), PACKED],
    "graphs": GRAPHS,
    "graphs and targets": (GRAPHS, zeros(5)),
    "batch_size": SimpleNamespace(batch_size=5, x=zeros(17, 3)),
    "shape as batch_size": SimpleNamespace(batch_size=torch.Size([5, 3])),
    "own class": Samples(),
    "array": (zeros(3), np.zeros((5, 2))),
    "no target": [zeros(5), Name("a")],
    "scalar last": (zeros(5, 2), zeros(5), torch.tensor(0.5)),
    "names": ((Name("a"), Name("b")), zeros(5)),
    "dictionary": {"x": zeros(5, 3), "y": zeros(5)},
    "nested dictionary": {"nested": {"x": zeros(5, 3)}, "name": Name("a")},
    "mapping": UserDict({Name("x"): zeros(5, 3)}),
    "labels": {"tokens": zeros(12, 5), "mask": zeros(12), "labels": zeros(5)},
    "scalar labels": {"labels": torch.tensor(1.0), "x": zeros(5, 3)},
    "target of several tensors": (zeros(9, 5), (zeros(5, 2), zeros(5))),
    "dictionary of targets": (zeros(9, 5), {"boxes": zeros(5, 4), "labels": zeros(5)}),
    "nested lists": [[zeros(5, 2), zeros(5, 3)], [zeros(5), zeros(5)]],
    "two dictionaries": [{"x": zeros(5, 2)}, {"t": zeros(5)}],
    "detection": (
        [zeros(3, 8, 8)] * 5,
        [{"boxes": zeros(n, 4), "labels": zeros(n)} for n in (1, 2, 2, 4, 0)],
    ),
    "strings as targets": (zeros(9, 3), ["a", "b", "c", "d", "e"]),
    "samples": [(zeros(4), torch.tensor(i)) for i in range(5)],
    "samples with numbers": [(zeros(4), i) for i in range(5)],
    "dictionaries of samples": [{"x": zeros(4), "y": torch.tensor(i)} for i in range(5)],
}


@pytest.mark.parametrize("form", BATCHES)
def test_length_is_that_of_the_targets(form: str) -> None:
    assert batch_length(BATCHES[form]) == 5


@pytest.mark.parametrize(
    "batch",
    [{"tokens": zeros(12, 5), "lengths": zeros(5)}, (zeros(5, 2), [zeros(4), zeros(6)])],
    ids=["dictionary", "targets"],
)
def test_ambiguous_length_is_refused(batch: Any) -> None:
    with pytest.raises(ValueError, match=r'of lengths \[\d+, \d+\]: .* name them "labels"'):
        batch_length(batch)


@pytest.mark.parametrize("batch", [torch.tensor(1.0), "text", (1, 2), {}, None], ids=repr)
def test_batch_without_a_length_is_refused(batch: Any) -> None:
    with pytest.raises(TypeError, match=r"at least one dimension, got none in a .*`collate_fn`"):
        batch_length(batch)
