"""The recipe's own factor of the learning rate: warm-up, and a function of the run's fraction."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from optuna_miha._model.recipe import LrSchedule, Recipe
from optuna_miha._training.extra_state import ExtraState
from optuna_miha._training.optimizer_steps import OptimizerSteps


class RateCourse:
    """The factor of each step of the optimizer.

    Its state, the number of steps from the initial weights on, outlives a segment.

    Args:
        schedule: The factor as a function of the fraction of the run.
        warmup_steps: Steps over which the factor rises linearly.
        n_epochs: Epochs to train.
        steps_per_epoch: Steps of an epoch. :obj:`None`: unknown, and ``schedule`` is evaluated at
            the beginning of each epoch only.
        share: The fractions of the run at the beginning and at the end of these epochs.
    """

    def __init__(
        self,
        schedule: LrSchedule | None,
        warmup_steps: int,
        n_epochs: int,
        steps_per_epoch: int | None,
        share: tuple[float, float],
    ) -> None:
        self._schedule = schedule
        self._warmup_steps = warmup_steps
        self._n_epochs = n_epochs
        self._steps_per_epoch = steps_per_epoch or math.inf
        self._share = share
        self._epoch = -1
        self._step = 0
        self._n_steps = 0

    def begin_epoch(self) -> None:
        """Count an epoch."""
        self._epoch += 1
        self._step = 0

    def next_factor(self) -> float:
        """Return the factor of the next step, and count the step."""
        factor = 1.0
        if self._schedule is not None:
            part = min(1.0, self._step / self._steps_per_epoch)
            progress = (max(self._epoch, 0) + part) / self._n_epochs
            start, end = self._share
            factor = float(self._schedule(start + (end - start) * progress))
        self._step += 1
        self._n_steps += 1
        return factor * min(1.0, self._n_steps / max(1, self._warmup_steps))

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps from the initial weights on."""
        return {"n_steps": self._n_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the number of steps."""
        self._n_steps = int(state["n_steps"])


@dataclass(frozen=True, kw_only=True)
class CourseInForce:
    """A course whose factor scales the steps of an optimizer while this object exists.

    Args:
        course: The course.
        steps: Scales the steps.
    """

    course: RateCourse
    steps: OptimizerSteps

    def begin_epoch(self) -> None:
        """Count an epoch."""
        self.course.begin_epoch()


def make_course(
    recipe: Recipe,
    n_epochs: int,
    steps_per_epoch: int | None,
    extra: ExtraState,
    share: tuple[float, float],
) -> CourseInForce | None:
    """Put the recipe's own factor in force; :obj:`None` if it has none.

    Args:
        recipe: The recipe, with an optimizer.
        n_epochs: Epochs to train.
        steps_per_epoch: Steps of an epoch, if they are known.
        extra: The extra state of the segment.
        share: See :class:`RateCourse`.
    """
    if recipe.lr_schedule is None and recipe.warmup_steps == 0:
        return None
    assert recipe.optimizer is not None
    course = RateCourse(recipe.lr_schedule, recipe.warmup_steps, n_epochs, steps_per_epoch, share)
    extra.register("miha:steps", course)
    steps = OptimizerSteps(recipe.optimizer, factor=course.next_factor)
    return CourseInForce(course=course, steps=steps)
