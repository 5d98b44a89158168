"""The front door: :func:`optimize` and :func:`load_result`."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from os import PathLike
from typing import Any, get_args

import optuna
import torch
from optuna.exceptions import OptunaError
from optuna.study import StudyDirection
from optuna.trial import FixedTrial

from optuna_miha._history import attributes
from optuna_miha._history.lineage import Lineage
from optuna_miha._history.scalars import as_int
from optuna_miha._model.model_fn import ModelFn, build_initial, build_recipe
from optuna_miha._report.dashboard import Dashboard
from optuna_miha._results.result import Result, make_result
from optuna_miha._run.coordinator import Coordinator
from optuna_miha._run.progress import Progress
from optuna_miha._run.sigterm import terminable
from optuna_miha._search.crossover import AverageWeights, Crossover, check_crossover
from optuna_miha._search.phases import Stretch
from optuna_miha._search.plan import Plan
from optuna_miha._search.sampler import read_run
from optuna_miha._study.lease import held
from optuna_miha._study.optuna_internals import heartbeats, patience, stoppable
from optuna_miha._study.recovery import record_lost, recover
from optuna_miha._study.retention import Keep, Keeper
from optuna_miha._study.retry import Mender, storage_named
from optuna_miha._study.schema import check_study, read_lineage
from optuna_miha._study.setup import (
    open_store,
    record_keep,
    record_run,
    record_stretches,
    settle_components,
    settle_initial,
    settle_plan,
    settle_seed,
    settle_stretches,
)
from optuna_miha._study.trial_log import Callback, Ledger
from optuna_miha._training.compute import Engine, Precision, settled_device
from optuna_miha._training.job import Context
from optuna_miha._training.out_of_memory import is_out_of_memory
from optuna_miha._training.pools import make_workers
from optuna_miha._training.preflight import (
    check_direction,
    check_distributions,
    check_fresh,
    check_training,
    check_valid_loss,
)
from optuna_miha._training.trainer import Trainer
from optuna_miha.exceptions import MihaError, StudyLockedError
from optuna_miha.fitness import Fitness, last_value

_logger = optuna.logging.get_logger("optuna.miha")

_BUSY_TIMEOUT = 60.0
"""Seconds to wait for another process that writes to the same SQLite file."""


@storage_named()
def optimize(
    study: optuna.Study,
    model_fn: ModelFn,
    *,
    n_epochs: int | None = None,
    plan: Plan | None = None,
    n_jobs: int = 1,
    executor: Executor | None = None,
    fitness: Fitness | None = None,
    crossover: Crossover | AverageWeights | None = None,
    trainer: Trainer | None = None,
    initial_params: Mapping[str, Any] | None = None,
    artifact_store: Any = None,
    checkpoint_dir: str | PathLike[str] | None = None,
    keep: Keep = "trunk",
    device: torch.device | str | Sequence[torch.device | str] | None = None,
    precision: Precision | None = None,
    channels_last: bool = False,
    n_threads: int = 1,
    callbacks: Iterable[Callback] | None = None,
    timeout: float | None = None,
    catch: Iterable[type[Exception]] | type[Exception] = (),
    show_progress_bar: bool = True,
) -> Result:
    """Train one network, and find its hyperparameters on the way.

    A start-up race picks among a few initial configurations; then, cycle after cycle, copies of
    the network with one mutated hyperparameter each train for a few epochs, and the fittest
    goes on; the last part of the budget anneals the learning rate. Every segment of training is
    a trial of ``study``.

    Calling it again on the same study does only what is missing: it resumes an interrupted
    run, returns the result of one that is over, and goes on with a larger ``n_epochs``. With
    the same seed, device and number of threads the result does not depend on ``n_jobs`` or on
    interruptions, as long as sampler and pruner are those of this package.

    Args:
        study:
            A study of one objective. Optuna's default sampler and pruner are replaced by
            :class:`MihaSampler` and :class:`SlopePruner`; any others are kept.
        model_fn:
            Builds the network from a trial and returns a :class:`Recipe`. What it suggests can
            mutate; if it suggests nothing, activations, dropout rates, optimizer, learning
            rate, weight decay, batch size and label smoothing can. It is called once or more
            for every segment and must build a new network each time.
        n_epochs:
            The whole budget in epochs, whatever was spent before included. Every epoch of
            every branch counts. Default 200.
        plan: How the budget is spent; takes the place of ``n_epochs``.
        n_jobs:
            Worker processes on this machine; 1 trains in this process. A script that asks for
            more keeps its call under ``if __name__ == "__main__":``.
        executor:
            Takes the place of worker processes: any :class:`concurrent.futures.Executor`, such
            as Dask's ``client.get_executor()``. It is not shut down.
        fitness:
            Scores a branch by its curve; default :func:`optuna_miha.fitness.last_value`.
        crossover:
            What becomes of the two fittest branches of a population together:
            :class:`UniformCrossover`, or a function of your own, fills the last place of the
            next population with a branch that has the changes of both; :class:`AverageWeights`
            averages their weights. :obj:`None`: nothing.
        trainer:
            A training loop of the user's own; the weights are then not averaged.
        initial_params:
            Initial values by name of the parameter. They override those that the ``suggest_*``
            functions declare; what has neither starts in the middle of its range, or at its
            first choice.
        artifact_store:
            Where checkpoints are kept, for instance an
            :class:`optuna.artifacts.Boto3ArtifactStore`.
        checkpoint_dir:
            A folder for checkpoints. Default: beside the SQLite file, in a temporary folder
            for a study in memory, else ``miha-checkpoints/``.
        keep:
            Which checkpoints remain in the end: ``"final"``, that of the best segment;
            ``"trunk"``, also those that it descends from; ``"all"``, one for every segment that
            trained to its end. Unless it is ``"final"``, the best weights of the 60 best
            segments remain as well, for :meth:`Result.ensemble`.
        device:
            Where to train; default the accelerator, if there is one, else the CPU. Siblings
            take turns on several, such as ``["cuda:0", "cuda:1"]``: use as many ``n_jobs``.
        precision:
            ``"bf16"``: forward passes under :class:`torch.autocast`; weights stay as they are.
        channels_last:
            Whether convolution weights are laid out with the channels last, which is faster on
            many devices.
        n_threads:
            Intra-op threads of torch while a segment trains. The default 1 makes the result
            independent of the number of cores, and leaves the others to the other ``n_jobs``.
        callbacks:
            Called with the study and the trial after every trial. They may call
            ``study.stop()``.
        timeout:
            Seconds after which no further phase begins.
        catch:
            Exceptions that fail a trial when they are raised in the user's code for it.
            Others end the call; nothing that was trained before is lost.
        show_progress_bar: Whether to show one.

    Returns:
        The trained model and the schedule that made it.

    Raises:
        TypeError: If an argument, or what ``model_fn`` returns, is of the wrong type.
        ValueError: If an argument is out of range or contradicts another.
        PlanMismatchError: If the study was started with another plan.
        SearchSpaceChangedError: If the study was started with another search space.
        InheritanceError: If a mutation changed the network's parameters.
        StudyLockedError: If another process or thread runs the study.
        FormatError: If a later version wrote the study.
        RecordError: If an attribute of the study or of a trial is not what a run writes there.
        CheckpointError: If checkpoints cannot be written, or not one of them is to be found.
        StorageError: If a database fails before training, or for more than two minutes.
        WorkerError: If worker processes or the executor could not see a job through.
    """
    if not isinstance(study, optuna.Study):
        raise TypeError(f"`study` must be an optuna.Study, got {type(study).__qualname__}.")
    if len(study.directions) > 1:
        raise ValueError(
            f"The study must have one objective, got {len(study.directions)} directions: create "
            "it with `direction=` and combine the objectives into one metric."
        )
    if not callable(model_fn):
        raise TypeError(f"`model_fn` must be callable, got {type(model_fn).__qualname__}.")
    n_jobs, n_epochs = as_int(n_jobs), as_int(n_epochs)
    if type(n_jobs) is not int or n_jobs < 1:
        raise ValueError(f"`n_jobs` must be a positive number of processes, got {n_jobs!r}.")
    if executor is not None and not isinstance(executor, Executor):
        raise TypeError(
            "`executor` must be a concurrent.futures.Executor, got "
            f"{type(executor).__qualname__}: with Dask, pass `client.get_executor()`."
        )
    if executor is not None and n_jobs != 1:
        raise ValueError(
            f"Give `n_jobs` or an `executor`, not both: got n_jobs={n_jobs} besides "
            f"{type(executor).__qualname__}, which knows by itself how many workers it has."
        )
    if keep not in get_args(Keep):
        raise ValueError(f"`keep` must be one of {get_args(Keep)}, got {keep!r}.")
    engine = Engine(precision=precision, channels_last=channels_last, n_threads=n_threads)
    if trainer is not None and precision is not None:
        raise ValueError(
            f"`precision` is for the built-in trainer, got {precision!r} besides a trainer of "
            "your own: use torch.autocast in it."
        )
    devices = _settled(device)

    check_study(study)
    total = n_epochs if plan is None else plan.n_epochs
    plan = settle_plan(study, n_epochs, plan)
    check_crossover(crossover, plan, own_trainer=trainer is not None)
    settle_components(study)
    seed = settle_seed(study)
    initial = build_initial(model_fn, seed, initial_params)
    params = settle_initial(study, initial)
    recipe = build_recipe(model_fn, FixedTrial(params), seed)
    context = Context(
        model_fn=model_fn,
        valid_loss_fn=recipe.valid_loss_fn or recipe.loss_fn,
        trainer=trainer,
        sign=-1 if study.direction == StudyDirection.MAXIMIZE else 1,
        seed=seed,
        devices=devices,
        ema_decay=plan.ema_decay,
        engine=engine,
    )
    lineage = read_lineage(study)
    recovery = None
    if len(lineage) > 0:
        present = open_store(study, artifact_store, checkpoint_dir, read_only=True)
        recovery = recover(study, plan, total, present)
        lineage = recovery.lineage
    stretches = settle_stretches(study, plan, total, lineage)
    is_new = attributes.PLAN not in study.user_attrs
    with ExitStack() as stack:
        stack.enter_context(patience(study, _BUSY_TIMEOUT))
        if stretches is not None:
            workers = stack.enter_context(make_workers(context, n_jobs, executor))
        check_direction(study, recipe)
        check_distributions(study, initial.distributions)
        check_fresh(initial.recipe, recipe)
        if is_new:  # Later the two recipes may start from different values.
            check_valid_loss(initial.recipe, recipe, context)
        check_training(recipe, context)
        del recipe  # It would lie on the device as long as the run lasts.
        if stretches is not None:
            workers.check()

        # Nothing was written until here.
        if stretches is not None:
            stack.enter_context(terminable())
            lease = stack.enter_context(held(study))
            if is_new and attributes.PLAN in study.user_attrs:
                raise StudyLockedError(
                    f"The study {study.study_name!r} was started by another process at the same "
                    "time: run the same script again to go on with it."
                )
        if recovery is not None and recovery.lost:
            # Looked at again: another process may have gone on, and tidied up, before it ended.
            record_lost(study, recover(study, plan, total, present))
        store = open_store(study, artifact_store, checkpoint_dir)
        record_run(study, plan, seed, initial, engine)
        record_keep(study, keep)
        # Read again: what held the study before may have gone on after the first look.
        if stretches is not None:
            lineage = read_lineage(study)
            stretches = settle_stretches(study, plan, total, lineage)
        if stretches is not None:
            record_stretches(study, stretches)
            stack.enter_context(stoppable(study))
            running = stack.enter_context(heartbeats(study))
            stretch, dashboard = stretches[-1], Dashboard(study)
            _announce(plan, stretch, lineage)
            deadline = math.inf if timeout is None else time.monotonic() + timeout

            def train() -> None:
                """Go on from the record: in the beginning, and after each mishap."""
                nonlocal lineage
                running.clear()
                ledger = Ledger(study, seed=seed, callbacks=list(callbacks or ()), running=running)
                lineage = ledger.lineage
                keeper = Keeper(store, keep, lineage, study.user_attrs[attributes.RUN])
                keeper.sweep()
                with Progress(stretch.end, lineage, show=show_progress_bar) as progress:
                    Coordinator(
                        study,
                        ledger=ledger,
                        keeper=keeper,
                        plan=plan,
                        run=read_run(study),
                        context=context,
                        workers=workers,
                        progress=progress,
                        fitness=fitness or last_value,
                        crossover=crossover,
                        catch=tuple(catch) if isinstance(catch, Iterable) else (catch,),
                        deadline=deadline,
                        lease=lease,
                        after_cycle=dashboard.refresh,
                    ).run(stretch)

            def recover_again() -> None:
                record_lost(study, recover(study, plan, total, store))

            mender = Mender(study, lease, recover_again)
            try:
                mender.see_through(train, lambda: lineage.spent)
            except BaseException as error:
                _logger.warning(
                    f"Stopped by {type(error).__name__} after {lineage.spent} of {stretch.end} "
                    f"epochs. Run the same script again to resume: the study "
                    f"{study.study_name!r} and its checkpoints hold all that was trained."
                    + _remedy(error)
                )
                raise
    result = make_result(study, lineage, model_fn, store, devices[0])
    if stretches is not None and settle_stretches(study, plan, None, lineage) is None:
        dashboard.finish(result, store.artifact_store, model=keep != "final")
    return result


@storage_named()
def load_result(
    study: optuna.Study,
    model_fn: ModelFn,
    artifact_store: Any = None,
    *,
    checkpoint_dir: str | PathLike[str] | None = None,
    device: torch.device | str | None = None,
) -> Result:
    """Rebuild the result of a run, finished or not, for instance in another process.

    Args:
        study: The run's study.
        model_fn: The function that it was run with.
        artifact_store: As given to :func:`optimize`.
        checkpoint_dir: As given to :func:`optimize`; by default the folder that the study
            remembers.
        device: Where to put the model; default as in :func:`optimize`.

    Returns:
        The result.

    Raises:
        CheckpointError: If the checkpoint is missing or damaged.
        FormatError: If a later version wrote the study.
        RecordError: If an attribute of the study or of a trial is not what a run writes there.
        StorageError: If the database cannot be read.
        MihaError: If nothing was trained to its end yet.
    """
    lineage = read_lineage(study)
    if lineage.best() is None:
        raise MihaError(
            f"The study {study.study_name!r} holds no finished segment of a run, so there is no "
            "model yet: call `optuna_miha.optimize` on it."
        )
    store = open_store(study, artifact_store, checkpoint_dir, read_only=True)
    return make_result(study, lineage, model_fn, store, _settled(device)[0])


def _settled(
    device: torch.device | str | Sequence[torch.device | str] | None,
) -> tuple[torch.device, ...]:
    """The devices to train on, one at least."""
    if device is None:
        return (settled_device(None),)
    several = [device] if isinstance(device, (torch.device, str)) else list(device)
    if not several:
        raise ValueError("`device` must name at least one device, got an empty sequence.")
    return tuple(torch.device(name) for name in several)


def _remedy(error: BaseException) -> str:
    """What else to say of an error of the user's code, which would come again."""
    if is_out_of_memory(error):
        return (
            " There was too little memory for training that had enough before: make room, or use "
            "fewer `n_jobs` or a smaller batch size."
        )
    if not isinstance(error, Exception) or isinstance(error, OptunaError):
        return ""
    return (
        " If the error belongs to the hyperparameters of one branch, "
        f"`catch=({type(error).__name__},)` fails that branch alone."
    )


def _announce(plan: Plan, stretch: Stretch, lineage: Lineage) -> None:
    if lineage.spent:
        _logger.info(f"Resuming after {lineage.spent} of {stretch.end} epochs.")
        return
    if plan.n_cycles is None:
        size = plan.race_size(stretch.end)
        race = f"a start-up race of {size} configurations" if size > 1 else "no start-up race"
        _logger.info(f"{stretch.end} epochs will be trained, all branches counted; {race}.")
        return
    if plan.n_cycles == 0:
        _logger.info(f"{stretch.end} epochs will be trained, without a search.")
        return
    branches = f"{plan.population_size} branches x {plan.branch_epochs}"
    _logger.info(
        f"{stretch.end} epochs will be trained: run-up {plan.runup_epochs}, {plan.n_cycles} "
        f"cycles of {branches} and fixing {plan.fixing_epochs}, final "
        f"{plan.reserve(plan.n_epochs)}."
    )
