"""Find the activation modules of a network, and replace them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, groupby, pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "celu": nn.CELU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "hardshrink": nn.Hardshrink,
    "hardsigmoid": nn.Hardsigmoid,
    "hardswish": nn.Hardswish,
    "hardtanh": nn.Hardtanh,
    "leaky_relu": nn.LeakyReLU,
    "logsigmoid": nn.LogSigmoid,
    "mish": nn.Mish,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "selu": nn.SELU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "softshrink": nn.Softshrink,
    "softsign": nn.Softsign,
    "tanh": nn.Tanh,
    "tanhshrink": nn.Tanhshrink,
}
"""Activations without parameters, by their name in a study. The softmax family is left out: it
belongs to the output, not to a hidden layer."""

_WIDTH_ATTRIBUTES = {
    "out_channels": 1,
    "num_features": 1,
    "num_channels": 1,
    "out_features": -1,
    "hidden_size": -1,
}
"""The attribute with the number of neurons of torch's layers (convolutions; batch and instance
norm; group norm; linear; recurrent), and the dimension of the neurons in the output. Layer norm
is left out: it keeps the neurons of the layer before it."""


class GroupedActivation(nn.Module):
    """Applies a different activation to each group of neurons.

    The neurons, dimension ``dim`` of the input, are divided into contiguous groups whose sizes
    differ by at most one. The output has the shape of the input. The module has no parameters
    and no buffers, so that it does not change a state dict.

    Args:
        activations: One module per group; a module may occur several times.
        dim: The dimension of the neurons: 1 after a convolution, -1 after a linear layer.
    """

    def __init__(self, activations: Sequence[nn.Module], dim: int) -> None:
        super().__init__()
        # Adjacent groups that share a module are computed together.
        runs = [list(run) for _, run in groupby(activations, key=id)]
        self.activations = nn.ModuleList(run[0] for run in runs)
        self.bounds = (0, *accumulate(map(len, runs)))
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        # The size may vary: a module may be called in several places, or after a reshape.
        size, n_groups = x.shape[self.dim], self.bounds[-1]
        ends = [bound * size // n_groups for bound in self.bounds]
        parts = x.split_with_sizes([end - start for start, end in pairwise(ends)], self.dim)
        pairs = zip(self.activations, parts, strict=True)
        return torch.cat([activation(part) for activation, part in pairs], self.dim)

    def extra_repr(self) -> str:
        return f"n_groups={self.bounds[-1]}, dim={self.dim}"


def activation_name(module: nn.Module) -> str | None:
    """Return the name of an activation module; :obj:`None` for any other module."""
    return next((n for n, cls in ACTIVATIONS.items() if type(module) is cls), None)


def find_activations(model: nn.Module, *, include_output: bool = False) -> dict[str, str]:
    """Find the activation modules of ``model``, including nested ones.

    Args:
        model: The network.
        include_output:
            Whether to include activations that no module with parameters follows. They are
            recognized only in chains of :class:`torch.nn.Sequential`, whose order of execution
            is known.

    Returns:
        The name of each activation by the qualified name of its module. A module that is used
        in several places is listed once; those inside of a :class:`GroupedActivation` are not
        listed.
    """
    found = {}
    groups: set[nn.Module] = set()
    for path, module in model.named_modules():
        if isinstance(module, GroupedActivation):
            groups.update(module.activations)
        name = activation_name(module)
        if name is not None and path and module not in groups:
            found[path] = name
    if include_output:
        return found
    outputs = {id(module) for module in _output_modules(model)}
    return {p: n for p, n in found.items() if id(model.get_submodule(p)) not in outputs}


def is_chain(model: nn.Module, paths: Iterable[str]) -> bool:
    """Whether modules, given by name, are parts of chains of :class:`torch.nn.Sequential`."""
    in_chain = {id(module) for module in _in_execution_order(model)}
    return all(id(model.get_submodule(path)) in in_chain for path in paths)


def neurons_before(model: nn.Module) -> dict[str, tuple[int | None, int]]:
    """Find the neurons in the input of each module of ``model``.

    They are determined by the nearest layer before the module, in the order in which modules
    are registered. In a :class:`torch.nn.Sequential` and in most other networks, this is the
    order of execution.

    Returns:
        The number and the dimension of the neurons, by qualified name. Without such a layer,
        the number is :obj:`None`, and the dimension the last one.
    """
    found = {}
    neurons: tuple[int | None, int] = (None, -1)
    # The activation of a transformer layer is registered last, but called after `linear1`.
    inner: dict[object, tuple[int | None, int]] = {}
    for path, module in model.named_modules():
        if isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)):
            inner[module.activation] = _neurons_of(module.linear1) or (None, -1)
        neurons = _neurons_of(module) or neurons
        found[path] = inner.get(module, neurons)
    return found


def _neurons_of(layer: nn.Module) -> tuple[int, int] | None:
    if any(name != "parametrizations" for name, _ in layer.named_children()):
        return None  # In a container, an attribute of that name may mean anything.
    for attribute, dim in _WIDTH_ATTRIBUTES.items():
        width = getattr(layer, attribute, None)
        if isinstance(width, int) and width > 0:  # Zero in lazy layers.
            return width, dim
    return None


def replace_activation(model: nn.Module, path: str, name: str) -> None:
    """Replace the module at ``path`` by the activation ``name``.

    All places where the same module is registered are updated.
    """
    _replace_module(model, model.get_submodule(path), ACTIVATIONS[name]())


def group_activation(model: nn.Module, path: str, names: Sequence[str], dim: int) -> None:
    """Replace the activation at ``path`` by one activation for each group of neurons.

    Args:
        model: The network, changed in place, wherever the module is registered.
        path: The qualified name of the current activation. Groups with the same activation keep
            its settings.
        names: The activations of the groups, in the order of the neurons.
        dim: The dimension of the neurons.
    """
    old = model.get_submodule(path)
    modules = {name: ACTIVATIONS[name]() for name in names}
    old_name = activation_name(old)
    if old_name in modules:
        modules[old_name] = _out_of_place(old)
    _replace_module(model, old, GroupedActivation([modules[name] for name in names], dim))


def _out_of_place(activation: nn.Module) -> nn.Module:
    """Return the activation, or a copy that does not work in place.

    Overwriting one part of a tensor would break the backward pass of the other parts.
    """
    if not getattr(activation, "inplace", False):
        return activation
    copied: Any = copy.copy(activation)
    copied.inplace = False
    return cast(nn.Module, copied)


def _replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Replace a module wherever it is registered."""
    for parent in list(model.modules()):
        for attribute, child in list(parent._modules.items()):
            if child is old:
                setattr(parent, attribute, new)
                if isinstance(parent, nn.TransformerEncoderLayer):
                    # Disable the fused evaluation path, which would compute the old activation.
                    parent.activation_relu_or_gelu = 0


def _output_modules(model: nn.Module) -> Iterator[nn.Module]:
    """Iterate over the modules that no module with parameters follows."""
    for module in reversed(list(_in_execution_order(model))):
        if next(module.parameters(), None) is not None:
            return
        yield module


def _in_execution_order(module: nn.Module) -> Iterator[nn.Module]:
    """Iterate over the modules in the order of execution, as far as it is known."""
    if not isinstance(module, nn.Sequential):
        yield module
        return
    for child in module:  # Unlike `children()`, this includes modules that occur twice.
        yield from _in_execution_order(child)
