"""Objects that outlive a segment: schedulers, optimizers, buffers."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from helpers.equality import same
from torch import nn
from torch.optim import SGD, Adam, lr_scheduler

from optuna_miha._training.extra_state import ExtraState


class Counter:
    """An object with a state of any kind."""

    def __init__(self, value: Any = 0) -> None:
        self.value = value

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


def optimizer(lr: float = 0.1) -> SGD:
    return SGD(nn.Linear(2, 1).parameters(), lr=lr)


def round_trip(state: dict[str, Any]) -> dict[str, Any]:
    """Write a state to a checkpoint, and read it without running code."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)  # type: ignore[no-any-return]


def heir(state: dict[str, Any]) -> ExtraState:
    extra = ExtraState()
    extra.inherit(state)
    return extra


@pytest.mark.parametrize("value", [3, "text", [1.5, None], {"a": (1, b"2")}, torch.arange(3)])
def test_states_survive_a_checkpoint(value: Any) -> None:
    extra = ExtraState()
    extra.register("counter", Counter(value))
    copy = heir(round_trip(extra.capture())).register("counter", Counter())
    assert same(copy.value, value)


def test_siblings_and_parent_do_not_share_tensors() -> None:
    parent = Counter(torch.zeros(2))
    extra = ExtraState()
    extra.register("counter", parent)
    state = extra.capture()
    one, two = (heir(state).register("counter", Counter()) for _ in range(2))
    one.value.fill_(1)
    assert same(two.value, torch.zeros(2)) and same(parent.value, torch.zeros(2))
    assert same(state["extra"]["counter"]["state"]["value"], torch.zeros(2))


def test_an_object_outside_of_the_segment_is_reset() -> None:
    shared = Counter(1)
    with ExtraState() as extra:
        extra.register("counter", shared).value = 2
    assert shared.value == 1


def test_an_unregistered_state_is_passed_on() -> None:
    extra = ExtraState()
    extra.register("counter", Counter(5))
    grandchild = heir(heir(extra.capture()).capture())
    assert grandchild.register("counter", Counter()).value == 5
    assert ExtraState().capture() == {}


def test_an_object_of_another_class_keeps_its_own_state() -> None:
    class Other(Counter):
        pass

    extra = ExtraState()
    extra.register("counter", Counter(5))
    assert heir(extra.capture()).register("counter", Other(7)).value == 7


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (Counter(np.zeros(2)), r"numpy.ndarray at `state_dict\(\)\['value'\]`: convert"),
        (Counter([1, {"a": object()}]), r"object at `state_dict\(\)\['value'\]\[1\]\['a'\]`"),
        (object(), "which has no `state_dict`"),
    ],
)
def test_what_cannot_be_stored_is_refused_when_it_is_registered(part: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        ExtraState().register("part", part)


def test_names_are_unique() -> None:
    extra, counter = ExtraState(), Counter()
    assert extra.register("a", counter) is extra.register("a", counter)
    with pytest.raises(ValueError, match="two objects named 'a'"):
        extra.register("a", Counter())


SCHEDULERS = {
    "step": lambda o: lr_scheduler.StepLR(o, 2, gamma=0.5),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: min(1.0, step / 4)),
    "one_cycle": lambda o: lr_scheduler.OneCycleLR(o, 2 * o.param_groups[0]["lr"], 12),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, factor=0.5),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, total_iters=3), lr_scheduler.ExponentialLR(o, 0.9)], [3]
    ),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 12),
}


def rates(scheduler: Any, n_steps: int) -> list[float]:
    """The rate of each of some steps."""
    used = []
    is_plateau = isinstance(scheduler, lr_scheduler.ReduceLROnPlateau)
    for _ in range(n_steps):
        used.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.optimizer.step()
        scheduler.step(*([1.0] if is_plateau else []))
    return used


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_a_scheduler_continues_bit_for_bit(kind: str) -> None:
    whole = rates(SCHEDULERS[kind](optimizer()), 10)
    extra = ExtraState()
    first = rates(extra.register("scheduler", SCHEDULERS[kind](optimizer())), 5)
    second = heir(round_trip(extra.capture()))
    assert first + rates(second.register("scheduler", SCHEDULERS[kind](optimizer())), 5) == whole


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_a_mutated_rate_is_in_force_in_a_scheduler(kind: str) -> None:
    """The factor that the scheduler has reached applies to the new rate."""
    whole = rates(SCHEDULERS[kind](optimizer(0.3)), 10)
    extra = ExtraState()
    rates(extra.register("scheduler", SCHEDULERS[kind](optimizer(0.1))), 5)
    branch = heir(extra.capture()).register("scheduler", SCHEDULERS[kind](optimizer(0.3)))
    assert rates(branch, 5) == pytest.approx(whole[5:])


def test_a_mutated_setting_of_a_scheduler_is_in_force() -> None:
    extra = ExtraState()
    rates(extra.register("s", lr_scheduler.StepLR(optimizer(), 2, gamma=0.5)), 3)
    branch = heir(extra.capture()).register("s", lr_scheduler.StepLR(optimizer(), 2, gamma=0.1))
    assert rates(branch, 3) == pytest.approx([0.05, 0.005, 0.005])


def test_a_second_optimizer_inherits_its_moments_and_keeps_its_rate() -> None:
    def adam(lr: float) -> Adam:
        return Adam(nn.Linear(2, 1).parameters(), lr=lr)

    parent, extra = adam(0.1), ExtraState()
    extra.register("judge", parent)
    for parameter in parent.param_groups[0]["params"]:
        parameter.grad = torch.ones_like(parameter)
    parent.step()
    child = heir(round_trip(extra.capture())).register("judge", adam(0.2))
    assert child.param_groups[0]["lr"] == 0.2
    assert same(child.state_dict()["state"], parent.state_dict()["state"])
