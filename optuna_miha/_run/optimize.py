"""The public function :func:`optimize`."""

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
from optuna_miha._run.attempts import tidy, train_stretch
from optuna_miha._run.epoch_report import EpochCallback
from optuna_miha._run.session import open_session
from optuna_miha._search.crossover import AverageWeights, Crossover
from optuna_miha._search.plan import Plan
from optuna_miha._study.retention import Keep
from optuna_miha._study.retry import convert_storage_errors
from optuna_miha._study.trial_log import Callback
from optuna_miha._training.compute import Precision
from optuna_miha._training.trainer_context import AnyTrainer
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
    trainer: AnyTrainer | None = None,
    initial_params: Mapping[str, Any] | None = None,
    artifact_store: Any = None,
    checkpoint_dir: str | PathLike[str] | None = None,
    keep: Keep = "trunk",
    device: torch.device | str | Sequence[torch.device | str] | None = None,
    precision: Precision | None = None,
    channels_last: bool = False,
    n_threads: int = 1,
    callbacks: Iterable[Callback] | None = None,
    epoch_callbacks: Iterable[EpochCallback] | None = None,
    timeout: float | None = None,
    catch: Iterable[type[Exception]] | type[Exception] = (),
    show_progress_bar: bool = True,
) -> Result:
    """Train one network while tuning its hyperparameters.

    A start-up race selects one of a few initial configurations. Then, in each round, copies of
    the network train from the best weights so far, one of them unchanged and each of the others
    with one mutated hyperparameter, and the fittest is continued. In each of these segments, the
    learning rate rises and then falls to zero. Every segment is a trial of ``study``.
    :class:`Plan` describes the phases, and other plans.

    A second call with the same study resumes an interrupted run, continues a finished run with a
    larger ``n_epochs``, or returns the result of a finished run. For a given plan, seed, device
    and number of threads, the result does not depend on ``n_jobs`` or on interruptions, provided
    that the sampler and the pruner are those of this package.

    Args:
        study:
            A study with one objective. Optuna's default sampler and pruner are replaced by
            :class:`MihaSampler` and :class:`SlopePruner`; any others are kept.
        model_fn:
            Builds the network from a trial and returns a :class:`Recipe`. The hyperparameters
            that it suggests can mutate. If it suggests none, these are activations, dropout
            rates, optimizer, learning rate, weight decay, batch size and label smoothing. It is
            called at least once for every segment, and must build a new network each time.
        n_epochs:
            The total budget in epochs, including those of earlier calls and of all branches.
            Default 200.
        plan: How the budget is spent; replaces ``n_epochs``.
        n_jobs:
            Number of worker processes on this machine; 1 trains in this process. A script that
            uses more must guard the call with ``if __name__ == "__main__":``. The plan of a new
            study keeps as many workers busy, unless ``plan`` says otherwise
            (:class:`Plan`, ``n_workers``). A study that is resumed keeps its plan.
        executor:
            Any :class:`concurrent.futures.Executor`, such as Dask's ``client.get_executor()``,
            to use instead of worker processes. It is not shut down. The plan of a new study
            keeps all its workers busy, like that of ``n_jobs``.
        fitness:
            Computes the fitness of a branch from its curve; default
            :func:`optuna_miha.fitness.last_value`.
        crossover:
            How to combine the two fittest branches of a population.
            :class:`UniformCrossover`, or your own function, makes the last branch of the next
            population from the changes of both; :class:`AverageWeights` averages their weights.
            :obj:`None`: they are not combined.
        trainer:
            Your own training loop; it disables the moving average of the weights.
        initial_params:
            Initial values by parameter name. They override the initial values of the
            ``suggest_*`` functions. A parameter without either starts in the middle of its
            range, or at its first choice.
        artifact_store:
            The store for checkpoints, for example an
            :class:`optuna.artifacts.Boto3ArtifactStore`.
        checkpoint_dir:
            A folder for checkpoints. Default: a folder beside the SQLite file, a temporary folder
            for a study in memory, otherwise ``miha-checkpoints/``.
        keep:
            Which checkpoints remain at the end: ``"final"``, that of the best segment;
            ``"trunk"``, also those of its ancestors; ``"all"``, those of all segments that
            trained to their end. Unless it is ``"final"``, the best weights of the 60 best
            segments remain as well, for :meth:`Result.ensemble`.
        device:
            Where to train; default the accelerator if available, otherwise the CPU. Of several
            devices, such as ``["cuda:0", "cuda:1"]``, each worker process of ``n_jobs`` has one;
            set ``n_jobs`` to their number. With an ``executor``, this is the device of its
            workers, which the coordinator need not have; by default each worker chooses its own.
        precision:
            ``"bf16"`` or ``"fp16"``: run forward passes under :class:`torch.autocast`; weights
            keep their dtype. With ``"fp16"``, a :class:`torch.amp.GradScaler` scales the losses.
        channels_last:
            Whether to use the channels-last memory format for convolution weights, which is
            faster on many devices.
        n_threads:
            Intra-op threads of torch during training. The default 1 makes the result independent
            of the number of cores, and leaves the other cores to the other ``n_jobs``.
        callbacks:
            Called with the study and the trial after each trial. They may call ``study.stop()``;
            :class:`EarlyStopping` is one.
        epoch_callbacks:
            Called with an :class:`EpochReport` after each epoch of every trial, in this process;
            :class:`TensorBoardCallback`, :class:`MLflowCallback` and
            :class:`WeightsAndBiasesCallback` are some.
        timeout:
            Seconds after which no further phase begins.
        catch:
            Exceptions that only fail the trial in whose user code they are raised. Others end the
            call; finished segments are not lost.
        show_progress_bar: Whether to show a progress bar.

    Returns:
        The trained model and its hyperparameter schedule.

    Raises:
        TypeError: If an argument, or the return value of ``model_fn``, has the wrong type.
        ValueError: If an argument is out of range or contradicts another.
        MonitorChangedError: If the study was started with another monitored value or loss.
        PlanMismatchError: If the study was started with another plan.
        SearchSpaceChangedError: If the study was started with another search space.
        InheritanceError: If a mutation changed the parameters of the network.
        StudyLockedError: If another process or thread runs the study.
        FormatError: If a later version of the package wrote the study.
        RecordError: If a stored attribute of the study or of a trial is invalid.
        CheckpointError: If checkpoints cannot be written, or none of them is found.
        StorageError: If a database fails before training, or for more than two minutes.
        WorkerError: If worker processes or the executor could not complete a job.
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
        epoch_callbacks=epoch_callbacks,
        timeout=timeout,
        catch=catch,
        show_progress_bar=show_progress_bar,
    )
    with open_session(arguments) as session:
        if session.stretch is not None:
            train_stretch(session, session.stretch)
        elif session.lease is not None and session.is_untidy:
            tidy(session)
        return session.result()
