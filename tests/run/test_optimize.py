"""Whole runs of ``optimize``, on every storage and kind of data."""

from __future__ import annotations

import itertools
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from helpers.equality import same
from helpers.problems import (
    SHORT,
    TINY,
    accuracy_classifier,
    blobs,
    classifier,
    explicit,
    history,
    new_study,
    run,
    weights,
)
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

import optuna_miha as miha


@pytest.mark.slow
def test_every_segment_is_a_trial_with_its_attributes() -> None:
    study = new_study()
    result = run(study)
    assert len(study.trials) == len(result.segments)
    assert {s.role for s in result.segments} == {"startup", "trunk", "branch", "final"}
    for trial in study.trials:
        attrs = trial.user_attrs
        assert {"miha:role", "miha:cycle", "miha:branch", "miha:parent"} <= attrs.keys()
        assert {"miha:epoch", "miha:mutation", "miha:seed", "miha:trained"} <= attrs.keys()
        if trial.state == TrialState.COMPLETE:
            assert math.isfinite(attrs["miha:fitness"])


@pytest.mark.slow
def test_steps_are_lineage_epochs_and_start_with_the_value_of_the_parent() -> None:
    study = new_study()
    result = run(study)
    by_number = {s.number: s for s in result.segments}
    for segment in result.segments:
        reported = study.trials[segment.number].intermediate_values
        assert min(reported) == (segment.birth if segment.parent is not None else 1)
        assert max(reported) == segment.end
        if segment.parent is not None:
            parent = by_number[segment.parent]
            assert segment.birth == parent.end
            assert reported[segment.birth] == parent.scores[-1]


@pytest.mark.slow
def test_best_trial_is_the_trial_of_the_returned_model() -> None:
    study = new_study()
    result = run(study)
    assert study.best_trial.number == result.trial.number
    assert study.best_value == result.value
    x, y = blobs(30, seed=1)
    with torch.no_grad():
        assert float(nn.functional.cross_entropy(result.model(x), y)) == pytest.approx(
            result.value, rel=1e-5
        )


@pytest.mark.slow
def test_budget_is_spent_exactly_and_every_epoch_is_counted() -> None:
    counted: list[int] = []

    def counting(recipe: miha.Recipe, n_epochs: int) -> Any:
        from optuna_miha._training.trainer import train

        for result in train(recipe, n_epochs):
            counted.append(1)
            yield result

    study = new_study()
    result = run(study, trainer=counting)
    assert result.n_epochs_trained == len(counted) == TINY.n_epochs
    assert study.user_attrs["miha:spent"] == TINY.n_epochs


@pytest.mark.slow
def test_epochs_saved_by_pruning_are_trained_elsewhere() -> None:
    study = new_study(pruner=miha.SlopePruner())
    result = run(study)
    pruned = [s for s in result.segments if s.state == TrialState.PRUNED and s.role == "branch"]
    assert pruned, "no branch was pruned: choose another seed"
    assert result.n_epochs_trained == TINY.n_epochs


def test_classic_plan_trains_the_published_number_of_epochs() -> None:
    plan = miha.Plan.classic(
        runup_epochs=3, n_cycles=2, population_size=3, branch_epochs=2, fixing_epochs=2
    )
    result = run(new_study(), plan=plan)
    assert result.n_epochs_trained == 2 * 3 + 2 * (3 * 2 + 2)
    roles = [(s.role, s.cycle, s.trained) for s in result.segments]
    population = [("branch", 1, 2)] * 3
    assert roles[:5] == [("trunk", 0, 3), *population, ("trunk", 1, 2)]
    assert roles[-1] == ("final", 2, 3)
    kinds = {"activation", "batch_size", "optimizer"}
    for segment in result.segments:
        if segment.role == "branch":
            assert segment.mutation == "no change" or any(k in segment.mutation for k in kinds)


@pytest.mark.parametrize("model_fn", [classifier, pytest.param(explicit, marks=pytest.mark.long)])
def test_same_seed_gives_the_same_run_and_another_seed_a_different_one(model_fn: Any) -> None:
    first, second = run(new_study(), model_fn), run(new_study(), model_fn)
    assert history(first) == history(second)
    assert same(weights(first), weights(second))
    assert history(first) != history(run(new_study(seed=1), model_fn))


