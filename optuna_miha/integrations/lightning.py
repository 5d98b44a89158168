"""``lightning.Trainer`` as a trainer of :func:`optuna_miha.optimize`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from optuna_miha._history.curve import EpochResult
from optuna_miha._history.optional_imports import try_import
from optuna_miha._model.recipe import Recipe, device_of, takes_batch_size
from optuna_miha._model.recipe_checks import NO_DATA
from optuna_miha._training.data import with_batch_size
from optuna_miha._training.trainer import move
from optuna_miha._training.trainer_context import TrainerContext
from optuna_miha.integrations.handover import Report, epochs_of
from optuna_miha.integrations.session import Session, result_of, session_of


class _Session(Session):
    """What ``Trainer.fit`` is called with.

    Args:
        optimizer: The optimizer.
        configured: The return value of ``configure_optimizers``.
        arguments: The data arguments of ``Trainer.fit``.
    """

    def __init__(
        self, optimizer: Optimizer, configured: Any, arguments: Mapping[str, Any]
    ) -> None:
        super().__init__(optimizer)
        self.configured = configured
        self.arguments = arguments


class LightningTrainer:
    """Trains a ``LightningModule`` with ``lightning.Trainer``.

    The module stays as it is, with its own ``configure_optimizers``, schedulers, callbacks and
    loggers. The optimizer and the schedulers that ``configure_optimizers`` returns are part of the
    checkpoints, as are the callbacks that have a ``state_dict``, and continue in the next segment.
    ``current_epoch`` and ``global_step`` are those of the lineage. While a segment is annealed,
    the rates of the schedulers are multiplied by the factor of the run during each step.

    Example::

        trainer = LightningTrainer(
            lambda context: lightning.Trainer(logger=CSVLogger("logs", name=context.name)),
            monitor="val_loss",
        )

        def model_fn(trial):
            module = MyModule(lr=trial.suggest_float("lr", 1e-4, 1e-1, log=True))
            return trainer.recipe(module, train_loader, valid_loader)

        result = optuna_miha.optimize(study, model_fn, trainer=trainer)

    Args:
        make_trainer:
            Creates the ``lightning.Trainer`` of a segment, with new callbacks and loggers, given
            the :class:`~optuna_miha.TrainerContext`. Its ``max_epochs`` is set by the run.
        monitor: The name under which the module logs the value to compare branches by, at least
            once per epoch.
    """

    def __init__(self, make_trainer: Callable[[TrainerContext], Any], *, monitor: str) -> None:
        self._make_trainer = make_trainer
        self._monitor = monitor

    def recipe(
        self,
        module: Any,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        **others: Any,
    ) -> Recipe:
        """Make the recipe of a module, for ``model_fn``.

        Args:
            module: The ``LightningModule``, newly built.
            train_dataloaders: As for ``Trainer.fit``.
            val_dataloaders: As for ``Trainer.fit``.
            others: ``datamodule``, as for ``Trainer.fit``.

        Raises:
            ImportError: If Lightning is not installed.
            TypeError: If ``module`` is not a ``LightningModule``.
            ValueError: If it does not configure exactly one optimizer, which Lightning steps.
        """
        with try_import("lightning", needed_by="LightningTrainer"):
            import lightning
        if not isinstance(module, lightning.LightningModule):
            raise TypeError(
                "`module` must be a lightning.LightningModule, got "
                f"{type(module).__qualname__}: pass a network of torch to `optimize` directly."
            )
        configured = _configured(module)
        [optimizer], schedulers = _parts(configured)
        arguments = {"train_dataloaders": train_dataloaders, "val_dataloaders": val_dataloaders}
        session = _Session(optimizer, configured, {**arguments, **others})
        # So that the state of its samplers and generators is part of the checkpoints.
        watched = isinstance(train_dataloaders, DataLoader)
        return Recipe(
            model=module,
            optimizer=optimizer,
            train_data=train_dataloaders if watched else NO_DATA,
            extra_state={
                "lightning": session,
                **{f"scheduler {index}": part for index, part in enumerate(schedulers)},
            },
        )

    def check(self, recipe: Recipe) -> None:
        """Refuse a recipe that :meth:`recipe` did not make, before a run begins.

        Raises:
            ValueError: If it is another one, or has another optimizer.
        """
        session_of(recipe, _Session, "LightningTrainer")

    def __call__(
        self, recipe: Recipe, n_epochs: int, context: TrainerContext
    ) -> Iterator[EpochResult]:
        """Train for ``n_epochs`` epochs, and yield the result of each."""
        session = session_of(recipe, _Session, "LightningTrainer")
        trainer, device = self._make_trainer(context), device_of(recipe.model)
        if trainer.world_size > 1:
            raise ValueError(
                "A LightningTrainer trains on one device, got a lightning.Trainer of "
                f"{trainer.world_size}: pass `devices=1`. To use several, train branches side by "
                "side with `n_jobs`, or each branch on all of them by `optimize_on_ranks`, with a "
                "`trainer` of your own or an AccelerateTrainer."
            )
        _restore_progress(trainer, session, context.epoch, n_epochs)
        _register_callbacks(trainer, context)
        module: Any = recipe.model

        def run(report: Report) -> None:
            trainer.callbacks.append(_reporter(self._monitor, report))
            module.configure_optimizers = lambda: session.configured
            try:
                trainer.fit(module, **_arguments(recipe, session))
            finally:
                del module.configure_optimizers
                move(recipe, device)  # At the end, Lightning moves it to the CPU.
            report(result_of(trainer.callback_metrics, self._monitor, "LightningTrainer"))

        return epochs_of(run, device)


def _configured(module: Any) -> Any:
    """Call ``configure_optimizers``, and check what it returns."""
    if not module.automatic_optimization:
        raise ValueError(
            "A LightningTrainer must control the optimizer, got a module with "
            "`automatic_optimization=False`: write a `trainer` of your own for manual "
            "optimization."
        )
    try:
        configured = module.configure_optimizers()
    except RuntimeError as error:
        raise ValueError(
            "`configure_optimizers` must work before a trainer is attached, because a schedule "
            f"goes on over many segments, got: {error} Pass the number of steps to the module."
        ) from error
    optimizers, _ = _parts(configured)
    if len(optimizers) != 1 or not isinstance(optimizers[0], Optimizer):
        raise ValueError(
            "`configure_optimizers` must return one torch.optim.Optimizer, with or without "
            f"schedulers, got {len(optimizers)} optimizers: use parameter groups of one, or write "
            "a `trainer` of your own."
        )
    return configured


def _parts(configured: Any) -> tuple[list[Any], list[Any]]:
    """Return the optimizers and schedulers in any of the forms that Lightning accepts."""
    if configured is None:
        return [], []
    if isinstance(configured, Mapping):
        optimizers, schedulers = [configured["optimizer"]], [configured.get("lr_scheduler")]
    elif isinstance(configured, (list, tuple)):
        if len(configured) == 2 and all(isinstance(part, (list, tuple)) for part in configured):
            optimizers, schedulers = map(list, configured)
        else:
            parts = [_parts(part) for part in configured]
            optimizers = [optimizer for part in parts for optimizer in part[0]]
            schedulers = [scheduler for part in parts for scheduler in part[1]]
    else:
        optimizers, schedulers = [configured], []
    found = [s["scheduler"] if isinstance(s, Mapping) else s for s in schedulers]
    return optimizers, [s for s in found if isinstance(s, LRScheduler)]


def _arguments(recipe: Recipe, session: _Session) -> dict[str, Any]:
    """The data arguments of ``Trainer.fit``, with the batch size of the recipe."""
    arguments, data = dict(session.arguments), recipe.train_data
    if isinstance(data, DataLoader) and takes_batch_size(data):
        assert recipe.batch_size is not None
        arguments["train_dataloaders"] = with_batch_size(data, recipe.batch_size)
    return arguments


def _restore_progress(trainer: Any, session: _Session, epoch: int, n_epochs: int) -> None:
    """Set epoch and step of a new trainer to those of the lineage."""
    loop = trainer.fit_loop
    loop.max_epochs = epoch + n_epochs
    # As if a checkpoint from the end of an epoch was loaded.
    state = loop.state_dict()
    for counts in state["epoch_progress"].values():
        counts.update(ready=epoch, started=epoch, processed=epoch, completed=epoch)
    steps = state["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]
    steps["total"].update(ready=session.n_steps, completed=session.n_steps)
    state["epoch_loop.state_dict"]["_batches_that_stepped"] = session.n_steps  # Loggers count it.
    loop.load_state_dict(state)


def _register_callbacks(trainer: Any, context: TrainerContext) -> None:
    """Register the callbacks that have a state."""
    for callback in trainer.callbacks:
        if callback.state_dict():
            context.register(f"callback {callback.state_key}", callback)


def _reporter(monitor: str, report: Report) -> Any:
    """Create the callback that hands over the result of an epoch when the next one begins."""
    import lightning

    class Reporter(lightning.Callback):  # type: ignore[misc]
        is_first = True

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if not self.is_first:
                report(result_of(trainer.callback_metrics, monitor, "LightningTrainer"))
            self.is_first = False

    return Reporter()
