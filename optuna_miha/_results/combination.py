"""Combination of the outputs of several networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from optuna_miha._model.recipe import LossFn

Combine: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""``combine(outputs, weights)`` combines the outputs of several networks, of shape
``(n_models, n_samples, ...)``, into one output of shape ``(n_samples, ...)``. The weights have
shape ``(n_models,)`` and sum to one."""


def combination_for(loss_fn: LossFn) -> Combine:
    """Choose what to average by how the loss interprets outputs.

    Args:
        loss_fn: The validation loss. For an unknown loss, the outputs themselves are averaged.
    """
    for classes, function, combine in (
        ((nn.CrossEntropyLoss,), functional.cross_entropy, class_logits),
        ((nn.NLLLoss, nn.KLDivLoss), functional.nll_loss, log_probabilities),
        (
            (nn.BCEWithLogitsLoss, nn.MultiLabelSoftMarginLoss),
            functional.binary_cross_entropy_with_logits,
            binary_logits,
        ),
    ):
        if isinstance(loss_fn, classes) or loss_fn is function:
            return combine
    return mean_output


def mean_output(outputs: Tensor, weights: Tensor) -> Tensor:
    """The mean of the outputs."""
    return (outputs * _broadcast(weights, outputs)).sum(dim=0)


def log_probabilities(outputs: Tensor, weights: Tensor) -> Tensor:
    """The logarithm of the mean probability, for outputs that are log-probabilities."""
    return torch.logsumexp(outputs + _broadcast(weights.log(), outputs), dim=0)


def class_logits(outputs: Tensor, weights: Tensor) -> Tensor:
    """The logarithm of the mean probability of each class, for outputs that are logits.

    Log-probabilities are also logits: their softmax is the mean probability, and their
    cross-entropy is the negative log-likelihood of the mean probability.

    Args:
        outputs: ``(n_models, n_samples, n_classes, ...)``.
        weights: ``(n_models,)``.
    """
    return log_probabilities(outputs.log_softmax(dim=2), weights)


def binary_logits(outputs: Tensor, weights: Tensor) -> Tensor:
    """The logit of the mean probability, for outputs that are logits of a binary decision."""
    yes = log_probabilities(functional.logsigmoid(outputs), weights)
    no = log_probabilities(functional.logsigmoid(-outputs), weights)
    return yes - no


def _broadcast(weights: Tensor, outputs: Tensor) -> Tensor:
    """Reshape ``weights`` and convert them to the precision of ``outputs``, for broadcasting."""
    return weights.to(outputs.dtype).reshape(-1, *[1] * (outputs.ndim - 1))