@pytest.mark.slow
def test_worker_processes_give_a_bit_identical_model(whole_tiny: Any) -> None:
    result = run(new_study(), n_jobs=2)
    assert history(result) == history(whole_tiny)
    assert same(weights(result), weights(whole_tiny))


@pytest.mark.slow
def test_global_random_state_is_restored() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(new_study())
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "journal", "memory"])
def test_run_does_not_depend_on_the_storage_and_is_loaded_from_it(
    kind: str, tmp_path: Path, whole_tiny: Any
) -> None:
    storage: Any = {
        "sqlite": f"sqlite:///{tmp_path}/study.db",
        "journal": None,
        "memory": None,
    }[kind]
    if kind == "journal":
        storage = JournalStorage(JournalFileBackend(str(tmp_path / "journal.log")))
    study = new_study(storage)
    result = run(study, checkpoint_dir=tmp_path / "checkpoints" if kind == "journal" else None)
    assert history(result) == history(whole_tiny)
    again = miha.load_result(study, classifier)
    assert same(weights(result), weights(again))
    assert again.params == result.params
    assert list(again.schedule) == list(result.schedule)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dataset", "loader"])
def test_datasets_and_loaders_train_like_tensors(kind: str, whole_tiny: Any) -> None:
    def model_fn(trial: Any) -> miha.Recipe:
        recipe = classifier(trial)
        train, valid = TensorDataset(*blobs(60, seed=0)), TensorDataset(*blobs(30, seed=1))
        if kind == "dataset":
            recipe.train_data, recipe.valid_data = train, valid
        else:
            recipe.train_data = DataLoader(train, batch_size=16, shuffle=True)
            recipe.valid_data = DataLoader(valid, batch_size=512)
        return recipe

    assert history(run(new_study(), model_fn)) == history(whole_tiny)


@pytest.mark.slow
def test_network_with_an_in_place_first_layer_does_not_change_the_data() -> None:
    train, valid = blobs(60, seed=0), blobs(30, seed=1)
    before = [tensor.clone() for tensor in (*train, *valid)]

    def of(train_data: Any, valid_data: Any) -> Any:
        return lambda trial: miha.Recipe(
            model=nn.Sequential(nn.LeakyReLU(0.1, inplace=True), nn.Linear(4, 3)),
            loss_fn=nn.CrossEntropyLoss(),
            train_data=train_data,
            valid_data=valid_data,
        )

    of_tensors = run(new_study(), of(train, valid), plan=SHORT)
    assert all(map(torch.equal, (*train, *valid), before))
    # A loader collates samples into new tensors.
    subsets = [Subset(TensorDataset(*data), range(len(data[0]))) for data in (train, valid)]
    assert history(run(new_study(), of(*subsets), plan=SHORT)) == history(of_tensors)


@pytest.mark.slow
def test_maximizing_accuracy_returns_the_most_accurate_model() -> None:
    study = new_study(direction="maximize")
    result = run(study, accuracy_classifier)
    x, y = blobs(30, seed=1)
    with torch.no_grad():
        accuracy = float((result.model(x).argmax(1) == y).double().mean())
    assert result.value == pytest.approx(accuracy)
    assert result.value == max(s.value for s in result.segments if s.value is not None)
    assert result.value > 0.6


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampler", [optuna.samplers.RandomSampler(seed=0), optuna.samplers.TPESampler(seed=0)]
)
def test_sampler_and_pruner_of_the_study_are_kept(sampler: Any) -> None:
    pruner = optuna.pruners.MedianPruner(n_startup_trials=1)
    study = new_study(sampler=sampler, pruner=pruner)
    result = run(study)
    assert study.sampler is sampler
    assert study.pruner is pruner
    assert result.n_epochs_trained == TINY.n_epochs


@pytest.mark.slow
def test_default_sampler_and_pruner_of_optuna_are_replaced() -> None:
    study = optuna.create_study()
    run(study)
    assert isinstance(study.sampler, miha.MihaSampler)
    assert isinstance(study.pruner, miha.SlopePruner)


