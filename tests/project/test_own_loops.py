"""The loops of ``examples/`` can be stopped between any two epochs, as every trainer must."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers.equality import same
from helpers.networks import run_context, succeed

import optuna_miha as miha
from optuna_miha._model.model_fn import build_initial

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[2] / "examples"
NEEDS = {
    "accelerate": "accelerate",
    "gan": "torch",
    "hugging_face": "transformers",
    "lightning": "lightning",
    "skorch": "skorch",
}


def load(name: str) -> ModuleType:
    """An example as a module; skips where what it needs is not installed."""
    pytest.importorskip(NEEDS[name])
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"own_loop_{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", NEEDS)
def test_a_loop_that_is_interrupted_goes_on_as_if_it_were_not(name: str) -> None:
    example = load(name)
    initial = build_initial(example.model_fn, 0)
    context = run_context(
        example.model_fn,
        trainer=getattr(example, "trainer", None),
        valid_loss_fn=initial.recipe.loss_fn,
    )
    whole = succeed(context, params=initial.params, n_epochs=3)
    first = succeed(context, params=initial.params, n_epochs=1)
    second = succeed(context, params=initial.params, n_epochs=2, state=first.state)
    assert first.results + second.results == whole.results
    assert whole.state is not None and second.state is not None
    for part in ("model", "optimizer", "rng", "best"):
        assert same(whole.state[part], second.state[part]), part


def test_checkpoints_hold_the_state_of_both_optimizers_of_the_gan() -> None:
    example = load("gan")
    initial = build_initial(example.model_fn, 0)
    context = run_context(example.model_fn, trainer=example.trainer)
    state = succeed(context, params=initial.params, n_epochs=1).state
    assert state is not None
    n_batches = -(-len(example.train) // 64)
    for moments in (state["optimizer"]["state"], state["model"]["_extra_state"]):
        assert len(moments) == 4
        assert {int(entry["step"]) for entry in moments.values()} == {n_batches}


def test_each_step_of_the_gan_moves_one_network_alone() -> None:
    example = load("gan")
    recipe = build_initial(example.model_fn, 0).recipe
    moved = []
    weights = dict(recipe.model.named_parameters())
    before: dict[str, torch.Tensor] = {}

    def note(*_: Any) -> None:
        before.update({k: v.detach().clone() for k, v in weights.items()})

    def compare(*_: Any) -> None:
        moved.append(
            {k.split(".")[0] for k, v in weights.items() if not torch.equal(before[k], v)}
        )

    for optimizer in (recipe.optimizer, recipe.model.optimizer):
        optimizer.register_step_pre_hook(note)
        optimizer.register_step_post_hook(compare)
    assert isinstance(next(iter(example.trainer(recipe, 1))), miha.EpochResult)
    assert moved[::2] == [{"judge"}] * 16
    assert moved[1::2] == [{"make"}] * 16
