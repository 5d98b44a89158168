"""What a person gets wrong in the first hour, and what the message says."""

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
from optuna_miha._training.preflight import check_valid_loss


def recipe_with(**changes: Any) -> Any:
    """A ``model_fn`` whose recipe differs in ``changes``."""

    def model_fn(trial: Any) -> miha.Recipe:
        parts: dict[str, Any] = {
            "model": nn.Linear(4, 3),
            "loss_fn": nn.CrossEntropyLoss(),
            "train_data": blobs(60, seed=0),
            "valid_data": blobs(30, seed=1),
        }
        return miha.Recipe(**(parts | changes))

    return model_fn


def uncopyable() -> nn.Module:
    """A network that holds the result of a computation."""
    model = nn.Linear(4, 3)
    model.halved = model.weight / 2
    return model


def locked() -> nn.Module:
    """A network that holds a lock."""
    model = nn.Linear(4, 3)
    model.lock = threading.Lock()
    return model


class Stateful(nn.Linear):
    """A network with a state of its own besides its parameters."""

    def __init__(self, extra: Any) -> None:
        super().__init__(4, 3)
        self.extra = extra

    def get_extra_state(self) -> Any:
        return {"extra": self.extra}

    def set_extra_state(self, state: Any) -> None:
        self.extra = state["extra"]


class Divergent(nn.Linear):
    """A network whose forward pass leaves a part of the loss in it."""

    divergence: Any

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.divergence = self.weight.square().mean()
        return super().forward(x)


def of_the_network(loss: Any, **changes: Any) -> Any:
    """A ``model_fn`` whose loss is a function of network, outputs and targets."""

    def model_fn(trial: Any) -> miha.Recipe:
        model = Divergent(4, 3)
        return recipe_with(
            model=model, loss_fn=lambda output, target: loss(model, output, target), **changes
        )(trial)

    return model_fn


def cross_entropy(model: Any, output: Any, target: Any) -> torch.Tensor:
    return nn.functional.cross_entropy(output, target)


X, Y = blobs(60)
MODEL = nn.Linear(4, 3)

