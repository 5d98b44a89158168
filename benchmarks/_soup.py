"""The greedy soup of a run: one network whose weights are a mean of several networks' weights."""

from __future__ import annotations

import torch
from optuna.trial import FixedTrial
from torch import Tensor, nn

import optuna_miha as miha
from optuna_miha._model.model_fn import build_recipe
from optuna_miha._training.state import copy_tensors
from optuna_miha._training.trainer import evaluate


def soup_of(result: miha.Result) -> tuple[nn.Module, float]:
    """Take in the run's networks, the best first, each if the mean then validates better.

    Reference: M. Wortsman et al., *Model soups: averaging weights of multiple fine-tuned models
    improves accuracy without increasing inference time*, 2022, algorithm 1.

    Args:
        result: Of a run that kept the weights for an ensemble, and whose monitor is the loss.

    Returns:
        The network, which is the run's own if nothing was taken in, and its validation loss.
    """
    library = result.library
    recipe = build_recipe(library.model_fn, FixedTrial(library.initial_params), library.seed)
    network, n_taken, least = result.model, 1, result.value
    soup = copy_tensors(network.state_dict())
    for segment in library.segments:
        assert segment.member is not None
        weights = library.store.load(segment.member)["weights"]
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
