"""The front door: :func:`optimize`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from os import PathLike
from typing import Any

import optuna
import torch

from optuna_miha._model.model_fn import ModelFn
from optuna_miha._results.result import Result
from optuna_miha._run.arguments import check_arguments
from optuna_miha._run.attempts import train
from optuna_miha._run.session import open_session
from optuna_miha._search.crossover import AverageWeights, Crossover
from optuna_miha._search.plan import Plan
from optuna_miha._study.retention import Keep
from optuna_miha._study.retry import convert_storage_errors
from optuna_miha._study.trial_log import Callback
from optuna_miha._training.compute import Precision
from optuna_miha._training.trainer import Trainer
from optuna_miha.fitness import Fitness


@convert_storage_errors()
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
    arguments = check_arguments(
        study,
        model_fn,
        n_epochs=n_epochs,
        plan=plan,
        n_jobs=n_jobs,
        executor=executor,
        fitness=fitness,
        crossover=crossover,
        trainer=trainer,
        initial_params=initial_params,
        artifact_store=artifact_store,
        checkpoint_dir=checkpoint_dir,
        keep=keep,
        device=device,
        precision=precision,
        channels_last=channels_last,
        n_threads=n_threads,
        callbacks=callbacks,
        timeout=timeout,
        catch=catch,
        show_progress_bar=show_progress_bar,
    )
    with open_session(arguments) as session:
        if session.stretch is not None:
            train(session, session.stretch)
    return session.result()
