"""Exports of a result: table, code and ONNX."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.equality import same
from helpers.problems import (
    SHORT,
    accuracy_classifier,
    blobs,
    classifier,
    explicit,
    new_study,
    run,
    weights,
)
from helpers.segments import segment
from optuna.trial import FixedTrial
from torch import nn

import optuna_miha as miha
from optuna_miha._model.activations import ACTIVATIONS
from optuna_miha._model.model_fn import build_recipe
from optuna_miha._results.pytorch_code import code_of


@pytest.fixture(scope="module")
def result() -> miha.Result:
    return run(new_study(), device="cpu")


def executed(code: str, model: nn.Module) -> dict[str, Any]:
    """The namespace after the code has been executed with ``model``."""
    namespace: dict[str, Any] = {"model": model}
    exec(code, namespace)
    return namespace


def original_model() -> nn.Sequential:
    """The network of :func:`problems.classifier` with its original architecture."""
    return nn.Sequential(
        nn.Linear(4, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.1), nn.Linear(12, 3)
    )


def same_optimizer(one: torch.optim.Optimizer, other: torch.optim.Optimizer) -> bool:
    """Whether class, parameter groups and settings are equal."""

    def settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
        return [
            {k: v for k, v in g.items() if k != "params"} | {"n": [p.shape for p in g["params"]]}
            for g in optimizer.param_groups
        ]

    return type(one) is type(other) and settings(one) == settings(other)


def test_table_has_one_row_for_each_segment(result: miha.Result) -> None:
    pytest.importorskip("pandas")
    table = result.to_dataframe()
    assert list(table["number"]) == [s.number for s in result.segments]
    assert list(table["end"]) == [s.end for s in result.segments]
    assert table["trained"].sum() == result.n_epochs_trained
    assert list(table[table["in_lineage"]]["number"]) == sorted(s.number for s in result.lineage)
    assert set(table["state"]) <= {"COMPLETE", "PRUNED", "FAIL"}
    own = table[table["number"] == result.trial.number].iloc[0]
    assert own["value"] == result.value
    assert {name: own[f"params_{name}"] for name in result.params} == result.params


def test_table_without_pandas_says_what_to_install(
    result: miha.Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        result.to_dataframe()


def test_code_applies_the_configuration_to_the_original_network(result: miha.Result) -> None:
    model = original_model()
    found = executed(result.code(), model)
    recipe = build_recipe(classifier, FixedTrial(result.params), 0)
    assert repr(model) == repr(recipe.model)
    assert recipe.optimizer is not None
    assert same_optimizer(found["optimizer"], recipe.optimizer)
    assert found["batch_size"] == recipe.batch_size
    assert repr(found["loss_fn"]) == repr(recipe.loss_fn)
    assert found["loss_fn"].label_smoothing == recipe.loss_fn.label_smoothing
    model.load_state_dict(result.model.state_dict())
    x, _ = blobs(9, seed=3)
    assert torch.equal(model.eval()(x), result.model(x))


def test_code_does_not_depend_on_the_package(result: miha.Result) -> None:
    assert "optuna" not in result.code()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_code_creates_every_activation(name: str) -> None:
    def model_fn(trial: Any) -> miha.Recipe:
        recipe = classifier(trial)
        miha.suggest_activations(trial, recipe.model, choices=list(ACTIVATIONS))
        return recipe

    params = {"activation.2": name}
    recipe = build_recipe(model_fn, FixedTrial(params), 0)
    model = original_model()
    executed(code_of(recipe, params), model)
    assert type(model[2]) is ACTIVATIONS[name]


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "adadelta", "nadam", "rmsprop"])
def test_code_creates_every_optimizer_with_the_settings_of_the_user(name: str) -> None:
    def model_fn(trial: Any) -> miha.Recipe:
        recipe = classifier(trial)
        initial = torch.optim.AdamW(recipe.model.parameters(), betas=(0.8, 0.95), amsgrad=True)
        recipe.optimizer = miha.suggest_optimizer(
            trial, recipe.model.parameters(), initial=initial, choices=[name]
        )
        return recipe

    params = {"optimizer": name, "lr": 0.0123, "weight_decay": 1e-3, "momentum": 0.7}
    recipe = build_recipe(model_fn, FixedTrial(params), 0)
    found = executed(code_of(recipe, params), original_model())
    assert recipe.optimizer is not None
    assert same_optimizer(found["optimizer"], recipe.optimizer)


def test_code_names_parameters_if_groups_differ() -> None:
    recipe = classifier(None)
    weights = [p for p in recipe.model.parameters() if p.ndim > 1]
    biases = [p for p in recipe.model.parameters() if p.ndim < 2]
    recipe.optimizer = torch.optim.SGD(
        [{"params": weights, "weight_decay": 0.1}, {"params": biases, "lr": 0.5}], lr=0.2
    )
    model = original_model()
    found = executed(code_of(recipe, {"lr": 0.2}), model)
    assert same_optimizer(found["optimizer"], recipe.optimizer)
    held = {id(p) for p in found["optimizer"].param_groups[1]["params"]}
    assert held == {id(p) for p in model.parameters() if p.ndim < 2}


def test_code_has_dropout_rates_loss_and_custom_suggestions() -> None:
    params = {"dropout.3": 0.25, "label_smoothing": 0.1, "mixup": 0.4, "dropout.gone": 0.5}
    recipe = classifier(None)
    recipe.model.get_submodule("3").p = 0.25  # type: ignore[assignment]
    recipe.optimizer = torch.optim.SGD(recipe.model.parameters())
    recipe.loss_fn = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]), label_smoothing=0.1)
    model = original_model()
    found = executed(code_of(recipe, params), model)
    assert model[3].p == 0.25
    assert found["loss_fn"].label_smoothing == 0.1
    assert found["loss_fn"].weight.tolist() == [1, 2, 3]
    assert found["params"] == {"mixup": 0.4, "dropout.gone": 0.5}


def test_code_does_not_define_a_custom_loss() -> None:
    recipe = classifier(None)
    recipe.optimizer = torch.optim.SGD(recipe.model.parameters())
    recipe.loss_fn = lambda outputs, targets: outputs.mean()
    code = code_of(recipe, {"label_smoothing": 0.1})
    assert "loss_fn" not in executed(code, original_model())
    assert executed(code, original_model())["params"] == {"label_smoothing": 0.1}


def test_code_sets_the_activations_of_neuron_groups() -> None:
    def model_fn(trial: Any) -> miha.Recipe:
        recipe = classifier(trial)
        miha.suggest_activations(trial, recipe.model, per="neuron", n_groups=3)
        return recipe

    names = ["tanh", "tanh", "relu"]
    params = {f"activation.2.{i}": name for i, name in enumerate(names)}
    recipe = build_recipe(model_fn, FixedTrial(params), 0)
    model = original_model()
    executed(code_of(recipe, params), model)
    model.load_state_dict(recipe.model.state_dict())
    x, _ = blobs(9)
    assert torch.equal(model.eval()(x), recipe.model.eval()(x))
    alike = build_recipe(model_fn, FixedTrial(dict.fromkeys(params, "elu")), 0)
    executed(code_of(alike, params), model := original_model())
    assert type(model[2]) is nn.ELU


def test_code_replaces_a_shared_activation_everywhere_including_transformers() -> None:
    def network() -> nn.Module:
        shared = nn.ReLU()
        layer = nn.TransformerEncoderLayer(4, 2, 8, 0.0, activation=shared, batch_first=True)
        return nn.Sequential(nn.Linear(4, 4), shared, layer, nn.Linear(4, 3))

    def model_fn(trial: Any) -> miha.Recipe:
        recipe = classifier(trial)
        recipe.model, recipe.optimizer = network(), None
        miha.suggest_activations(trial, recipe.model)
        return recipe

    params = {"activation.1": "tanh"}
    recipe = build_recipe(model_fn, FixedTrial(params), 0)
    model = network()
    executed(code_of(recipe, params), model)
    model.load_state_dict(recipe.model.state_dict())
    x = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model.eval()(x), recipe.model.eval()(x))


def test_an_optimizer_of_another_package_is_imported() -> None:
    recipe = classifier(None)
    recipe.optimizer = Halving(recipe.model.parameters(), lr=0.5)
    found = executed(code_of(recipe, {}), original_model())
    assert type(found["optimizer"]).__name__ == "Halving"
    assert found["optimizer"].defaults == recipe.optimizer.defaults


class Halving(torch.optim.SGD):
    """An optimizer class that is not in torch."""


@pytest.mark.slow
def test_a_loaded_result_gives_the_same_exports(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/study.db"
    first = run(new_study(storage), explicit, device="cpu")
    loaded = miha.load_result(new_study(storage), explicit, device="cpu")
    assert loaded.code() == first.code()
    assert str(loaded.schedule) == str(first.schedule)
    assert loaded.schedule == first.schedule
    assert loaded.describe() == first.describe()
    replayed = miha.replay(loaded.schedule, explicit, device="cpu")
    assert replayed.value == first.value


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_an_onnx_file_computes_the_outputs_of_the_model(
    result: miha.Result, tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript")
    reference = pytest.importorskip("onnx.reference")
    x, _ = blobs(7, seed=2)
    result.export(tmp_path / "model.onnx", x[:1])
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    evaluator = reference.ReferenceEvaluator(str(tmp_path / "model.onnx"))
    [outputs] = evaluator.run(None, {evaluator.input_names[0]: x.numpy()})
    assert torch.allclose(torch.from_numpy(outputs), result.model(x), atol=1e-5)


def test_onnx_without_its_packages_says_what_to_install(
    result: miha.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("onnx", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, None)  # As if it were not installed.
    with pytest.raises(ImportError, match=r"needs onnx and onnxscript: install them with"):
        result.export(tmp_path / "model.onnx", blobs(2)[0])
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.slow
def test_the_best_restart_of_a_study_that_maximizes_has_the_largest_value() -> None:
    study = new_study(direction="maximize")
    result = run(study, accuracy_classifier)
    restarts = (
        segment(number, role="restart", cycle=9 + number, value=value)
        for number, value in ((900, 0.1), (901, 0.2))
    )
    result = replace(result, segments=(*result.segments, *restarts))
    assert "(0.2, trial 901)" in result.describe()


def test_code_says_that_the_learning_rate_was_annealed(result: miha.Result) -> None:
    last = result.lineage[-1]
    assert last.role == "final"
    assert f"the highest learning rate of {last.trained} epochs" in result.code()
    constant = run(new_study(), plan=miha.Plan.no_search(3))
    assert "the highest" not in constant.code()


@pytest.mark.slow
def test_code_says_that_a_learning_rate_fell_without_a_rise() -> None:
    def model_fn(trial: Any) -> miha.Recipe:
        recipe = classifier(trial)
        lr = trial.suggest_categorical("lr", [0.01, 0.02])
        recipe.optimizer = torch.optim.SGD(recipe.model.parameters(), lr=lr)
        return recipe

    study = new_study()
    result = run(study, model_fn)
    last = result.lineage[-1]
    assert last.role == "final", "the case does not occur: choose another seed"
    assert f"the initial learning rate of {last.trained} epochs" in result.code()
    replayed = miha.replay(result.schedule, model_fn, device="cpu")
    assert same(weights(result), dict(replayed.model.state_dict()))


class Silent(nn.Module):
    """A network whose `train` returns nothing, which no training loop minds."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.norm(x))

    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        super().train(mode)
        self.norm.eval()


def test_network_whose_train_returns_nothing_is_returned() -> None:
    def model_fn(trial: Any) -> miha.Recipe:
        return replace(classifier(trial), model=Silent())

    result = run(new_study(), model_fn, plan=SHORT)
    assert isinstance(result.model, Silent)
    assert not result.model.training
    replayed = miha.replay(result.schedule, model_fn, device="cpu")
    assert isinstance(replayed.model, Silent)
