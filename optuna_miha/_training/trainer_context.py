"""What a user-defined trainer is given besides the recipe: its trial, and extra state."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar, runtime_checkable

import torch

from optuna_miha._history.curve import EpochResult
from optuna_miha._history.segment import Role
from optuna_miha._model.recipe import Recipe
from optuna_miha._training.extra_state import ExtraState, Stateful
from optuna_miha._training.trainer import Trainer

if TYPE_CHECKING:
    from optuna_miha._training.job import Job

_CPU = torch.device("cpu")
_S = TypeVar("_S", bound=Stateful)


@dataclass(frozen=True, kw_only=True)
class TrainerContext:
    """The trial that a trainer trains, and the state that outlives it.

    :func:`optimize` passes it to a trainer that has a parameter named ``context``.

    Args:
        params: The hyperparameters of the trial.
        role: ``startup``, ``trunk``, ``branch``, ``restart`` or ``final``.
        cycle: The cycle; 0 before the first population.
        branch: The branch index among the siblings.
        epoch:
            Epochs that the network was trained for before this call, including those of its
            ancestors. A branch is trained in several calls.
        device: The device of the network.
        number: Number of the trial; :obj:`None` outside of a run, as in :func:`replay`.
        extra: Where :meth:`register` keeps the objects of the segment.
        factor: The function behind :meth:`annealing`; :obj:`None`: no annealing.
    """

    params: Mapping[str, Any]
    role: Role = "trunk"
    cycle: int = 0
    branch: int = 0
    epoch: int = 0
    device: torch.device = _CPU
    number: int | None = None
    extra: ExtraState = field(default_factory=ExtraState, repr=False)
    factor: Callable[[float], float] | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """A name of the trial for logs and folders, such as ``"trial-0017-branch-003-2"``."""
        label = f"{self.role}-{self.cycle:03d}-{self.branch}"
        return label if self.number is None else f"trial-{self.number:04d}-{label}"

    def annealing(self, epoch: float) -> float:
        """Return the factor of the learning rate at any time of this call.

        :func:`optimize` itself multiplies the rates of ``recipe.optimizer`` during its steps: in
        rounds by the factor of the step, from the second epoch of a call on, otherwise by that of
        the epoch's beginning. Use this method for whatever else shall follow the annealing, such
        as a second optimizer.

        Args:
            epoch: Epochs since the beginning of this call; ``2.5`` is the middle of the third.

        Returns:
            The factor; 1.0 unless the segment is annealed.
        """
        return 1.0 if self.factor is None else self.factor(epoch)

    def register(self, name: str, part: _S) -> _S:
        """Register an object whose state outlives the segment, and restore its inherited state.

        The state is inherited by branches, is part of checkpoints, and is restored bit for bit
        when a run is resumed. It is in no file of best weights. Siblings have copies of their own.
        Call this before the first epoch, in every call of the trainer, with a new object:
        ``replay = context.register("replay", ReplayBuffer())``.

        An optimizer or a learning rate scheduler of torch keeps the settings that it was
        constructed with, such as a mutated learning rate, and inherits everything else. Any other
        object gets the whole ``state_dict`` of the object of the same class that the parent has
        registered under the same name. Its tensors may be on the CPU.

        Args:
            name: A name of the object.
            part: Anything with ``state_dict`` and ``load_state_dict``. The state must consist of
                tensors, numbers, strings, and lists, tuples and dictionaries of them.

        Returns:
            The object.

        Raises:
            TypeError: If a checkpoint cannot hold the state.
            ValueError: If another object is registered under the name.
        """
        return self.extra.register(name, part)


@runtime_checkable
class ContextTrainer(Protocol):
    """A :class:`Trainer` that takes a :class:`TrainerContext` as a third argument, ``context``.

    If it has a method ``check(recipe)``, it is called before anything is written to the study, and
    may raise an error.
    """

    def __call__(
        self, recipe: Recipe, n_epochs: int, context: TrainerContext
    ) -> Iterator[EpochResult]:
        """Train for ``n_epochs`` epochs, and yield the result of each."""
        ...


AnyTrainer: TypeAlias = Trainer | ContextTrainer


def takes_context(trainer: AnyTrainer) -> bool:
    """Whether a trainer has a parameter named ``context``."""
    return "context" in inspect.signature(trainer).parameters


def check_trainer(trainer: Any) -> None:
    """Refuse a trainer that cannot be called.

    Raises:
        TypeError: If it is not callable, or takes other arguments.
    """
    if not callable(trainer):
        raise TypeError(
            f"`trainer` must be callable, got {type(trainer).__qualname__}: pass a generator "
            "function `trainer(recipe, n_epochs)` or `trainer(recipe, n_epochs, context)`."
        )
    signature = inspect.signature(trainer)
    try:
        signature.bind(None, 1, **({"context": None} if takes_context(trainer) else {}))
    except TypeError as error:
        raise TypeError(
            "`trainer` must take the arguments `(recipe, n_epochs)` or `(recipe, n_epochs, "
            f"context)`, got {signature}: {error}. Bind others with `functools.partial`."
        ) from error


def check_recipe(trainer: AnyTrainer, recipe: Recipe) -> None:
    """Let a trainer with a method ``check`` refuse a recipe, before a run begins."""
    check = getattr(trainer, "check", None)
    if check is not None:
        check(recipe)


def call_trainer(
    trainer: AnyTrainer, recipe: Recipe, n_epochs: int, context: TrainerContext
) -> Iterator[EpochResult]:
    """Call a trainer with the arguments that it takes."""
    kwargs: dict[str, Any] = {"context": context} if takes_context(trainer) else {}
    return iter(trainer(recipe, n_epochs, **kwargs))


def next_result(epochs: Iterator[object]) -> EpochResult | None:
    """Train for an epoch; :obj:`None` if the trainer has ended."""
    result = next(epochs, None)
    if result is not None and not isinstance(result, EpochResult):
        raise TypeError(
            "A trainer must yield an optuna_miha.EpochResult after every epoch, got "
            f"{type(result).__qualname__}: use `yield EpochResult(value=...)`."
        )
    return result


def describe_job(
    job: Job, device: torch.device, extra: ExtraState, rate_factor: Callable[..., float]
) -> TrainerContext:
    """Describe a job to a user-defined trainer.

    Args:
        job: The job.
        device: The device of its network.
        extra: The extra state of its segment.
        rate_factor: The factor of the learning rate, if the job is annealed.
    """
    return TrainerContext(
        params=dict(job.params),
        role=job.role,
        cycle=job.cycle,
        branch=job.branch,
        epoch=0 if job.state is None else job.state["epoch"],
        device=device,
        number=job.number,
        extra=extra,
        factor=_factor_of(job, rate_factor),
    )


def _factor_of(job: Job, rate_factor: Callable[..., float]) -> Callable[[float], float] | None:
    if job.course is not None:
        return job.course.factor
    return partial(rate_factor, n_epochs=job.n_epochs) if job.anneal else None
