"""Whatever an optimizer learns is inherited: a branch continues as its parent would."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from helpers.equality import memory_of, same
from torch import Tensor, nn, optim

from optuna_miha._model.optimizer_state import (
    capture_optimizer,
    inherit_optimizer,
    optimizer_settings,
)
from optuna_miha._model.optimizers import make_optimizer
from optuna_miha.exceptions import InheritanceError

Build = Callable[[nn.Module], optim.Optimizer]


class Containers(optim.Optimizer):
    """Keeps its moments in lists and dictionaries, as SOAP and Shampoo do."""

    def __init__(self, params: Iterable[Tensor]) -> None:
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            if not state:
                state["moments"] = [torch.zeros_like(p), {"square": torch.zeros_like(p)}]
                state["kind"] = ("square", 2)
                state["count"] = torch.zeros(2, dtype=torch.int64)
            first, second = state["moments"]
            state["count"] += 1
            first.mul_(0.9).add_(p.grad)
            second[state["kind"][0]].mul_(0.9).addcmul_(p.grad, p.grad)
            p.sub_(0.1 * first / (second["square"].sqrt() + 1) / state["count"][0])


class Adaptive(optim.Optimizer):
    """Estimates its step size in its groups, as Prodigy and D-Adaptation do."""

    def __init__(self, params: Iterable[Tensor], beta: float = 0.9) -> None:
        defaults = {"lr": 1.0, "beta": beta, "k": 0, "d": torch.tensor(1e-4)}
        super().__init__(params, defaults)
        self.n_steps = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.n_steps += 1
        self.state["sums"]["total"] = self.state["sums"].get("total", torch.zeros(1)) + 1
        for group in self.param_groups:
            group["k"] += 1
            group["d"] = group["d"] * 1.5
            group["beta"] *= 0.99
            group.setdefault("first", 0.01)
            scale = self.state["sums"]["total"] * group["beta"] / self.n_steps
            for p in group["params"]:
                p.sub_(group["lr"] * group["d"] * scale * p.grad.sign() + 1e-4 * group["k"])


class Sharp(optim.Optimizer):
    """Wraps another optimizer, as many implementations of SAM do."""

    def __init__(self, params: Iterable[Tensor], **settings: Any) -> None:
        super().__init__(params, {"rho": 0.05, **settings})
        self.base_optimizer = optim.SGD(self.param_groups, momentum=0.9, **settings)
        self.param_groups = self.base_optimizer.param_groups

    def step(self, closure: Any = None) -> None:
        self.base_optimizer.step()


class Stored(optim.SGD):
    """Keeps state by parameter in an attribute, which its own ``state_dict`` holds by index."""

    def __init__(self, params: Iterable[Tensor], scale: float = 0.5) -> None:
        super().__init__(params, lr=0.01)
        self.sums: dict[int, Tensor] = {}
        self.scale = scale

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for p in self.param_groups[0]["params"]:
            assert p.grad is not None
            self.sums[id(p)] = self.scale * self.sums.get(id(p), torch.zeros_like(p)) + p.grad
            p.grad = self.sums[id(p)].clone()
        super().step()

    def state_dict(self) -> dict[str, Any]:
        sums = [self.sums[id(p)] for p in self.param_groups[0]["params"] if id(p) in self.sums]
        return {**super().state_dict(), "sums": sums, "scale": self.scale}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        params = self.param_groups[0]["params"]
        self.sums = dict(zip(map(id, params), state_dict["sums"], strict=False))
        self.scale = state_dict["scale"]


def build_network(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).to(dtype)


def train(model: nn.Module, optimizer: optim.Optimizer, first: int, n_steps: int = 4) -> None:
    """Train on batches that depend only on their number."""
    dtype = next(model.parameters()).dtype
    for number in range(first, first + n_steps):
        generator = torch.Generator().manual_seed(number)
        x = torch.randn(8, 4, generator=generator).to(dtype)
        torch.manual_seed(number)

        def closure(x: Tensor = x) -> Tensor:
            optimizer.zero_grad()
            loss = (model(x) - x[:, :1].sin()).square().mean()
            loss.backward()
            return loss

        if isinstance(optimizer, optim.LBFGS):
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()


def stored(captured: dict[str, Any]) -> dict[str, Any]:
    """The state as it is read from a checkpoint."""
    file = io.BytesIO()
    torch.save(captured, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def check_continuation(build: Build, dtype: torch.dtype = torch.float32) -> None:
    """Two heirs continue as the parent, bit for bit, and none influences another."""
    model = build_network(dtype)
    optimizer = build(model)
    settings = optimizer_settings(optimizer)
    train(model, optimizer, 0)
    captured = capture_optimizer(optimizer, settings)
    untouched, weights = stored(captured), copy.deepcopy(model.state_dict())
    train(model, optimizer, 4)
    for _ in range(2):
        heir = build_network(dtype)
        heirs = build(heir)
        heir.load_state_dict(weights)
        inherit_optimizer(heirs, captured)
        assert not memory_of(captured) & memory_of(heirs.state_dict())
        heirs.register_step_pre_hook(lambda *_: None)  # Torch's own attributes are in order.
        train(heir, heirs, 4)
        assert same(heir.state_dict(), model.state_dict())
        assert same(heirs.state_dict(), optimizer.state_dict())
        assert same(stored(captured), untouched)


OF_TORCH: dict[str, Build] = {
    cls.__name__: (lambda model, cls=cls: cls(model.parameters(), lr=0.01))
    for cls in vars(optim).values()
    if isinstance(cls, type) and issubclass(cls, optim.Optimizer)
    if cls.__name__ not in ("Muon", "Optimizer", "SparseAdam")
}
VARIANTS: dict[str, Build] = {
    "Muon": lambda m: optim.Muon([m[0].weight, m[2].weight], lr=0.01),  # type: ignore[index]
    "amsgrad": lambda m: optim.Adam(m.parameters(), amsgrad=True),
    "one by one": lambda m: optim.NAdam(m.parameters(), foreach=False),
    "centered": lambda m: optim.RMSprop(m.parameters(), momentum=0.9, centered=True),
    "fused": lambda m: optim.Adam(m.parameters(), fused=True),
    "momentum": lambda m: optim.SGD(m.parameters(), lr=0.01, momentum=0.9, nesterov=True),
    "tensor rate": lambda m: optim.Adam(m.parameters(), lr=torch.tensor(0.01)),
    "containers": lambda m: Containers(m.parameters()),
    "adaptive": lambda m: Adaptive(m.parameters()),
    "adaptive groups": lambda m: Adaptive([{"params": [p]} for p in m.parameters()]),  # type: ignore[list-item]
    "own dictionary": lambda m: Stored(m.parameters()),
    "wrapper": lambda m: Sharp(m.parameters(), lr=0.01),
}
if not hasattr(optim, "Muon"):  # Torch before 2.9.
    del VARIANTS["Muon"]


@pytest.mark.slow
@pytest.mark.parametrize("build", OF_TORCH.values(), ids=OF_TORCH)
def test_every_class_of_torch_continues_bit_for_bit(build: Build) -> None:
    check_continuation(build)


@pytest.mark.parametrize("build", VARIANTS.values(), ids=VARIANTS)
def test_all_kinds_of_state_are_inherited(build: Build) -> None:
    check_continuation(build)


def test_soap_continues_bit_for_bit() -> None:
    pytest.importorskip("pytorch_optimizer")

    def build(model: nn.Module) -> optim.Optimizer:
        return make_optimizer("soap", model.parameters(), lr=0.01, weight_decay=0.1, momentum=0.0)

    check_continuation(build)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_state_keeps_its_dtype(dtype: torch.dtype) -> None:
    check_continuation(lambda m: Containers(m.parameters()), dtype)
    check_continuation(lambda m: optim.AdamW(m.parameters()), dtype)


def test_mutated_setting_wins_over_a_learned_value() -> None:
    model = build_network()
    optimizer = Adaptive(model.parameters())
    settings = optimizer_settings(optimizer)
    train(model, optimizer, 0)
    captured = capture_optimizer(optimizer, settings)
    heir = Adaptive(build_network().parameters(), beta=0.5)
    inherit_optimizer(heir, captured)
    assert heir.param_groups[0]["beta"] == 0.5
    assert heir.param_groups[0]["k"] == 4
    assert heir.n_steps == 4
    same_setting = Adaptive(build_network().parameters())
    inherit_optimizer(same_setting, captured)
    assert same_setting.param_groups[0]["beta"] == optimizer.param_groups[0]["beta"] != 0.9


def test_mutated_attribute_wins_over_that_of_the_state_dict() -> None:
    model = build_network()
    optimizer = Stored(model.parameters())
    settings = optimizer_settings(optimizer)
    train(model, optimizer, 0)
    heir = Stored(build_network().parameters(), scale=0.25)
    inherit_optimizer(heir, capture_optimizer(optimizer, settings))
    assert heir.scale == 0.25
    assert len(heir.sums) == 4


def test_learning_rate_is_never_inherited() -> None:
    model = build_network()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    settings = optimizer_settings(optimizer)
    scheduler = optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    train(model, optimizer, 0)
    scheduler.step()
    heir = optim.SGD(build_network().parameters(), lr=0.1)
    inherit_optimizer(heir, capture_optimizer(optimizer, settings))
    assert heir.param_groups[0]["lr"] == 0.1
    assert "initial_lr" not in heir.param_groups[0]


def test_heir_keeps_its_groups_and_shares_them_with_the_wrapped_optimizer() -> None:
    model = build_network()
    optimizer = Sharp(model.parameters(), lr=0.01)
    settings = optimizer_settings(optimizer)
    train(model, optimizer, 0)
    heir = Sharp(build_network().parameters(), lr=0.5)
    groups, group = heir.param_groups, heir.param_groups[0]
    inherit_optimizer(heir, capture_optimizer(optimizer, settings))
    assert heir.param_groups is groups is heir.base_optimizer.param_groups
    assert heir.param_groups[0] is group
    assert group["lr"] == 0.5
    assert len(heir.base_optimizer.state) == 4


def test_other_groups_than_those_of_the_parent_are_refused_if_they_hold_state() -> None:
    model = build_network()
    optimizer = Adaptive(model.parameters())
    settings = optimizer_settings(optimizer)
    train(model, optimizer, 0)
    captured = capture_optimizer(optimizer, settings)
    heir = Adaptive([{"params": [p]} for p in build_network().parameters()])  # type: ignore[list-item]
    with pytest.raises(InheritanceError, match=r"groups of \[1, 1, 1, 1\] instead of \[4\]"):
        inherit_optimizer(heir, captured)


def test_class_of_the_same_name_from_another_package_inherits_nothing() -> None:
    model = build_network()
    optimizer = optim.Adam(model.parameters())
    train(model, optimizer, 0)
    namesake = type("Adam", (Containers,), {"__module__": "other"})
    heir = namesake(build_network().parameters())
    inherit_optimizer(heir, capture_optimizer(optimizer))
    assert not heir.state
