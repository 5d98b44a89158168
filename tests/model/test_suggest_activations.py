"""Suggesting activations: of layers, and of groups of neurons."""

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
from helpers.networks import choices_of, first_trial
from helpers.problems import SHORT, blobs, classifier, new_study, run
from optuna.trial import FixedTrial
from torch import Tensor, nn

import optuna_miha as miha
from optuna_miha._model.activations import GroupedActivation
from optuna_miha._search.portfolio import startup_candidates
from optuna_miha._search.space import OFFERED_ACTIVATIONS, kind_of


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(4, 6),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(6, 6),
        nn.Tanh(),
        nn.Linear(6, 1),
        nn.Sigmoid(),
    )


class TestLayers:
    def test_every_layer_starts_from_its_own_activation(self) -> None:
        trial, model = first_trial(), net()
        before = list(model)
        miha.suggest_activations(trial, model)
        assert trial.params == {"activation.1": "relu", "activation.4": "tanh"}
        assert list(model) == before
        assert set(choices_of(trial, "activation.1")) == set(OFFERED_ACTIVATIONS)

    def test_a_chosen_activation_is_put_in_place(self) -> None:
        model = net()
        miha.suggest_activations(
            FixedTrial({"activation.1": "gelu", "activation.4": "tanh"}), model
        )
        assert isinstance(model[1], nn.GELU)
        assert isinstance(model[4], nn.Tanh)
        assert isinstance(model[6], nn.Sigmoid)

    def test_the_output_activation_changes_when_asked_for(self) -> None:
        trial = first_trial({"activation.6": "hardsigmoid"})
        model = net()
        miha.suggest_activations(trial, model, include_output=True)
        assert trial.params.keys() == {"activation.1", "activation.4", "activation.6"}
        assert isinstance(model[6], nn.Hardsigmoid)

    def test_an_activation_is_kept_as_configured_while_its_name_is_chosen(self) -> None:
        trial = first_trial()
        model = nn.Sequential(nn.Linear(4, 4), nn.LeakyReLU(0.2), nn.Linear(4, 1))
        configured = model[1]
        miha.suggest_activations(trial, model)
        assert trial.params == {"activation.1": "leaky_relu"}
        assert model[1] is configured
        assert model[1].negative_slope == 0.2

    def test_an_initial_name_is_put_everywhere(self) -> None:
        trial, model = first_trial(), net()
        miha.suggest_activations(trial, model, initial="silu")
        assert trial.params == {"activation.1": "silu", "activation.4": "silu"}
        assert isinstance(model[1], nn.SiLU) and isinstance(model[4], nn.SiLU)

    def test_the_present_activation_joins_the_choices(self) -> None:
        trial = first_trial()
        miha.suggest_activations(trial, net(), choices=["relu", "gelu"])
        assert choices_of(trial, "activation.1") == ("relu", "gelu")
        assert choices_of(trial, "activation.4") == ("tanh", "relu", "gelu")
        assert trial.params["activation.4"] == "tanh"

    @pytest.mark.parametrize("bad", [{"choices": ["relu", "sofmax"]}, {"initial": "sofmax"}])
    def test_an_unknown_name_is_refused(self, bad: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=r"must be one of .*'relu'.*got 'sofmax'"):
            miha.suggest_activations(first_trial(), net(), **bad)


class Bare(nn.Linear):
    """A network without activation modules, known by its name to one test alone."""


def test_a_network_without_activation_modules_gets_a_hint_once_in_a_run(
    log: pytest.LogCaptureFixture,
) -> None:
    def model_fn(trial: Any) -> miha.Recipe:
        x, y = blobs(40)
        model = Bare(4, 3)
        miha.suggest_activations(trial, model)
        lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
        return miha.Recipe(
            model=model,
            loss_fn=nn.CrossEntropyLoss(),
            train_data=(x[:30], y[:30]),
            valid_data=(x[30:], y[30:]),
            optimizer=torch.optim.SGD(model.parameters(), lr=lr),
        )

    run(new_study(), model_fn, plan=SHORT, initial_params={"lr": 1e-3})
    hints = [r for r in log.records if "no activation module in Bare:" in r.getMessage()]
    assert len(hints) == 1


