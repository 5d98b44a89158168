"""Suggested activations and batch sizes that nothing uses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.problems import SHORT, blobs, classifier, new_study, run
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

import optuna_miha as miha


class Net(nn.Module):
    """A network whose activation is called in one of several ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.act, self.b = nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)
        self.how, self.listed = how, [self.act]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        if self.how == "list":
            x = self.listed[0](x)
        elif self.how == "forward":
            x = self.act.forward(x)
        elif self.how == "module" or (self.how == "validation") != self.training:
            x = self.act(x)
        return self.b(x)


def suggesting(how: str, per: Any = "layer", initial: str | None = "tanh") -> Any:
    def model_fn(trial: Any) -> miha.Recipe:
        model = Net(how)
        miha.suggest_activations(trial, model, initial=initial, per=per)
        return replace(classifier(trial), model=model)

    return model_fn


@pytest.mark.parametrize("initial", ["tanh", None], ids=["replaced", "replaced by mutations"])
@pytest.mark.parametrize("per", ["layer", "neuron"])
def test_activation_that_is_not_reached_is_refused(per: str, initial: str | None) -> None:
    study = new_study()
    with pytest.raises(ValueError, match=r"got 'activation\.act.*neither training nor validation"):
        run(study, suggesting("list", per, initial))
    assert study.user_attrs == {}


@pytest.mark.parametrize("per", ["layer", "neuron"])
@pytest.mark.parametrize("how", ["module", "forward", "training", "validation"])
def test_activation_that_is_reached_is_accepted(how: str, per: str) -> None:
    run(new_study(), suggesting(how, per), plan=SHORT)


@pytest.mark.parametrize("is_used", [True, False])
def test_batch_size_that_a_batch_sampler_does_not_have_is_refused(is_used: bool) -> None:
    def model_fn(trial: Any) -> miha.Recipe:
        data = TensorDataset(*blobs(60))
        size = miha.suggest_batch_size(trial, initial=16)
        sampler = BatchSampler(RandomSampler(data), size if is_used else 10, False)
        return replace(
            classifier(trial),
            batch_size=size,
            train_data=DataLoader(data, batch_sampler=sampler),
        )

    study = new_study()
    if is_used:
        run(study, model_fn, plan=SHORT)
    else:
        with pytest.raises(ValueError, match="batches of 10 samples where 16 are suggested"):
            run(study, model_fn)
        assert study.user_attrs == {}
