"""The recipe that ``model_fn`` returns: a network and everything needed to train it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset

from optuna_miha._history.scalars import as_int
from optuna_miha._model.recipe_checks import (
    NO_DATA,
    check_model,
    check_parameters,
    checked_data,
    type_name,
)
from optuna_miha._model.recipe_options import check_options
from optuna_miha._model.recipe_text import describe_recipe
from optuna_miha._model.step_output import StepOutput
from optuna_miha._model.suggestions import Suggestions

Data: TypeAlias = tuple[Tensor, ...] | Dataset[Any] | DataLoader[Any]
LossFn: TypeAlias = Callable[..., Tensor]


class MetricObject(Protocol):
    """A metric that adds up batches, as those of torchmetrics do."""

    def update(self, outputs: Any, targets: Any, /) -> Any:
        """Add a batch."""
        ...

    def compute(self) -> Any:
        """Return the value of all batches since the last reset."""
        ...

    def reset(self) -> Any:
        """Forget all batches."""
        ...


Metric: TypeAlias = Callable[[Any, Any], Any] | MetricObject
TrainStep: TypeAlias = Callable[
    [nn.Module, Any, LossFn], Tensor | StepOutput | tuple[Tensor, Any, Any]
]
SchedulerFn: TypeAlias = Callable[[torch.optim.Optimizer], LRScheduler]
LrSchedule: TypeAlias = Callable[[float], float]

DEFAULT_BATCH_SIZE = 32


def no_loss(*_: Any) -> Tensor:
    """Stand for the loss of a recipe without one, for a user-defined trainer with its own.

    Raises:
        ValueError: Always.
    """
    raise ValueError(_missing("loss_fn"))


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Compute the share of samples whose largest output is that of their class.

    Args:
        outputs: Scores of at least two classes, of shape ``(n_samples, n_classes, ...)``.
        targets: Class indices, of shape ``(n_samples, ...)``.

    Raises:
        ValueError: If the shapes do not match these.
    """
    shape, expected = tuple(outputs.shape), tuple(outputs.shape[:1] + outputs.shape[2:])
    if len(shape) < 2 or shape[1] < 2 or tuple(targets.shape) != expected:
        raise ValueError(
            "The built-in accuracy needs outputs of shape (n_samples, n_classes, ...) with at "
            "least two classes, and class indices of shape (n_samples, ...) as targets, got "
            f"outputs of shape {shape} and targets of {tuple(targets.shape)}: convert one-hot "
            "targets to indices by `targets.argmax(1)`, or pass your own metric, for logits with "
            'the shape of the targets `metrics={"accuracy": lambda outputs, targets: '
            "((outputs > 0) == targets).double().mean()}`."
        )
    return (outputs.argmax(dim=1) == targets).double().mean()


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter."""
    return next(model.parameters()).device


def takes_batch_size(data: Data) -> bool:
    """Whether training batches of any size can be made of data.

    Not of those of a :class:`~torch.utils.data.DataLoader` with a ``batch_sampler``, of one that
    loads whole batches, and of one whose class overrides ``__iter__``.
    """
    if not isinstance(data, DataLoader):
        return True
    return data.batch_size is not None and type(data).__iter__ is DataLoader.__iter__


@dataclass(kw_only=True)
class Recipe:
    """A network and everything needed to train it.

    Args:
        model:
            The network. ``model_fn`` must build a new one at every call, always with the same
            parameter shapes.
        loss_fn:
            The training loss, called as ``loss_fn(model(*inputs), target)`` for a batch
            ``(*inputs, target)``, and as ``loss_fn(model(**inputs), target)`` for a dictionary,
            whose targets are named ``"labels"``, ``"targets"`` or ``"y"``. A batch that is any
            other object, such as one of graphs, is passed to the network as it is, with its
            attribute ``y`` or ``labels`` as the target. Outputs may be tensors, tuples,
            dictionaries or outputs of Hugging Face. The loss is a scalar. Losses of torch give
            the value of all samples at once, with class weights and ``ignore_index``, or the sum
            if ``reduction="sum"``. Other functions, and a ``train_step``, should return the mean
            over the batch; batches are weighted by their number of samples.
        train_data:
            A tuple of tensors ``(*inputs, target)`` of equal length, a
            :class:`~torch.utils.data.Dataset`, or a :class:`~torch.utils.data.DataLoader`. A
            branch with another batch size rebuilds the ``DataLoader`` with the same sampler and
            all other settings. A ``DataLoader`` with a ``batch_sampler`` is used as it is. The
            state of samplers and random generators is part of the checkpoints.
        valid_data:
            The validation data, in one of the same forms. Branches are selected on them, so that
            they must be the same in every call of ``model_fn``, and come in the same order.
        optimizer:
            An optimizer over the model's parameters. :obj:`None`: Adam with a learning rate of
            1e-3.
        batch_size:
            Samples per training step. :obj:`None`: the batch size of the ``DataLoader``, or 32
            without one.
        metrics:
            Metrics to compute besides the loss, by name. Each is a function, called once per
            epoch with the outputs and targets of the whole validation data, or an object with
            ``update(outputs, targets)`` for each batch, ``compute()`` and ``reset()``, as those of
            torchmetrics, for which outputs are not kept in memory. Tensors are concatenated, also
            in tuples and dictionaries; those with shapes that do not match are passed as a list
            with one tensor for each batch. ``"accuracy"`` is built in; it needs scores of at
            least two classes, and class indices as targets.
        monitor:
            The value that decides between branches: ``"loss"`` or the name of a metric. The
            study's direction must match it.
        train_step:
            ``train_step(model, batch, loss_fn)`` returns the loss of a batch of any form. For
            ``metrics``, it returns a :class:`StepOutput` or a tuple ``(loss, outputs, targets)``.
            Validation uses that of the initial configuration, so that suggested values in it,
            such as the weight of a term, affect training only. It must use the ``model`` that is
            passed to it.
        valid_loss_fn:
            The validation loss. :obj:`None`: the ``loss_fn``. All branches are validated with
            that of the initial configuration, so that they are compared on one scale. It must
            depend on outputs and targets only; compute terms that depend on the network, such
            as a penalty on its weights, in a ``train_step``.
        test_data:
            The test data, in one of the same forms. Only :func:`compare` uses them, for a final
            evaluation after all selections.
        extra_state:
            Objects by name whose state outlives a segment: schedulers, a gradient scaler, an
            environment, a replay buffer, a target network. See :meth:`TrainerContext.register`.
        grad_clip:
            The largest norm of all gradients together. Before each step of the optimizer, larger
            gradients are scaled down to it. :obj:`None`: no clipping.
        accumulate:
            Batches per step of the optimizer. The gradients equal those of one batch with all
            their samples; the last group of an epoch may be smaller. May be suggested, for
            example by ``trial.suggest_int("accumulate", 1, 8)``.
        scheduler:
            A function that creates a learning rate scheduler of torch for the optimizer that is
            passed to it. While the run anneals, the rate of a step is that of the scheduler times
            the factor of the annealing. The state of the scheduler is inherited like that of the
            optimizer. The rates must follow the suggested ``lr``.
        scheduler_interval:
            When the scheduler steps: ``"epoch"``, or ``"step"`` for every step of the optimizer.
        lr_schedule:
            A factor of the learning rate at every step, as a function of the fraction of the
            run's budget that is spent, from 0 to 1. It multiplies the other factors.
        warmup_steps:
            Steps of the optimizer, counted from the initial weights, over which the learning rate
            rises linearly. It multiplies the other factors.
        steps_per_epoch:
            Steps of the optimizer that count as one epoch, for a long or endless loader. The next
            epoch, also that of a branch or of a resumed run, goes on where the loader stopped.
            :obj:`None`: an epoch is a pass over the training data.
        valid_batch_size:
            Samples per batch of the validation data, unless they are a ``DataLoader``.
            :obj:`None`: 512.

    With your own ``trainer``, ``loss_fn``, ``train_data`` and ``valid_data`` may be left out if
    the trainer brings its own.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is missing, empty, or contradicts another.
    """

    model: nn.Module
    loss_fn: LossFn = no_loss
    train_data: Data = NO_DATA
    valid_data: Data = NO_DATA
    optimizer: torch.optim.Optimizer | None = None
    batch_size: int | None = None
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    monitor: str = "loss"
    train_step: TrainStep | None = None
    valid_loss_fn: LossFn | None = None
    test_data: Data | None = None
    extra_state: Mapping[str, Any] = field(default_factory=dict)
    grad_clip: float | None = None
    accumulate: int = 1
    scheduler: SchedulerFn | None = None
    scheduler_interval: Literal["step", "epoch"] = "epoch"
    lr_schedule: LrSchedule | None = None
    warmup_steps: int = 0
    steps_per_epoch: int | None = None
    valid_batch_size: int | None = None
    valid_step: TrainStep | None = field(default=None, init=False, repr=False)
    """The ``train_step`` of the initial configuration, set before validation."""
    has_default_optimizer: bool = field(default=False, init=False, repr=False)
    """Whether the optimizer is one that nobody passed or suggested."""
    suggestions: Suggestions = field(default_factory=Suggestions, init=False, repr=False)
    """What the ``suggest_*`` functions suggested for it."""

    def __post_init__(self) -> None:
        check_model(self.model)
        if not callable(self.loss_fn):
            raise TypeError(
                f"`loss_fn` must be callable, got {type_name(self.loss_fn)}: pass, for example, "
                "`torch.nn.CrossEntropyLoss()`."
            )
        self.train_data = checked_data(self.train_data, "train_data")
        self.valid_data = checked_data(self.valid_data, "valid_data")
        if self.test_data is not None:
            self.test_data = checked_data(self.test_data, "test_data")
        if self.optimizer is not None and not isinstance(self.optimizer, torch.optim.Optimizer):
            raise TypeError(
                f"`optimizer` must be a torch.optim.Optimizer, got {type_name(self.optimizer)}."
            )
        if self.optimizer is not None:
            check_parameters(self.optimizer, self.model)
        if self.batch_size is None:
            self.batch_size = getattr(self.train_data, "batch_size", None) or DEFAULT_BATCH_SIZE
        self.batch_size = as_int(self.batch_size)
        if type(self.batch_size) is not int or self.batch_size < 1:
            raise ValueError(f"`batch_size` must be a positive integer, got {self.batch_size!r}.")
        check_options(self)
        self._check_metrics()

    def __repr__(self) -> str:
        """A few lines, without the values of tensors and the modules of the network."""
        return describe_recipe({f.name: getattr(self, f.name) for f in fields(self) if f.repr})

    def check_complete(self, *names: str) -> None:
        """Refuse a recipe without the data or the loss that the built-in trainer needs.

        Args:
            names: What is needed; default the loss and both data.

        Raises:
            ValueError: If one of them is missing.
        """
        for name in names or ("loss_fn", "train_data", "valid_data"):
            value = getattr(self, name)
            if value is NO_DATA or (value is no_loss and self.train_step is None):
                raise ValueError(_missing(name))

    def _check_metrics(self) -> None:
        """Check ``metrics`` and ``monitor``, and add the built-in accuracy."""
        if "loss" in self.metrics:
            raise ValueError(
                'A metric must not be named "loss", the name of the validation loss: give it '
                "another name, or pass `valid_loss_fn`."
            )
        if self.monitor == "accuracy" and "accuracy" not in self.metrics:
            self.metrics = {**self.metrics, "accuracy": accuracy}
        if self.monitor != "loss" and self.monitor not in self.metrics:
            known = ", ".join(
                repr(name) for name in dict.fromkeys(["loss", "accuracy", *self.metrics])
            )
            raise ValueError(
                f"`monitor` must be one of {known}, got {self.monitor!r}: add it to `metrics`."
            )


def _missing(name: str) -> str:
    return (
        f"The recipe must have `{name}`, got none: pass it to `Recipe`. Only a run with your own "
        "`trainer`, which trains and validates without it, does not need it."
    )
