"""Suggested activations of groups of neurons."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from helpers.networks import choices_of, first_trial, mlp
from helpers.problems import blobs, new_study, run
from optuna.trial import FixedTrial
from torch import Tensor, nn

import optuna_miha as miha
from optuna_miha._model.activations import GroupedActivation
from optuna_miha._search.portfolio import startup_candidates
from optuna_miha._search.space import OFFERED_ACTIVATIONS, kind_of


def group_params(path: str, *names: str) -> dict[str, str]:
    """The parameters of the groups of a layer."""
    return {f"activation.{path}.{n}": name for n, name in enumerate(names)}


def test_initial_activation_of_a_group_is_that_of_the_layer() -> None:
    trial, model = first_trial(), mlp()
    modules = list(model)
    miha.suggest_activations(trial, model, per="neuron")
    assert trial.params == group_params("1", *["relu"] * 4) | group_params("4", *["tanh"] * 4)
    assert list(model) == modules
    assert set(choices_of(trial, "activation.1.3")) == set(OFFERED_ACTIVATIONS)


def test_groups_of_a_linear_layer_divide_its_features() -> None:
    model = mlp().eval()
    params = group_params("1", "gelu", "silu") | group_params("4", "tanh", "tanh")
    miha.suggest_activations(FixedTrial(params), model, per="neuron", n_groups=2)
    x = torch.randn(5, 4)
    hidden = model[0](x)
    parts = [nn.functional.gelu(hidden[:, :3]), nn.functional.silu(hidden[:, 3:])]
    assert torch.equal(model[:2](x), torch.cat(parts, dim=1))
    assert isinstance(model[4], nn.Tanh)


def test_groups_of_a_convolution_divide_its_channels() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 2)
    ).eval()
    params = group_params("2", "relu", "tanh", "elu")
    miha.suggest_activations(FixedTrial(params), model, per="neuron", n_groups=3)
    x = torch.randn(2, 1, 6, 6)
    hidden = model[:2](x)
    parts = [
        torch.relu(hidden[:, :2]),
        torch.tanh(hidden[:, 2:4]),
        nn.functional.elu(hidden[:, 4:]),
    ]
    assert torch.equal(model[:3](x), torch.cat(parts, dim=1))


def test_groups_of_a_transformer_layer_divide_its_hidden_features() -> None:
    layer = nn.TransformerEncoderLayer(
        8, 2, 16, dropout=0.0, activation=nn.ReLU(), batch_first=True
    )
    trial = first_trial({"activation.activation.1": "tanh"})
    miha.suggest_activations(trial, layer, per="neuron", n_groups=None)
    assert len(trial.params) == 16
    x = torch.randn(3, 5, 8)  # (N, L, F)
    trained = layer.train()(x).detach()
    with torch.no_grad():
        evaluated = layer.eval()(x)
        attended = layer.norm1(x + layer.self_attn(x, x, x, need_weights=False)[0])
        inner = layer.linear1(attended)
        hidden = torch.relu(inner)
        hidden[..., 1] = torch.tanh(inner[..., 1])
        expected = layer.norm2(attended + layer.linear2(hidden))
    assert torch.allclose(trained, expected, atol=1e-6)
    assert torch.allclose(evaluated, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("n_groups", "expected"),
    [("auto", {"1": 4, "4": 2}), (1, {"1": 1, "4": 1}), (3, {"1": 3, "4": 2})]
    + [(n, {"1": 6, "4": 2}) for n in (None, 6, 100)],
)
def test_layer_has_at_most_one_group_per_neuron(n_groups: Any, expected: Any) -> None:
    trial = first_trial()
    model = nn.Sequential(
        nn.Linear(4, 6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 2), nn.ReLU(), nn.Linear(2, 1)
    )
    miha.suggest_activations(trial, model, per="neuron", n_groups=n_groups)
    counts = Counter(name.split(".")[1] for name in trial.params)
    assert counts == expected


def test_groups_with_the_same_activation_become_a_plain_module() -> None:
    model = mlp()
    params = group_params("1", *["gelu"] * 4) | group_params("4", *["tanh"] * 4)
    configured = model[4]
    miha.suggest_activations(FixedTrial(params), model, per="neuron")
    assert type(model[1]) is nn.GELU
    assert model[4] is configured


def test_initial_name_applies_to_every_group() -> None:
    trial, model = first_trial(), mlp()
    miha.suggest_activations(trial, model, per="neuron", initial="silu")
    assert set(trial.params.values()) == {"silu"}
    assert isinstance(model[1], nn.SiLU) and isinstance(model[4], nn.SiLU)


def test_output_activation_can_have_groups() -> None:
    trial = first_trial({"activation.6.0": "hardsigmoid"})
    model = mlp()
    miha.suggest_activations(trial, model, per="neuron", include_output=True)
    assert trial.params["activation.6.0"] == "hardsigmoid"
    assert isinstance(model[6], nn.Hardsigmoid)
    assert "activation.6.1" not in trial.params


def test_second_call_does_not_change_groups() -> None:
    params = group_params("1", "gelu", "silu") | group_params("4", "tanh", "tanh")
    trial, model = first_trial(params), mlp()
    for _ in range(2):
        miha.suggest_activations(trial, model, per="neuron", n_groups=2)
    assert trial.params == params
    assert isinstance(model[1], GroupedActivation)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"per": "neurons"}, r'must be "layer" or "neuron", got \'neurons\''),
        ({"per": "neuron", "n_groups": 0}, "positive integer.*got 0"),
        ({"per": "neuron", "n_groups": -2}, "positive integer.*got -2"),
        ({"per": "neuron", "n_groups": 2.0}, "positive integer.*got 2.0"),
        ({"per": "neuron", "n_groups": True}, "positive integer.*got True"),
        ({"per": "neuron", "n_groups": "all"}, "positive integer.*got 'all'"),
        ({"n_groups": 4}, 'got 4 with per="layer": pass per="neuron"'),
        ({"n_groups": None}, 'got None with per="layer": pass per="neuron"'),
    ],
)
def test_invalid_groups_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        miha.suggest_activations(first_trial(), mlp(), **arguments)


def test_one_group_per_neuron_needs_the_number_of_neurons() -> None:
    model = nn.Sequential(nn.Tanh(), nn.Linear(4, 1))
    with pytest.raises(
        ValueError, match=r"there is no layer before the activation '0'.*n_groups=4"
    ):
        miha.suggest_activations(first_trial(), model, per="neuron", n_groups=None)
    trial = first_trial({"activation.0.0": "relu"})
    miha.suggest_activations(trial, model, per="neuron")
    x = torch.randn(3, 4)
    assert torch.equal(model[0](x), torch.cat([torch.relu(x[:, :1]), torch.tanh(x[:, 1:])], dim=1))


def test_startup_candidates_set_all_groups_to_one_activation() -> None:
    trial = first_trial()
    model = mlp()
    miha.suggest_activations(trial, model, per="neuron")
    miha.suggest_optimizer(trial, model.parameters())
    race = startup_candidates(trial.params, trial.distributions, 6, np.random.default_rng(0))
    raced = [{v for k, v in c.items() if kind_of(k) == "activation"} for c in race]
    assert raced == [{"relu", "tanh"}, {"gelu"}, {"gelu"}, {"relu"}, {"silu"}, {"gelu"}]


def model_fn_with_groups(trial: Any) -> miha.Recipe:
    """Three classes; only activations and the learning rate change."""
    model = nn.Sequential(
        nn.Linear(4, 12), nn.BatchNorm1d(12), nn.ReLU(inplace=True), nn.Linear(12, 3)
    )
    miha.suggest_activations(trial, model, per="neuron", n_groups=3)
    return miha.Recipe(
        model=model,
        loss_fn=nn.CrossEntropyLoss(),
        optimizer=miha.suggest_optimizer(trial, model.parameters()),
        train_data=blobs(60, seed=0),
        valid_data=blobs(30, seed=1),
        batch_size=16,
    )


def validation_loss(model: Any) -> float:
    x, y = blobs(30, seed=1)
    with torch.no_grad():
        cost: Tensor = nn.functional.cross_entropy(model(x), y)
    return cost.item()


PLAN = miha.Plan(90, startup=4, fixing_epochs=3, mutations=("activation",), anneal="cosine")


@pytest.mark.slow
def test_run_with_groups_returns_the_model_of_its_value() -> None:
    result = run(new_study(), model_fn_with_groups, plan=PLAN)
    assert result.n_epochs_trained == PLAN.n_epochs
    mixed = [s for s in result.segments if len({v for k, v in s.params.items() if "act" in k}) > 1]
    assert mixed, "no segment has different activations: choose another seed"
    assert any(s.mutation.startswith("activation.2") for s in mixed)
    assert validation_loss(result.model) == pytest.approx(result.value, rel=1e-6)


@pytest.mark.slow
def test_branches_with_groups_inherit_the_weights() -> None:
    result = run(new_study(seed=1), model_fn_with_groups, plan=PLAN)
    assert all(s.state.is_finished() and s.state.name != "FAIL" for s in result.segments)
    state = model_fn_with_groups(FixedTrial(result.params)).model.state_dict()
    assert state.keys() == result.model.state_dict().keys()


def test_network_with_groups_can_be_copied_pickled_and_exported(tmp_path: Path) -> None:
    trial = first_trial(group_params("2", "relu", "tanh", "gelu"))
    model = model_fn_with_groups(trial).model.eval()
    assert isinstance(model[2], GroupedActivation)
    x = torch.randn(5, 4)
    expected = model(x)
    assert torch.equal(copy.deepcopy(model)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), expected)
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "groups.pt2")
    loaded = torch.export.load(tmp_path / "groups.pt2").module()
    more = torch.randn(9, 4)
    assert torch.allclose(loaded(more), model(more), atol=1e-6)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_any_sampler_can_suggest_groups(sampler: str) -> None:
    created = {
        "tpe": lambda: optuna.samplers.TPESampler(seed=0, n_startup_trials=2),
        "random": lambda: optuna.samplers.RandomSampler(seed=0),
    }[sampler]()
    study = optuna.create_study(sampler=created)
    x = torch.randn(3, 4)
    for number in range(5):
        trial = study.ask()
        torch.manual_seed(0)
        model = model_fn_with_groups(trial).model.eval()
        torch.manual_seed(0)
        again = model_fn_with_groups(FixedTrial(trial.params)).model.eval()
        assert torch.equal(model(x), again(x))
        study.tell(trial, float(number))