class Barer(nn.Linear):
    """As above."""


def test_a_default_search_space_without_activations_is_no_reason_for_a_hint(
    log: pytest.LogCaptureFixture,
) -> None:
    def model_fn(trial: Any) -> miha.Recipe:
        recipe = classifier(trial)
        return miha.Recipe(
            model=Barer(4, 3),
            loss_fn=recipe.loss_fn,
            train_data=recipe.train_data,
            valid_data=recipe.valid_data,
        )

    run(new_study(), model_fn, plan=SHORT)
    assert "no activation module" not in log.text


def groups(path: str, *names: str) -> dict[str, str]:
    """Parameters of the groups of one layer."""
    return {f"activation.{path}.{n}": name for n, name in enumerate(names)}


class TestNeurons:
    def test_every_group_starts_from_the_activation_of_its_layer(self) -> None:
        trial, model = first_trial(), net()
        before = list(model)
        miha.suggest_activations(trial, model, per="neuron")
        assert trial.params == groups("1", *["relu"] * 4) | groups("4", *["tanh"] * 4)
        assert list(model) == before
        assert set(choices_of(trial, "activation.1.3")) == set(OFFERED_ACTIVATIONS)

    def test_groups_of_a_linear_layer_are_parts_of_its_features(self) -> None:
        model = net().eval()
        params = groups("1", "gelu", "silu") | groups("4", "tanh", "tanh")
        miha.suggest_activations(FixedTrial(params), model, per="neuron", n_groups=2)
        x = torch.randn(5, 4)
        hidden = model[0](x)
        parts = [nn.functional.gelu(hidden[:, :3]), nn.functional.silu(hidden[:, 3:])]
        assert torch.equal(model[:2](x), torch.cat(parts, dim=1))
        assert isinstance(model[4], nn.Tanh)

    def test_groups_of_a_convolution_are_channels(self) -> None:
        model = nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 2)
        ).eval()
        params = groups("2", "relu", "tanh", "elu")
        miha.suggest_activations(FixedTrial(params), model, per="neuron", n_groups=3)
        x = torch.randn(2, 1, 6, 6)
        hidden = model[:2](x)
        parts = [
            torch.relu(hidden[:, :2]),
            torch.tanh(hidden[:, 2:4]),
            nn.functional.elu(hidden[:, 4:]),
        ]
        assert torch.equal(model[:3](x), torch.cat(parts, dim=1))

    def test_groups_of_a_transformer_are_features_of_its_inner_layer(self) -> None:
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
    def test_a_layer_has_a_group_per_neuron_at_most(self, n_groups: Any, expected: Any) -> None:
        trial = first_trial()
        model = nn.Sequential(
            nn.Linear(4, 6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 2), nn.ReLU(), nn.Linear(2, 1)
        )
        miha.suggest_activations(trial, model, per="neuron", n_groups=n_groups)
        counts = Counter(name.split(".")[1] for name in trial.params)
        assert counts == expected

    def test_groups_that_agree_become_a_plain_activation(self) -> None:
        model = net()
        params = groups("1", *["gelu"] * 4) | groups("4", *["tanh"] * 4)
        configured = model[4]
        miha.suggest_activations(FixedTrial(params), model, per="neuron")
        assert type(model[1]) is nn.GELU
        assert model[4] is configured

    def test_an_initial_name_is_where_all_groups_start(self) -> None:
        trial, model = first_trial(), net()
        miha.suggest_activations(trial, model, per="neuron", initial="silu")
        assert set(trial.params.values()) == {"silu"}
        assert isinstance(model[1], nn.SiLU) and isinstance(model[4], nn.SiLU)

    def test_the_output_activation_has_groups_when_asked_for(self) -> None:
        trial = first_trial({"activation.6.0": "hardsigmoid"})
        model = net()
        miha.suggest_activations(trial, model, per="neuron", include_output=True)
        assert trial.params["activation.6.0"] == "hardsigmoid"
        assert isinstance(model[6], nn.Hardsigmoid)
        assert "activation.6.1" not in trial.params

    def test_a_second_call_leaves_groups_alone(self) -> None:
        params = groups("1", "gelu", "silu") | groups("4", "tanh", "tanh")
        trial, model = first_trial(params), net()
        for _ in range(2):
            miha.suggest_activations(trial, model, per="neuron", n_groups=2)
        assert trial.params == params
        assert isinstance(model[1], GroupedActivation)

    @pytest.mark.parametrize(
        ("bad", "message"),
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
    def test_groups_that_cannot_be_made_are_refused(
        self, bad: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            miha.suggest_activations(first_trial(), net(), **bad)

    def test_one_group_per_neuron_needs_their_number(self) -> None:
        model = nn.Sequential(nn.Tanh(), nn.Linear(4, 1))
        with pytest.raises(ValueError, match=r"no layer before the activation '0'.*n_groups=4"):
            miha.suggest_activations(first_trial(), model, per="neuron", n_groups=None)
        trial = first_trial({"activation.0.0": "relu"})
        miha.suggest_activations(trial, model, per="neuron")
        x = torch.randn(3, 4)
        assert torch.equal(
            model[0](x), torch.cat([torch.relu(x[:, :1]), torch.tanh(x[:, 1:])], dim=1)
        )

    def test_a_race_gives_all_groups_the_activation_of_its_candidate(self) -> None:
        trial = first_trial()
        model = net()
        miha.suggest_activations(trial, model, per="neuron")
        miha.suggest_optimizer(trial, model.parameters())
        race = startup_candidates(trial.params, trial.distributions, 6, np.random.default_rng(0))
        raced = [{v for k, v in c.items() if kind_of(k) == "activation"} for c in race]
        assert raced == [{"relu", "tanh"}, {"gelu"}, {"gelu"}, {"relu"}, {"silu"}, {"gelu"}]


def by_neuron(trial: Any) -> miha.Recipe:
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


PLAN = miha.Plan(90, startup=4, fixing_epochs=3, mutations=("activation",))


def test_a_run_with_groups_returns_the_model_of_its_value() -> None:
    result = run(new_study(), by_neuron, plan=PLAN)
    assert result.n_epochs_trained == PLAN.n_epochs
    mixed = [s for s in result.segments if len({v for k, v in s.params.items() if "act" in k}) > 1]
    assert mixed, "the case does not occur: choose another seed"
    assert any(s.mutation.startswith("activation.2") for s in mixed)
    assert validation_loss(result.model) == pytest.approx(result.value, rel=1e-6)


def test_every_branch_with_groups_takes_the_weights_of_the_trunk() -> None:
    result = run(new_study(seed=1), by_neuron, plan=PLAN)
    assert all(s.state.is_finished() and s.state.name != "FAIL" for s in result.segments)
    state = by_neuron(FixedTrial(result.params)).model.state_dict()
    assert state.keys() == result.model.state_dict().keys()


def test_a_network_with_groups_is_copied_pickled_and_exported(tmp_path: Path) -> None:
    trial = first_trial(groups("2", "relu", "tanh", "gelu"))
    model = by_neuron(trial).model.eval()
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
def test_any_sampler_can_answer_for_groups(sampler: str) -> None:
    made = {
        "tpe": lambda: optuna.samplers.TPESampler(seed=0, n_startup_trials=2),
        "random": lambda: optuna.samplers.RandomSampler(seed=0),
    }[sampler]()
    study = optuna.create_study(sampler=made)
    x = torch.randn(3, 4)
    for number in range(5):
        trial = study.ask()
        torch.manual_seed(0)
        model = by_neuron(trial).model.eval()
        torch.manual_seed(0)
        again = by_neuron(FixedTrial(trial.params)).model.eval()
        assert torch.equal(model(x), again(x))
        study.tell(trial, float(number))
