"""The private API of Optuna that the package depends on.

After an update of Optuna, a failure shows which part of ``optuna_internals.py`` to revise.
"""

from __future__ import annotations

import copy
import datetime
import threading
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.pruners import BasePruner, MedianPruner, NopPruner, PercentilePruner
from optuna.samplers import BaseSampler, GridSampler, RandomSampler, TPESampler
from optuna.storages import InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from optuna_miha import MihaSampler, SlopePruner
from optuna_miha._study.buffered_trial import BufferedTrial
from optuna_miha._study.optuna_internals import (
    enqueued_params,
    is_default_pruner,
    is_default_sampler,
    is_in_memory,
    is_stopped,
    sqlite_file,
    start_trial,
    stoppable,
    tell,
)


def test_a_new_study_has_the_default_sampler_and_pruner() -> None:
    study = optuna.create_study()
    assert is_default_sampler(study.sampler)
    assert is_default_pruner(study.pruner)


def test_a_loaded_study_has_the_default_sampler_and_pruner(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    optuna.create_study(storage=url, study_name="s", sampler=RandomSampler(), pruner=NopPruner())
    study = optuna.load_study(storage=url, study_name="s")
    assert is_default_sampler(study.sampler)
    assert is_default_pruner(study.pruner)


@pytest.mark.parametrize(
    "settings",
    [
        {"seed": 0},
        {"multivariate": True},
        {"multivariate": False},
        {"n_startup_trials": 5},
        {"n_ei_candidates": 10},
        {"constant_liar": False},
        {"constraints_func": lambda trial: (0.0,)},
    ],
    ids=lambda settings: next(iter(settings)),
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_sampler_with_a_changed_setting_is_not_the_default(
    settings: dict[str, Any],
) -> None:
    assert not is_default_sampler(TPESampler(**settings))


@pytest.mark.parametrize(
    "sampler",
    [RandomSampler(), MihaSampler(), type("MySampler", (TPESampler,), {})()],
    ids=lambda sampler: type(sampler).__name__,
)
def test_a_sampler_of_another_class_is_not_the_default(sampler: BaseSampler) -> None:
    assert not is_default_sampler(sampler)


@pytest.mark.parametrize(
    "settings",
    [{"weights": lambda n: [1.0] * n}, {"prior_weight": 2.0}, {"consider_endpoints": True}],
    ids=lambda settings: next(iter(settings)),
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_sampler_with_a_changed_nested_setting_is_not_the_default(
    settings: dict[str, Any],
) -> None:
    assert not is_default_sampler(TPESampler(**settings))


@pytest.mark.parametrize(
    "pruner",
    [
        MedianPruner(n_startup_trials=1),
        MedianPruner(n_warmup_steps=3),
        MedianPruner(interval_steps=2),
        MedianPruner(n_min_trials=2),
        PercentilePruner(50.0),
        NopPruner(),
        SlopePruner(),
    ],
    ids=lambda pruner: type(pruner).__name__,
)
def test_a_pruner_that_differs_is_not_the_default(pruner: BasePruner) -> None:
    assert not is_default_pruner(pruner)


def sqlite(tmp_path: Path) -> RDBStorage:
    return RDBStorage(f"sqlite:///{tmp_path}/study.db")


def journal(tmp_path: Path) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(tmp_path / "study.log")))


def study_in(storage: Any) -> optuna.Study:
    return optuna.create_study(storage=storage)


def test_only_a_study_without_a_database_is_in_memory(tmp_path: Path) -> None:
    assert is_in_memory(study_in(None))
    assert is_in_memory(study_in(InMemoryStorage()))
    assert not is_in_memory(study_in(sqlite(tmp_path)))
    assert not is_in_memory(study_in(journal(tmp_path)))


def test_the_file_of_an_sqlite_study_is_found(tmp_path: Path) -> None:
    file = tmp_path / "study.db"
    assert sqlite_file(study_in(f"sqlite:///{file}")) == file
    assert sqlite_file(study_in(sqlite(tmp_path))) == file


def test_the_path_of_the_file_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert sqlite_file(study_in("sqlite:///relative.db")) == tmp_path / "relative.db"


@pytest.mark.parametrize("url", ["sqlite:///:memory:", "sqlite://"])
def test_an_sqlite_database_in_memory_has_no_file(url: str) -> None:
    assert sqlite_file(study_in(url)) is None


def test_other_storages_have_no_file(tmp_path: Path) -> None:
    assert sqlite_file(study_in(None)) is None
    assert sqlite_file(study_in(journal(tmp_path))) is None


@pytest.mark.parametrize("params", [{}, {"lr": 0.1, "optimizer": "sgd"}])
def test_enqueued_parameters_are_read_from_the_trial(params: dict[str, Any]) -> None:
    study = optuna.create_study()
    study.enqueue_trial(params)
    assert enqueued_params(study.trials[0]) == params
    number = study.ask().number
    assert enqueued_params(study.trials[number]) == params


def test_a_trial_that_was_not_enqueued_has_no_enqueued_parameters() -> None:
    study = optuna.create_study()
    study.ask().suggest_float("x", 0, 1)
    assert enqueued_params(study.trials[0]) == {}


def test_a_callback_can_stop_the_study() -> None:
    study = optuna.create_study()
    with stoppable(study):
        assert not is_stopped(study)
        study.stop()
        assert is_stopped(study)


def test_a_study_cannot_be_stopped_after_the_run() -> None:
    study = optuna.create_study()
    with stoppable(study):
        pass
    with pytest.raises(RuntimeError, match="stop"):
        study.stop()


def test_an_error_in_a_run_leaves_the_study_usable() -> None:
    study = optuna.create_study()
    with pytest.raises(KeyError), stoppable(study):
        raise KeyError
    with pytest.raises(RuntimeError, match="stop"):
        study.stop()
    study.optimize(lambda trial: 0.0, n_trials=1)
    assert len(study.trials) == 1


def test_a_stop_does_not_affect_the_next_run() -> None:
    study = optuna.create_study()
    with stoppable(study):
        study.stop()
    with stoppable(study):
        assert not is_stopped(study)
    study.optimize(lambda trial: 0.0, n_trials=2)
    assert len(study.trials) == 2


def test_a_run_inside_an_optimization_is_refused() -> None:
    study = optuna.create_study()

    def objective(trial: optuna.Trial) -> float:
        with stoppable(study):
            return 0.0

    with pytest.raises(RuntimeError, match="inside its own optimization"):
        study.optimize(objective, n_trials=1)
    with stoppable(study), pytest.raises(RuntimeError, match="Nested"):
        study.optimize(lambda trial: 0.0, n_trials=1)


def test_optunas_own_loop_uses_the_same_stop_flag() -> None:
    study = optuna.create_study()
    seen = []

    def callback(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        seen.append(is_stopped(study))
        study.stop()
        seen.append(is_stopped(study))

    study.optimize(lambda trial: 0.0, n_trials=3, callbacks=[callback])
    assert seen == [False, True]


@pytest.mark.parametrize("before", [False, True])
def test_a_stop_requested_by_the_sampler_is_ignored(before: bool) -> None:
    study = optuna.create_study(sampler=GridSampler({"x": [0.5]}))
    with stoppable(study):
        trial = study.ask()
        trial.suggest_float("x", 0.0, 1.0)
        if before:
            study.stop()
        assert tell(study, trial, 0.0).value == 0.0
        assert is_stopped(study) is before
        study.tell(study.ask(), 0.0)
        assert is_stopped(study), "Optuna's own call stops the study."


def test_another_thread_cannot_stop_the_run() -> None:
    study = optuna.create_study()
    errors: list[BaseException] = []

    def stop() -> None:
        try:
            study.stop()
        except RuntimeError as error:
            errors.append(error)

    with stoppable(study):
        thread = threading.Thread(target=stop)
        thread.start()
        thread.join()
        assert not is_stopped(study)
    assert len(errors) == 1


def test_the_sampler_sees_the_attributes_of_enqueued_trials() -> None:
    seen = []

    class Recorder(RandomSampler):
        def sample_independent(self, study: Any, trial: Any, *args: Any) -> Any:
            seen.append(trial.user_attrs)
            return super().sample_independent(study, trial, *args)

    study = optuna.create_study(sampler=Recorder())
    study.enqueue_trial({}, user_attrs={"miha:role": "branch"})
    study.ask().suggest_float("x", 0, 1)
    assert seen == [{"miha:role": "branch"}]


def test_trials_are_asked_for_in_the_order_of_enqueueing() -> None:
    study = optuna.create_study()
    for n in range(3):
        study.enqueue_trial({}, user_attrs={"n": n})
    assert [study.ask().user_attrs["n"] for _ in range(3)] == [0, 1, 2]


@pytest.mark.parametrize("kind", ["memory", "rdb", "cached", "journal"])
def test_a_trial_starts_with_its_parameters_attributes_and_reports(
    kind: str, tmp_path: Path
) -> None:
    storages: dict[str, Any] = {
        "memory": lambda: InMemoryStorage(),
        "rdb": lambda: RDBStorage(f"sqlite:///{tmp_path}/s.db"),
        "cached": lambda: f"sqlite:///{tmp_path}/s.db",
        "journal": lambda: JournalStorage(JournalFileBackend(str(tmp_path / "log"))),
    }
    study = optuna.create_study(storage=storages[kind]())
    space = optuna.distributions.FloatDistribution(0.0, 1.0)
    start = datetime.datetime(2020, 1, 2, 3, 4, 5)
    trial = start_trial(
        study,
        start=start,
        params={"x": 0.25},
        distributions={"x": space},
        user_attrs={"miha:role": "branch"},
        intermediate_values={4: 0.5},
    )
    (frozen,) = study.get_trials()
    assert frozen.state == optuna.trial.TrialState.RUNNING
    assert frozen.datetime_start == start
    assert (frozen.params, frozen.user_attrs) == ({"x": 0.25}, {"miha:role": "branch"})
    assert trial.suggest_float("x", 0.0, 1.0) == 0.25
    trial.report(0.4, step=5)
    finished = study.tell(trial, 0.3)
    assert finished.number == 0
    assert finished.intermediate_values == {4: 0.5, 5: 0.4}
    assert study.best_params == {"x": 0.25}


@pytest.mark.parametrize("state", ["COMPLETE", "PRUNED", "FAIL"])
def test_a_buffered_trial_finishes_like_a_running_one(state: str, tmp_path: Path) -> None:
    study = optuna.create_study(storage=f"sqlite:///{tmp_path}/s.db")
    content: dict[str, Any] = {
        "params": {"x": 0.25},
        "distributions": {"x": optuna.distributions.FloatDistribution(0.0, 1.0)},
        "user_attrs": {"miha:role": "branch"},
        "constraints": {"a": 2.0, "b": -1.0},
        "intermediate_values": {4: 0.5},
    }
    value = 0.3 if state == "COMPLETE" else None
    running, buffered = (
        BufferedTrial(study, {}, verify=lambda: None, **copy.deepcopy(content)) for _ in range(2)
    )
    running.publish()
    final = optuna.trial.TrialState[state]
    for trial in (running, buffered):
        trial.report(0.4, 5)
        trial.set_curve("losses", [0.5, None])
        assert trial.close(final, value) == 2.0
    finished = [trial.finish(final, value) for trial in (running, buffered)]
    expected = {"COMPLETE": [0.3], "PRUNED": [0.4], "FAIL": None}
    assert finished[0].values == expected[state]
    assert [trial.number for trial in finished] == [0, 1]
    for name in ("state", "values", "params", "distributions", "user_attrs", "constraints"):
        assert getattr(finished[0], name) == getattr(finished[1], name)
    for trial in study.get_trials():
        assert trial.system_attrs["losses"] == [0.5, None]
        assert "losses" not in trial.user_attrs
    assert finished[0].intermediate_values == finished[1].intermediate_values
    for trial in finished:
        assert trial.datetime_start is not None
        assert trial.datetime_complete is not None
        assert trial.datetime_start <= trial.datetime_complete


def test_a_sampler_sees_all_earlier_trials_when_a_trial_starts() -> None:
    """Like ``study.ask``, ``start_trial`` drops the thread's cached list of trials."""
    seen: list[int] = []

    class Counting(RandomSampler):
        def sample_independent(self, study: Any, *args: Any) -> Any:
            seen.append(len(study._get_trials(deepcopy=False, use_cache=True)))
            return super().sample_independent(study, *args)

    study = optuna.create_study(sampler=Counting())
    for _ in range(3):
        content: dict[str, Any] = {"params": {}, "distributions": {}, "user_attrs": {}}
        now = datetime.datetime.now()
        trial = start_trial(study, start=now, **content, intermediate_values={})
        trial.suggest_float("x", 0.0, 1.0)
    assert seen == [1, 2, 3]
