"""The steps of an optimizer: their learning rates while annealing, and their number."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast
from weakref import WeakMethod

import torch
from torch.optim import Optimizer

from optuna_miha._model.optimizers import optimizer_parts


class OptimizerSteps:
    """Scales the learning rates of an optimizer during its steps, and counts the steps.

    The groups hold the scaled rates only during a step. Before and after it they hold the rates
    that the user's code has set, so that learning rate schedulers work on their own values, and
    the rate of a step is the user's rate times a factor. The groups are looked up at every
    step, because ``load_state_dict`` replaces them.

    Steps are watched and scaled as long as this object exists.

    Args:
        optimizer: The optimizer. The steps of an optimizer that it wraps, as in implementations
            of SAM and Lookahead, count as its own.
        must_step: Whether :meth:`check` refuses that its parameters change without a step.
        before_first: Called before the first step, when the groups have the user's rates.
        factor: A further factor of each step, called once for each. :obj:`None`: 1.

    Attributes:
        count: The number of steps.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        must_step: bool = False,
        before_first: Callable[[], object] | None = None,
        factor: Callable[[], float] | None = None,
    ) -> None:
        self.count = 0
        self._parts = list(optimizer_parts(optimizer))
        self._before_first = before_first
        self._factor_of_step = factor
        groups = optimizer.param_groups if must_step else []
        self._before = [(p, p.detach().clone()) for group in groups for p in group["params"]]
        self._factor = 1.0
        self._factor_of: Callable[[int], float] | None = None
        self._after: Callable[[], object] | None = None
        self._depth = 0
        self._own_rates: list[tuple[dict[str, Any], Any, Any]] = []
        for part in self._parts:
            with suppress(AttributeError):  # A wrapper that does not call `super().__init__`.
                part.register_step_pre_hook(_weakly(self._before_step))
                handle = part.register_step_post_hook(_weakly(self._after_step))
                # Before the user's hooks, which may step a scheduler. Private API of torch.
                hooks = cast("OrderedDict[int, Any]", part._optimizer_step_post_hooks)
                hooks.move_to_end(handle.id, last=False)
                # After the user's hooks, which may change the weights.
                part.register_step_post_hook(_weakly(self._after_hooks))

    def follow(
        self, factor_of: Callable[[int], float], after_step: Callable[[], object] | None
    ) -> None:
        """Let the factor of the learning rates depend on the step.

        Args:
            factor_of: The factor as a function of the number of earlier steps.
            after_step: Called after every step and the user's hooks.
        """
        self._factor_of, self._after = factor_of, after_step

    def scale(self, factor: float) -> None:
        """Multiply the learning rates by ``factor`` during the following steps."""
        self._restore()  # The last step may have raised an exception that user code caught.
        self._depth = 0
        self._factor = factor

    def check(self) -> None:
        """Refuse that the parameters changed without a step. Later calls have no effect.

        Raises:
            ValueError: If they have changed.
        """
        before, self._before = self._before, []
        if self.count == 0 and any(not torch.equal(p, value) for p, value in before):
            raise ValueError(
                "A trainer must train with `recipe.optimizer`, whose settings the study stores, "
                "got other weights after an epoch without a call of its `step`: use "
                "`recipe.optimizer`. If the trainer needs an optimizer of its own, leave "
                "`optimizer` out of the recipe, and suggest hyperparameters explicitly."
            )

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        # Torch calls the hooks again for `super().step()`, and for wrapped optimizers.
        self._depth += 1
        if self._depth > 1:
            return
        if self.count == 0 and self._before_first is not None:
            self._before_first()
        if self._factor_of is not None:
            self._factor = self._factor_of(self.count)
        self.count += 1
        factor = self._factor
        if self._factor_of_step is not None:
            factor *= self._factor_of_step()
        if factor == 1:
            return
        # A wrapper may share the groups of the wrapped optimizer, or have groups of its own.
        groups = {id(group): group for part in self._parts for group in part.param_groups}
        for group in groups.values():
            if "lr" in group:
                own = group["lr"]
                group["lr"] = own * factor
                self._own_rates.append((group, own, group["lr"]))

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._restore()

    def _after_hooks(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._depth == 0 and self._after is not None:
            self._after()

    def _restore(self) -> None:
        for group, own, scaled in self._own_rates:
            if group["lr"] is scaled:  # Otherwise, a closure has set another rate.
                group["lr"] = own
        self._own_rates.clear()


def _weakly(method: Callable[..., object]) -> Callable[..., None]:
    """Return a function that calls a method as long as its object exists.

    A hook that held the object, and thereby the recipe, would be a cycle: the network would occupy
    the device after its segment, until Python looks for cycles.
    """
    reference = WeakMethod(method)

    def call(*args: Any) -> None:
        bound = reference()
        if bound is not None:
            bound(*args)

    return call
