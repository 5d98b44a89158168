"""The outputs of several networks as one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from optuna_miha._model.recipe import LossFn

Combine: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""``combine(outputs, weights)``: makes one output, ``(n_samples, ...)``, of those of several
networks, ``(n_models, n_samples, ...)``. The weights, ``(n_models,)``, sum to one."""


def combination_for(loss_fn: LossFn) -> Combine:
    """What to average, going by what the loss takes outputs for.

    Args:
        loss_fn: The loss of validation; one that is not known averages the outputs themselves.
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
    return (outputs * _beside(outputs, weights)).sum(dim=0)


def log_probabilities(outputs: Tensor, weights: Tensor) -> Tensor:
    """The logarithm of the mean probability, for outputs that are log-probabilities."""
    return torch.logsumexp(outputs + _beside(outputs, weights.log()), dim=0)


def class_logits(outputs: Tensor, weights: Tensor) -> Tensor:
    """The logarithm of the mean probability of each class, for outputs that are logits.

    Log-probabilities are logits as well: their softmax is the mean probability, and their
    cross-entropy is its negative log-likelihood.

    Args:
        outputs: ``(n_models, n_samples, n_classes, ...)``.
        weights: ``(n_models,)``.
    """
    return log_probabilities(outputs.log_softmax(dim=2), weights)


def binary_logits(outputs: Tensor, weights: Tensor) -> Tensor:
    """The logit of the mean probability, for outputs that are logits of yes against no."""
    yes = log_probabilities(functional.logsigmoid(outputs), weights)
    no = log_probabilities(functional.logsigmoid(-outputs), weights)
    return yes - no


def _beside(outputs: Tensor, weights: Tensor) -> Tensor:
    """``weights`` in the precision of ``outputs``, shaped to be broadcast over them."""
    return weights.to(outputs.dtype).reshape(-1, *[1] * (outputs.ndim - 1))