@pytest.mark.slow
def test_control_has_the_parameters_of_its_parent_with_any_sampler() -> None:
    result = run(new_study(sampler=optuna.samplers.RandomSampler(seed=3)))
    by_number = {s.number: s for s in result.segments}
    controls = [s for s in result.segments if s.role == "branch" and s.branch == 0]
    assert controls
    for control in controls:
        assert control.parent is not None
        assert control.params == by_number[control.parent].params


@pytest.mark.slow
def test_enqueued_trial_joins_the_next_population_with_its_parameters() -> None:
    study = new_study()
    study.enqueue_trial({"lr": 0.0123}, user_attrs={"memo": "mine"})
    result = run(study)
    mine = [t for t in study.trials if t.user_attrs.get("memo") == "mine"]
    assert [t.params["lr"] for t in mine] == [0.0123]
    segment = next(s for s in result.segments if s.number == mine[0].number)
    assert (segment.role, segment.cycle, segment.branch) == ("branch", 1, TINY.population_size)
    assert result.n_epochs_trained == TINY.n_epochs


@pytest.mark.slow
def test_enqueued_trial_takes_other_parameters_from_the_trunk() -> None:
    study = new_study()
    study.enqueue_trial({"lr": 0.0123})
    result = run(study)
    by_number = {s.number: s for s in result.segments}
    enqueued = next(s for s in result.segments if s.params["lr"] == 0.0123 and s.role == "branch")
    assert enqueued.parent is not None
    assert enqueued.params == by_number[enqueued.parent].params | {"lr": 0.0123}


@pytest.mark.slow
def test_invalid_enqueued_trial_fails_without_ending_the_run() -> None:
    study = new_study()
    study.enqueue_trial({"activation.2": "nope"})
    result = run(study)
    failed = [t for t in study.trials if t.state == TrialState.FAIL]
    assert len(failed) == 1
    assert "nope" in failed[0].user_attrs["miha:error"]
    assert result.n_epochs_trained == TINY.n_epochs


@pytest.mark.slow
def test_enqueued_number_out_of_range_is_used() -> None:
    study = new_study(pruner=optuna.pruners.NopPruner())
    study.enqueue_trial({"lr": 1e3})
    with pytest.warns(UserWarning, match="out of"):
        result = run(study)
    [enqueued] = [s for s in result.segments if s.params["lr"] == 1e3]
    assert (enqueued.number, enqueued.role) == (0, "branch")


@pytest.mark.slow
def test_enqueued_trials_beyond_the_budget_wait_for_a_larger_one() -> None:
    study = new_study()
    for index in range(12):
        study.enqueue_trial({"lr": 1e-3 * (index + 1)}, user_attrs={"index": index})

    def enqueued_states() -> list[TrialState]:
        found = [t for t in study.trials if "index" in t.user_attrs]
        assert [t.user_attrs["index"] for t in found] == list(range(12)), "Each exists once."
        return [t.state for t in found]

    run(study, plan=miha.Plan(40, restarts=False))
    n_waiting = enqueued_states().count(TrialState.WAITING)
    assert 0 < n_waiting < 12
    expected = [TrialState.WAITING] * n_waiting
    assert enqueued_states()[-n_waiting:] == expected, "The first ones are trained first."
    assert TrialState.FAIL not in enqueued_states()
    run(study, plan=miha.Plan(120, restarts=False))
    assert enqueued_states().count(TrialState.WAITING) < n_waiting


@pytest.mark.slow
def test_enqueued_parameter_that_is_not_suggested_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    study = new_study()
    study.enqueue_trial({"lrr": 0.0123})
    optuna.logging.enable_propagation()
    try:
        run(study)
    finally:
        optuna.logging.disable_propagation()
    assert "'lrr'" in caplog.text


@pytest.mark.slow
def test_other_metrics_are_stored_in_the_trial() -> None:
    def model_fn(trial: Any) -> miha.Recipe:
        recipe = classifier(trial)
        recipe.metrics = {"mean": lambda output, target: output.mean()}
        return recipe

    study = new_study()
    run(study, model_fn)
    assert all(math.isfinite(t.user_attrs["miha:metrics"]["mean"]) for t in study.trials)


