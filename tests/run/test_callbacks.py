"""Callbacks of epochs, early stopping, and runs within an outer study."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from helpers.problems import SHORT, blobs, classifier, explicit, new_study, run
from torch import nn

import optuna_miha as miha
from optuna_miha._run.optimize import optimize
from optuna_miha.exceptions import InheritanceError


@pytest.mark.parametrize("n_jobs", [1, pytest.param(2, marks=pytest.mark.long)])
def test_epoch_callbacks_get_every_epoch_of_every_trial(n_jobs: int) -> None:
    reports: list[miha.EpochReport] = []
    study = new_study()
    run(study, explicit, plan=SHORT, n_jobs=n_jobs, epoch_callbacks=[reports.append])
    assert len(reports) == 40
    for trial in study.trials:
        own = [r for r in reports if r.number == trial.number]
        attrs, birth = trial.user_attrs, trial.user_attrs["miha:epoch"]
        values = {step: v for step, v in trial.intermediate_values.items() if step > birth}
        assert {r.epoch: r.value for r in own} == values
        assert [r.train_loss for r in own] == trial.system_attrs["miha:train_loss"]
        for report in own:
            assert report.params == trial.params
            assert report.role == attrs["miha:role"]
            assert (report.cycle, report.branch) == (attrs["miha:cycle"], attrs["miha:branch"])
    branch = next(r for r in reports if r.role == "branch")
    assert branch.name == f"trial-{branch.number:04d}-branch-001-{branch.branch}"


@pytest.mark.slow
def test_callbacks_do_not_change_the_run() -> None:
    plain, watched = new_study(), new_study()
    run(plain, explicit, plan=SHORT)
    run(watched, explicit, plan=SHORT, epoch_callbacks=[lambda report: None])
    values = [sorted(t.values[0] for t in s.trials if t.values) for s in (plain, watched)]
    assert values[0] == values[1]


def worsening(trial: Any) -> miha.Recipe:
    """A problem whose value is best before the first cycle."""
    recipe = explicit(trial)
    values = iter(range(10**6))

    def loss(outputs: Any, targets: Any) -> Any:
        base = nn.functional.cross_entropy(outputs, targets)
        return base if base.requires_grad else base * 0 + float(next(values))

    recipe.loss_fn = recipe.valid_loss_fn = loss
    return recipe


def test_early_stopping_ends_a_run_after_cycles_without_a_new_best() -> None:
    plan = miha.Plan(
        200,
        startup=1,
        fixing_epochs=2,
        restarts=False,
        prune=False,
        ema_decay=0.0,
        anneal="cosine",
    )
    study = new_study()
    stopping = miha.EarlyStopping(patience=2)
    run(study, worsening, plan=plan, callbacks=[stopping])
    trials = study.trials
    best = min(trials, key=lambda t: math.inf if t.value is None else t.value)
    cycles = [t.user_attrs["miha:cycle"] for t in trials]
    assert cycles[-1] == best.user_attrs["miha:cycle"] + 2
    assert trials[-1].user_attrs["miha:role"] == "trunk"
    assert sum(t.user_attrs["miha:trained"] for t in trials) < 100


@pytest.mark.parametrize("patience", [0, 1.5, True])
def test_patience_must_be_a_positive_number(patience: Any) -> None:
    with pytest.raises(ValueError, match="positive number of cycles"):
        miha.EarlyStopping(patience)


def test_tensorboard_shows_every_trial_by_lineage_epoch(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    study = new_study()
    with miha.TensorBoardCallback(tmp_path) as callback:
        run(study, classifier, plan=SHORT, epoch_callbacks=[callback])
    assert len(list(tmp_path.iterdir())) == len(study.trials)
    last = study.trials[-1]
    (folder,) = tmp_path.glob(f"trial-{last.number:04d}-final-*")
    log = events.EventAccumulator(str(folder)).Reload()
    shown = {event.step: event.value for event in log.Scalars("value")}
    assert shown == pytest.approx(own_values(last))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Those of MLflow.
def test_mlflow_shows_every_trial_as_a_nested_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    study = new_study()
    with mlflow.start_run() as parent, miha.MLflowCallback() as callback:
        run(study, classifier, plan=miha.Plan(16), epoch_callbacks=[callback])
    client = mlflow.MlflowClient()
    runs = client.search_runs([parent.info.experiment_id])
    shown = {int(r.data.tags["number"]): r for r in runs if "number" in r.data.tags}
    assert sorted(shown) == [t.number for t in study.trials]
    for trial in study.trials:
        own = shown[trial.number]
        assert own.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert own.data.tags["role"] == trial.user_attrs["miha:role"]
        values = {m.step: m.value for m in client.get_metric_history(own.info.run_id, "value")}
        assert values == pytest.approx(own_values(trial))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Those of W&B.
def test_weights_and_biases_gets_every_trial_and_its_last_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    closed = {}

    class Recorded(miha.WeightsAndBiasesCallback):
        def _close(self, log: Any) -> None:
            number = int(log.name.split("-")[1])
            closed[number] = (log.job_type, dict(log.config), dict(log.summary))
            super()._close(log)

    study = new_study()
    with Recorded(project="digits", dir=str(tmp_path), group="g") as callback:
        run(study, classifier, plan=miha.Plan(16), epoch_callbacks=[callback])
    assert sorted(closed) == [trial.number for trial in study.trials]
    for trial in study.trials:
        role, config, summary = closed[trial.number]
        last = max(trial.intermediate_values)
        assert role == trial.user_attrs["miha:role"]
        assert config["lr"] == trial.params["lr"]
        assert summary["epoch"] == last
        assert summary["value"] == pytest.approx(trial.intermediate_values[last])


def own_values(trial: optuna.trial.FrozenTrial) -> dict[int, float]:
    """The values of the epochs that a trial trained itself."""
    birth = trial.user_attrs["miha:epoch"]
    return {step: value for step, value in trial.intermediate_values.items() if step > birth}


def sized(trial: Any) -> miha.Recipe:
    width = trial.suggest_int("width", 4, 8)
    model = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))
    recipe = classifier(trial)
    return miha.Recipe(
        model=model,
        loss_fn=recipe.loss_fn,
        train_data=blobs(60, seed=0),
        valid_data=blobs(30, seed=1),
        optimizer=miha.suggest_optimizer(trial, model.parameters()),
        batch_size=miha.suggest_batch_size(trial),
    )


def test_architecture_parameter_is_named_with_the_remedy_before_the_run() -> None:
    study = new_study()
    with pytest.raises(InheritanceError, match=r"'width' .*miha\.fixed\(trial, {'width': value"):
        run(study, sized, plan=SHORT)
    assert not study.trials
    assert not study.user_attrs


def test_outer_study_chooses_what_is_fixed() -> None:
    widths = []

    def objective(outer: optuna.Trial) -> float:
        params = {"width": outer.suggest_int("width", 4, 8), "batch_size": 16}
        study = new_study()
        result = optimize(
            study,
            lambda trial: sized(miha.fixed(trial, params)),
            n_epochs=24,
            show_progress_bar=False,
        )
        assert not {"width", "batch_size"} & study.trials[0].params.keys()
        widths.append(result.model[0].out_features)
        return result.value

    outer = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    outer.optimize(objective, n_trials=2)
    assert widths == [t.params["width"] for t in outer.trials]


def test_fixed_value_outside_of_its_distribution_is_refused() -> None:
    trial = miha.fixed(optuna.create_study().ask(), {"width": 9})
    with pytest.raises(ValueError, match=r"fixed value of 'width' must lie in .* got 9"):
        trial.suggest_int("width", 4, 8)
    assert trial.suggest_categorical("mode", ["a"]) == "a"
    assert trial.params == {"width": 9, "mode": "a"}
