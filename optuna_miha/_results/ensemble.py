"""Greedy selection of an ensemble from the networks of a run, without training."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
import torch
from optuna.trial import FixedTrial
from torch import Tensor, nn

from optuna_miha._history.segment import Segment
from optuna_miha._model.batches import split_batch
from optuna_miha._model.data_state import DataState
from optuna_miha._model.model_fn import ModelFn, build_recipe
from optuna_miha._model.recipe import LossFn, Recipe
from optuna_miha._model.rng import preserved_rng, seed_all
from optuna_miha._model.tensors import is_equal
from optuna_miha._results.combination import Combine, combination_for
from optuna_miha._study.checkpoint_store import CheckpointStore
from optuna_miha._training.batch_length import batch_length
from optuna_miha._training.data import evaluation_batches
from optuna_miha._training.loss_weights import LossWeights
from optuna_miha._training.metrics import Metrics, concatenated
from optuna_miha.exceptions import CheckpointError, MihaError

_logger = optuna.logging.get_logger("optuna.miha")


class Ensemble(nn.Module):
    """A module that combines the outputs of several networks.

    Args:
        models: The networks, which take the same inputs.
        weights: The weight of each network. They sum to one.
        combine: Combines the outputs of the networks.
        trials: The trial number of each network.
        value: The validation value of the ensemble.

    Attributes:
        models: The networks.
        weights: Their weights, of shape ``(n_models,)``; a buffer.
        trials: The trial number of each network.
        value: The validation value, in the study's direction.
    """

    weights: Tensor

    def __init__(
        self,
        models: Sequence[nn.Module],
        weights: Sequence[float],
        combine: Combine,
        *,
        trials: Sequence[int],
        value: float,
    ) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        self.register_buffer("weights", torch.tensor(weights))
        self.trials = tuple(trials)
        self.value = value
        self._combine = combine

    def forward(self, *inputs: Any) -> Tensor:
        """Combine the outputs of all networks.

        Args:
            inputs: The inputs of each network.
        """
        return self._combine(torch.stack([model(*inputs) for model in self.models]), self.weights)

    def extra_repr(self) -> str:
        """The trials and the validation value, for ``repr``."""
        return f"trials={list(self.trials)}, value={self.value:.6g}"


def select(
    n_candidates: int, cost: Callable[[Counter[int]], float], size: int
) -> tuple[Counter[int], float]:
    """Greedy forward selection with repetition.

    In each of ``size`` steps, the candidate is added that gives the ensemble with the lowest cost.
    The best ensemble of all steps is returned, so that its cost is at most that of the best
    candidate. A candidate that is chosen repeatedly gains weight. If costs tie, the first
    candidate and the smaller ensemble are chosen.

    Reference: R. Caruana, A. Niculescu-Mizil, G. Crew and A. Ksikes, *Ensemble Selection from
    Libraries of Models*, ICML 2004, section 2.

    Args:
        n_candidates: The number of candidates, at least one.
        cost: The cost of an ensemble, given the count of each candidate. Ensembles with a cost of
            NaN are not chosen.
        size: The number of steps, and so the maximum size, counting repetitions.

    Returns:
        The count of each chosen candidate, and the cost.
    """
    chosen: Counter[int] = Counter()
    best, lowest = Counter([0]), math.inf
    for _ in range(size):
        extended = [chosen + Counter([candidate]) for candidate in range(n_candidates)]
        costs = [c if not math.isnan(c := cost(counts)) else math.inf for counts in extended]
        candidate = min(range(n_candidates), key=costs.__getitem__)
        chosen = extended[candidate]
        if costs[candidate] < lowest:
            best, lowest = chosen, costs[candidate]
    return best, lowest


@dataclass(frozen=True, kw_only=True)
class Library:
    """The networks from which ensembles are selected: the best weights of the best segments.

    Args:
        segments: The segments, the best first.
        store: The store of their weights.
        model_fn: Builds the networks.
        seed: The run's seed.
        initial_params: The initial configuration, which defines validation data and loss.
        sign: 1 if the study minimizes, -1 if it maximizes.
    """

    segments: Sequence[Segment]
    store: CheckpointStore
    model_fn: ModelFn
    seed: int
    initial_params: dict[str, Any]
    sign: int

    def ensemble(self, size: int, combine: Combine | None, device: torch.device) -> Ensemble:
        """Select an ensemble of up to ``size`` networks greedily by its validation value.

        During selection, the outputs of every network on the validation data are held in main
        memory. The networks themselves are loaded one at a time.

        Args:
            size: The maximum number of networks, counting repetitions.
            combine: Combines the outputs of several networks; default by the loss.
            device: The device of the computation and of the returned ensemble.

        Raises:
            MihaError: If no network is available.
            TypeError: If the networks do not return a tensor.
            ValueError: If ``size`` is not positive, the recipe has a ``train_step``, or the order
                of the validation data changes.
        """
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"`size` must be a positive number of networks, got {size!r}.")
        recipe = self._recipe(self.initial_params)
        if recipe.train_step is not None:
            raise ValueError(
                "An ensemble needs batches of `(*inputs, target)`, got a recipe with a "
                "`train_step`: average the outputs of the networks in your own code."
            )
        validation = _Validation(recipe, device, self.seed)
        available: list[tuple[Segment, Tensor]] = []
        for segment in self.segments:
            try:
                model = self._model(segment)
            except CheckpointError as error:
                _logger.warning(f"Trial {segment.number} is left out of the ensemble. {error}")
            else:
                available.append((segment, validation.outputs(model.to(device))))
        if not available:
            raise MihaError(
                "An ensemble needs the weights of at least one segment, got none: run `optimize` "
                'with `keep="trunk"` or `keep="all"`, not with `keep="final"`.'
            )
        combine = combine or combination_for(validation.loss_fn)

        def cost(counts: Counter[int]) -> float:
            weights = torch.tensor(_weights(counts), device=device)
            outputs = torch.stack([available[i][1] for i in sorted(counts)]).to(device)
            return self.sign * validation.value(combine(outputs, weights))

        counts, lowest = select(len(available), cost, size)
        chosen = [available[i][0] for i in sorted(counts)]
        ensemble = Ensemble(
            [self._model(segment) for segment in chosen],
            _weights(counts),
            combine,
            trials=[segment.number for segment in chosen],
            value=self.sign * lowest,
        )
        return ensemble.to(device).eval()

    def _recipe(self, params: dict[str, Any]) -> Recipe:
        return build_recipe(self.model_fn, FixedTrial(params), self.seed)

    def _model(self, segment: Segment) -> nn.Module:
        assert segment.member is not None
        weights = self.store.load_weights(segment.member)
        model = self._recipe(segment.params).model
        model.load_state_dict(weights)
        return model


class _Validation:
    """Computes outputs and the monitored value on the validation data.

    Args:
        recipe: The recipe of the initial configuration.
        device: The device of the computation.
        seed: The seed of the random generators, which may determine the order of a loader.
    """

    def __init__(self, recipe: Recipe, device: torch.device, seed: int) -> None:
        recipe.check_complete("loss_fn", "valid_data")
        self.loss_fn: LossFn = recipe.valid_loss_fn or recipe.loss_fn
        if isinstance(self.loss_fn, nn.Module):
            self.loss_fn.to(device)
        self._recipe = recipe
        self._device = device
        self._seed = seed
        self._batch_lengths: list[int] = []
        self._output_lengths: list[int] = []
        self._targets: list[Any] = []

    @torch.no_grad()
    def outputs(self, model: nn.Module) -> Tensor:
        """The outputs of ``model`` for all validation samples, in main memory.

        Raises:
            TypeError: If the model does not return a tensor.
            ValueError: If the order of the samples differs from that for an earlier model.
        """
        model.eval()
        outputs, targets, lengths = [], [], []
        with preserved_rng(), DataState().watch(self._recipe.valid_data):
            seed_all(self._seed)
            size = self._recipe.valid_batch_size
            for batch in evaluation_batches(self._recipe.valid_data, self._device, size):
                parts = split_batch(batch)
                output = parts.outputs(model)
                if not isinstance(output, Tensor):
                    raise TypeError(
                        "An ensemble combines networks that return one tensor, got "
                        f"{type(output).__qualname__}: let `forward` return a tensor."
                    )
                outputs.append(output.cpu())
                targets.append(parts.target)
                lengths.append(batch_length(batch))
        if not self._targets:
            self._targets, self._batch_lengths = targets, lengths
            self._output_lengths = [len(output) for output in outputs]
        elif lengths != self._batch_lengths or not is_equal(targets, self._targets):
            raise ValueError(
                "`valid_data` must yield the same samples in the same order each time, got "
                "another order: use `shuffle=False` in the DataLoader for validation."
            )
        return torch.cat(outputs)

    @torch.no_grad()
    def value(self, outputs: Tensor) -> float:
        """The monitored value of the outputs for all samples, computed as after an epoch."""
        if self._recipe.monitor != "loss":
            name = self._recipe.monitor
            metrics = Metrics({name: self._recipe.metrics[name]}, outputs.device)
            metrics.add(outputs, concatenated(self._targets))
            return metrics.compute()[name]
        batches = torch.split(outputs, self._output_lengths)
        losses = [
            torch.as_tensor(self.loss_fn(*batch)).reshape(())
            for batch in zip(batches, self._targets, strict=True)
        ]
        weights = LossWeights(self.loss_fn)
        return weights.combine(losses, map(weights.weight, self._targets, self._batch_lengths))


def _weights(counts: Counter[int]) -> list[float]:
    """The weight of each chosen candidate, in the order of the candidates."""
    return [counts[candidate] / counts.total() for candidate in sorted(counts)]