@pytest.mark.slow
def test_callbacks_are_called_for_every_trial_and_can_stop_the_study(whole_tiny: Any) -> None:
    seen: list[int] = []

    def stop_after_six(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        seen.append(trial.number)
        if len(seen) == 6:
            study.stop()

    study = new_study()
    first = run(study, callbacks=[stop_after_six])
    assert 6 <= len(seen) < 12
    assert first.n_epochs_trained < TINY.n_epochs
    whole = run(study)
    assert history(whole) == history(whole_tiny)


def two_rates(trial: Any) -> miha.Recipe:
    """A search space with two points."""
    recipe = classifier(trial)
    lr = trial.suggest_categorical("lr", [1e-3, 1e-2])
    recipe.optimizer = torch.optim.SGD(recipe.model.parameters(), lr=lr)
    return recipe


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampler",
    [optuna.samplers.GridSampler({"lr": [1e-3, 1e-2]}), optuna.samplers.BruteForceSampler(seed=0)],
    ids=lambda sampler: type(sampler).__name__,
)
def test_sampler_that_exhausted_its_space_does_not_end_the_run(
    sampler: optuna.samplers.BaseSampler,
) -> None:
    study, seen = new_study(sampler=sampler), 0

    def stop_after_nine(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        nonlocal seen
        seen += 1
        if seen == 9:
            study.stop()

    first = run(study, two_rates, callbacks=[stop_after_nine])
    assert seen >= 9
    assert first.n_epochs_trained < TINY.n_epochs, "A callback can still stop it."
    assert run(study, two_rates).n_epochs_trained == TINY.n_epochs


@pytest.mark.slow
def test_run_can_be_resumed_after_a_timeout(whole_tiny: Any) -> None:
    study = new_study()
    with pytest.raises(
        miha.exceptions.MihaError, match=r"completed segment, got none.* on it again"
    ):
        run(study, timeout=0.0)
    assert history(run(study)) == history(whole_tiny)


@pytest.mark.slow
def test_branch_with_nan_loss_fails_and_never_becomes_the_trunk() -> None:
    def model_fn(trial: Any) -> miha.Recipe:
        recipe = explicit(trial)
        if trial.params["optimizer"] != "adam":
            cross_entropy = nn.CrossEntropyLoss()
            recipe.loss_fn = lambda output, target: cross_entropy(output, target) * float("nan")
        return recipe

    result = run(new_study(), model_fn)
    failed = [s for s in result.segments if s.state == TrialState.FAIL]
    assert failed, "no branch failed: choose another seed"
    assert all(s.params["optimizer"] == "adam" for s in result.lineage)
    assert result.n_epochs_trained <= TINY.n_epochs
    parents = {s.parent for s in result.segments}
    assert parents.isdisjoint(s.number for s in failed)


@pytest.mark.slow
def test_caught_exception_fails_one_trial_and_others_end_the_call() -> None:
    def model_fn(trial: Any) -> miha.Recipe:
        recipe = explicit(trial)
        if trial.params["optimizer"] == "sgd":
            raise ArithmeticError("no SGD here")
        return recipe

    study = new_study()
    with pytest.raises(ArithmeticError, match="no SGD"):
        run(study, model_fn)
    assert not study.get_trials(states=(TrialState.RUNNING,))
    result = run(study, model_fn, catch=ArithmeticError)
    assert result.n_epochs_trained == TINY.n_epochs
    errors = [t.user_attrs.get("miha:error") for t in study.trials]
    assert any(error and "no SGD here" in error for error in errors)


@pytest.mark.slow
@pytest.mark.parametrize("number", [np.float32, torch.tensor], ids=["numpy", "tensor"])
def test_numpy_and_tensor_numbers_are_stored_as_floats(number: Any, tmp_path: Path) -> None:
    def trainer(recipe: miha.Recipe, n_epochs: int) -> Any:
        weight = recipe.model[0].weight
        for _ in range(n_epochs):
            weight.grad = weight.detach().clone()
            recipe.optimizer.step()
            norm = weight.detach().norm().item()
            yield miha.EpochResult(value=number(norm), metrics={"half": number(norm / 2)})

    study = new_study(f"sqlite:///{tmp_path}/study.db")
    result = run(study, plan=SHORT, trainer=trainer, fitness=lambda c: number(-c.costs[-1]))
    again = miha.load_result(study, classifier)
    assert (again.value, history(again)) == (result.value, history(result))
    assert {s.role for s in result.segments} == {"trunk", "branch", "final"}


def test_numpy_arguments_are_equivalent_to_python_numbers() -> None:
    def model_fn(trial: Any) -> miha.Recipe:
        recipe = explicit(trial)
        recipe.model.name = trial.suggest_categorical("name", [False, "narrow"])
        return recipe

    initial = {"lr": 0.0625, "batch_size": 64, "name": False}
    numpy_initial = {"lr": np.float32(0.0625), "batch_size": np.int64(64), "name": np.bool_(False)}
    first = run(new_study(), model_fn, plan=None, n_epochs=30, initial_params=initial)
    second = run(
        new_study(),
        model_fn,
        plan=None,
        n_epochs=np.int64(30),
        n_jobs=np.int64(1),
        initial_params=numpy_initial,
    )
    assert history(first) == history(second)


def test_fitness_that_is_not_a_number_is_rejected() -> None:
    with pytest.raises(
        TypeError, match="The return value of `fitness` must be a number, got None"
    ):
        run(new_study(), plan=SHORT, fitness=lambda curve: None)


@pytest.mark.slow
def test_branch_with_the_highest_fitness_becomes_the_trunk() -> None:
    def highest_cost(curve: Any) -> float:
        return curve.costs[-1]

    study = new_study(pruner=optuna.pruners.NopPruner())
    result = run(study, fitness=highest_cost)
    for cycle in (1, 2):
        branches = [s for s in result.segments if (s.role, s.cycle) == ("branch", cycle)]
        parents = {s.parent for s in result.segments if (s.role, s.cycle) == ("trunk", cycle)}
        worst = max(branches, key=lambda s: s.scores[-1])
        assert parents <= {worst.number}


def test_branches_with_another_loss_are_validated_with_the_initial_loss() -> None:
    def model_fn(trial: Any) -> miha.Recipe:
        x, y = blobs(60)
        model = nn.Linear(4, 1)
        target = y[:, None].float()
        choices = {"mse": nn.MSELoss(), "tiny": lambda o, t: 1e-6 * nn.functional.l1_loss(o, t)}
        return miha.Recipe(
            model=model,
            loss_fn=miha.suggest_loss(trial, choices=choices),
            train_data=(x[:40], target[:40]),
            valid_data=(x[40:], target[40:]),
        )

    result = run(new_study(), model_fn)
    tiny = [s for s in result.segments if s.params["loss"] == "tiny" and s.scores]
    assert tiny, "the loss did not mutate: choose another seed"
    assert all(min(s.scores) > 1e-3 for s in tiny)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keep", "n_left"), [("final", {1}), ("trunk", range(2, 12)), ("all", range(8, 40))]
)
def test_keep_limits_the_remaining_checkpoints(keep: Any, n_left: Any, tmp_path: Path) -> None:
    result = run(new_study(), keep=keep, checkpoint_dir=tmp_path)
    files = [file for file in tmp_path.iterdir() if not file.name.startswith("member-")]
    assert len(files) in n_left
    if keep == "trunk":
        names = {file.name for file in files}
        assert all(s.checkpoint is not None for s in result.lineage)
        assert {s.checkpoint["id"] for s in result.lineage} <= names


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Some regimes for parameter")
def test_plots_and_importances_of_optuna_work() -> None:
    study = new_study()
    result = run(study)
    figure = optuna.visualization.plot_intermediate_values(study)
    assert len(figure.data) == len(result.segments)
    importances = optuna.importance.get_param_importances(study)
    assert "lr" in importances


