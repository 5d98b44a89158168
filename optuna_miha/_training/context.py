"""The settings that all segments of a run share."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from optuna.study import StudyDirection

from optuna_miha._history.lineage import sign_of
from optuna_miha._model.model_fn import ModelFn
from optuna_miha._model.recipe import LossFn, Recipe, TrainStep
from optuna_miha._training.compute import DEFAULT_ENGINE, Engine, resolve_device
from optuna_miha._training.torch_settings import Settings, current_settings
from optuna_miha._training.trainer import move
from optuna_miha._training.trainer_context import AnyTrainer


@dataclass(frozen=True, kw_only=True)
class Context:
    """The settings that all segments of a run share.

    Args:
        model_fn: The user's function.
        valid_loss_fn: The validation loss.
        valid_step: The ``train_step`` of the initial configuration, used in validation.
        trainer: The user's training loop. :obj:`None`: the built-in one.
        sign: 1 if the study minimizes, -1 if it maximizes.
        seed: The seed of the run, for the initial weights and for training from them.
        devices: The devices to train on; siblings are distributed over them in turn.
            :obj:`None`: the accelerator of the process that trains, if it has one.
        ema_decay: As in the plan. Ignored with a user-defined trainer, because only the trainer
            can evaluate the network.
        engine: The compute settings.
        settings: Global settings of torch, for workers.
        halves_jobs: Whether two halves of a job equal the whole bit for bit, also with a loader
            that has worker processes.
    """

    model_fn: ModelFn
    valid_loss_fn: LossFn
    trainer: AnyTrainer | None
    sign: int
    seed: int
    devices: tuple[torch.device | None, ...]
    ema_decay: float
    engine: Engine = DEFAULT_ENGINE
    settings: Settings = field(default_factory=current_settings)
    valid_step: TrainStep | None = None
    halves_jobs: bool = True

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        model_fn: ModelFn,
        *,
        direction: StudyDirection,
        seed: int,
        devices: tuple[torch.device | None, ...],
        trainer: AnyTrainer | None = None,
        ema_decay: float = 0.0,
        engine: Engine = DEFAULT_ENGINE,
    ) -> Context:
        """Create the context of a run from the recipe of its initial configuration.

        Args:
            recipe: The recipe whose validation loss all segments share.
            model_fn: See :class:`Context`.
            direction: The direction of the study.
            seed: See :class:`Context`.
            devices: See :class:`Context`.
            trainer: See :class:`Context`.
            ema_decay: See :class:`Context`; 0: no moving average.
            engine: See :class:`Context`.

        Raises:
            ValueError: If the recipe lacks data or a loss, and there is no trainer.
        """
        if trainer is None:
            recipe.check_complete()
        return cls(
            model_fn=model_fn,
            valid_loss_fn=recipe.valid_loss_fn or recipe.loss_fn,
            valid_step=recipe.train_step,
            trainer=trainer,
            sign=sign_of(direction),
            seed=seed,
            devices=devices,
            ema_decay=ema_decay,
            engine=engine,
            halves_jobs=recipe.steps_per_epoch is None,
        )

    def on_device(self, recipe: Recipe, index: int = 0) -> Recipe:
        """Move a recipe to the device it is trained on, and set what all branches share.

        Validation uses the loss and the ``train_step`` of the initial configuration. Those of the
        branch itself may contain its own hyperparameters, such as the weight of a term, and would
        judge each branch by another measure.

        Args:
            recipe: The recipe, changed in place and returned.
            index: The branch index; branches are distributed over the devices in turn.
        """
        recipe.valid_loss_fn = self.valid_loss_fn
        recipe.valid_step = self.valid_step
        device = resolve_device(self.devices[index % len(self.devices)])
        return move(recipe, device, self.engine)
