"""The greedy soup of a run: one network with the mean of several networks' weights."""

from __future__ import annotations

import torch
from optuna.trial import FixedTrial
from torch import Tensor, nn

import optuna_miha as miha
from optuna_miha._model.model_fn import build_recipe
from optuna_miha._model.tensors import copy_tensors
from optuna_miha._training.trainer import evaluate


def soup_of(result: miha.Result) -> tuple[nn.Module, float]:
    """Average the run's networks greedily: keep each one that lowers the validation loss.

    Args:
        result: Result of a run that monitors the loss and kept the weights for an ensemble.

    Returns:
        The averaged network, or the run's own one if no other improved it, and its validation
        loss.

    Reference:
        M. Wortsman et al., *Model soups: averaging weights of multiple fine-tuned models
        improves accuracy without increasing inference time*, 2022, algorithm 1.
    """
    library = result.library
    recipe = build_recipe(library.model_fn, FixedTrial(library.initial_params), library.seed)
    network, n_taken, least = result.model, 1, result.value
    soup = copy_tensors(network.state_dict())
    for segment in library.segments:
        assert segment.member is not None
        weights = library.store.load_weights(segment.member)
        mean = {name: _mean(old, weights[name], n_taken) for name, old in soup.items()}
        network.load_state_dict(mean)
        loss = evaluate(recipe, network)["loss"]
        if loss < least:
            soup, n_taken, least = mean, n_taken + 1, loss
    network.load_state_dict(soup)
    return network, least


def _mean(mean: Tensor, new: Tensor, n_taken: int) -> Tensor:
    if not torch.is_floating_point(mean):
        return mean
    return mean + (new - mean) / (n_taken + 1)
