"""Activation modules: which a network has, and how one is put in another's place."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import nn

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
        several places is listed once.
    """
    found = {}
    for path, module in model.named_modules():
        name = activation_name(module)
        if name is not None and path:
            found[path] = name
    if include_output:
        return found
    outputs = {id(module) for module in _output_modules(model)}
    return {p: n for p, n in found.items() if id(model.get_submodule(p)) not in outputs}


def replace_activation(model: nn.Module, path: str, name: str) -> None:
    """Put the activation ``name`` in the place of the module at ``path``.

    Wherever else the same module is registered, it is replaced too.
    """
    old, new = model.get_submodule(path), ACTIVATIONS[name]()
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
