"""``lightning.Trainer`` as a trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from helpers.adapters import (
    INPUTS,
    TARGETS,
    Watched,
    check_continuation,
    check_rates,
    check_run,
)
from helpers.networks import network, run_context, succeed
from torch import nn
from torch.optim.lr_scheduler import LinearLR, StepLR
from torch.utils.data import DataLoader, TensorDataset

import optuna_miha as miha
from optuna_miha._model.model_fn import build_initial
from optuna_miha.integrations.lightning import LightningTrainer

lightning = pytest.importorskip("lightning")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*:UserWarning"),
    pytest.mark.filterwarnings(
        "ignore:.*:lightning.pytorch.utilities.warnings.PossibleUserWarning"
    ),
]

DATA = TensorDataset(INPUTS, TARGETS)


class Module(lightning.LightningModule):
    def __init__(self, lr: float = 0.1, form: str = "scheduler") -> None:
        super().__init__()
        self.net, self.lr, self.form = network(), lr, form

    def training_step(self, batch: Any, index: int) -> Any:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        sgd = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)
        if self.form == "scheduler":
            warm_up = {"scheduler": LinearLR(sgd, total_iters=8), "interval": "step"}
            return {"optimizer": sgd, "lr_scheduler": warm_up}
        if self.form == "lists":
            return [sgd], [StepLR(sgd, 1, gamma=0.5)]
        other = torch.optim.SGD(self.net[0].parameters(), lr=0.1)
        return {"bare": sgd, "none": None, "two": [sgd, other]}[self.form]


class Note(lightning.Callback):
    """Counts the epochs of its lineage."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.seen.append(trainer.current_epoch)

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


def make_trainer(context: miha.TrainerContext, **options: Any) -> Any:
    return lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


TRAINER = LightningTrainer(make_trainer, monitor="val_loss")


def recipe(trial: Any, form: str = "scheduler", trainer: LightningTrainer = TRAINER) -> Any:
    module = Module(trial.suggest_float("lr", 1e-3, 1.0, log=True), form)
    loaders = DataLoader(DATA, 8, shuffle=True), DataLoader(DATA, 32)
    return trainer.recipe(module, *loaders)


def test_rates_of_scheduler_and_annealing_are_in_force_in_every_step() -> None:
    check_rates(recipe, TRAINER, {"lr": 0.2}, lambda step: 1 / 3 + 2 / 3 * min(1, step / 8))


def test_a_scheduler_by_epoch_continues_after_an_interruption() -> None:
    check_rates(
        lambda trial: recipe(trial, "lists"), TRAINER, {"lr": 0.2}, lambda s: 0.5 ** (s // 4)
    )


def test_an_interrupted_training_continues_bit_for_bit() -> None:
    check_continuation(recipe, TRAINER, {"lr": 0.2})


def test_a_resumed_run_ends_like_a_whole_one(tmp_path: Path) -> None:
    check_run(recipe, TRAINER, tmp_path)


def test_epochs_steps_and_callbacks_are_those_of_the_lineage() -> None:
    trainers = []

    def make(context: miha.TrainerContext) -> Any:
        trainers.append(make_trainer(context, callbacks=[Note()]))
        return trainers[-1]

    trainer = LightningTrainer(make, monitor="val_loss")
    context = run_context(lambda trial: recipe(trial, "bare", trainer), trainer=trainer)
    first = succeed(context, params={"lr": 0.1}, n_epochs=2)
    second = succeed(context, params={"lr": 0.1}, n_epochs=1, state=first.state)
    assert [trainer.global_step for trainer in trainers] == [8, 12]
    assert second.state is not None
    [note] = [part for name, part in second.state["extra"].items() if "Note" in name]
    assert note["state"] == {"seen": [0, 1, 2]}


def test_a_callback_may_end_the_training() -> None:
    class Stop(lightning.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            trainer.should_stop = trainer.current_epoch >= 1

    trainer = LightningTrainer(
        lambda context: make_trainer(context, callbacks=[Stop()]), monitor="val_loss"
    )
    context = run_context(lambda trial: recipe(trial, "bare", trainer), trainer=trainer)
    assert len(succeed(context, params={"lr": 0.1}, n_epochs=5).results) == 2


@pytest.mark.parametrize(("form", "found"), [("none", "got 0 optimizers"), ("two", "got 2 opt")])
def test_other_numbers_of_optimizers_are_refused(form: str, found: str) -> None:
    with pytest.raises(ValueError, match=f"must return one torch.optim.Optimizer.*{found}"):
        TRAINER.recipe(Module(form=form))


def test_manual_optimization_is_refused() -> None:
    module = Module()
    module.automatic_optimization = False
    with pytest.raises(ValueError, match="automatic_optimization=False"):
        TRAINER.recipe(module)


def test_the_default_space_adjusts_optimizer_and_loader() -> None:
    def nothing_suggested(trial: Any) -> Any:
        return TRAINER.recipe(Module(form="bare"), DataLoader(DATA, 8), DataLoader(DATA, 32))

    watched = Watched(TRAINER)
    params = build_initial(nothing_suggested, 0).params
    assert params["batch_size"] == 8 and params["lr"] == 0.1
    context = run_context(nothing_suggested, trainer=watched)
    succeed(context, params=params | {"batch_size": 16, "lr": 0.3}, n_epochs=1)
    assert [step["lr"] for step in watched.steps] == [0.3, 0.3]


def test_another_optimizer_is_refused_before_the_run() -> None:
    def replaced(trial: Any) -> Any:
        changed = recipe(trial, "bare")
        changed.optimizer = torch.optim.SGD(changed.model.parameters(), lr=trial.params["lr"])
        return changed

    study = optuna.create_study()
    with pytest.raises(ValueError, match="must control the optimizer"):
        miha.optimize(study, replaced, n_epochs=24, trainer=TRAINER, device="cpu")
    assert not study.trials and not study.user_attrs


def test_a_monitor_that_is_not_logged_is_named() -> None:
    trainer = LightningTrainer(make_trainer, monitor="val_acc")
    context = run_context(lambda trial: recipe(trial, "bare", trainer), trainer=trainer)
    with pytest.raises(AssertionError, match="got 'val_acc', but the loop has computed"):
        succeed(context, params={"lr": 0.1}, n_epochs=1)


def test_several_devices_are_refused() -> None:
    trainer = LightningTrainer(
        lambda context: lightning.Trainer(accelerator="cpu", devices=2, strategy="ddp"),
        monitor="val_loss",
    )
    context = run_context(lambda trial: recipe(trial, "bare", trainer), trainer=trainer)
    with pytest.raises(AssertionError, match=r"one device, got a lightning\.Trainer of 2"):
        succeed(context, params={"lr": 0.1}, n_epochs=1)
