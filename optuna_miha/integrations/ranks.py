"""Processes of one ``torch.distributed`` job, of which rank 0 is the coordinator."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from optuna_miha._history.curve import EpochResult
from optuna_miha._history.error_text import describe_error
from optuna_miha._model.model_fn import ModelFn
from optuna_miha._model.recipe import Recipe
from optuna_miha._model.rng import seed_all
from optuna_miha._training.outcome import Outcome
from optuna_miha._training.pickling import pack
from optuna_miha._training.trainer_context import (
    AnyTrainer,
    TrainerContext,
    call_trainer,
    check_recipe,
    next_result,
)
from optuna_miha._training.worker import (
    LACKS_STATE,
    answer_probe,
    ping,
    read_probe,
    run_packed,
    run_remote,
)
from optuna_miha.exceptions import WorkerError

_END = "the end of a job"

_GRACE = 60.0
"""Seconds that a rank whose training failed waits for the others, which may wait for its
gradients. It then exits, so that they fail too."""


@dataclass(frozen=True)
class _Report:
    """What a rank has reached.

    Args:
        phase: Its phase, the same on all ranks.
        error: The error message of its training, if it failed.
        result: The result of an epoch.
        weights: A hash of the weights.
    """

    phase: str
    error: str | None = None
    result: EpochResult | None = None
    weights: str = ""


class Ranks:
    """The ranks of the process group: what they call together, and how they stay in step.

    Messages have a group of their own, so that they cannot be taken for the collectives of the
    trainer.

    Args:
        model_fn: The function of this rank.
        trainer: The training loop of this rank.
        timeout: Seconds that a rank waits for the others.

    Attributes:
        rank: The number of this rank.
        model_fn: The function, for ``optimize``.
        trainer: The training loop, for ``optimize``.
    """

    def __init__(self, model_fn: ModelFn, trainer: AnyTrainer, timeout: float) -> None:
        self.rank = dist.get_rank()
        self._is_listening = True
        self._timeout = timeout
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
        run = uuid.uuid4().hex
        self.model_fn = _ModelFnOfEachRank(model_fn, run)
        self.trainer = _TrainerInStep(trainer, self, run)
        _own.update(model_fn=self.model_fn, trainer=self.trainer)

    def lead(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Call a function on all ranks, and return what it returns on rank 0.

        Raises:
            WorkerError: If it failed on another rank.
        """
        self._is_listening = False
        self._broadcast((function, args))
        return self._call(function, args)

    def follow(self) -> None:
        """Call what rank 0 calls, until it stops.

        Raises:
            WorkerError: If rank 0 ended with an error.
        """
        while True:
            function, args = self._broadcast(None)
            if function is not None:
                self._call(function, args)
            elif args:
                raise WorkerError(f"Rank 0 ended with an error: {args}")
            else:
                return

    def stop(self, error: BaseException | None) -> None:
        """End the calls of :meth:`follow`."""
        if self._is_listening:  # Otherwise, the others fail by themselves.
            self._broadcast((None, "" if error is None else describe_error(error)))

    def agree(self, phase: str, model: nn.Module, result: EpochResult | None) -> _Report:
        """Wait until all ranks have reached a phase, and return the report of rank 0.

        Raises:
            WorkerError: If a rank is in another phase, has failed, or has other weights.
        """
        reports = self._meet(_Report(phase, None, result, _hash_of(model)))
        first = reports[0]
        _check_failures(reports)
        for rank, report in enumerate(reports):
            if report.phase != first.phase:
                raise WorkerError(
                    f"All ranks must train the same epochs, but rank 0 is at {first.phase}, and "
                    f"rank {rank} at {report.phase}: let `trainer` yield after the same epochs on "
                    "all ranks, and call `optimize_on_ranks` with the same arguments."
                )
            if report.weights != first.weights:
                raise WorkerError(
                    f"All ranks must have the same weights at {phase}, but those of rank {rank} "
                    "differ from those of rank 0, which are stored: wrap `recipe.model` in "
                    "DistributedDataParallel, call the wrapper in the forward pass, and build the "
                    "same network on all ranks."
                )
        return first

    def _call(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Call a function, and wait until all ranks have called it."""
        is_job = function is run_remote
        found: Any = None
        error: str | None = None
        failure: BaseException | None = None
        try:
            if is_job:
                found = run_packed(*args, writes=self.rank == 0)
            elif function is answer_probe and self.rank > 0:
                read_probe(*args)
            else:
                found = function(*args)
        except Exception as raised:
            error, failure = describe_error(raised), raised
        if isinstance(found, Outcome):
            error, failure = found.error, found.exception
        elif found == LACKS_STATE:
            error = "It cannot read the checkpoints. Pass a `checkpoint_dir` that all ranks share."
        elif function is ping:
            error = found
        others = self._finish(error, failure)
        if failure is not None and not is_job:
            raise failure
        if others and (type(failure) is RuntimeError or isinstance(failure, dist.DistError)):
            raise WorkerError(
                f"Rank {self.rank} failed: {error} Another rank was at {others[0].phase}: let all "
                "ranks take the same number of steps, and call the same collectives."
            ) from failure
        return pack(found) if isinstance(found, Outcome) and self.rank == 0 else found

    def _finish(self, error: str | None, failure: BaseException | None) -> list[_Report]:
        """Wait until all ranks have ended a call, and return what others were at before."""
        others: list[_Report] = []
        while True:
            try:
                reports = self._meet(_Report(_END, error), is_failed=error is not None)
            except WorkerError as lost:
                if isinstance(failure, WorkerError):  # It was lost before.
                    raise failure from failure.__cause__
                raise lost from failure
            unfinished = [report for report in reports if report.phase != _END]
            if not unfinished:
                break
            others += unfinished
        self._is_listening = True
        if self.rank == 0 and error is None:
            _check_failures(reports)
        return others

    def _meet(self, report: _Report, *, is_failed: bool = False) -> list[_Report]:
        """Exchange reports with all ranks."""
        seconds = min(_GRACE, self._timeout) if is_failed else self._timeout
        reports: list[Any] = [None] * dist.get_world_size()
        try:
            arrival: Any = dist.barrier(group=self._group, async_op=True)
            arrival.wait(timedelta(seconds=seconds))
            dist.all_gather_object(reports, report, group=self._group)
        except RuntimeError as error:
            where = f"at {report.phase}"
            if report.error is not None:
                where = f"after an error ({report.error})"
            raise self._lost(where, error) from error
        return reports

    def _broadcast(self, message: Any) -> Any:
        """Send a message of rank 0 to the others, and return it."""
        messages = [message]
        try:
            dist.broadcast_object_list(messages, src=0, group=self._group)
        except RuntimeError as error:
            raise self._lost("between two jobs", error) from error
        return messages[0]

    def _lost(self, where: str, error: Exception) -> WorkerError:
        reason = str(error).partition("\n")[0]
        return WorkerError(
            f"Rank {self.rank} waited {where} for another rank, which died, see its output, or "
            f"took longer than {self._timeout:.0f} s ({reason}). Start the script again to resume "
            "the run, with a longer `timeout` if needed."
        )


class RankExecutor(Executor):
    """Runs calls on all ranks together, one after the other."""

    _max_workers = 1  # One branch at a time. Read by `optimize`.

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a call on all ranks, and return a completed future."""
        future: Future[Any] = Future()
        future.set_result(self._ranks.lead(fn, args))
        return future


class _OfEachRank:
    """What every rank has. It is sent by name, without the data that it refers to.

    Args:
        name: Its name.
        run: Names the run. Without it, a worker would take the context of a run for that of an
            earlier one with the same settings.
    """

    def __init__(self, name: str, run: str) -> None:
        self._name = name
        self._run = run

    def __reduce__(self) -> Any:
        return _of_this_rank, (self._name, self._run)


class _ModelFnOfEachRank(_OfEachRank):
    """The ``model_fn`` of every rank."""

    def __init__(self, model_fn: ModelFn, run: str) -> None:
        super().__init__("model_fn", run)
        self._model_fn = model_fn

    def __call__(self, trial: Any) -> Any:
        """Call the function."""
        return self._model_fn(trial)


class _TrainerInStep(_OfEachRank):
    """The trainer of every rank, which yields the results of rank 0."""

    def __init__(self, trainer: AnyTrainer, ranks: Ranks, run: str) -> None:
        super().__init__("trainer", run)
        self._trainer = trainer
        self._ranks = ranks

    def check(self, recipe: Recipe) -> None:
        """Let the trainer check a recipe."""
        check_recipe(self._trainer, recipe)

    def __call__(
        self, recipe: Recipe, n_epochs: int, context: TrainerContext
    ) -> Iterator[EpochResult]:
        """Train for ``n_epochs`` epochs."""
        ranks = self._ranks
        ranks.agree(f"the beginning of {n_epochs} epochs of {context.name}", recipe.model, None)
        if ranks.rank > 0:  # Other dropout masks than those of rank 0.
            seed_all(int(torch.randint(2**31, ())) + ranks.rank)
        epochs = call_trainer(self._trainer, recipe, n_epochs, context)
        for epoch in range(1, n_epochs + 1):
            result = next_result(epochs)
            what = "the end of its trainer" if result is None else f"the end of epoch {epoch}"
            first = ranks.agree(f"{what} of {context.name}", recipe.model, result)
            if first.result is None:
                return
            yield first.result


_own: dict[str, Any] = {}
"""``model_fn`` and ``trainer`` of this rank."""


def _of_this_rank(name: str, run: str) -> Any:
    return _own[name]


def _check_failures(reports: Sequence[_Report]) -> None:
    for rank, report in enumerate(reports):
        if report.error is not None:
            raise WorkerError(
                f"Rank {rank} failed alone: {report.error} Repair the cause, and start the script "
                "again to resume the run."
            )


def _hash_of(model: nn.Module) -> str:
    """A hash of the sums of all parameters; shards are left out, because they differ."""
    whole = [p.detach() for p in model.parameters() if not isinstance(p, DTensor)]
    real = [torch.view_as_real(p) if p.is_complex() else p for p in whole]
    sums = [p.sum(dtype=torch.float64) for p in real]
    content = torch.stack(sums).cpu().numpy().tobytes() if sums else b""
    return hashlib.sha256(content).hexdigest()