@pytest.mark.slow
def test_executor_gives_the_same_run(whole_tiny: Any) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as executor:
        result = run(new_study(), executor=executor)
    assert history(result) == history(whole_tiny)


@pytest.mark.slow
def test_schedule_covers_the_lineage_without_gaps(tmp_path: Path) -> None:
    result = run(new_study())
    rows = list(result.schedule)
    assert rows[0]["from_epoch"] == 0
    for before, after in itertools.pairwise(rows):
        assert before["to_epoch"] == after["from_epoch"]
    assert {k: rows[-1][k] for k in result.params} == result.params
    result.schedule.to_csv(tmp_path / "schedule.csv")
    result.schedule.to_json(tmp_path / "schedule.json")
    header = (tmp_path / "schedule.csv").read_text().splitlines()[0]
    assert header.startswith("from_epoch,to_epoch,role,")


@pytest.mark.slow
def test_model_can_be_saved_and_exported(tmp_path: Path) -> None:
    result = run(new_study())
    x, _ = blobs(7, seed=2)
    expected = result.model(x)
    result.save(tmp_path / "model.pt")
    saved = torch.load(tmp_path / "model.pt", weights_only=True)
    assert saved["params"] == result.params
    assert same(saved["state_dict"], weights(result))
    result.export(tmp_path / "model.pt2", x[:1])
    program = torch.export.load(tmp_path / "model.pt2").module()
    assert torch.allclose(program(x), expected, atol=1e-6)
    assert program(x[:3]).shape == (3, 3)


