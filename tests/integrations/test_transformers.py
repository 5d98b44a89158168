"""``transformers.Trainer`` as a trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.adapters import INPUTS, TARGETS, check_continuation, check_rates, check_run
from helpers.networks import network, run_context, succeed
from torch import nn

from optuna_miha.integrations.transformers import TransformersTrainer

pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*:UserWarning"),
]

TRAINER = TransformersTrainer()


class Samples(torch.utils.data.Dataset[Any]):
    """Dictionaries, whose indices are noted when they are read."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(INPUTS)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.read.append(index)
        return {"inputs": INPUTS[index], "labels": TARGETS[index]}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, inputs: Any, labels: Any = None) -> dict[str, Any]:
        logits = self.net(inputs)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def arguments(trial: Any, **changes: Any) -> Any:
    settings = {
        "output_dir": "unused",
        "learning_rate": trial.suggest_float("lr", 1e-3, 1.0, log=True),
        "weight_decay": trial.suggest_float("weight_decay", 0.0, 0.1),
        "warmup_steps": trial.suggest_int("warmup_steps", 0, 20),
        "lr_scheduler_type": "constant_with_warmup",
        "eval_strategy": "epoch",
        "save_strategy": "no",
        "per_device_train_batch_size": 8,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "logging_strategy": "no",
    }
    return transformers.TrainingArguments(**(settings | changes))


def recipe(trial: Any, train: Any = None, **changes: Any) -> Any:
    train = train or Samples()
    return TRAINER.recipe(
        transformers.Trainer(
            Model(), arguments(trial, **changes), train_dataset=train, eval_dataset=Samples()
        )
    )


PARAMS = {"lr": 0.2, "weight_decay": 0.05, "warmup_steps": 8}


def test_warm_up_weight_decay_and_annealing_are_in_force_in_every_step() -> None:
    check_rates(recipe, TRAINER, PARAMS, lambda step: min(1, step / 8))


def test_an_interrupted_training_continues_bit_for_bit() -> None:
    check_continuation(recipe, TRAINER, PARAMS)


def test_a_resumed_run_ends_like_a_whole_one(tmp_path: Path) -> None:
    check_run(recipe, TRAINER, tmp_path)


def test_the_order_of_the_data_differs_between_epochs_and_segments() -> None:
    train = Samples()
    context = run_context(lambda trial: recipe(trial, train), trainer=TRAINER)
    state = None
    for n_epochs in (2, 1):
        state = succeed(context, params=PARAMS, n_epochs=n_epochs, state=state).state
    epochs = [train.read[start : start + 32] for start in range(0, 96, 32)]
    assert len(train.read) == 96 and all(sorted(epoch) == list(range(32)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_mutated_warm_up_is_in_force_at_once() -> None:
    """The rate of a branch is that of its own warm-up from its first step."""
    context = run_context(recipe, trainer=TRAINER)
    state = succeed(context, params=PARAMS, n_epochs=1).state
    branch = succeed(context, params=PARAMS | {"warmup_steps": 20}, n_epochs=1, state=state).state
    assert branch is not None
    [rate] = set(branch["extra"]["scheduler"]["rates"][0])
    assert rate == pytest.approx(0.2 * 8 / 20)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval_strategy": "no"}, '`eval_strategy` must be "epoch"'),
        ({"lr_scheduler_type": "linear"}, "`lr_scheduler_type` must be one of .* got 'linear'"),
    ],
)
def test_arguments_that_contradict_a_run_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    context = run_context(lambda trial: recipe(trial, **changes), trainer=TRAINER)
    with pytest.raises(AssertionError, match=message):
        succeed(context, params=PARAMS, n_epochs=1)


def test_only_a_trainer_of_transformers_is_accepted() -> None:
    with pytest.raises(TypeError, match=r"must be a transformers\.Trainer, got Linear"):
        TRAINER.recipe(nn.Linear(1, 1))
