"""What a user-defined trainer is given, and extra state over the segments of a run."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from helpers.equality import same
from torch import nn

import optuna_miha as miha
from optuna_miha._training.trainer_context import call_trainer, check_trainer

N_BUFFER = 2**16


class Buffer:
    """A replay buffer: large, and different after every epoch."""

    def __init__(self) -> None:
        self.content = torch.zeros(N_BUFFER)
        self.n_epochs = 0

    def add(self, value: float) -> None:
        self.content[self.n_epochs] = value
        self.n_epochs += 1

    def state_dict(self) -> dict[str, Any]:
        return {"content": self.content, "n_epochs": self.n_epochs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.content, self.n_epochs = state["content"], state["n_epochs"]


def model_fn(trial: Any) -> miha.Recipe:
    """Neither data nor a loss."""
    model = nn.Linear(2, 1)
    lr = trial.suggest_float("lr", 1e-3, 1e-1, log=True)
    return miha.Recipe(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=lr))


def trainer(
    recipe: miha.Recipe,
    n_epochs: int,
    context: miha.TrainerContext,
    seen: list[Any] | None = None,
) -> Iterator[miha.EpochResult]:
    """Maximize the sum of the weights, with a buffer whose content changes the training."""
    buffer = context.register("buffer", Buffer())
    for epoch in range(n_epochs):
        if seen is not None:
            seen.append((context, buffer.n_epochs, epoch, context.annealing(epoch)))
        loss = -recipe.model(torch.ones(2)).sum() * (1 + buffer.content.sum() / 100)
        recipe.optimizer.zero_grad()  # type: ignore[union-attr]
        loss.backward()
        recipe.optimizer.step()  # type: ignore[union-attr]
        buffer.add(torch.rand(()).item())
        yield miha.EpochResult(value=sum(p.sum().item() for p in recipe.model.parameters()))


def run(folder: Path, n_epochs: int = 40, **arguments: Any) -> miha.Result:
    study = optuna.create_study(
        storage=miha.create_storage(folder / "run.db"),
        study_name="run",
        direction="maximize",
        sampler=miha.MihaSampler(seed=0),
        load_if_exists=True,
    )
    settings = {"trainer": trainer, "device": "cpu", "show_progress_bar": False}
    plan = miha.Plan(n_epochs, anneal="cosine")
    return miha.optimize(study, model_fn, plan=plan, **(settings | arguments))


@pytest.mark.slow
def test_a_trainer_knows_its_trial_and_has_the_lineages_buffer(tmp_path: Path) -> None:
    seen: list[Any] = []
    result = run(tmp_path, trainer=functools.partial(trainer, seen=seen))
    by_number = {segment.number: segment for segment in result.segments}
    assert {context.role for context, *_ in seen} == {s.role for s in result.segments}
    for context, n_in_buffer, epoch, factor in seen:
        segment = by_number[context.number]
        assert (context.role, context.cycle) == (segment.role, segment.cycle)
        assert (context.branch, context.params) == (segment.branch, segment.params)
        assert n_in_buffer == context.epoch + epoch  # Neither lost, nor shared with a sibling.
        assert segment.birth <= context.epoch + epoch < segment.birth + segment.trained
        assert factor == 1 or segment.role == "final"
        assert context.name.startswith(f"trial-{segment.number:04d}-{segment.role}-")
    assert min(factor for *_, factor in seen) < 1


@pytest.mark.slow
def test_extra_state_is_in_checkpoints_and_in_no_file_of_weights(tmp_path: Path) -> None:
    run(tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.suffix == ".pt"]
    members = [path for path in files if path.name.startswith("member-")]
    assert members and max(path.stat().st_size for path in members) < N_BUFFER
    for path in set(files) - set(members):
        content = torch.load(path, weights_only=True)
        assert content["extra"]["buffer"]["state"]["n_epochs"] == content["epoch"]
        assert "content" not in content["best"]["weights"]


@pytest.mark.slow
def test_a_run_in_parts_ends_like_a_whole_one(tmp_path: Path) -> None:
    def stop(study: optuna.Study, trial: Any) -> None:
        study.stop()

    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole = run(tmp_path / "whole")
    for _ in range(20):
        parts = run(tmp_path / "parts", callbacks=[stop])
        if parts.n_epochs_trained >= 40:
            break
    assert same(dict(parts.model.state_dict()), dict(whole.model.state_dict()))
    assert parts.schedule == whole.schedule


def test_the_recipe_may_hold_the_state(tmp_path: Path) -> None:
    """A global object is reset for each sibling."""
    shared, seen = Buffer(), []

    def with_buffer(trial: Any) -> miha.Recipe:
        recipe = model_fn(trial)
        recipe.extra_state = {"buffer": shared}
        return recipe

    def fill(recipe: miha.Recipe, n_epochs: int, context: Any) -> Iterator[miha.EpochResult]:
        buffer = recipe.extra_state["buffer"]
        for epoch in range(n_epochs):
            seen.append(buffer.n_epochs == context.epoch + epoch)
            yield next(trainer(recipe, 1, miha.TrainerContext(params={})))
            buffer.add(0.5)

    study = optuna.create_study(direction="maximize", sampler=miha.MihaSampler(seed=0))
    settings: dict[str, Any] = {"device": "cpu", "show_progress_bar": False}
    miha.optimize(study, with_buffer, n_epochs=30, trainer=fill, **settings)
    assert len(seen) == 30 and shared.n_epochs == 0


def test_a_state_that_cannot_be_stored_is_refused_before_the_study_is_written(
    tmp_path: Path,
) -> None:
    def with_object(trial: Any) -> miha.Recipe:
        recipe = model_fn(trial)
        buffer = Buffer()
        buffer.n_epochs = object()  # type: ignore[assignment]
        recipe.extra_state = {"buffer": buffer}
        return recipe

    study = optuna.create_study(direction="maximize")
    with pytest.raises(TypeError, match=r"extra state 'buffer' .* got object at"):
        miha.optimize(study, with_object, n_epochs=30, trainer=trainer, device="cpu")
    assert not study.trials and not study.user_attrs


@pytest.mark.parametrize("missing", ["loss_fn", "train_data", "valid_data"])
def test_the_built_in_trainer_needs_data_and_a_loss(missing: str) -> None:
    data = (torch.zeros(4, 2), torch.zeros(4, 1))
    parts = {"loss_fn": nn.MSELoss(), "train_data": data, "valid_data": data}
    del parts[missing]

    def incomplete(trial: Any) -> miha.Recipe:
        return miha.Recipe(model=nn.Linear(2, 1), **parts)

    with pytest.raises(ValueError, match=f"must have `{missing}`, got none: pass it to `Recipe`"):
        miha.optimize(optuna.create_study(), incomplete, n_epochs=30, device="cpu")


def test_trainers_get_the_arguments_that_they_take() -> None:
    context = miha.TrainerContext(params={})
    for plain in (lambda recipe, n_epochs: [n_epochs], lambda *args: [len(args) + 1]):
        assert next(call_trainer(plain, None, 3, context)) == 3  # type: ignore[arg-type]
    assert next(call_trainer(lambda r, n, context: [context], None, 3, context)) is context  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong", [lambda recipe: None, lambda recipe, n_epochs, device: None, "trainer"]
)
def test_other_arguments_are_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"`trainer` must .*\(recipe, n_epochs\)"):
        check_trainer(wrong)