CASES: dict[str, tuple[Any, type[Exception], list[str]]] = {
    "model_fn returns nothing": (lambda trial: None, TypeError, ["Recipe", "None", "return"]),
    "model_fn returns a tuple": (lambda trial: (1, 2), TypeError, ["Recipe", "(1, 2)"]),
    "no validation data": (
        recipe_with(valid_data=None),
        ValueError,
        ["valid_data", "None", "hold a part"],
    ),
    "lengths differ": (
        recipe_with(train_data=(X, Y[:50])),
        ValueError,
        ["train_data", "equal length", "[60, 50]"],
    ),
    "arrays": (
        recipe_with(train_data=(X.numpy(), Y.numpy())),
        TypeError,
        ["train_data", "numpy", "torch.as_tensor"],
    ),
    "one tensor": (recipe_with(train_data=(X,)), TypeError, ["train_data", "two tensors"]),
    "empty data": (recipe_with(valid_data=(X[:0], Y[:0])), ValueError, ["valid_data", "none"]),
    "vector loss": (
        recipe_with(loss_fn=nn.CrossEntropyLoss(reduction="none")),
        ValueError,
        ["scalar", "(32,)", 'reduction="mean"'],
    ),
    "loss is a number": (
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
    "direction against the monitor": (
        recipe_with(monitor="accuracy"),
        ValueError,
        ["maximize", "accuracy", 'direction="maximize"'],
    ),
    "the same network twice": (
        recipe_with(model=MODEL),
        ValueError,
        ["new network", "copy.deepcopy"],
    ),
    "optimizer of another model": (
        recipe_with(optimizer=torch.optim.Adam(nn.Linear(2, 2).parameters())),
        ValueError,
        ["model.parameters()"],
    ),
    "loader that yields nothing": (
        recipe_with(train_data=DataLoader(TensorDataset(X, Y), sampler=SubsetRandomSampler([]))),
        ValueError,
        ["at least one batch", "drop_last"],
    ),
    "loader that would lose its iteration": (
        recipe_with(train_data=Doubling(TensorDataset(X, Y), batch_size=16)),
        TypeError,
        ["train_data", "Doubling", "`__iter__`", "`collate_fn`", "`batch_sampler`"],
    ),
    "NaN in the validation data": (
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
    "a network that cannot be copied": (
        lambda trial: recipe_with(model=uncopyable())(trial),
        TypeError,
        ["copy.deepcopy", "ema_decay=0"],
    ),
    "a network with a part that cannot be copied": (
        lambda trial: recipe_with(model=locked())(trial),
        TypeError,
        ["copy.deepcopy", "lock", "keep out of the network"],
    ),
    "a loss with what a forward pass leaves in the network": (
        of_the_network(lambda m, o, y: cross_entropy(m, o, y) + m.divergence),
        ValueError,
        ["outputs and targets alone", "train_step", "valid_loss_fn"],
    ),
    "a loss with a penalty of the weights": (
        of_the_network(lambda m, o, y: cross_entropy(m, o, y) + 1e-3 * m.weight.square().sum()),
        ValueError,
        ["outputs and targets alone"],
    ),
    "a loss of validation with a penalty of the weights": (
        lambda trial: recipe_with(
            model=(model := nn.Linear(4, 3)),
            valid_loss_fn=lambda o, y: cross_entropy(None, o, y) + model.weight.abs().sum(),
        )(trial),
        ValueError,
        ["outputs and targets alone"],
    ),
    "an optimizer that needs a closure": (
        lambda trial: recipe_with(
            model=(model := nn.Linear(4, 3)), optimizer=torch.optim.LBFGS(model.parameters())
        )(trial),
        ValueError,
        ["LBFGS", "`closure`", "trainer of your own"],
    ),
    "train_step returns a tuple": (
        recipe_with(train_step=lambda model, batch, loss_fn: (model(batch[0]).mean(), 1)),
        TypeError,
        ["`train_step`", "tuple", "alone"],
    ),
    "vector loss of validation": (
        recipe_with(valid_loss_fn=nn.CrossEntropyLoss(reduction="none")),
        ValueError,
        ["`valid_loss_fn`", "scalar", "(30,)"],
    ),
    "no parameters": (recipe_with(model=nn.ReLU()), ValueError, ["parameters", "ReLU"]),
}


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_recipe_is_refused_before_anything_is_written(case: str) -> None:
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
        {"plan": None, "n_epochs": 10},
        ValueError,
        ["n_epochs=10", "at least 21"],
    ),
    "budget twice": ({"n_epochs": 50}, ValueError, ["n_epochs=50", "leave one"]),
    "budget not a number": ({"plan": None, "n_epochs": "200"}, TypeError, ["n_epochs", "'200'"]),
    "no workers": ({"n_jobs": 0}, ValueError, ["n_jobs", "0"]),
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
def test_a_wrong_argument_is_refused_before_anything_is_written(case: str) -> None:
    arguments, error, words = ARGUMENTS[case]
    study = new_study()
    with pytest.raises(error) as caught:
        run(study, classifier, **arguments)
    for word in words:
        assert word in str(caught.value)
    assert study.trials == []
    assert study.user_attrs == {}


@pytest.mark.parametrize("n_outputs", [1, 3], ids=["one logit", "one-hot"])
def test_data_that_have_no_accuracy_are_refused_before_anything_is_written(n_outputs: int) -> None:
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


def test_an_executor_that_is_shut_down_is_refused() -> None:
    from concurrent.futures import ThreadPoolExecutor

    executor: Executor = ThreadPoolExecutor(1)
    executor.shutdown()
    study = new_study()
    with pytest.raises(ValueError, match="shut down"):
        run(study, executor=executor)
    assert not study.get_trials(states=(optuna.trial.TrialState.RUNNING,))


def test_several_objectives_are_refused() -> None:
    study = optuna.create_study(directions=["minimize", "maximize"])
    with pytest.raises(ValueError, match="one objective, got 2 directions"):
        run(study)


def test_a_study_that_is_none_is_refused() -> None:
    with pytest.raises(TypeError, match=r"optuna\.Study, got NoneType"):
        run(None)  # type: ignore[arg-type]


def test_hyperband_is_refused_with_what_works_instead() -> None:
    study = new_study(pruner=optuna.pruners.HyperbandPruner())
    with pytest.raises(ValueError, match="SlopePruner"):
        run(study)


def normalized(trial: Any) -> miha.Recipe:
    """97 objects: the portfolio's batch size of 32 leaves a last batch of one."""
    x, y = blobs(97)
    return miha.Recipe(
        model=nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)),
        loss_fn=nn.CrossEntropyLoss(),
        train_data=(x, y),
        valid_data=blobs(30, seed=1),
        batch_size=128,
    )


