"""What a person gets wrong in the first hour, and what the message says."""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Any

import optuna
import pytest
import torch
from problems import blobs, classifier, new_study, run
from torch import nn
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset

import optuna_miha as miha


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


class Doubling(DataLoader[Any]):
    """Works on its batches."""

    def __iter__(self) -> Any:
        return ((2 * x, y) for x, y in super().__iter__())


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
    def one_hot(n_objects: int) -> Any:
        x, y = blobs(n_objects)
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
