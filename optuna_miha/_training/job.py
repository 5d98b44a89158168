"""Train one segment: a pure function of the job, which does not access the study."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from optuna.study import StudyDirection
from optuna.trial import FixedTrial

from optuna_miha._history.curve import EpochResult
from optuna_miha._history.error_text import describe_error
from optuna_miha._history.lineage import sign_of
from optuna_miha._history.segment import Role
from optuna_miha._model.data_state import DataState
from optuna_miha._model.model_fn import ModelFn, build_recipe
from optuna_miha._model.optimizer_state import optimizer_settings
from optuna_miha._model.recipe import LossFn, Recipe, TrainStep, device_of
from optuna_miha._model.rng import preserved_rng, seed_all
from optuna_miha._model.tensors import on_host
from optuna_miha._search.learning_rate import Course, half_cosine, warmup_cosine
from optuna_miha._search.space import lr_distributions
from optuna_miha._training.averages import Average, EpochSteps
from optuna_miha._training.best_weights import best_source, updated_best, validated
from optuna_miha._training.compute import DEFAULT_ENGINE, Engine, intra_op_threads, resolve_device
from optuna_miha._training.extra_state import ExtraState
from optuna_miha._training.in_force import BatchSizeCheck, check_in_force, check_settings
from optuna_miha._training.optimizer_steps import OptimizerSteps
from optuna_miha._training.out_of_memory import is_out_of_memory, release_memory
from optuna_miha._training.outcome import Outcome
from optuna_miha._training.state import State, capture, inherit, make_ema, with_best
from optuna_miha._training.torch_settings import Settings, current_settings
from optuna_miha._training.trainer import (
    batches_of,
    is_failed,
    move,
    steps_of_epoch,
    train,
)
from optuna_miha._training.trainer_context import (
    AnyTrainer,
    TrainerContext,
    call_trainer,
    describe_job,
    next_result,
)


@dataclass(frozen=True, kw_only=True)
class Context:
    """The settings that all segments of a run share.

    Args:
        model_fn: The user's function.
        valid_loss_fn: The validation loss.
        valid_step: The ``train_step`` of the initial configuration, used in validation.
        trainer: The user's training loop. :obj:`None`: the built-in one.
        sign: 1 if the study minimizes, -1 if it maximizes.
        seed: The seed of the run, for the initial weights and for training from them.
        devices: The devices to train on; siblings are distributed over them in turn.
            :obj:`None`: the accelerator of the process that trains, if it has one.
        ema_decay: As in the plan. Ignored with a user-defined trainer, because only the trainer
            can evaluate the network.
        engine: The compute settings.
        settings: Global settings of torch, for workers.
        halves_jobs: Whether two halves of a job equal the whole bit for bit, also with a loader
            that has worker processes.
    """

    model_fn: ModelFn
    valid_loss_fn: LossFn
    trainer: AnyTrainer | None
    sign: int
    seed: int
    devices: tuple[torch.device | None, ...]
    ema_decay: float
    engine: Engine = DEFAULT_ENGINE
    settings: Settings = field(default_factory=current_settings)
    valid_step: TrainStep | None = None
    halves_jobs: bool = True

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        model_fn: ModelFn,
        *,
        direction: StudyDirection,
        seed: int,
        devices: tuple[torch.device | None, ...],
        trainer: AnyTrainer | None = None,
        ema_decay: float = 0.0,
        engine: Engine = DEFAULT_ENGINE,
    ) -> Context:
        """Create the context of a run from the recipe of its initial configuration.

        Args:
            recipe: The recipe whose validation loss all segments share.
            model_fn: See :class:`Context`.
            direction: The direction of the study.
            seed: See :class:`Context`.
            devices: See :class:`Context`.
            trainer: See :class:`Context`.
            ema_decay: See :class:`Context`; 0: no moving average.
            engine: See :class:`Context`.

        Raises:
            ValueError: If the recipe lacks data or a loss, and there is no trainer.
        """
        if trainer is None:
            recipe.check_complete()
        return cls(
            model_fn=model_fn,
            valid_loss_fn=recipe.valid_loss_fn or recipe.loss_fn,
            valid_step=recipe.train_step,
            trainer=trainer,
            sign=sign_of(direction),
            seed=seed,
            devices=devices,
            ema_decay=ema_decay,
            engine=engine,
            halves_jobs=recipe.steps_per_epoch is None,
        )

    def on_device(self, recipe: Recipe, index: int = 0) -> Recipe:
        """Move a recipe to the device it is trained on, and set what all branches share.

        Validation uses the loss and the ``train_step`` of the initial configuration. Those of the
        branch itself may contain its own hyperparameters, such as the weight of a term, and would
        judge each branch by another measure.

        Args:
            recipe: The recipe, changed in place and returned.
            index: The branch index; branches are distributed over the devices in turn.
        """
        recipe.valid_loss_fn = self.valid_loss_fn
        recipe.valid_step = self.valid_step
        device = resolve_device(self.devices[index % len(self.devices)])
        return move(recipe, device, self.engine)


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
    average = Average(recipe, ema, context.engine)
    epoch_steps = None
    if job.course is not None:
        epoch_steps = _epoch_steps(context, recipe, job, job.course)
        average.follow(job.course, steps, epoch_steps, context.ema_decay)
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
    state = capture(recipe, ema, epoch, settings) | _kept(data, extra)
    if epoch_steps is not None:
        state["epoch_steps"] = epoch_steps.length
    return with_best(state, best, best_source(best, log.results[-1], epoch, ema, context.sign))


def _epoch_steps(context: Context, recipe: Recipe, job: Job, course: Course) -> EpochSteps:
    """Count the steps of the epochs; a job within a segment knows those of the last epoch."""
    if course.begin and job.state is not None:
        return EpochSteps(job.state["epoch_steps"])
    is_custom = context.trainer is not None
    return EpochSteps(None if is_custom else steps_of_epoch(recipe, batches_of(recipe)))


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
