"""``transformers.Trainer`` as a trainer of :func:`optuna_miha.optimize`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from optuna_miha._history.curve import EpochResult
from optuna_miha._history.optional_imports import try_import
from optuna_miha._model.recipe import Recipe, device_of
from optuna_miha._training.trainer_context import TrainerContext
from optuna_miha.integrations.handover import Report, epochs_of
from optuna_miha.integrations.session import Session, result_of, session_of

_SCHEDULES = ("constant", "constant_with_warmup", "inverse_sqrt")
"""Schedules that do not fall to zero at the end of a call: annealing is left to the run."""


class _Session(Session):
    """The ``transformers.Trainer`` of a recipe."""

    def __init__(self, trainer: Any) -> None:
        super().__init__(trainer.optimizer)
        self.trainer = trainer


class TransformersTrainer:
    """Trains with ``transformers.Trainer`` and its ``TrainingArguments``.

    The optimizer and the scheduler are those that ``transformers.Trainer`` creates. They are part
    of the checkpoints, and a warm-up continues in the next segment. The order of the data differs
    from epoch to epoch. While a segment is annealed, the rate of the scheduler is multiplied by
    the factor of the run during each step.

    Example::

        trainer = TransformersTrainer(monitor="eval_loss")

        def model_fn(trial):
            arguments = TrainingArguments(
                learning_rate=trial.suggest_float("lr", 1e-5, 1e-2, log=True),
                weight_decay=trial.suggest_float("weight_decay", 0.0, 0.1),
                warmup_steps=trial.suggest_int("warmup_steps", 0, 500),
                lr_scheduler_type="constant_with_warmup",
                eval_strategy="epoch",
                save_strategy="no",
            )
            return trainer.recipe(transformers.Trainer(make_model(), arguments, ...))

        result = optuna_miha.optimize(study, model_fn, trainer=trainer)

    Logs of ``transformers`` count epochs and steps from the beginning of each call.

    Args:
        monitor: The name of the evaluation metric to compare branches by.
    """

    def __init__(self, *, monitor: str = "eval_loss") -> None:
        self._monitor = monitor

    def recipe(self, trainer: Any) -> Recipe:
        """Make the recipe of a ``transformers.Trainer``, for ``model_fn``.

        Args:
            trainer: The trainer, newly built with a new model, its data and arguments.

        Raises:
            ImportError: If transformers is not installed.
            TypeError: If ``trainer`` is not a ``transformers.Trainer``.
            ValueError: If its arguments contradict those of a run, or it creates the model itself.
        """
        with try_import("transformers", needed_by="TransformersTrainer"):
            import transformers
        if not isinstance(trainer, transformers.Trainer):
            raise TypeError(
                f"`trainer` must be a transformers.Trainer, got {type(trainer).__qualname__}."
            )
        _check_arguments(trainer)
        optimizer = trainer.create_optimizer()
        if trainer.lr_scheduler is None:
            scheduler = transformers.get_scheduler(
                trainer.args.lr_scheduler_type,
                optimizer=optimizer,
                num_warmup_steps=trainer.args.get_warmup_steps(_horizon(trainer)),
                num_training_steps=_horizon(trainer),
                scheduler_specific_kwargs=trainer.args.lr_scheduler_kwargs,
            )
            trainer.lr_scheduler = scheduler
        extra = {"transformers": _Session(trainer), "scheduler": trainer.lr_scheduler}
        if trainer.accelerator.scaler is not None:
            extra["scaler"] = trainer.accelerator.scaler
        return Recipe(model=trainer.model, optimizer=optimizer, extra_state=extra)

    def check(self, recipe: Recipe) -> None:
        """Refuse a recipe that :meth:`recipe` did not make, before a run begins.

        Raises:
            ValueError: If it is another one, or has another optimizer.
        """
        session_of(recipe, _Session, "TransformersTrainer")

    def __call__(
        self, recipe: Recipe, n_epochs: int, context: TrainerContext
    ) -> Iterator[EpochResult]:
        """Train for ``n_epochs`` epochs, and yield the result of each."""
        trainer = session_of(recipe, _Session, "TransformersTrainer").trainer
        args = trainer.args
        args.num_train_epochs, args.max_steps = n_epochs, -1
        # The order of an epoch depends on this seed and the number of the epoch in the call.
        seed = args.seed if args.data_seed is None else args.data_seed
        trainer.accelerator.dataloader_config.data_seed = seed + context.epoch

        def run(report: Report) -> None:
            reporter = _reporter(self._monitor, report)
            trainer.add_callback(reporter)
            trainer.train()
            report(result_of(reporter.metrics, self._monitor, "TransformersTrainer"))

        return epochs_of(run, device_of(recipe.model))


def _check_arguments(trainer: Any) -> None:
    """Refuse settings that contradict a run."""
    args = trainer.args
    if trainer.model_init is not None:
        raise ValueError(
            "A transformers.Trainer must be given its `model`, got a `model_init`, which builds "
            "another network in `train`: build the model in `model_fn`."
        )
    if str(getattr(args.eval_strategy, "value", args.eval_strategy)) != "epoch":
        raise ValueError(
            '`eval_strategy` must be "epoch", because branches are compared after every epoch, '
            f"got {args.eval_strategy!r}."
        )
    if args.load_best_model_at_end:
        raise ValueError(
            "`load_best_model_at_end` must be False, got True, which would replace the weights "
            "that the next segment continues from: the run itself returns the best ones."
        )
    kind = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    if trainer.lr_scheduler is None and kind not in _SCHEDULES:
        raise ValueError(
            f"`lr_scheduler_type` must be one of {_SCHEDULES}, because the run itself anneals the "
            f'learning rate, got {kind!r}: pass `lr_scheduler_type="constant_with_warmup"`.'
        )


def _horizon(trainer: Any) -> int:
    """The number of steps that a share of warm-up refers to."""
    args = trainer.args
    if args.max_steps > 0:
        return int(args.max_steps)
    batches = len(trainer.get_train_dataloader())
    per_epoch = max(1, -(-batches // args.gradient_accumulation_steps))
    return max(1, int(per_epoch * args.num_train_epochs))


def _reporter(monitor: str, report: Report) -> Any:
    """Create the callback that hands over the result of an epoch when the next one begins."""
    import transformers

    class Reporter(transformers.TrainerCallback):  # type: ignore[misc]
        metrics: Any = None

        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.metrics = {**(self.metrics or {}), **kwargs["metrics"]}

        def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if self.metrics is not None:
                metrics, self.metrics = self.metrics, {}
                report(result_of(metrics, monitor, "TransformersTrainer"))
            self.metrics = {}

    return Reporter()
