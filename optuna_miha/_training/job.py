"""Train one segment: a pure function of the job, which does not access the study."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from optuna.trial import FixedTrial
from torch.optim.swa_utils import AveragedModel

from optuna_miha._history.curve import EpochResult
from optuna_miha._history.error_text import describe_error
from optuna_miha._history.segment import Role
from optuna_miha._model.data_state import DataState
from optuna_miha._model.model_fn import build_recipe
from optuna_miha._model.optimizer_state import optimizer_settings
from optuna_miha._model.recipe import Recipe, device_of
from optuna_miha._model.rng import preserved_rng, seed_all
from optuna_miha._model.tensors import on_host
from optuna_miha._search.learning_rate import Course, half_cosine, warmup_cosine
from optuna_miha._search.space import lr_distributions
from optuna_miha._training.averages import Average, EpochSteps
from optuna_miha._training.best_weights import best_source, updated_best, validated
from optuna_miha._training.compute import intra_op_threads
from optuna_miha._training.context import Context
from optuna_miha._training.extra_state import ExtraState
from optuna_miha._training.in_force import BatchSizeCheck, check_in_force, check_settings
from optuna_miha._training.optimizer_steps import OptimizerSteps
from optuna_miha._training.out_of_memory import is_out_of_memory, release_memory
from optuna_miha._training.outcome import Outcome
from optuna_miha._training.state import State, capture, inherit, make_ema, with_best
from optuna_miha._training.trainer import (
    batches_of,
    is_failed,
    steps_of_epoch,
    train,
)
from optuna_miha._training.trainer_context import (
    TrainerContext,
    call_trainer,
    describe_job,
    next_result,
)


@dataclass(frozen=True, kw_only=True)
class Job:
    """Some epochs of one segment.

    Args:
        params: The hyperparameters.
        state: The state to continue from. :obj:`None`: the initial weights.
        n_epochs: Epochs to train. 0: only validate the state.
        anneal: Whether to anneal the learning rate over these epochs: by :func:`warmup_cosine` if
            it is a float parameter of the kind ``lr``, otherwise without the initial rise.
        course: Annealing by the step. The average of the weights is then updated after every
            step, and it alone is validated.
        patience: Stop after this many epochs without improvement. :obj:`None`: never.
        birth_cost: With ``patience``, the cost that the first epochs must improve on.
        index: The index among the siblings in training, which selects the device.
        role: The role of the segment.
        cycle: Its cycle.
        branch: Its branch index.
        number: Number of its trial. :obj:`None`: it has none yet.
        share: The fractions of the run's budget at the beginning and at the end of these epochs.
    """

    params: dict[str, Any]
    state: State | None
    n_epochs: int
    anneal: bool = False
    course: Course | None = None
    patience: int | None = None
    birth_cost: float = math.inf
    index: int = 0
    role: Role = "trunk"
    cycle: int = 0
    branch: int = 0
    number: int | None = None
    share: tuple[float, float] = (0.0, 1.0)


def run_job(
    context: Context, job: Job, on_epoch: Callable[[EpochResult], None] | None = None
) -> Outcome:
    """Build the recipe, inherit the state, train, and capture the resulting state.

    The number of intra-op threads is that of the engine, and the global random generators are
    restored afterwards. The outcome depends only on the arguments, wherever the job runs.

    Args:
        context: The settings that all segments of the run share.
        job: The job.
        on_epoch: Called with the result of every epoch. Its exceptions are raised.

    Returns:
        The outcome. Exceptions of the user's code are caught and returned in it.
    """
    log = _Log()
    threads = intra_op_threads(context.engine.n_threads)
    with threads, preserved_rng(), DataState() as data, ExtraState() as extra:
        training = _train(context, job, log, data, extra)
        while True:
            try:
                result = next(training)
            except StopIteration as end:
                return Outcome(tuple(log.results), log.begun, end.value)
            except _DivergedError as error:
                return Outcome(tuple(log.results), log.begun, None, error=str(error))
            except Exception as error:
                text = describe_error(error)
                if is_out_of_memory(error):
                    release_memory(error)
                return Outcome(tuple(log.results), log.begun, None, error=text, exception=error)
            if on_epoch is not None:
                on_epoch(result)


class _DivergedError(Exception):
    """The monitored value is not finite."""


@dataclass
class _Log:
    """The progress of a job, also available after an exception."""

    results: list[EpochResult] = field(default_factory=list)
    begun: int = 0


def _train(
    context: Context, job: Job, log: _Log, data: DataState, extra: ExtraState
) -> Generator[EpochResult, None, State]:
    """Train a job: yields the result of every epoch, and returns the state."""
    trial = FixedTrial(job.params)
    recipe = build_recipe(context.model_fn, trial, context.seed)
    check_in_force(recipe, job.params, custom_trainer=context.trainer is not None)
    data.watch(recipe.train_data)
    context.on_device(recipe, job.index)
    assert recipe.optimizer is not None
    settings = optimizer_settings(recipe.optimizer)
    # With a user-defined trainer there is no average, because only the trainer can evaluate it.
    ema = make_ema(recipe.model, 0.0 if context.trainer is not None else context.ema_decay)
    epoch, best = 0, None
    if job.state is None:
        seed_all(context.seed)
    else:
        inherit(recipe, ema, job.state)
        data.restore(job.state.get("data", {}))  # Earlier versions did not store it.
        extra.inherit(job.state)
        epoch, best = job.state["epoch"], job.state.get("best")
    for name, part in recipe.extra_state.items():
        extra.register(name, part)
    if job.n_epochs == 0:
        best, source = validated(recipe, ema, epoch, context.engine), "ema" if ema else "model"
        return with_best(capture(recipe, ema, epoch, settings) | _kept(data, extra), best, source)
    steps = _watched_steps(context, recipe, job)
    # `warmup_cosine` starts at a third of the rate. This suits only a rate that was raised before.
    rate_factor = warmup_cosine if lr_distributions(trial.distributions) else half_cosine
    average = _average(context, recipe, job, ema, steps)
    described = describe_job(job, device_of(recipe.model), extra, rate_factor)
    epochs = _started(context, recipe, job, average, extra, described)
    least_cost, n_without_improvement = job.birth_cost, 0
    while len(log.results) < job.n_epochs and n_without_improvement != job.patience:
        if job.anneal:
            steps.scale(rate_factor(len(log.results), job.n_epochs))
        data.set_epoch(epoch)
        log.begun += 1
        result = next_result(epochs)
        steps.check()
        if result is None:
            log.begun -= 1
            break
        result = average.add_value(result)
        epoch += 1
        log.results.append(result)
        yield result
        if is_failed(result):
            raise _DivergedError(f"The monitored value is {result.score} after {epoch} epochs.")
        best = updated_best(best, result, epoch, recipe, ema, context.sign)
        cost = context.sign * result.score
        if cost < least_cost:
            least_cost, n_without_improvement = cost, 0
        else:
            n_without_improvement += 1
    if not log.results:
        raise ValueError(
            f"The trainer must yield a result after each of {job.n_epochs} epochs, got none."
        )
    state = capture(recipe, ema, epoch, settings) | _kept(data, extra) | average.state
    return with_best(state, best, best_source(best, log.results[-1], epoch, ema, context.sign))


def _average(
    context: Context, recipe: Recipe, job: Job, ema: AveragedModel | None, steps: OptimizerSteps
) -> Average:
    """Average the weights, in a job with a course by the step."""
    average = Average(recipe, ema, context.engine)
    if job.course is not None:
        if job.course.begin and job.state is not None:
            length = job.state["epoch_steps"]  # Also if the data do not know their length.
        else:
            is_custom = context.trainer is not None
            length = None if is_custom else steps_of_epoch(recipe, batches_of(recipe))
        average.follow(job.course, steps, EpochSteps(length), context.ema_decay)
    return average


def _watched_steps(context: Context, recipe: Recipe, job: Job) -> OptimizerSteps:
    """Watch the steps of the optimizer, and check its settings before the first one."""
    assert recipe.optimizer is not None
    is_custom = context.trainer is not None
    return OptimizerSteps(
        recipe.optimizer,
        must_step=is_custom and not recipe.has_default_optimizer,
        # A trainer or a scheduler may set the learning rate by a schedule of its own.
        before_first=partial(
            check_settings,
            recipe,
            job.params,
            with_lr=not is_custom and recipe.scheduler is None,
        ),
    )


def _started(
    context: Context,
    recipe: Recipe,
    job: Job,
    average: Average,
    extra: ExtraState,
    described: TrainerContext,
) -> Iterator[EpochResult]:
    """Call the trainer, or the built-in one, which shows its batches to those who watch them."""
    watchers = [BatchSizeCheck(recipe, job.params).add, *average.watchers]
    trainer = context.trainer or partial(
        train,
        engine=context.engine,
        on_batch=partial(_watch_batch, watchers),
        extra=extra,
        share=job.share,
        validated=average.validated,
    )
    return call_trainer(trainer, recipe, job.n_epochs, described)


def _watch_batch(watchers: Sequence[Callable[[Any], None]], batch: Any) -> None:
    for watch in watchers:
        watch(batch)


def _kept(data: DataState, extra: ExtraState) -> dict[str, Any]:
    """The parts of a state besides network, optimizer and random generators."""
    return dict(on_host({"data": data.capture()} | extra.capture()))