@pytest.mark.slow
def test_describe_names_the_best_change_of_every_cycle() -> None:
    result = run(new_study())
    text = result.describe()
    cycles = {s.cycle for s in result.segments if s.role == "branch"}
    assert all(f"cycle {cycle}: " in text for cycle in cycles)
    assert "start-up race" in text
    assert f"{result.n_epochs_trained} epochs trained in all" in text


def test_run_in_a_thread_gives_the_same_result(whole_tiny: Any) -> None:
    results: list[miha.Result] = []
    thread = threading.Thread(target=lambda: results.append(run(new_study())))
    thread.start()
    thread.join()
    assert history(results[0]) == history(whole_tiny)


@pytest.mark.slow
def test_control_is_never_pruned() -> None:
    class PruneAlways(optuna.pruners.BasePruner):
        def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
            return True

    result = run(new_study(pruner=PruneAlways()))
    branches = [s for s in result.segments if s.role == "branch"]
    assert {s.state for s in branches if s.branch == 0} == {TrialState.COMPLETE}
    assert {s.state for s in branches if s.branch > 0} == {TrialState.PRUNED}


@pytest.mark.slow
def test_seed_that_differs_from_that_of_the_study_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    study = new_study(seed=0)
    first = run(study)
    study.sampler = miha.MihaSampler(seed=1)
    optuna.logging.enable_propagation()
    try:
        second = run(study)
    finally:
        optuna.logging.disable_propagation()
    assert "seed 0" in caplog.text
    assert history(first) == history(second)


def test_length_of_a_run_is_logged_before_it_starts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    plan = miha.Plan.classic(
        runup_epochs=2, n_cycles=1, population_size=2, branch_epochs=2, fixing_epochs=3
    )
    optuna.logging.set_verbosity(optuna.logging.INFO)
    optuna.logging.enable_propagation()
    try:
        run(new_study(), plan=plan)
    finally:
        optuna.logging.disable_propagation()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
    assert "11 epochs will be trained" in caplog.text
    assert "1 cycles of 2 branches x 2 and fixing 3" in caplog.text


