"""What ``model_fn`` returns: a network and everything that its training needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.utils.data import DataLoader, Dataset, IterableDataset

from optuna_miha._history.scalars import as_int

Data: TypeAlias = tuple[Tensor, ...] | Dataset[Any] | DataLoader[Any]
LossFn: TypeAlias = Callable[..., Tensor]
Metric: TypeAlias = Callable[[Tensor, Tensor], "Tensor | float"]
TrainStep: TypeAlias = Callable[[nn.Module, Any, LossFn], Tensor]

DEFAULT_BATCH_SIZE = 32


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Share of objects whose largest output is their class.

    Args:
        outputs: Scores, ``(n_samples, n_classes, ...)``, of two classes or more.
        targets: Class indices, ``(n_samples, ...)``.

    Raises:
        ValueError: If the shapes are others.
    """
    shape, expected = tuple(outputs.shape), tuple(outputs.shape[:1] + outputs.shape[2:])
    if len(shape) < 2 or shape[1] < 2 or tuple(targets.shape) != expected:
        raise ValueError(
            "The built-in accuracy needs outputs (n_samples, n_classes, ...), of at least two "
            "classes, and class indices (n_samples, ...) as targets, got outputs of shape "
            f"{shape} and targets of {tuple(targets.shape)}: turn one-hot targets into indices "
            "by `targets.argmax(1)`, or pass a metric of your own, for logits of the targets' "
            'shape `metrics={"accuracy": lambda outputs, targets: '
            "((outputs > 0) == targets).double().mean()}`."
        )
    return (outputs.argmax(dim=1) == targets).double().mean()


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter lies."""
    return next(model.parameters()).device


@dataclass(kw_only=True)
class Recipe:
    """A network and everything that its training needs.

    Args:
        model:
            The network. ``model_fn`` must build a new one at every call, always of the same
            parameter shapes.
        loss_fn:
            ``loss_fn(model(*inputs), target)`` for a batch ``(*inputs, target)``: a scalar, the
            mean over the batch.
        train_data:
            A tuple of tensors ``(*inputs, target)`` of equal length, a
            :class:`~torch.utils.data.Dataset`, or a :class:`~torch.utils.data.DataLoader`. Each
            branch builds it anew, with its settings but for the batch size and ``generator``,
            unless it has a ``batch_sampler``: then it is used as it is.
        valid_data:
            The same for validation; it decides which branch wins.
        optimizer:
            An optimizer over the model's parameters. :obj:`None`: Adam at a learning rate of
            1e-3.
        batch_size:
            Objects per step. :obj:`None`: that of the ``DataLoader``, or else 32.
        metrics:
            Figures besides the loss, by name: each is called once per epoch with the outputs
            and targets of the whole validation data. ``"accuracy"`` is built in, for scores of
            two classes or more and targets that are class indices.
        monitor:
            What decides: ``"loss"``, or the name of a metric. The study's direction must
            agree.
        train_step:
            ``train_step(model, batch, loss_fn)`` returns the loss of a batch, for batches that
            are not ``(*inputs, target)``. It is used for validation too; then only ``"loss"``
            can be monitored, and there are no ``metrics``.
        valid_loss_fn:
            The loss of validation. :obj:`None`: the ``loss_fn`` of the initial configuration,
            so that branches whose training loss differs are compared on one scale. It must
            depend on outputs and targets alone; what depends on the network itself, such as a
            penalty of its weights, a ``train_step`` adds.
        test_data:
            The same as ``valid_data`` for a last evaluation: used by :func:`compare` only,
            after everything is decided, and by nothing that selects.

    Raises:
        TypeError: If a part is of the wrong type.
        ValueError: If a part is missing or contradicts another.
    """

    model: nn.Module
    loss_fn: LossFn
    train_data: Data
    valid_data: Data
    optimizer: torch.optim.Optimizer | None = None
    batch_size: int | None = None
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    monitor: str = "loss"
    train_step: TrainStep | None = None
    valid_loss_fn: LossFn | None = None
    test_data: Data | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module):
            raise TypeError(f"`model` must be a torch.nn.Module, got {_kind(self.model)}.")
        if next(self.model.parameters(), None) is None:
            raise ValueError(
                f"`model` must have parameters to train, got {_kind(self.model)} without any."
            )
        if any(isinstance(p, UninitializedParameter) for p in self.model.parameters()):
            raise ValueError(
                f"The lazy modules of `model` must have their shapes, got {_kind(self.model)} "
                "without: run one batch through it in `model_fn`."
            )
        if not callable(self.loss_fn):
            raise TypeError(
                f"`loss_fn` must be callable, got {_kind(self.loss_fn)}: pass for instance "
                "`torch.nn.CrossEntropyLoss()`."
            )
        self.train_data = _checked(self.train_data, "train_data")
        self.valid_data = _checked(self.valid_data, "valid_data")
        if self.test_data is not None:
            self.test_data = _checked(self.test_data, "test_data")
        if self.optimizer is not None and not isinstance(self.optimizer, torch.optim.Optimizer):
            raise TypeError(
                f"`optimizer` must be a torch.optim.Optimizer, got {_kind(self.optimizer)}."
            )
        if self.optimizer is not None:
            _check_holds(self.optimizer, self.model)
        if self.batch_size is None:
            self.batch_size = getattr(self.train_data, "batch_size", None) or DEFAULT_BATCH_SIZE
        self.batch_size = as_int(self.batch_size)
        if type(self.batch_size) is not int or self.batch_size < 1:
            raise ValueError(f"`batch_size` must be a positive integer, got {self.batch_size!r}.")
        if "loss" in self.metrics:
            raise ValueError(
                'A metric must not be named "loss", which is the validation loss: give it '
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
        if self.train_step is not None and self.monitor != "loss":
            raise ValueError(
                f"With a `train_step` only the loss can be monitored, got {self.monitor!r}: "
                'leave `monitor` at "loss", or pass a trainer of your own to `optimize`.'
            )
        if self.train_step is not None and self.metrics:
            raise ValueError(
                "With a `train_step`, which returns no outputs, there are no `metrics`, got "
                f"{', '.join(map(repr, self.metrics))}: leave them out, or pass a trainer of your "
                "own to `optimize`."
            )


def _checked(data: Any, name: str) -> Data:
    """Validated data; a list of tensors becomes a tuple."""
    if data is None:
        raise ValueError(
            f"`{name}` is None: pass a tuple of tensors, a Dataset or a DataLoader. Branches are "
            "chosen by validation data, so hold a part of the training data back for it."
        )
    if isinstance(data, list):
        data = tuple(data)
    if isinstance(data, tuple):
        wrong = [_kind(part) for part in data if not isinstance(part, Tensor)]
        if wrong or len(data) < 2:
            raise TypeError(
                f"`{name}` must be a tuple of at least two tensors (inputs, targets), got "
                f"{len(data)} parts{', among them ' + wrong[0] if wrong else ''}: convert arrays "
                "by `torch.as_tensor`."
            )
        lengths = [len(part) for part in data]
        if len(set(lengths)) > 1:
            raise ValueError(f"The tensors of `{name}` must be of equal length, got {lengths}.")
        if lengths[0] == 0:
            raise ValueError(f"`{name}` must hold at least one object, got none.")
        return data
    if not isinstance(data, (Dataset, DataLoader)):
        raise TypeError(
            f"`{name}` must be a tuple of tensors, a Dataset or a DataLoader, got {_kind(data)}."
        )
    sized = data.dataset if isinstance(data, DataLoader) else data
    if not isinstance(sized, IterableDataset) and len(sized) == 0:  # type: ignore[arg-type]
        raise ValueError(f"`{name}` must hold at least one object, got an empty dataset.")
    return data


def _check_holds(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Refuse an optimizer of anything but the model's parameters, which alone are inherited."""
    own = {id(p) for p in model.parameters()}
    held = [p for group in optimizer.param_groups for p in group["params"]]
    foreign = [tuple(p.shape) for p in held if id(p) not in own]
    if len(foreign) == len(held):
        raise ValueError(
            "`optimizer` holds none of the model's parameters: build it from "
            "`model.parameters()` of the same model that the recipe gets."
        )
    if foreign:
        raise ValueError(
            f"`optimizer` must hold parameters of `model` alone, got others of shapes {foreign}: "
            "no branch would inherit their values. Make them a part of the model, a loss with "
            "parameters for instance by `model.loss = loss_fn`, and use it in a `train_step`."
        )


def _kind(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
