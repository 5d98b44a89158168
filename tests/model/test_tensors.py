"""Nested containers of tensors."""

from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple
from typing import Any

import pytest
import torch
from helpers.equality import same
from torch import Tensor

from optuna_miha._model.tensors import copy_tensors, map_tensors

Pair = namedtuple("Pair", ["x", "y"])


class Words(list[Any]):
    """A class derived from a list."""


class Graph:
    """Not a container, but it can be moved."""

    def __init__(self, device: str) -> None:
        self.device = device

    def to(self, device: str) -> Graph:
        return Graph(device)


def doubled(value: Any) -> Any:
    return map_tensors(value, lambda tensor: 2 * tensor)


@pytest.mark.parametrize(
    "container",
    [
        lambda x, y: (x, y),
        lambda x, y: [x, y],
        lambda x, y: {"x": x, "y": y},
        Pair,
        lambda x, y: UserDict(x=x, y=y),
        lambda x, y: Words([x, y]),
    ],
    ids=["tuple", "list", "dict", "named tuple", "mapping", "list subclass"],
)
def test_containers_keep_their_type(container: Any) -> None:
    one = torch.ones(2)
    mapped = doubled(container(one, [one, {"z": one}]))
    assert type(mapped) is type(container(one, one))
    assert same(mapped, container(2 * one, [2 * one, {"z": 2 * one}]))
    assert same(one, torch.ones(2))


def test_subclasses_of_dict_become_plain_dictionaries() -> None:
    assert type(doubled(OrderedDict(x=torch.ones(2)))) is dict


@pytest.mark.parametrize("value", [None, 3, "name", b"bytes", {1, 2}])
def test_other_values_are_passed_through(value: Any) -> None:
    assert doubled(value) is value
    assert doubled([value])[0] is value


def test_leaves_can_be_other_than_tensors() -> None:
    moved = map_tensors(
        {"graph": Graph("cpu"), "size": 3},
        lambda part: part.to("meta"),
        is_leaf=lambda part: hasattr(part, "to"),
    )
    assert moved["graph"].device == "meta"
    assert moved["size"] == 3


def test_copies_are_detached() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    twin = copy_tensors({"a": [weight]})["a"][0]
    assert type(twin) is Tensor and not twin.requires_grad
    assert twin.data_ptr() != weight.data_ptr()
