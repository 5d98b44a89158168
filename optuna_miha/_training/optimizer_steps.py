"""The steps of an optimizer: their learning rates while annealing, and their number."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from typing import Any, cast

from torch.optim import Optimizer


class OptimizerSteps:
    """Scales the learning rates of an optimizer during its steps, and counts the steps.

    The groups hold the scaled rates only during a step. Before and after it they hold the rates
    that the user's code has set, so that learning rate schedulers work on their own values, and
    the rate of a step is the user's rate times ``factor``. The groups are looked up at every
    step, because ``load_state_dict`` replaces them.

    Args:
        optimizer: The optimizer. The steps of an optimizer that it wraps, as in implementations
            of SAM and Lookahead, count as its own.

    Attributes:
        factor: The factor of the learning rates.
        count: The number of steps since the last :meth:`reset`.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.factor = 1.0
        self.count = 0
        self._outermost: Optimizer | None = None
        self._own_rates: list[tuple[dict[str, Any], Any, Any]] = []
        wrapped = [part for part in vars(optimizer).values() if isinstance(part, Optimizer)]
        for part in (optimizer, *wrapped):
            with suppress(AttributeError):  # A wrapper that does not call `super().__init__`.
                part.register_step_pre_hook(self._before_step)
                handle = part.register_step_post_hook(self._after_step)
                # Before the user's hooks, which may step a scheduler. Private API of torch.
                hooks = cast("OrderedDict[int, Any]", part._optimizer_step_post_hooks)
                hooks.move_to_end(handle.id, last=False)

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._outermost is optimizer:
            self._restore()  # The last step raised an exception, which the user's code caught.
        elif self._outermost is not None:
            return  # The step of a wrapped optimizer within a step.
        self._outermost = optimizer
        self.count += 1
        if self.factor == 1:
            return
        for group in optimizer.param_groups:
            own = group["lr"]
            group["lr"] = own * self.factor
            self._own_rates.append((group, own, group["lr"]))

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._outermost is optimizer:
            self._restore()

    def _restore(self) -> None:
        self._outermost = None
        for group, own, scaled in self._own_rates:
            if group["lr"] is scaled:  # Otherwise, a closure has set another rate.
                group["lr"] = own
        self._own_rates.clear()
