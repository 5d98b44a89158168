"""Networks with sparse gradients, which few optimizers take."""

from __future__ import annotations

from collections.abc import Mapping

from optuna.distributions import BaseDistribution, CategoricalDistribution
from torch import nn, optim

from optuna_miha._model.optimizers import OPTIMIZERS

_TAKE_SPARSE = ("adagrad", "sgd")
_REPAIR = "or use `sparse=False` in the embeddings"


def sparse_weights(model: nn.Module) -> set[int]:
    """Return the ``id`` of each parameter whose gradient is sparse."""
    embeddings = (m for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag)))
    return {id(m.weight) for m in embeddings if m.sparse and m.weight.requires_grad}


def check_sparse_space(
    model: nn.Module,
    optimizer: optim.Optimizer | None,
    distributions: Mapping[str, BaseDistribution],
) -> None:
    """Refuse optimizers that do not take the sparse gradients of a network.

    Args:
        model: The network.
        optimizer: The user's optimizer, if any.
        distributions: The distributions of the hyperparameters, by name.

    Raises:
        ValueError: If there is no optimizer, or ``suggest_optimizer`` offers a class or a weight
            decay that does not work.
    """
    if not sparse_weights(model):
        return
    if optimizer is None:
        raise ValueError(
            "A network with sparse gradients needs an optimizer that takes them, got none: pass "
            "`torch.optim.SGD`, `torch.optim.Adagrad` or `torch.optim.SparseAdam` as `optimizer` "
            f"of the recipe, {_REPAIR}."
        )
    names, decays = (distributions.get(name) for name in ("optimizer", "weight_decay"))
    if not isinstance(names, CategoricalDistribution) or not set(names.choices) <= set(OPTIMIZERS):
        return
    unfit = [name for name in names.choices if name not in _TAKE_SPARSE]
    if unfit:
        raise ValueError(
            "The network has sparse gradients, which only SGD and Adagrad take, got "
            f'{unfit[0]!r} among the optimizers: pass `choices=["sgd", "adagrad"]` to '
            f"`suggest_optimizer`, {_REPAIR}."
        )
    if isinstance(decays, CategoricalDistribution) and any(decays.choices):
        raise ValueError(
            "The network has sparse gradients, which allow no weight decay, got the choices "
            f"{decays.choices}: pass `weight_decay=[0.0]` to `suggest_optimizer`, {_REPAIR}."
        )


def use_plain_kernels(model: nn.Module, optimizer: optim.Optimizer) -> None:
    """Use no fused implementation for sparse gradients, which it does not take.

    Args:
        model: The network.
        optimizer: The optimizer that ``suggest_optimizer`` has built; it is changed in place.
    """
    weights = sparse_weights(model)
    if any(id(p) in weights for group in optimizer.param_groups for p in group["params"]):
        for group in optimizer.param_groups:
            if group.get("fused"):
                group["fused"] = None
