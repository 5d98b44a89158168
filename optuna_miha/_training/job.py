"""Training one segment: a pure function of the job, which never touches the study."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from optuna.study import StudyDirection
from optuna.trial import FixedTrial

from optuna_miha._history.curve import EpochResult
from optuna_miha._history.lineage import sign_of
from optuna_miha._model.model_fn import ModelFn, build_recipe
from optuna_miha._model.recipe import LossFn, Recipe
from optuna_miha._model.rng import preserved_rng, seed_all
from optuna_miha._model.tensors import copy_tensors
from optuna_miha._search.learning_rate import half_cosine, pace
from optuna_miha._search.space import scalable_rate
from optuna_miha._training.compute import DEFAULT_ENGINE, Engine, intra_op_threads
from optuna_miha._training.out_of_memory import give_back, is_out_of_memory
from optuna_miha._training.state import State, averaged, capture, inherit
from optuna_miha._training.trainer import Trainer, evaluate, is_failed, move, rate_setter, train


@dataclass(frozen=True, kw_only=True)
class Context:
    """What all segments of a run have in common.

    Args:
        model_fn: The user's function.
        valid_loss_fn: The loss of validation.
        trainer: The user's training loop; :obj:`None`: the built-in one.
        sign: 1 where the study minimizes, -1 where it maximizes.
        seed: The run's seed: of the initial weights, and of the training that starts there.
        devices: Where to train; siblings take turns.
        ema_decay: As in the plan. Ignored with a trainer of the user's own, which alone knows
            how to evaluate.
        engine: How to compute.
    """

    model_fn: ModelFn
    valid_loss_fn: LossFn
    trainer: Trainer | None
    sign: int
    seed: int
    devices: tuple[torch.device, ...]
    ema_decay: float
    engine: Engine = DEFAULT_ENGINE

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        model_fn: ModelFn,
        *,
        direction: StudyDirection,
        seed: int,
        devices: tuple[torch.device, ...],
        trainer: Trainer | None = None,
        ema_decay: float = 0.0,
        engine: Engine = DEFAULT_ENGINE,
    ) -> Context:
        """Create the context of a run from the recipe of its initial configuration.

        Args:
            recipe: The recipe, whose validation loss serves all segments.
            model_fn: As in the class.
            direction: The direction of the study.
            seed: As in the class.
            devices: As in the class.
            trainer: As in the class.
            ema_decay: As in the class.
            engine: As in the class.
        """
        return cls(
            model_fn=model_fn,
            valid_loss_fn=recipe.valid_loss_fn or recipe.loss_fn,
            trainer=trainer,
            sign=sign_of(direction),
            seed=seed,
            devices=devices,
            ema_decay=ema_decay,
            engine=engine,
        )

    def on_device(self, recipe: Recipe, index: int = 0) -> Recipe:
        """Move a recipe to where it is trained, and fix the scale of validation.

        Args:
            recipe: The recipe; changed in place and returned.
            index: Which of the devices, counted round.
        """
        recipe.valid_loss_fn = recipe.valid_loss_fn or self.valid_loss_fn
        return move(recipe, self.devices[index % len(self.devices)], self.engine)


@dataclass(frozen=True, kw_only=True)
class Job:
    """Some epochs of one segment.

    Args:
        params: The hyperparameters.
        state: Where to continue; :obj:`None`: from the initial weights.
        n_epochs: Epochs to train; 0: the state is validated as it is.
        anneal: Whether the learning rate is annealed over these epochs: as :func:`pace` says
            where it is a float parameter named ``lr``, else without the rise.
        patience: Ends after this many epochs without improvement; :obj:`None`: never.
        birth_cost: The cost that counts as the first to improve on, when patience is given.
        index: Its place among its siblings, by which it finds its device.
    """

    params: dict[str, Any]
    state: State | None
    n_epochs: int
    anneal: bool = False
    patience: int | None = None
    birth_cost: float = math.inf
    index: int = 0


@dataclass(frozen=True)
class Outcome:
    """What came of a job.

    Args:
        results: One per epoch that was finished.
        begun: Epochs that were begun.
        state: The state after the last epoch, with ``best`` in it; :obj:`None` on failure.
        error: What went wrong, in words; :obj:`None` if nothing did.
        exception: The exception, if it was one.
    """

    results: tuple[EpochResult, ...]
    begun: int
    state: State | None
    error: str | None = None
    exception: BaseException | None = None

    def joined(self, second: Outcome) -> Outcome:
        """The outcome of a job that was done in two parts, this one being the first."""
        results, begun = self.results + second.results, self.begun + second.begun
        return replace(second, results=results, begun=begun)


def run_job(
    context: Context, job: Job, on_epoch: Callable[[EpochResult], None] | None = None
) -> Outcome:
    """Build the recipe, inherit the state, train, and capture the state that results.

    Training happens with as many intra-op threads as the engine says, and leaves the global
    random generators as they were: the outcome depends on the arguments alone, wherever the job
    runs.

    Args:
        context: What all segments of the run have in common.
        job: What to train.
        on_epoch: Called with the result of every epoch. Its exceptions are not the job's, and
            pass through.

    Returns:
        The outcome; exceptions of the user's code are caught and returned in it.
    """
    log = _Log()
    with intra_op_threads(context.engine.n_threads), preserved_rng():
        training = _train(context, job, log)
        while True:
            try:
                result = next(training)
            except StopIteration as end:
                return Outcome(tuple(log.results), log.begun, end.value)
            except _DivergedError as error:
                return Outcome(tuple(log.results), log.begun, None, error=str(error))
            except Exception as error:
                text = f"{type(error).__name__}: {error}"
                if is_out_of_memory(error):
                    give_back(error)
                return Outcome(tuple(log.results), log.begun, None, error=text, exception=error)
            if on_epoch is not None:
                on_epoch(result)


class _DivergedError(Exception):
    """The monitored value cannot be compared any more."""


@dataclass
class _Log:
    """What is known of a job even if it ends in an exception."""

    results: list[EpochResult] = field(default_factory=list)
    begun: int = 0


def _train(context: Context, job: Job, log: _Log) -> Generator[EpochResult, None, State]:
    trial = FixedTrial(job.params)
    recipe = build_recipe(context.model_fn, trial, context.seed)
    context.on_device(recipe, job.index)
    # How to evaluate a network is known to the trainer alone, so that no average is kept then.
    ema = averaged(recipe.model, 0.0 if context.trainer is not None else context.ema_decay)
    epoch, best = 0, None
    if job.state is None:
        seed_all(context.seed)
    else:
        inherit(recipe, ema, job.state)
        epoch, best = job.state["epoch"], job.state.get("best")
    if job.n_epochs == 0:
        return capture(recipe, ema, epoch) | {"best": _validated(context, recipe, ema, epoch)}
    assert recipe.optimizer is not None
    set_rate = rate_setter(recipe.optimizer)
    # What nobody has raised would first fall to a third.
    annealed = half_cosine if scalable_rate(trial.distributions) is None else pace
    trainer = context.trainer or partial(train, engine=context.engine)
    progress = iter(trainer(recipe, job.n_epochs))
    least, waited = job.birth_cost, 0
    while len(log.results) < job.n_epochs and waited != job.patience:
        if job.anneal:
            set_rate(annealed(len(log.results), job.n_epochs))
        log.begun += 1
        result = next(progress, None)
        if result is None:
            log.begun -= 1
            break
        if not isinstance(result, EpochResult):
            raise TypeError(
                "A trainer must yield optuna_miha.EpochResult after every epoch, got "
                f"{type(result).__qualname__}: `yield EpochResult(value=...)`."
            )
        if ema is not None:
            ema.update_parameters(recipe.model)
            values = evaluate(recipe, ema.module, context.engine)
            result = replace(result, ema_value=values[recipe.monitor])
        epoch += 1
        log.results.append(result)
        yield result
        if is_failed(result):
            raise _DivergedError(f"The monitored value is {result.score} after {epoch} epochs.")
        best = _better(best, result, epoch, recipe, ema, context.sign)
        cost = context.sign * result.score
        least, waited = (cost, 0) if cost < least else (least, waited + 1)
    if not log.results:
        raise ValueError(
            f"The trainer must yield a result after each of {job.n_epochs} epochs, got none."
        )
    return capture(recipe, ema, epoch) | {"best": best}


def _validated(
    context: Context, recipe: Recipe, ema: torch.optim.swa_utils.AveragedModel | None, epoch: int
) -> dict[str, Any]:
    """The weights by which a branch is judged, averaged if an average is kept, and their value."""
    model = recipe.model if ema is None else ema.module
    value = evaluate(recipe, model, context.engine)[recipe.monitor]
    return {"value": value, "epoch": epoch, "weights": copy_tensors(model.state_dict())}


def _better(
    best: dict[str, Any] | None,
    result: EpochResult,
    epoch: int,
    recipe: Recipe,
    ema: torch.optim.swa_utils.AveragedModel | None,
    sign: int,
) -> dict[str, Any] | None:
    """The best weights so far, raw or averaged, given the newest ones."""
    value, model = result.value, recipe.model
    if ema is not None and not sign * result.score > sign * value:
        value, model = result.score, ema.module
    if not math.isfinite(value) or (best is not None and sign * best["value"] <= sign * value):
        return best
    return {"value": value, "epoch": epoch, "weights": copy_tensors(model.state_dict())}
