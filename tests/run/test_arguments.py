"""Invalid recipes, arguments and studies, and the messages about them."""

from __future__ import annotations

import threading
from collections import deque, namedtuple
from concurrent.futures import Executor
from datetime import date
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from helpers.equality import same
from helpers.networks import CPU, Doubling, run_context
from helpers.problems import SHORT, blobs, classifier, new_study, run
from torch import nn
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset

import optuna_miha as miha
from optuna_miha._model.model_fn import build_initial
from optuna_miha._model.rng import capture_rng
from optuna_miha._model.tensors import copy_tensors
from optuna_miha._training.loss_checks import check_valid_loss


def recipe_with(**changes: Any) -> Any:
    """A ``model_fn`` that returns a valid recipe with ``changes``."""

    def model_fn(trial: Any) -> miha.Recipe:
        parts: dict[str, Any] = {
            "model": nn.Linear(4, 3),
            "loss_fn": nn.CrossEntropyLoss(),
            "train_data": blobs(60, seed=0),
            "valid_data": blobs(30, seed=1),
        }
        return miha.Recipe(**(parts | changes))

    return model_fn


def model_with_result() -> nn.Module:
    """A network that stores the result of a computation, and cannot be copied."""
    model = nn.Linear(4, 3)
    model.halved = model.weight / 2
    return model


def model_with_lock() -> nn.Module:
    """A network that stores a lock, and cannot be copied."""
    model = nn.Linear(4, 3)
    model.lock = threading.Lock()
    return model


class WithExtraState(nn.Linear):
    """A network with extra state besides its parameters."""

    def __init__(self, extra: Any) -> None:
        super().__init__(4, 3)
        self.extra = extra

    def get_extra_state(self) -> Any:
        return {"extra": self.extra}

    def set_extra_state(self, state: Any) -> None:
        self.extra = state["extra"]


class WithPenalty(nn.Linear):
    """A network whose forward pass stores a penalty for the loss in the network."""

    penalty: Any

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.penalty = self.weight.square().mean()
        return super().forward(x)


def with_loss_of_model(loss: Any, **changes: Any) -> Any:
    """A ``model_fn`` whose loss is a function of network, outputs and targets."""

    def model_fn(trial: Any) -> miha.Recipe:
        model = WithPenalty(4, 3)
        return recipe_with(
            model=model, loss_fn=lambda output, target: loss(model, output, target), **changes
        )(trial)

    return model_fn


def cross_entropy(model: Any, output: Any, target: Any) -> torch.Tensor:
    return nn.functional.cross_entropy(output, target)


X, Y = blobs(60)
MODEL = nn.Linear(4, 3)

