"""Optimizers that the built-in trainer cannot use are refused before anything is written."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import optuna
import pytest
from helpers.networks import samples
from torch import Tensor, nn, optim

import optuna_miha as miha


class OwnRate(optim.SGD):
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step()
        self.param_groups[0]["lr"] *= 1.1


class Deque(optim.SGD):
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step()
        self.state[self.param_groups[0]["params"][0]]["last"] = deque([1.0])


class Unloadable(optim.SGD):
    def load_state_dict(self, state_dict: Any) -> None:
        raise NotImplementedError("later")


class ByParameter(optim.SGD):
    """Keeps state by parameters, which are other ones in every branch."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step()
        first = self.param_groups[0]["params"][0]
        if "all" not in self.state:
            self.state["all"] = {first: 1.0}
        self.state["all"][first] += 1.0 if first in self.state["all"] else 0.0


class NoRate(optim.Optimizer):
    def __init__(self, params: Iterable[Tensor]) -> None:
        super().__init__(params, {"lr": None})

    def step(self, closure: Any = None) -> None:
        pass


def scheduled(model: nn.Module) -> optim.Optimizer:
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    optim.lr_scheduler.StepLR(optimizer, 5)
    return optimizer


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda m: OwnRate(m.parameters(), lr=0.1), ValueError, "must not change.*OwnRate"),
        (lambda m: Deque(m.parameters(), lr=0.1), TypeError, "optimizer must.*deque"),
        (lambda m: Unloadable(m.parameters(), lr=0.1), ValueError, "Unloadable, the next.*later"),
        (lambda m: ByParameter(m.parameters(), lr=0.1), ValueError, "next step failed.*KeyError"),
        (lambda m: NoRate(m.parameters()), ValueError, "learning rate `lr`.*None.*NoRate"),
        (lambda m: optim.LBFGS(m.parameters()), ValueError, "LBFGS needs `closure`.*trainer"),
        (scheduled, ValueError, "scheduler.*SGD.*trainer"),
    ],
)
def test_unusable_optimizers_are_refused(
    build: Callable[[nn.Module], optim.Optimizer], error: type[Exception], message: str
) -> None:
    def model_fn(trial: Any) -> miha.Recipe:
        trial.suggest_float("noise", 0.0, 1.0)
        model = nn.Linear(4, 3)
        return miha.Recipe(
            model=model,
            loss_fn=nn.CrossEntropyLoss(),
            optimizer=build(model),
            train_data=samples(),
            valid_data=samples(seed=1),
        )

    study = optuna.create_study(sampler=miha.MihaSampler(seed=0))
    with pytest.raises(error, match=message):
        miha.optimize(study, model_fn, n_epochs=30, device="cpu", show_progress_bar=False)
    assert not study.trials
    assert not study.user_attrs


class Averaging(optim.SGD):
    """Trains other weights than it is evaluated with, as Schedule-Free does."""

    def __init__(self, params: Iterable[Tensor]) -> None:
        super().__init__(params, lr=0.1)
        self.modes: list[str] = []
        self.trains = False

    def train(self) -> None:
        self.trains = True

    def eval(self) -> None:
        self.trains = False

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert self.trains
        super().step()


def test_optimizer_with_modes_is_switched() -> None:
    optimizers: list[Averaging] = []

    def model_fn(trial: Any) -> miha.Recipe:
        trial.suggest_float("noise", 0.0, 1.0)
        model = nn.Linear(4, 3)
        optimizers.append(Averaging(model.parameters()))

        def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
            assert not optimizers[-1].trains
            return (outputs.argmax(1) == targets).double().mean()

        return miha.Recipe(
            model=model,
            loss_fn=nn.CrossEntropyLoss(),
            optimizer=optimizers[-1],
            train_data=samples(),
            valid_data=samples(seed=1),
            metrics={"accuracy": accuracy},
        )

    study = optuna.create_study(sampler=miha.MihaSampler(seed=0))
    miha.optimize(study, model_fn, n_epochs=30, device="cpu", show_progress_bar=False)
    assert len(optimizers) > 3
    assert not any(optimizer.trains for optimizer in optimizers)