class UnpicklableError(Exception):
    """An exception that cannot be pickled."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.lock = threading.Lock()


def test_unpicklable_exception_of_a_worker_is_replaced_by_its_message() -> None:
    main = threading.get_ident()

    def model_fn(trial: Any) -> miha.Recipe:
        recipe = classifier(trial)
        if threading.get_ident() != main:
            raise UnpicklableError(7, "in the worker")
        return recipe

    from concurrent.futures import ThreadPoolExecutor

    message = "UnpicklableError: 7: in the worker"
    with ThreadPoolExecutor(1) as executor, pytest.raises(RuntimeError, match=message):
        run(new_study(), model_fn, executor=executor)


@pytest.mark.slow
def test_train_step_may_call_parts_of_the_network(whole_tiny: Any) -> None:
    def train_step(model: Any, batch: Any, loss_fn: Any) -> torch.Tensor:
        x, y = batch
        return loss_fn(model[4](model[3](model[2](model[1](model[0](x))))), y)

    def model_fn(trial: Any) -> miha.Recipe:
        recipe = classifier(trial)
        recipe.train_step = train_step
        return recipe

    assert history(run(new_study(), model_fn)) == history(whole_tiny)


def test_enqueued_trial_that_cannot_be_trained_fails_without_ending_the_run() -> None:
    def model_fn(trial: Any) -> miha.Recipe:
        recipe = classifier(trial)
        width = trial.suggest_categorical("width", [12, 16])
        recipe.model = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))
        recipe.optimizer = None
        return recipe

    study = new_study()
    study.enqueue_trial({"width": 16})
    result = run(
        study, model_fn, plan=miha.Plan(90, startup=1, mutations=("lr",), anneal="cosine")
    )
    failed = [t for t in study.trials if t.state == TrialState.FAIL]
    assert ["InheritanceError" in t.user_attrs["miha:error"] for t in failed] == [True]
    assert result.n_epochs_trained == 90


@pytest.mark.slow
def test_several_threads_give_the_same_run(whole_tiny: Any) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(3) as executor:
        result = run(new_study(), executor=executor)
    assert history(result) == history(whole_tiny)


def selective(trial: Any) -> miha.Recipe:
    """A ``model_fn`` that prunes high learning rates."""
    recipe = explicit(trial)
    if trial.params["lr"] > 2e-3:
        raise optuna.TrialPruned("too high")
    return recipe


@pytest.mark.slow
@pytest.mark.parametrize("n_jobs", [1, pytest.param(2, marks=pytest.mark.long)])
def test_trial_that_model_fn_prunes_ends_alone(n_jobs: int) -> None:
    study = new_study()
    plan = miha.Plan(90, startup=4, mutations=("lr",), fixing_epochs=3, anneal="cosine")
    result = run(study, selective, plan=plan, n_jobs=n_jobs)
    states = {t.state for t in study.trials if t.user_attrs.get("miha:error")}
    assert states == {TrialState.PRUNED}
    errors = [t.user_attrs.get("miha:error") for t in study.trials]
    assert "TrialPruned: too high" in errors
    assert history(miha.load_result(study, selective)) == history(result)
    assert result.params["lr"] <= 2e-3
    assert result.segments[-1].role == "final"


def test_trial_that_a_trainer_prunes_within_an_epoch_ends_alone() -> None:
    def trainer(recipe: miha.Recipe, n_epochs: int) -> Any:
        for epoch in range(n_epochs):
            if recipe.optimizer.param_groups[0]["lr"] > 1e-3 and epoch == 1:
                raise optuna.TrialPruned("too high")
            recipe.optimizer.step()
            yield miha.EpochResult(value=1.0)

    study = new_study()
    plan = miha.Plan(40, startup=1, mutations=("lr",), fixing_epochs=3, anneal=None)
    result = run(study, plan=plan, trainer=trainer)
    pruned = [s for s in result.segments if s.state == TrialState.PRUNED]
    assert pruned and all(s.trained == 2 and len(s.scores) == 1 for s in pruned)
    assert result.n_epochs_trained == 40


def test_initial_configuration_that_model_fn_prunes_is_refused() -> None:
    def model_fn(trial: Any) -> miha.Recipe:
        raise optuna.TrialPruned("never")

    study = new_study()
    with pytest.raises(ValueError, match=r"initial configuration, got TrialPruned: never\."):
        run(study, model_fn)
    assert study.user_attrs == {}


def test_trainer_may_maximize() -> None:
    def trainer(recipe: miha.Recipe, n_epochs: int) -> Any:
        for epoch in range(n_epochs):
            recipe.optimizer.step()
            yield miha.EpochResult(value=float(epoch))

    study = optuna.create_study(direction="maximize", sampler=miha.MihaSampler(seed=0))
    result = run(study, plan=SHORT, trainer=trainer)
    assert result.value == max(t.value for t in study.trials if t.value is not None)