CASES: dict[str, tuple[Any, type[Exception], list[str]]] = {
    "model_fn returns None": (lambda trial: None, TypeError, ["Recipe", "None", "return"]),
    "model_fn returns a tuple": (lambda trial: (1, 2), TypeError, ["Recipe", "(1, 2)"]),
    "no validation data": (
        recipe_with(valid_data=None),
        ValueError,
        ["valid_data", "None", "hold out part"],
    ),
    "inputs and targets of different lengths": (
        recipe_with(train_data=(X, Y[:50])),
        ValueError,
        ["train_data", "equal length", "[60, 50]"],
    ),
    "NumPy arrays": (
        recipe_with(train_data=(X.numpy(), Y.numpy())),
        TypeError,
        ["train_data", "numpy", "torch.as_tensor"],
    ),
    "one tensor": (recipe_with(train_data=(X,)), TypeError, ["train_data", "two tensors"]),
    "empty data": (recipe_with(valid_data=(X[:0], Y[:0])), ValueError, ["valid_data", "none"]),
    "loss is a vector": (
        recipe_with(loss_fn=nn.CrossEntropyLoss(reduction="none")),
        ValueError,
        ["scalar", "(32,)", 'reduction="mean"'],
    ),
    "loss is a float": (
        recipe_with(loss_fn=lambda output, target: 1.0),
        TypeError,
        ["tensor", "float"],
    ),
    "loss without gradient": (
        recipe_with(loss_fn=lambda output, target: output.detach().mean()),
        ValueError,
        ["gradient", "detach"],
    ),
    "unknown monitor": (
        recipe_with(monitor="f1"),
        ValueError,
        ["monitor", "'f1'", "'loss'", "metrics"],
    ),
    "direction contradicts the monitor": (
        recipe_with(monitor="accuracy"),
        ValueError,
        ["maximize", "accuracy", 'direction="maximize"'],
    ),
    "model_fn returns the same network twice": (
        recipe_with(model=MODEL),
        ValueError,
        ["new network", "copy.deepcopy"],
    ),
    "optimizer of another network": (
        recipe_with(optimizer=torch.optim.Adam(nn.Linear(2, 2).parameters())),
        ValueError,
        ["model.parameters()"],
    ),
    "loader without batches": (
        recipe_with(train_data=DataLoader(TensorDataset(X, Y), sampler=SubsetRandomSampler([]))),
        ValueError,
        ["at least one batch", "drop_last"],
    ),
    "loader with a custom __iter__": (
        recipe_with(train_data=Doubling(TensorDataset(X, Y), batch_size=16), batch_size=8),
        TypeError,
        ["train_data", "Doubling", "`__iter__`", "`collate_fn`", "`batch_sampler`"],
    ),
    "NaN in validation data": (
        recipe_with(valid_data=(X * float("nan"), Y)),
        ValueError,
        ["NaN", "validation data"],
    ),
    "shapes that broadcast": (
        lambda trial: recipe_with(
            model=nn.Linear(4, 1), loss_fn=nn.MSELoss(), train_data=(X, X[:, 0])
        )(trial),
        ValueError,
        ["(32, 1)", "(32,)", "targets[:, None]"],
    ),
    "lazy modules": (
        recipe_with(model=nn.LazyLinear(3)),
        ValueError,
        ["lazy", "one batch"],
    ),
    "network that cannot be copied": (
        lambda trial: recipe_with(model=model_with_result())(trial),
        TypeError,
        ["copy.deepcopy", "ema_decay=0"],
    ),
    "network with a lock": (
        lambda trial: recipe_with(model=model_with_lock())(trial),
        TypeError,
        ["copy.deepcopy", "lock", "remove attributes"],
    ),
    "loss with a penalty stored by the forward pass": (
        with_loss_of_model(lambda m, o, y: cross_entropy(m, o, y) + m.penalty),
        ValueError,
        ["outputs and targets alone", "train_step", "valid_loss_fn"],
    ),
    "loss with a weight penalty": (
        with_loss_of_model(
            lambda m, o, y: cross_entropy(m, o, y) + 1e-3 * m.weight.square().sum()
        ),
        ValueError,
        ["outputs and targets alone"],
    ),
    "validation loss with a weight penalty": (
        lambda trial: recipe_with(
            model=(model := nn.Linear(4, 3)),
            valid_loss_fn=lambda o, y: cross_entropy(None, o, y) + model.weight.abs().sum(),
        )(trial),
        ValueError,
        ["outputs and targets alone"],
    ),
    "optimizer that needs a closure": (
        lambda trial: recipe_with(
            model=(model := nn.Linear(4, 3)), optimizer=torch.optim.LBFGS(model.parameters())
        )(trial),
        ValueError,
        ["LBFGS", "`closure`", "your own `trainer`"],
    ),
    "train_step returns a tuple": (
        recipe_with(train_step=lambda model, batch, loss_fn: (model(batch[0]).mean(), 1)),
        TypeError,
        ["`train_step`", "tuple", "alone"],
    ),
    "validation loss is a vector": (
        recipe_with(valid_loss_fn=nn.CrossEntropyLoss(reduction="none")),
        ValueError,
        ["`valid_loss_fn`", "scalar", "(30,)"],
    ),
    "network without parameters": (
        recipe_with(model=nn.ReLU()),
        ValueError,
        ["parameters", "ReLU"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_invalid_recipe_is_rejected_before_anything_is_written(case: str) -> None:
    model_fn, error, words = CASES[case]
    study = new_study()
    with pytest.raises(error) as caught:
        run(study, model_fn)
    for word in words:
        assert word in str(caught.value)
    assert study.trials == []
    assert study.user_attrs == {}


ARGUMENTS: dict[str, tuple[dict[str, Any], type[Exception], list[str]]] = {
    "budget too small": (
        {"plan": None, "n_epochs": 0},
        ValueError,
        ["`n_epochs`", "at least 1", "got 0"],
    ),
    "budget given twice": ({"n_epochs": 50}, ValueError, ["n_epochs=50", "omit one of them"]),
    "budget is a string": ({"plan": None, "n_epochs": "200"}, TypeError, ["n_epochs", "'200'"]),
    "zero workers": ({"n_jobs": 0}, ValueError, ["n_jobs", "0"]),
    "unknown keep": ({"keep": "none"}, ValueError, ["keep", "'none'", "final"]),
    "two stores": (
        {"artifact_store": object(), "checkpoint_dir": "x"},
        ValueError,
        ["artifact_store", "checkpoint_dir"],
    ),
    "unknown initial parameter": (
        {"initial_params": {"learning_rate": 0.1}},
        ValueError,
        ["'learning_rate'", "lr"],
    ),
    "initial value out of range": (
        {"initial_params": {"lr": 50.0}},
        ValueError,
        ["lr", "50.0"],
    ),
}


@pytest.mark.filterwarnings("ignore:Fixed parameter")
@pytest.mark.parametrize("case", ARGUMENTS)
def test_invalid_argument_is_rejected_before_anything_is_written(case: str) -> None:
    arguments, error, words = ARGUMENTS[case]
    study = new_study()
    with pytest.raises(error) as caught:
        run(study, classifier, **arguments)
    for word in words:
        assert word in str(caught.value)
    assert study.trials == []
    assert study.user_attrs == {}


@pytest.mark.parametrize("n_outputs", [1, 3], ids=["one logit", "one-hot"])
def test_accuracy_of_one_hot_targets_is_rejected_before_anything_is_written(
    n_outputs: int,
) -> None:
    def one_hot(n_samples: int) -> Any:
        x, y = blobs(n_samples)
        return x, nn.functional.one_hot(y, 3)[:, :n_outputs].float()

    def model_fn(trial: Any) -> Any:
        return recipe_with(
            model=nn.Linear(4, n_outputs),
            loss_fn=nn.BCEWithLogitsLoss(),
            train_data=one_hot(60),
            valid_data=one_hot(30),
            monitor="accuracy",
        )(trial)

    study = new_study(direction="maximize")
    with pytest.raises(ValueError, match=rf"outputs of shape \(30, {n_outputs}\)"):
        run(study, model_fn)
    assert study.trials == []
    assert study.user_attrs == {}


def test_executor_that_is_shut_down_is_rejected() -> None:
    from concurrent.futures import ThreadPoolExecutor

    executor: Executor = ThreadPoolExecutor(1)
    executor.shutdown()
    study = new_study()
    with pytest.raises(ValueError, match="shut down"):
        run(study, executor=executor)
    assert not study.get_trials(states=(optuna.trial.TrialState.RUNNING,))


def test_study_with_several_objectives_is_rejected() -> None:
    study = optuna.create_study(directions=["minimize", "maximize"])
    with pytest.raises(ValueError, match="one objective, got 2 directions"):
        run(study)


def test_none_instead_of_a_study_is_rejected() -> None:
    with pytest.raises(TypeError, match=r"optuna\.Study, got NoneType"):
        run(None)  # type: ignore[arg-type]


def test_hyperband_pruner_is_rejected_with_an_alternative() -> None:
    study = new_study(pruner=optuna.pruners.HyperbandPruner())
    with pytest.raises(ValueError, match="SlopePruner"):
        run(study)


def normalized(trial: Any) -> miha.Recipe:
    """97 samples: with the batch size of 32 in the portfolio, the last batch has one sample."""
    x, y = blobs(97)
    return miha.Recipe(
        model=nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)),
        loss_fn=nn.CrossEntropyLoss(),
        train_data=(x, y),
        valid_data=blobs(30, seed=1),
        batch_size=128,
    )


@pytest.mark.slow
def test_last_batch_of_one_sample_does_not_break_batch_normalization() -> None:
    def from_dataset(trial: Any) -> miha.Recipe:
        recipe = normalized(trial)
        recipe.train_data = TensorDataset(*blobs(97))
        return recipe

    def from_loader(trial: Any) -> miha.Recipe:
        recipe = normalized(trial)
        recipe.train_data = DataLoader(TensorDataset(*blobs(97)), batch_size=128, shuffle=True)
        return recipe

    values = {run(new_study(), f).value for f in (normalized, from_dataset, from_loader)}
    assert len(values) == 1


def test_loader_with_drop_last_trains_on_data_smaller_than_a_batch() -> None:
    def model_fn(trial: Any) -> miha.Recipe:
        data = TensorDataset(*blobs(20))
        loader = DataLoader(data, batch_size=8, shuffle=True, drop_last=True)
        return recipe_with(model=nn.Linear(4, 3), train_data=loader)(trial)

    result = run(new_study(), model_fn)
    assert max(s.params["batch_size"] for s in result.segments) > 20, "choose another seed"


def test_error_of_one_branch_is_logged_with_advice_to_catch_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def model_fn(trial: Any) -> miha.Recipe:
        recipe = classifier(trial)
        if trial.suggest_categorical("choice", ["good", "bad"]) == "bad":
            raise ArithmeticError
        return recipe

    optuna.logging.enable_propagation()
    try:
        with pytest.raises(ArithmeticError):
            run(new_study(), model_fn)
    finally:
        optuna.logging.disable_propagation()
    assert "catch=(ArithmeticError,)" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize(
    "distribution",
    [
        optuna.distributions.CategoricalDistribution(("adam", "lion")),
        optuna.distributions.IntDistribution(0, 3),
    ],
)
def test_foreign_trial_with_an_incompatible_distribution_is_rejected(
    kind: str, distribution: Any, tmp_path: Any
) -> None:
    study = new_study(None if kind == "memory" else f"sqlite:///{tmp_path}/study.db")
    value = distribution.to_external_repr(0)
    study.add_trial(
        optuna.trial.create_trial(
            params={"optimizer": value}, distributions={"optimizer": distribution}, value=1.0
        )
    )
    with pytest.raises(ValueError) as caught:
        run(study)
    for word in ("'optimizer'", str(distribution), "'adadelta'", "trial 0", "another name"):
        assert word in str(caught.value)
    assert len(study.trials) == 1
    assert study.user_attrs == {}


@pytest.mark.slow
def test_foreign_trial_with_a_compatible_distribution_is_ignored() -> None:
    first = run(new_study())
    study = new_study()
    lr = optuna.distributions.FloatDistribution(1e-6, 1.0, log=True)
    trial = optuna.trial.create_trial(params={"lr": 0.1}, distributions={"lr": lr}, value=1.0)
    study.add_trial(trial)
    assert run(study).value == first.value


@pytest.mark.parametrize("name", ["from_epoch", "to_epoch", "role", "anneal_to"])
def test_parameter_named_like_a_column_of_the_schedule_is_rejected(name: str) -> None:
    def model_fn(trial: Any) -> miha.Recipe:
        trial.suggest_float(name, 0, 1)
        return classifier(trial)

    study = new_study()
    with pytest.raises(ValueError, match=f"column of the schedule.*got '{name}'"):
        run(study, model_fn)
    assert study.trials == []
    assert study.user_attrs == {}


Pair = namedtuple("Pair", "one two")

UNLOADABLE = {
    "numpy._core": np.zeros(2),
    "numpy": [np.float32(1)],
    "datetime.date": {"day": date(2020, 1, 1)},
    "collections.deque": deque([1.0]),
    "Pair": Pair(1, 2),
    "lambda": lambda: 0,
}


@pytest.mark.parametrize("own_trainer", [False, True])
@pytest.mark.parametrize("type_name", UNLOADABLE)
def test_state_that_a_checkpoint_cannot_contain_is_rejected(
    type_name: str, own_trainer: bool
) -> None:
    def trainer(recipe: miha.Recipe, n_epochs: int) -> Any:
        raise AssertionError("trained")

    study = new_study()
    with pytest.raises(TypeError, match="must consist of tensors, numbers, strings") as caught:
        run(
            study,
            lambda trial: recipe_with(model=WithExtraState(UNLOADABLE[type_name]))(trial),
            trainer=trainer if own_trainer else None,
        )
    assert type_name in str(caught.value)
    assert "torch.as_tensor" in str(caught.value)
    assert study.trials == []
    assert study.user_attrs == {}


def test_state_written_by_the_forward_pass_is_checked() -> None:
    class WithMean(WithExtraState):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.extra = np.float64(x.detach().mean())
            return super().forward(x)

    study = new_study()
    with pytest.raises(TypeError, match=r"got numpy.*multiarray\.scalar"):
        run(study, lambda trial: recipe_with(model=WithMean(None))(trial))
    assert study.user_attrs == {}


def test_state_that_a_checkpoint_can_contain_is_restored() -> None:
    extra = {"history": [(1, 0.5)], "name": "x", "weights": torch.ones(2), "none": None}

    def model_fn(trial: Any) -> Any:
        return recipe_with(model=WithExtraState(extra))(trial)

    result = run(new_study(), model_fn, plan=SHORT)
    assert result.model.extra["history"] == [(1, 0.5)]


class StatefulLoss(nn.Module):
    """A loss with a buffer, and a state that changes with every call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.tensor([1.0, 2.0, 3.0]))
        self.n_calls = 0

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        self.n_calls += 1
        factor = 1 + self.n_calls / 1000
        return factor * nn.functional.cross_entropy(output, target, weight=self.weight)


LOSSES: dict[str, Any] = {
    "random": lambda o, y: cross_entropy(None, nn.functional.dropout(o, 0.5), y),
    "random by NumPy": lambda o, y: cross_entropy(None, o, y) * (1 + np.random.rand()),
    "NaN": lambda o, y: cross_entropy(None, o, y) * float("nan"),
}


@pytest.mark.parametrize(
    "kind", [*LOSSES, "stateful", "penalty in training mode", "buffer of the network"]
)
def test_losses_that_do_not_depend_on_the_weights_are_accepted(kind: str) -> None:
    def model_fn(trial: Any) -> miha.Recipe:
        recipe = classifier(trial)
        model: Any = recipe.model
        model.register_buffer("shares", torch.tensor([0.2, 0.3, 0.5]))
        if kind == "stateful":
            recipe.loss_fn = StatefulLoss()
        elif kind == "penalty in training mode":
            recipe.loss_fn = lambda o, y: (
                cross_entropy(None, o, y) + model.training * model[0].weight.square().sum()
            )
        elif kind == "buffer of the network":
            recipe.loss_fn = lambda o, y: nn.functional.cross_entropy(o, y, weight=model.shares)
        else:
            recipe.loss_fn = lambda o, y: LOSSES[kind](o, y)
        return recipe

    first, second = (build_initial(model_fn, 0).recipe for _ in range(2))
    check_valid_loss(first, second, run_context(model_fn))


def test_check_valid_loss_restores_networks_and_generators() -> None:
    first, second = (build_initial(classifier, 0).recipe for _ in range(2))
    before = copy_tensors([first.model.state_dict(), second.model.state_dict(), capture_rng(CPU)])
    check_valid_loss(first, second, run_context(classifier))
    after = [first.model.state_dict(), second.model.state_dict(), capture_rng(CPU)]
    assert same(before, copy_tensors(after))


def test_train_step_may_add_a_term_that_depends_on_the_network() -> None:
    def train_step(model: Any, batch: Any, loss_fn: Any) -> torch.Tensor:
        x, y = batch
        return loss_fn(model(x), y) + model.penalty

    study = new_study()
    result = run(study, with_loss_of_model(cross_entropy, train_step=train_step), plan=SHORT)
    x, y = blobs(30, seed=1)
    with torch.no_grad():
        expected = train_step(result.model, (x, y), nn.CrossEntropyLoss())
    assert result.value == pytest.approx(float(expected))
