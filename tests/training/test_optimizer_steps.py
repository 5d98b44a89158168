"""The rates during the steps of an optimizer, and their number."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.optim import SGD, Optimizer

from optuna_miha._training.optimizer_steps import OptimizerSteps


def weight() -> torch.nn.Parameter:
    parameter = torch.nn.Parameter(torch.zeros(()))
    parameter.grad = torch.ones(())
    return parameter


class Lookahead(Optimizer):
    """A wrapper that shares the groups of the optimizer that it wraps."""

    def __init__(self, inner: Optimizer) -> None:
        super().__init__(inner.param_groups, {})
        self.param_groups = inner.param_groups
        self.inner = inner

    def step(self, closure: Any = None) -> None:
        self.inner.step()


class Uninitialized(Optimizer):
    """One that does not call the constructor of torch."""

    def __init__(self, inner: Optimizer) -> None:
        self.param_groups = inner.param_groups
        self.inner = inner

    def step(self, closure: Any = None) -> None:
        self.inner.step()


@pytest.mark.parametrize("wrapper", [lambda o: o, Lookahead, Uninitialized])
def test_each_step_is_scaled_and_counted_once(wrapper: Any) -> None:
    parameter = weight()
    optimizer = wrapper(SGD([parameter], lr=1.0))
    steps = OptimizerSteps(optimizer)
    optimizer.step()
    steps.scale(0.5)
    optimizer.step()
    assert parameter.item() == -1.5
    assert steps.count == 2
    assert optimizer.param_groups[0]["lr"] == 1.0


class Copying(Optimizer):
    """A wrapper with groups of its own, whose rates the wrapped optimizer does not have."""

    def __init__(self, inner: Optimizer) -> None:
        super().__init__([dict(group) for group in inner.param_groups], {})
        self.inner = [inner]

    def step(self, closure: Any = None) -> None:
        self.inner[0].step()


@pytest.mark.parametrize("wrap", [Copying, lambda o: Lookahead(Copying(o))])
def test_rates_of_all_wrapped_optimizers_are_scaled_and_restored(wrap: Any) -> None:
    parameter = weight()
    inner = SGD([parameter], lr=1.0)
    optimizer = wrap(inner)
    steps = OptimizerSteps(optimizer)
    steps.scale(0.5)
    optimizer.step()
    assert parameter.item() == -0.5
    assert steps.count == 1
    assert [o.param_groups[0]["lr"] for o in (optimizer, inner)] == [1.0, 1.0]


@pytest.mark.parametrize("is_base_patched", [False, True])
def test_step_that_calls_that_of_its_base_class_counts_once(is_base_patched: bool) -> None:
    class Base(SGD):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    class Derived(Base):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    if is_base_patched:  # Torch patches `step` of a class when it is first used.
        Base([weight()])
    optimizer = Derived([weight()], lr=1.0)
    steps = OptimizerSteps(optimizer)
    optimizer.step()
    optimizer.step()
    assert steps.count == 2


def test_steps_of_the_wrapped_optimizer_alone_are_scaled() -> None:
    """As with SAM, whose second half is called on its own."""
    parameter = weight()
    optimizer = Lookahead(SGD([parameter], lr=1.0))
    steps = OptimizerSteps(optimizer)
    steps.scale(0.5)
    optimizer.inner.step()
    assert parameter.item() == -0.5
    assert steps.count == 1


class Decaying(SGD):
    """Decays the weights by its own rate after a step of its base class."""

    def step(self, closure: Any = None) -> None:
        super().step()
        for parameter in self.param_groups[0]["params"]:
            parameter.data -= self.param_groups[0]["lr"]


def test_step_of_a_derived_class_is_scaled_until_its_end() -> None:
    SGD([weight()])  # Torch patches `step` of a class when it is first used.
    parameter = weight()
    optimizer = Decaying([parameter], lr=1.0)
    steps = OptimizerSteps(optimizer)
    steps.scale(0.5)
    optimizer.step()
    assert parameter.item() == -1.0
    assert steps.count == 1
    assert optimizer.param_groups[0]["lr"] == 1.0


def test_rate_is_restored_in_the_next_epoch_after_a_step_that_failed() -> None:
    parameter = weight()
    optimizer = SGD([parameter], lr=1.0)
    steps = OptimizerSteps(optimizer)
    steps.scale(0.5)

    def closure() -> float:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        optimizer.step(closure)
    steps.scale(0.25)
    optimizer.step()
    assert parameter.item() == -0.25
    assert optimizer.param_groups[0]["lr"] == 1.0


def test_rate_that_a_closure_sets_is_kept() -> None:
    optimizer = SGD([weight()], lr=1.0)
    steps = OptimizerSteps(optimizer)
    steps.scale(0.5)

    def closure() -> float:
        optimizer.param_groups[0]["lr"] = 3.0
        return 0.0

    optimizer.step(closure)
    assert optimizer.param_groups[0]["lr"] == 3.0


def test_rate_that_is_a_tensor_is_scaled_and_restored() -> None:
    parameter = weight()
    optimizer = SGD([parameter], lr=torch.tensor(1.0))
    steps = OptimizerSteps(optimizer)
    steps.scale(0.5)
    optimizer.step()
    assert parameter.item() == -0.5
    assert float(optimizer.param_groups[0]["lr"]) == 1.0


def test_weights_that_change_without_a_step_are_refused_once() -> None:
    parameter = weight()
    steps = OptimizerSteps(SGD([parameter], lr=1.0), must_step=True)
    parameter.data += 1
    with pytest.raises(ValueError, match=r"train with `recipe.optimizer`.* other weights"):
        steps.check()
    steps.check()


@pytest.mark.parametrize("kind", ["stepped", "unchanged", "not checked"])
def test_other_changes_are_accepted(kind: str) -> None:
    parameter = weight()
    optimizer = SGD([parameter], lr=1.0)
    steps = OptimizerSteps(optimizer, must_step=kind != "not checked")
    if kind == "stepped":
        optimizer.step()
    if kind != "unchanged":
        parameter.data += 1
    steps.check()


@pytest.mark.parametrize("wrapper", [lambda o: o, Lookahead])
def test_what_follows_a_step_sees_the_weights_after_the_hooks_of_the_user(wrapper: Any) -> None:
    parameter = weight()
    optimizer = wrapper(SGD([parameter], lr=1.0))

    def project(*_: Any) -> None:
        with torch.no_grad():
            parameter.clamp_(min=-0.5)

    optimizer.register_step_post_hook(project)
    steps, seen = OptimizerSteps(optimizer), list[float]()
    steps.follow(lambda count: 1.0, lambda: seen.append(parameter.item()))
    optimizer.step()
    optimizer.step()
    assert seen == [-0.5, -0.5]
