"""Activation modules: which a network has, and how others are put in their place."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
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
"""Activations without parameters, by the name they have in a study. The softmax family is not
among them: it is an output, not an activation of a hidden layer."""

_WIDTHS = {
    "out_channels": 1,
    "num_features": 1,
    "num_channels": 1,
    "out_features": -1,
    "hidden_size": -1,
}
"""Where torch's layers (convolutions; batch and instance norm; group norm; linear; recurrent)
keep the number of their neurons, and the dimension of the output that holds these. Layer norm
is not among them: it leaves the neurons where the layer before it put them."""


class GroupedActivation(nn.Module):
    """Groups of neurons, each with its own activation.

    The neurons, dimension ``dim`` of the input, are divided into contiguous groups of equal
    size, or of sizes that differ by one where they cannot be equal. Shapes go through
    unchanged. There are no parameters and no buffers: a state dict stays as it was.

    Args:
        activations: One module per group; a module may occur several times.
        dim: The dimension of the neurons: 1 after a convolution, -1 after a linear layer.
    """

    def __init__(self, activations: Sequence[nn.Module], dim: int) -> None:
        super().__init__()
        # Neighbours that share a module are computed at once.
        runs = [list(run) for _, run in groupby(activations, key=id)]
        self.activations = nn.ModuleList(run[0] for run in runs)
        self.bounds = (0, *accumulate(map(len, runs)))
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        # Sized by what comes in: a module may be called in several places, or after a reshape.
        size, n_groups = x.shape[self.dim], self.bounds[-1]
        ends = [bound * size // n_groups for bound in self.bounds]
        parts = x.split_with_sizes([end - start for start, end in pairwise(ends)], self.dim)
        pairs = zip(self.activations, parts, strict=True)
        return torch.cat([activation(part) for activation, part in pairs], self.dim)

    def extra_repr(self) -> str:
        return f"n_groups={self.bounds[-1]}, dim={self.dim}"


def activation_name(module: nn.Module) -> str | None:
    """The name of an activation module; :obj:`None` for any other module."""
    return next((n for n, cls in ACTIVATIONS.items() if type(module) is cls), None)


def find_activations(model: nn.Module, *, include_output: bool = False) -> dict[str, str]:
    """The activation modules of ``model``, nested ones too.

    Args:
        model: The network.
        include_output:
            Whether to count an activation that nothing with parameters follows. Known only
            where the order of execution is: along chains of :class:`torch.nn.Sequential`.

    Returns:
        The name of each activation by its module's qualified name. A module that is used in
        several places is listed once; what a :class:`GroupedActivation` holds is not listed.
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


def neurons_before(model: nn.Module) -> dict[str, tuple[int | None, int]]:
    """The neurons that each module of ``model`` sees.

    They are those of the nearest layer before it in the order in which modules are registered,
    which is that of execution in a :class:`torch.nn.Sequential` and in most other networks.

    Returns:
        By qualified name: their number, :obj:`None` where no such layer has one, and their
        dimension, the last unless that layer says otherwise.
    """
    found = {}
    neurons: tuple[int | None, int] = (None, -1)
    # A transformer's activation is registered last, and called in the middle.
    inner: dict[object, tuple[int | None, int]] = {}
    for path, module in model.named_modules():
        if isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)):
            inner[module.activation] = _neurons_of(module.linear1) or (None, -1)
        neurons = _neurons_of(module) or neurons
        found[path] = inner.get(module, neurons)
    return found


def _neurons_of(layer: nn.Module) -> tuple[int, int] | None:
    if any(name != "parametrizations" for name, _ in layer.named_children()):
        return None  # A network's attribute of that name may mean anything.
    for attribute, dim in _WIDTHS.items():
        width = getattr(layer, attribute, None)
        if isinstance(width, int) and width > 0:  # Zero in layers that are still lazy.
            return width, dim
    return None


def replace_activation(model: nn.Module, path: str, name: str) -> None:
    """Put the activation ``name`` in the place of the module at ``path``.

    Wherever else the same module is registered, it is replaced too.
    """
    _put(model, model.get_submodule(path), ACTIVATIONS[name]())


def group_activation(model: nn.Module, path: str, names: Sequence[str], dim: int) -> None:
    """Give the neurons that the activation at ``path`` sees several, one for each group.

    Args:
        model: The network, changed in place, wherever that module is registered.
        path: The qualified name of the present activation. Groups of its name keep its settings.
        names: The activations of the groups, in the order of the neurons.
        dim: The dimension of the neurons.
    """
    old = model.get_submodule(path)
    modules = {name: ACTIVATIONS[name]() for name in names}
    own = activation_name(old)
    if own in modules:
        modules[own] = _out_of_place(old)
    _put(model, old, GroupedActivation([modules[name] for name in names], dim))


def _out_of_place(activation: nn.Module) -> nn.Module:
    """Writing into one part of a tensor would spoil what another part needs backwards."""
    if not getattr(activation, "inplace", False):
        return activation
    twin: Any = copy.copy(activation)
    twin.inplace = False
    return cast(nn.Module, twin)


def _put(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent in list(model.modules()):
        for attribute, child in list(parent._modules.items()):
            if child is old:
                setattr(parent, attribute, new)
                if isinstance(parent, nn.TransformerEncoderLayer):
                    # Its fused evaluation path would go on computing the old activation.
                    parent.activation_relu_or_gelu = 0


def _output_modules(model: nn.Module) -> Iterator[nn.Module]:
    """The modules that nothing with parameters follows."""
    for module in reversed(list(_chain(model))):
        if next(module.parameters(), None) is not None:
            return
        yield module


def _chain(module: nn.Module) -> Iterator[nn.Module]:
    """The modules in their order of execution, as far as Sequentials tell it."""
    if not isinstance(module, nn.Sequential):
        yield module
        return
    for child in module:  # Unlike `children()`, with the modules that occur twice.
        yield from _chain(child)
