"""What branches inherit from the trunk, in whole runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import optuna
import pytest
import torch
from helpers.problems import SHORT, blobs, classifier, explicit, new_study, run
from torch import nn

import optuna_miha as miha
from optuna_miha._training.compute import intra_op_threads
from optuna_miha._training.trainer import train
from optuna_miha.exceptions import InheritanceError


def test_lineage_of_controls_equals_plain_training_bit_for_bit() -> None:
    plan = miha.Plan.classic(
        runup_epochs=3,
        n_cycles=3,
        population_size=1,
        branch_epochs=2,
        fixing_epochs=2,
        control=True,
    )
    states = {}

    def trainer(recipe: miha.Recipe, n_epochs: int) -> Any:
        for result in train(recipe, n_epochs):
            states["last"] = {k: v.clone() for k, v in recipe.model.state_dict().items()}
            yield result

    run(new_study(seed=3), plan=plan, trainer=trainer)

    torch.manual_seed(3)
    recipe = classifier(None)
    optimizer = torch.optim.Adam(recipe.model.parameters(), fused=True)
    dataset = torch.utils.data.TensorDataset(*blobs(60, seed=0))
    torch.manual_seed(3)
    with intra_op_threads(1):
        for _ in range(plan.n_epochs):
            recipe.model.train()
            for x, y in torch.utils.data.DataLoader(dataset, batch_size=16, shuffle=True):
                optimizer.zero_grad()
                nn.functional.cross_entropy(recipe.model(x), y).backward()
                optimizer.step()
    expected = recipe.model.state_dict()
    assert plan.n_epochs == 18
    for name, tensor in states["last"].items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.slow
def test_branches_train_with_their_mutated_learning_rate() -> None:
    rates: list[tuple[float, float]] = []

    def model_fn(trial: Any) -> miha.Recipe:
        recipe = explicit(trial)
        recipe.model.lr = trial.params["lr"]  # The rate that the segment should train with.
        return recipe

    def trainer(recipe: miha.Recipe, n_epochs: int) -> Any:
        for result in train(recipe, n_epochs):
            assert recipe.optimizer is not None
            rates.append((recipe.model.lr, recipe.optimizer.param_groups[0]["lr"]))
            yield result

    plan = miha.Plan(90, startup=4, fixing_epochs=3, anneal=None, mutations=("lr",))
    result = run(new_study(), model_fn, plan=plan, trainer=trainer)
    assert len({s.params["lr"] for s in result.segments}) > 3
    final, trunk = result.segments[-1], {s.number: s for s in result.segments}
    assert final.role == "final"
    assert final.params == trunk[final.parent].params, "Without annealing, the rate is not raised."
    assert all(expected == used for expected, used in rates)


def test_final_phase_anneals_the_learning_rate_to_almost_zero() -> None:
    rates: list[float] = []
    in_force = [0.0]

    def trainer(recipe: miha.Recipe, n_epochs: int) -> Any:
        assert recipe.optimizer is not None
        # The last hook before a step sees the rate that is in force.
        recipe.optimizer.register_step_pre_hook(
            lambda optimizer, *_: in_force.append(optimizer.param_groups[0]["lr"])
        )
        for result in train(recipe, n_epochs):
            rates.append(in_force[-1])
            yield result

    result = run(new_study(), trainer=trainer)
    final = next(s for s in result.segments if s.role == "final")
    annealed = rates[-final.trained :]
    trunk = next(s for s in result.segments if s.number == final.parent)
    peak = annealed.index(final.params["lr"])
    # The final phase starts with the rate of the trunk.
    assert annealed[0] == pytest.approx(trunk.params["lr"])
    assert annealed[peak] == pytest.approx(3 * trunk.params["lr"])
    assert annealed[:peak] == sorted(annealed[:peak])
    assert annealed[peak:] == sorted(annealed[peak:], reverse=True)
    assert annealed[-1] < 0.01 * annealed[peak]


def test_branch_with_other_shapes_is_refused_with_the_parameter_name() -> None:
    def model_fn(trial: Any) -> miha.Recipe:
        width = trial.suggest_categorical("width", [12, 16])
        model = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))
        return miha.Recipe(
            model=model,
            loss_fn=nn.CrossEntropyLoss(),
            train_data=blobs(60, seed=0),
            valid_data=blobs(30, seed=1),
        )

    with pytest.raises(miha.exceptions.InheritanceError) as caught:
        run(new_study(), model_fn, plan=miha.Plan(90, startup=1, anneal="cosine"))
    message = str(caught.value)
    assert "'0.weight'" in message
    assert "(12, 4)" in message
    assert "(16, 4)" in message


def test_start_up_candidates_have_the_same_initial_weights() -> None:
    initial_weights: list[torch.Tensor] = []

    def trainer(recipe: miha.Recipe, n_epochs: int) -> Any:
        if len(initial_weights) < 4:
            initial_weights.append(recipe.model[0].weight.detach().clone())
        return train(recipe, n_epochs)

    study = new_study(sampler=optuna.samplers.RandomSampler(seed=0))
    run(study, explicit, trainer=trainer)
    assert len(initial_weights) == 4
    assert all(torch.equal(weight, initial_weights[0]) for weight in initial_weights)


class Caching(nn.Module):
    """A network that creates a buffer in ``forward``, in the shape of the batch or not."""

    def __init__(self, persistent: bool, is_whole: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.persistent, self.is_whole = persistent, is_whole

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ones = torch.ones_like(x if self.is_whole else x[0])
        if not hasattr(self, "ones") or self.ones.shape != ones.shape:
            self.register_buffer("ones", ones, persistent=self.persistent)
        output: torch.Tensor = self.linear(x * self.ones)
        return output


@pytest.mark.parametrize("is_whole", [False, True])
def test_cache_of_a_network_follows_it_into_the_average(is_whole: bool) -> None:
    def model_fn(trial: Any) -> miha.Recipe:
        return replace(classifier(trial), model=Caching(False, is_whole))

    run(new_study(), model_fn, plan=SHORT)


def test_persistent_buffer_that_forward_creates_is_refused() -> None:
    study = new_study()
    with pytest.raises(InheritanceError, match=r"'ones' .* creates it in `forward`"):
        run(study, lambda trial: replace(classifier(trial), model=Caching(True, False)))
    assert study.user_attrs == {}
