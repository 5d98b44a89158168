"""An ensemble of what a run leaves over: chosen greedily, not trained."""

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
from optuna_miha._model.model_fn import ModelFn, build_recipe
from optuna_miha._model.recipe import LossFn, Recipe
from optuna_miha._model.rng import preserved_rng, seed_all
from optuna_miha._results.combination import Combine, combination_for
from optuna_miha._study.checkpoint_store import CheckpointStore
from optuna_miha._training.data import batch_length, evaluation_batches
from optuna_miha.exceptions import CheckpointError, MihaError

_logger = optuna.logging.get_logger("optuna.miha")


class Ensemble(nn.Module):
    """Several networks that answer as one.

    Args:
        models: The networks, which take the same inputs.
        weights: The weight of each, summing to one.
        combine: Makes one output of theirs.
        trials: The number of the trial that each comes from.
        value: The validation value of the whole.

    Attributes:
        models: The networks.
        weights: Their weights, ``(n_models,)``; a part of the state.
        trials: Numbers of the trials that they come from.
        value: The validation value, in the study's own direction.
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
        """The combined output.

        Args:
            inputs: What each of the networks takes.
        """
        return self._combine(torch.stack([model(*inputs) for model in self.models]), self.weights)

    def extra_repr(self) -> str:
        """Where the networks come from."""
        return f"trials={list(self.trials)}, value={self.value:.6g}"


def select(
    n_candidates: int, cost: Callable[[Counter[int]], float], size: int
) -> tuple[Counter[int], float]:
    """Greedy forward selection with repetition.

    ``size`` times the candidate is added that lowers the cost of the whole most, or raises it
    least; what was best on the way is returned, so that it costs no more than the best candidate
    alone. A candidate that is chosen again gains weight. Where costs tie, the first candidate
    and the smaller ensemble are chosen.

    Reference: R. Caruana, A. Niculescu-Mizil, G. Crew and A. Ksikes, *Ensemble Selection from
    Libraries of Models*, ICML 2004, section 2.

    Args:
        n_candidates: How many candidates there are, at least one.
        cost: The cost of an ensemble, given how often each candidate is in it. NaN: never.
        size: How many are chosen, counting repetitions.

    Returns:
        How often each candidate is chosen, and the cost.
    """
    chosen: Counter[int] = Counter()
    best, least = Counter([0]), math.inf
    for _ in range(size):
        extended = [chosen + Counter([candidate]) for candidate in range(n_candidates)]
        costs = [c if not math.isnan(c := cost(one)) else math.inf for one in extended]
        candidate = min(range(n_candidates), key=costs.__getitem__)
        chosen = extended[candidate]
        if costs[candidate] < least:
            best, least = chosen, costs[candidate]
    return best, least


@dataclass(frozen=True, kw_only=True)
class Library:
    """The networks that a run leaves over: of each of its better segments, the best weights.

    Args:
        segments: The segments, the best first.
        store: Where their weights lie.
        model_fn: Builds the networks.
        seed: The run's.
        initial_params: The initial configuration, whose data and loss are those of validation.
        sign: 1 where the study minimizes, -1 where it maximizes.
    """

    segments: Sequence[Segment]
    store: CheckpointStore
    model_fn: ModelFn
    seed: int
    initial_params: dict[str, Any]
    sign: int

    def ensemble(self, size: int, combine: Combine | None, device: torch.device) -> Ensemble:
        """The ensemble of ``size`` that validates best, as far as greedy selection finds it.

        The outputs of every network on the validation data are held in main memory meanwhile;
        the networks themselves are loaded one at a time.

        Args:
            size: How many networks are chosen, counting repetitions.
            combine: Makes one output of several; :obj:`None`: what suits the loss.
            device: Where to compute, and where to leave the ensemble.

        Raises:
            MihaError: If there is no network to choose.
            TypeError: If the networks do not return a tensor.
            ValueError: If ``size`` is not positive, the recipe has a ``train_step``, or the
                validation data come in another order each time.
        """
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"`size` must be a positive number of networks, got {size!r}.")
        recipe = self._recipe(self.initial_params)
        if recipe.train_step is not None:
            raise ValueError(
                "An ensemble needs batches of `(*inputs, target)`, got a recipe with a "
                "`train_step`: average the outputs of the networks in code of your own."
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
                "The run left no networks over to choose an ensemble from: run it with "
                '`keep="trunk"` or `keep="all"`, not with `keep="final"`.'
            )
        combine = combine or combination_for(validation.loss_fn)

        def cost(counts: Counter[int]) -> float:
            weights = torch.tensor(_weights(counts), device=device)
            outputs = torch.stack([available[i][1] for i in sorted(counts)]).to(device)
            return self.sign * validation.value(combine(outputs, weights))

        counts, least = select(len(available), cost, size)
        chosen = [available[i][0] for i in sorted(counts)]
        ensemble = Ensemble(
            [self._model(segment) for segment in chosen],
            _weights(counts),
            combine,
            trials=[segment.number for segment in chosen],
            value=self.sign * least,
        )
        return ensemble.to(device).eval()

    def _recipe(self, params: dict[str, Any]) -> Recipe:
        return build_recipe(self.model_fn, FixedTrial(params), self.seed)

    def _model(self, segment: Segment) -> nn.Module:
        assert segment.member is not None
        weights = self.store.load(segment.member)["weights"]
        model = self._recipe(segment.params).model
        model.load_state_dict(weights)
        return model


class _Validation:
    """The validation data and what is measured on them.

    Args:
        recipe: Of the initial configuration.
        device: Where to compute.
        seed: Of the random generators, from which a loader may draw its order.
    """

    def __init__(self, recipe: Recipe, device: torch.device, seed: int) -> None:
        self.loss_fn: LossFn = recipe.valid_loss_fn or recipe.loss_fn
        if isinstance(self.loss_fn, nn.Module):
            self.loss_fn.to(device)
        self._recipe = recipe
        self._device = device
        self._seed = seed
        self._lengths: list[int] = []
        self._pieces: list[int] = []
        self._targets: list[Any] = []

    @torch.no_grad()
    def outputs(self, model: nn.Module) -> Tensor:
        """What ``model`` answers to all objects, in main memory.

        Raises:
            TypeError: If that is not a tensor.
            ValueError: If the objects come in another order than they did for another model.
        """
        model.eval()
        outputs, targets, lengths = [], [], []
        with preserved_rng():
            seed_all(self._seed)
            for *inputs, target in evaluation_batches(self._recipe.valid_data, self._device):
                output = model(*inputs)
                if not isinstance(output, Tensor):
                    raise TypeError(
                        "An ensemble combines networks that return one tensor, got "
                        f"{type(output).__qualname__}: let `forward` return a tensor."
                    )
                outputs.append(output.cpu())
                targets.append(target)
                lengths.append(batch_length([*inputs, target]))
        if not self._targets:
            self._targets, self._lengths = targets, lengths
            self._pieces = [len(output) for output in outputs]
        elif lengths != self._lengths or not _same(targets, self._targets):
            raise ValueError(
                "`valid_data` must yield the same objects in the same order each time, got "
                "another order: use `shuffle=False` for the DataLoader of validation."
            )
        return torch.cat(outputs)

    @torch.no_grad()
    def value(self, outputs: Tensor) -> float:
        """The monitored value of outputs for all objects, computed as after an epoch."""
        if self._recipe.monitor != "loss":
            targets = torch.cat(self._targets)
            return float(self._recipe.metrics[self._recipe.monitor](outputs, targets))
        pieces = torch.split(outputs, self._pieces)
        losses = map(self.loss_fn, pieces, self._targets)
        total = sum(float(loss) * n for loss, n in zip(losses, self._lengths, strict=True))
        return total / sum(self._lengths)


def _weights(counts: Counter[int]) -> list[float]:
    """The weight of each candidate that is chosen, in their order."""
    return [counts[candidate] / counts.total() for candidate in sorted(counts)]


def _same(one: Any, other: Any) -> bool:
    """Whether nested containers of tensors are equal; of anything else, its type is compared."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        # What is not a number stands for a gap, and does not equal itself.
        return one.shape == other.shape and bool(((one == other) | (one != one)).all())
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other)