def test_a_last_batch_of_one_object_does_not_break_batch_normalization() -> None:
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


def test_small_data_of_a_loader_that_drops_the_last_batch_are_trained_on() -> None:
    def model_fn(trial: Any) -> miha.Recipe:
        data = TensorDataset(*blobs(20))
        loader = DataLoader(data, batch_size=8, shuffle=True, drop_last=True)
        return recipe_with(model=nn.Linear(4, 3), train_data=loader)(trial)

    result = run(new_study(), model_fn)
    assert max(s.params["batch_size"] for s in result.segments) > 20, "choose another seed"


def test_an_error_of_one_branch_is_logged_with_the_way_past_it(
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


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize(
    "theirs",
    [
        optuna.distributions.CategoricalDistribution(("adam", "lion")),
        optuna.distributions.IntDistribution(0, 3),
    ],
)
def test_trials_of_something_else_with_a_parameter_of_another_kind_are_refused(
    kind: str, theirs: Any, tmp_path: Any
) -> None:
    study = new_study(None if kind == "memory" else f"sqlite:///{tmp_path}/study.db")
    value = theirs.to_external_repr(0)
    study.add_trial(
        optuna.trial.create_trial(
            params={"optimizer": value}, distributions={"optimizer": theirs}, value=1.0
        )
    )
    with pytest.raises(ValueError) as caught:
        run(study)
    for word in ("'optimizer'", str(theirs), "'adadelta'", "trial 0", "another name"):
        assert word in str(caught.value)
    assert len(study.trials) == 1
    assert study.user_attrs == {}


def test_trials_of_something_else_with_the_same_choices_do_not_hinder() -> None:
    first = run(new_study())
    study = new_study()
    lr = optuna.distributions.FloatDistribution(1e-6, 1.0, log=True)
    trial = optuna.trial.create_trial(params={"lr": 0.1}, distributions={"lr": lr}, value=1.0)
    study.add_trial(trial)
    assert run(study).value == first.value


@pytest.mark.parametrize("name", ["from_epoch", "to_epoch", "role", "anneal_to"])
def test_a_parameter_named_as_a_column_of_the_schedule_is_refused(name: str) -> None:
    def model_fn(trial: Any) -> miha.Recipe:
        trial.suggest_float(name, 0, 1)
        return classifier(trial)

    study = new_study()
    with pytest.raises(ValueError, match=f"column of the schedule.*got '{name}'"):
        run(study, model_fn)
    assert study.trials == []
    assert study.user_attrs == {}


Pair = namedtuple("Pair", "one two")

UNREADABLE = {
    "numpy._core": np.zeros(2),
    "numpy": [np.float32(1)],
    "datetime.date": {"day": date(2020, 1, 1)},
    "collections.deque": deque([1.0]),
    "Pair": Pair(1, 2),
    "lambda": lambda: 0,
}


@pytest.mark.parametrize("own_trainer", [False, True])
@pytest.mark.parametrize("named", UNREADABLE)
def test_a_state_that_could_not_be_read_back_is_refused(named: str, own_trainer: bool) -> None:
    def trainer(recipe: miha.Recipe, n_epochs: int) -> Any:
        raise AssertionError("trained")

    study = new_study()
    with pytest.raises(TypeError, match="must consist of tensors, numbers, strings") as caught:
        run(
            study,
            lambda trial: recipe_with(model=Stateful(UNREADABLE[named]))(trial),
            trainer=trainer if own_trainer else None,
        )
    assert named in str(caught.value)
    assert "torch.as_tensor" in str(caught.value)
    assert study.trials == []
    assert study.user_attrs == {}


def test_what_a_forward_pass_leaves_in_the_state_is_looked_at_too() -> None:
    class Noting(Stateful):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.extra = np.float64(x.detach().mean())
            return super().forward(x)

    study = new_study()
    with pytest.raises(TypeError, match=r"got numpy.*multiarray\.scalar"):
        run(study, lambda trial: recipe_with(model=Noting(None))(trial))
    assert study.user_attrs == {}


def test_a_state_of_what_a_checkpoint_may_hold_is_kept() -> None:
    extra = {"history": [(1, 0.5)], "name": "x", "weights": torch.ones(2), "none": None}
    result = run(new_study(), lambda trial: recipe_with(model=Stateful(extra))(trial), plan=SHORT)
    assert result.model.extra["history"] == [(1, 0.5)]


class Weighted(nn.Module):
    """A loss with a buffer, and a state that moves with every call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.tensor([1.0, 2.0, 3.0]))
        self.n_calls = 0

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        self.n_calls += 1
        factor = 1 + self.n_calls / 1000
        return factor * nn.functional.cross_entropy(output, target, weight=self.weight)


LOSSES: dict[str, Any] = {
    "drawn": lambda o, y: cross_entropy(None, nn.functional.dropout(o, 0.5), y),
    "of numpy": lambda o, y: cross_entropy(None, o, y) * (1 + np.random.rand()),
    "not a number": lambda o, y: cross_entropy(None, o, y) * float("nan"),
}


@pytest.mark.parametrize("kind", [*LOSSES, "stateful", "of training", "constant of the network"])
def test_losses_that_do_not_depend_on_the_network_are_taken(kind: str) -> None:
    def model_fn(trial: Any) -> miha.Recipe:
        recipe = classifier(trial)
        model: Any = recipe.model
        model.register_buffer("shares", torch.tensor([0.2, 0.3, 0.5]))
        if kind == "stateful":
            recipe.loss_fn = Weighted()
        elif kind == "of training":
            recipe.loss_fn = lambda o, y: (
                cross_entropy(None, o, y) + model.training * model[0].weight.square().sum()
            )
        elif kind == "constant of the network":
            recipe.loss_fn = lambda o, y: nn.functional.cross_entropy(o, y, weight=model.shares)
        else:
            recipe.loss_fn = lambda o, y: LOSSES[kind](o, y)
        return recipe

    first, second = (build_initial(model_fn, 0).recipe for _ in range(2))
    check_valid_loss(first, second, run_context(model_fn))


def test_looking_at_the_validation_loss_leaves_networks_and_generators_as_they_were() -> None:
    first, second = (build_initial(classifier, 0).recipe for _ in range(2))
    before = copy_tensors([first.model.state_dict(), second.model.state_dict(), capture_rng(CPU)])
    check_valid_loss(first, second, run_context(classifier))
    after = [first.model.state_dict(), second.model.state_dict(), capture_rng(CPU)]
    assert same(before, copy_tensors(after))


def test_a_train_step_may_add_to_the_loss_what_depends_on_the_network() -> None:
    def train_step(model: Any, batch: Any, loss_fn: Any) -> torch.Tensor:
        x, y = batch
        return loss_fn(model(x), y) + model.divergence

    study = new_study()
    result = run(study, of_the_network(cross_entropy, train_step=train_step), plan=SHORT)
    x, y = blobs(30, seed=1)
    with torch.no_grad():
        expected = train_step(result.model, (x, y), nn.CrossEntropyLoss())
    assert result.value == pytest.approx(float(expected))
