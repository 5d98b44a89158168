"""A skorch net as a trainer of :func:`optuna_miha.optimize`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.optim import Optimizer

from optuna_miha._history.curve import EpochResult
from optuna_miha._history.optional_imports import try_import
from optuna_miha._model.recipe import Recipe
from optuna_miha._training.trainer_context import TrainerContext
from optuna_miha.integrations.session import Session, result_of, session_of


class _Session(Session):
    """A net and its data."""

    def __init__(self, net: Any, inputs: Any, targets: Any) -> None:
        super().__init__(net.optimizer_)
        self.net = net
        self.inputs = inputs
        self.targets = targets


class SkorchTrainer:
    """Trains a skorch ``NeuralNet`` with its own ``fit_loop`` and callbacks.

    The optimizer of the net is part of the checkpoints, and so are the schedulers of
    ``skorch.callbacks.LRScheduler``. While a segment is annealed, the learning rate is multiplied
    by the factor of the run during each step.

    Example::

        trainer = SkorchTrainer(monitor="valid_loss")

        def model_fn(trial):
            net = NeuralNetClassifier(MyModule, lr=trial.suggest_float("lr", 1e-3, 1.0, log=True))
            return trainer.recipe(net, x, y)

        result = optuna_miha.optimize(study, model_fn, trainer=trainer)

    Args:
        monitor: The entry of the net's history to compare branches by. Its validation data must be
            the same for all branches, as with ``predefined_split`` or a split without shuffling.
    """

    def __init__(self, *, monitor: str = "valid_loss") -> None:
        self._monitor = monitor

    def recipe(self, net: Any, X: Any, y: Any = None) -> Recipe:
        """Make the recipe of a net, for ``model_fn``; the net is initialized.

        Args:
            net: The net, newly built.
            X: The inputs, as for ``net.fit``.
            y: The targets, as for ``net.fit``.

        Raises:
            ImportError: If skorch is not installed.
            TypeError: If ``net`` is not a ``skorch.NeuralNet``.
            ValueError: If it has another number of modules or optimizers than one.
        """
        with try_import("skorch", needed_by="SkorchTrainer"):
            import skorch
        if not isinstance(net, skorch.NeuralNet):
            raise TypeError(f"`net` must be a skorch.NeuralNet, got {type(net).__qualname__}.")
        net.initialize()
        optimizer = getattr(net, "optimizer_", None)
        if not isinstance(optimizer, Optimizer):
            raise ValueError(
                "The net must have one optimizer named `optimizer`, got "
                f"{type(optimizer).__qualname__}: write a `trainer` of your own for several."
            )
        session = _Session(net, X, y)
        return Recipe(model=net.module_, optimizer=optimizer, extra_state={"skorch": session})

    def check(self, recipe: Recipe) -> None:
        """Refuse a recipe that :meth:`recipe` did not make, before a run begins.

        Raises:
            ValueError: If it is another one, or has another optimizer.
        """
        session_of(recipe, _Session, "SkorchTrainer")

    def __call__(
        self, recipe: Recipe, n_epochs: int, context: TrainerContext
    ) -> Iterator[EpochResult]:
        """Train for ``n_epochs`` epochs, and yield the result of each."""
        session = session_of(recipe, _Session, "SkorchTrainer")
        net = session.net
        net.notify("on_train_begin", X=session.inputs, y=session.targets)
        for name, callback in net.callbacks_:
            scheduler = getattr(callback, "lr_scheduler_", None)
            if scheduler is not None:
                context.register(f"scheduler {name}", scheduler)
        for epoch in range(n_epochs):
            net.fit_loop(session.inputs, session.targets, epochs=1)
            if epoch == n_epochs - 1:
                net.notify("on_train_end", X=session.inputs, y=session.targets)
            row = {name: value for name, value in net.history[-1].items() if name != "batches"}
            yield result_of(row, self._monitor, "SkorchTrainer")
