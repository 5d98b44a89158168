"""The sampler in ordinary studies, and its proposals in a run."""

from __future__ import annotations

import pickle
from collections import Counter
from typing import Any

import numpy as np
import optuna
import pytest
from helpers.segments import FULL_SPACE, START, is_valid
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

import optuna_miha as miha
from optuna_miha import MihaSampler
from optuna_miha._history import attributes
from optuna_miha._search.context import SearchContext
from optuna_miha._search.plan import Plan
from optuna_miha._search.space import declare_initial, kind_of, kinds
from optuna_miha._search.turns import Turn


def quadratic(trial: optuna.Trial) -> float:
    x = trial.suggest_float("x", -10, 10)
    y = trial.suggest_int("y", -10, 10)
    return (x - 3) ** 2 + (y + 2) ** 2


def new_study(sampler: BaseSampler | None = None, **settings: Any) -> optuna.Study:
    return optuna.create_study(sampler=sampler or MihaSampler(seed=0), **settings)


def mixed(trial: optuna.Trial) -> float:
    """Distributions of several classes, and a parameter that depends on another one."""
    cost = abs(np.log(trial.suggest_float("lr", 1e-5, 1.0, log=True) / 0.1))
    cost += abs(trial.suggest_int("batch_size", 16, 256, log=True) - 100) / 100
    if trial.suggest_categorical("optimizer", ["adam", "sgd"]) == "sgd":
        cost -= trial.suggest_float("momentum", 0.0, 0.99)
    return float(cost)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_an_ordinary_study_improves_over_its_first_trial(seed: int, direction: str) -> None:
    sign = 1 if direction == "minimize" else -1
    study = new_study(MihaSampler(seed=seed), direction=direction)
    study.optimize(lambda trial: sign * quadratic(trial), n_trials=60)
    assert sign * study.trials[0].value == 13.0  # type: ignore[operator]
    assert sign * study.best_value < 1.0


def test_an_ordinary_study_starts_in_the_middle_of_the_space() -> None:
    study = new_study()
    study.optimize(mixed, n_trials=1)
    assert study.trials[0].params == {
        "lr": pytest.approx(10**-2.5),
        "batch_size": 64,
        "optimizer": "adam",
    }


def test_an_ordinary_study_starts_from_declared_values() -> None:
    study = new_study()

    def objective(trial: optuna.Trial) -> float:
        miha.suggest_batch_size(trial, initial=48)
        with declare_initial("x", -7.0):
            return trial.suggest_float("x", -10, 10) ** 2

    study.optimize(objective, n_trials=20)
    assert study.trials[0].params == {"batch_size": 48, "x": -7.0}
    assert study.best_value < 49


def test_each_trial_differs_from_the_best_one_so_far_in_one_kind() -> None:
    study = new_study()
    study.optimize(mixed, n_trials=40)
    best, n_changed = study.trials[0], 0
    for trial in study.trials[1:]:
        common = best.params.keys() & trial.params.keys()
        names = {name for name in common if best.params[name] != trial.params[name]}
        assert len(names) <= 1 or names == {"optimizer", "lr"}
        n_changed += bool(names)
        assert trial.value is not None
        assert best.value is not None
        best = trial if trial.value < best.value else best
    assert n_changed > 30  # A few mutations may be lost at a bound.


def test_the_learning_rate_is_also_lowered_in_an_ordinary_study() -> None:
    study = new_study()
    study.optimize(
        lambda trial: abs(np.log(trial.suggest_float("lr", 1e-6, 1, log=True) / 1e-5)), n_trials=40
    )
    assert study.best_params["lr"] < 1e-4


def test_the_same_seed_gives_the_same_proposals() -> None:
    runs = []
    for seed in (1, 1, 2):
        study = new_study(MihaSampler(seed=seed))
        study.optimize(mixed, n_trials=15)
        runs.append([trial.params for trial in study.trials])
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_a_resumed_study_gets_the_proposals_of_an_uninterrupted_one() -> None:
    uninterrupted, resumed = new_study(MihaSampler(seed=3)), new_study(MihaSampler(seed=3))
    uninterrupted.optimize(mixed, n_trials=15)
    resumed.optimize(mixed, n_trials=6)
    resumed.sampler = MihaSampler(seed=3)
    resumed.optimize(mixed, n_trials=9)
    assert [t.params for t in resumed.trials] == [t.params for t in uninterrupted.trials]


def test_reseeding_does_not_change_the_proposals() -> None:
    plain, reseeded = new_study(MihaSampler(seed=3)), new_study(MihaSampler(seed=3))
    for study in (plain, reseeded):
        for _ in range(8):
            study.optimize(mixed, n_trials=1)
            if study is reseeded:
                study.sampler.reseed_rng()  # As Optuna does if `n_jobs` exceeds 1.
    assert [t.params for t in plain.trials] == [t.params for t in reseeded.trials]


def test_samplers_without_seed_give_different_proposals() -> None:
    runs = []
    for _ in range(2):
        study = new_study(MihaSampler())
        study.optimize(quadratic, n_trials=10)
        runs.append([trial.params for trial in study.trials])
    assert runs[0] != runs[1]


def test_pruned_and_failed_trials_are_not_mutated() -> None:
    study = new_study()
    study.optimize(quadratic, n_trials=1)

    def prune_or_fail(trial: optuna.Trial) -> float:
        quadratic(trial)
        trial.report(-100.0, step=0)
        raise optuna.TrialPruned if trial.number % 2 else RuntimeError

    study.optimize(prune_or_fail, n_trials=10, catch=(RuntimeError,))
    start = study.trials[0].params
    for trial in study.trials[1:]:
        assert sum(trial.params[name] != start[name] for name in start) == 1


def test_an_invalid_seed_is_rejected() -> None:
    assert type(miha.MihaSampler(seed=np.int64(3)).seed) is int
    with pytest.raises(ValueError, match="`seed` must be a non-negative integer, got -1"):
        miha.MihaSampler(seed=-1)
    with pytest.raises(TypeError, match="'float' object cannot be interpreted as an integer"):
        miha.MihaSampler(seed=0.5)  # type: ignore[arg-type]


def test_a_multi_objective_study_is_rejected() -> None:
    study = new_study(directions=["minimize", "maximize"])
    with pytest.raises(ValueError, match="needs a single objective, got 2 directions"):
        study.ask().suggest_float("x", 0, 1)


def test_a_custom_mutation_is_used() -> None:
    def increment(value: Any, distribution: BaseDistribution, rng: np.random.Generator) -> Any:
        return value + 1

    study = new_study(MihaSampler(seed=0, mutation=increment), direction="maximize")
    study.optimize(lambda trial: trial.suggest_int("x", 0, 100), n_trials=5)
    assert [t.params["x"] for t in study.trials] == [50, 51, 52, 53, 54]


def test_a_custom_mutation_that_leaves_the_space_is_rejected() -> None:
    study = new_study(MihaSampler(mutation=lambda value, distribution, rng: 1000))
    study.optimize(lambda trial: trial.suggest_int("x", 0, 100), n_trials=1)
    with pytest.raises(ValueError, match=r"must return a value of .* got 1000"):
        study.ask().suggest_int("x", 0, 100)


def test_two_threads_can_share_a_sampler() -> None:
    study = new_study()
    study.optimize(mixed, n_trials=40, n_jobs=2)
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 40
    for trial in study.trials:
        for name, value in trial.params.items():
            assert is_valid(trial.distributions[name], value)
    assert study.best_value < (study.trials[0].value or 0)


def test_a_pickled_sampler_gives_the_same_proposals() -> None:
    study = new_study(MihaSampler(seed=5))
    study.optimize(mixed, n_trials=5)
    copy = pickle.loads(pickle.dumps(study.sampler))
    trial = study.ask()
    distribution = optuna.distributions.FloatDistribution(1e-5, 1.0, log=True)
    frozen = study.trials[trial.number]
    assert copy.sample_independent(
        study, frozen, "lr", distribution
    ) == study.sampler.sample_independent(study, frozen, "lr", distribution)


def test_a_range_that_excludes_the_old_value_starts_in_the_middle() -> None:
    study = new_study()
    study.optimize(lambda trial: trial.suggest_float("x", 50, 100), n_trials=3)
    assert study.ask().suggest_float("x", 0, 10) == 5.0


def test_a_changed_grid_gets_a_value_on_the_grid() -> None:
    study = new_study(MihaSampler(mutation=lambda value, distribution, rng: 3))
    study.optimize(lambda trial: trial.suggest_int("x", 0, 10), n_trials=1)
    assert study.ask().suggest_int("x", 0, 10, step=2) % 2 == 0


def test_a_trial_keeps_its_proposal_while_other_trials_finish() -> None:
    for seed in range(6):
        study = new_study(MihaSampler(seed=seed))
        study.optimize(quadratic, n_trials=1)
        start = study.trials[0].params
        first = study.ask()
        study.enqueue_trial({"x": 4.0, "y": -3})
        second = study.ask()
        first_x = first.suggest_float("x", -10, 10)
        study.tell(second, quadratic(second))
        assert study.best_trial.number == second.number
        quadratic(study.ask())
        first_y = first.suggest_int("y", -10, 10)
        assert (first_x != start["x"]) + (first_y != start["y"]) == 1


def test_initial_parameters_that_fail_are_not_repeated() -> None:
    study = new_study()

    def objective(trial: optuna.Trial) -> float:
        return float("nan") if quadratic(trial) == 13.0 else 0.0

    study.optimize(objective, n_trials=5)
    assert any(t.state == TrialState.COMPLETE for t in study.trials)


def run_study(seed: int = 0, **plan: Any) -> optuna.Study:
    """A study with the attributes of a run."""
    study = new_study(MihaSampler(seed=99))
    attrs = {
        attributes.PLAN: miha.Plan(**plan, anneal="cosine").asdict(),
        attributes.RUN_SEED: seed,
        attributes.INITIAL: START,
        attributes.SPACE: {k: distribution_to_json(v) for k, v in FULL_SPACE.items()},
    }
    for key, value in attrs.items():
        study.set_user_attr(key, value)
    return study


def proposed(study: optuna.Study, role: str, branch: int, **attrs: Any) -> dict[str, Any]:
    """The parameters that a trial of a run gets."""
    run_attrs = {
        attributes.ROLE: role,
        attributes.CYCLE: 0,
        attributes.BRANCH: branch,
        attributes.PARENT: None,
    }
    study.enqueue_trial({}, user_attrs=run_attrs | attrs)
    trial = study.ask()
    for name, distribution in FULL_SPACE.items():
        suggest(trial, name, distribution)
    return trial.params


def suggest(trial: optuna.Trial, name: str, distribution: Any) -> None:
    if isinstance(distribution, optuna.distributions.CategoricalDistribution):
        trial.suggest_categorical(name, distribution.choices)
        return
    settings = {"log": distribution.log}
    if distribution.step is not None and not distribution.log:
        settings["step"] = distribution.step
    method = (
        trial.suggest_int
        if isinstance(distribution, optuna.distributions.IntDistribution)
        else trial.suggest_float
    )
    method(name, distribution.low, distribution.high, **settings)


def kinds_changed(old: dict[str, Any], new: dict[str, Any]) -> set[str]:
    return {kind_of(name) for name in old if old[name] != new[name]}


def test_siblings_change_different_kinds() -> None:
    study = run_study()
    for cycle in range(1, 6):
        seen = []
        for branch in range(1, 5):
            new = proposed(study, "branch", branch, **{attributes.CYCLE: cycle})
            kinds = kinds_changed(START, new)
            assert len(kinds - {"lr"}) <= 1
            assert kinds
            seen.append(min(kinds - {"lr"}, default="lr"))
        assert len(set(seen)) == 4


def test_cycles_change_different_kinds() -> None:
    study = run_study()
    firsts = [
        frozenset(kinds_changed(START, proposed(study, "branch", 1, **{attributes.CYCLE: cycle})))
        for cycle in range(1, 12)
    ]
    assert len(set(firsts)) > 2


def test_a_branchs_proposal_does_not_depend_on_its_trial_number_or_sampler() -> None:
    one, other = run_study(seed=7), run_study(seed=7)
    other.add_trial(optuna.trial.create_trial(value=0.0))
    other.sampler = MihaSampler(seed=12345)  # It is ignored: the run has its own seed.
    order = [(c, b) for c in (1, 2) for b in (0, 1, 2)]
    forward = {(c, b): proposed(one, "branch", b, **{attributes.CYCLE: c}) for c, b in order}
    backward = {
        (c, b): proposed(other, "branch", b, **{attributes.CYCLE: c}) for c, b in order[::-1]
    }
    assert forward == backward


def test_another_seed_of_the_run_gives_other_proposals() -> None:
    one, other = (
        [proposed(run_study(seed=seed), "branch", b) for b in range(3)] for seed in (0, 1)
    )
    assert one != other


def test_another_kind_mutates_if_none_of_the_first_kind_has_an_effect() -> None:
    study = run_study(mutations=("lr", "dropout"))
    highest = FULL_SPACE["lr"].high
    study.add_trial(
        optuna.trial.create_trial(
            value=1.0, params=START | {"lr": highest}, distributions=FULL_SPACE
        )
    )
    for branch in (1, 2):
        new = proposed(study, "branch", branch, **{attributes.PARENT: 0, attributes.CYCLE: 1})
        assert kinds_changed(START | {"lr": highest}, new) == {"dropout"}


def test_a_branch_mutates_its_parent_and_not_the_best_trial() -> None:
    study = run_study(mutations=("dropout",))
    parent = START | {"lr": 0.5, "optimizer": "sgd", "width": 14}
    for value, params in ((9.0, parent), (0.0, START)):
        study.add_trial(
            optuna.trial.create_trial(value=value, params=params, distributions=FULL_SPACE)
        )
    new = proposed(study, "branch", 1, **{attributes.PARENT: 0, attributes.CYCLE: 1})
    assert kinds_changed(parent, new) == {"dropout"}


def test_a_mutation_of_the_learning_rate_raises_it_in_a_run() -> None:
    study = run_study(mutations=("lr",))
    for cycle in range(10):
        new = proposed(study, "branch", 1, **{attributes.CYCLE: cycle})
        assert new["lr"] > START["lr"]


@pytest.mark.parametrize("allowed", [("batch_size",), ("activation", "width")])
def test_only_kinds_in_mutations_mutate(allowed: tuple[str, ...]) -> None:
    study = run_study(mutations=allowed)
    seen = set()
    for cycle in range(8):
        seen |= kinds_changed(START, proposed(study, "branch", 1, **{attributes.CYCLE: cycle}))
    assert seen == set(allowed)


def test_a_branch_keeps_its_parameters_if_no_kind_may_mutate() -> None:
    study = run_study(mutations=("loss",))
    assert proposed(study, "branch", 1) == START


def test_an_enqueued_trial_gets_the_trunks_other_parameters() -> None:
    study = run_study()
    study.enqueue_trial({"lr": 0.7})
    trial = study.ask()
    run_attrs = {"role": "branch", "cycle": 1, "branch": 3, "parent": None, "guest": True}
    for key, value in run_attrs.items():
        trial.set_user_attr(attributes.PREFIX + key, value)
    for name, distribution in FULL_SPACE.items():
        suggest(trial, name, distribution)
    assert trial.params == START | {"lr": 0.7}


def test_a_race_starts_with_the_initial_configuration_and_has_no_duplicates() -> None:
    study = run_study()
    race = [proposed(study, "startup", branch) for branch in range(8)]
    assert race[0] == START
    assert all(one not in race[:n] for n, one in enumerate(race))
    backward = [proposed(study, "startup", branch) for branch in reversed(range(8))]
    assert backward[::-1] == race


PARENT = START | {"dropout.2": 0.4, "label_smoothing": 0.0, "weight_decay": 1e-2}


def context_of(distributions: Any, seed: int = 0) -> SearchContext:
    params = START if distributions else {}
    return SearchContext(
        seed=seed, initial_params=params, distributions=distributions, plan=Plan(100)
    )


def heirs(params: dict[str, Any], n: int, seed: int = 0, **turn: Any) -> list[dict[str, Any]]:
    """The heirs of rounds with one mutation each, none of which is continued."""
    proposals, tried = list[dict[str, Any]](), Counter[str]()
    for number in range(n):
        proposals.append(
            MihaSampler(seed=0).propose_heir(
                context_of(FULL_SPACE, seed),
                Turn(number=number, tried=tried, **turn),
                params,
                FULL_SPACE,
            )
        )
        kinds_of_heir = kinds_changed(params, proposals[-1])
        tried.update(kinds_of_heir - {"lr"} or {"lr"})
    return proposals


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("more", "sign"), [(False, -1), (True, 1)])
def test_heirs_regularize_less_at_first_and_more_where_the_parent_overfits(
    seed: int, more: bool, sign: int
) -> None:
    proposals = heirs(PARENT, 4, seed, regularizes_more=more)
    # The kind `width` is none of the usual, and therefore the first one.
    assert kinds_changed(PARENT, proposals[0]) == {"width"}
    regularizers = {"dropout", "weight_decay"} | ({"label_smoothing"} if more else set())
    for new in proposals[1 : 1 + len(regularizers)]:
        [kind] = kinds_changed(PARENT, new)
        regularizers.remove(kind)
        [name] = (name for name in PARENT if new[name] != PARENT[name])
        assert sign * (new[name] - PARENT[name]) > 0
    assert not regularizers


@pytest.mark.parametrize("seed", range(4))
def test_heirs_try_every_kind_before_one_mutates_again(seed: int) -> None:
    n_kinds = len(kinds(FULL_SPACE))
    order = [frozenset(kinds_changed(PARENT, new) - {"lr"}) for new in heirs(PARENT, 30, seed)]
    assert len(set(order[:n_kinds])) == n_kinds == len(set(order[n_kinds : 2 * n_kinds]))
    assert order[n_kinds - 1] == {"label_smoothing"}  # It is zero, and cannot be lowered.


@pytest.mark.parametrize("seed", range(4))
def test_heirs_of_one_round_mutate_different_kinds(seed: int) -> None:
    n_kinds = len(kinds(FULL_SPACE))
    proposals = [
        MihaSampler(seed=0).propose_heir(
            context_of(FULL_SPACE, seed), Turn(number=n, index=n), PARENT, FULL_SPACE
        )
        for n in range(n_kinds)
    ]
    changed = [frozenset(kinds_changed(PARENT, new) - {"lr"}) for new in proposals]
    assert len(set(changed)) == n_kinds


def test_a_kind_without_an_effect_takes_the_turn_of_no_other() -> None:
    params = PARENT | {"dropout.2": 0.0, "width": START["width"]}
    first = heirs(params, 3)
    assert [kinds_changed(params, new) - {"lr"} for new in first[:2]] == [
        {"width"},
        {"weight_decay"},  # A dropout rate of zero cannot be lowered.
    ]
    assert not kinds_changed(params, first[2]) & {"width", "weight_decay"}


def test_heirs_without_anything_that_may_mutate_keep_their_parameters() -> None:
    assert MihaSampler(seed=0).propose_heir(context_of({}), Turn(number=3), {}, {}) == {}


def test_a_parameter_with_a_single_value_does_not_mutate() -> None:
    study = new_study()
    study.optimize(lambda trial: trial.suggest_float("x", 2, 2), n_trials=3)
    assert {t.params["x"] for t in study.trials} == {2.0}


def test_relative_sampling_gives_the_proposals_of_independent_sampling() -> None:
    study = new_study()
    study.optimize(quadratic, n_trials=3)
    space = study.trials[0].distributions
    number = study.ask().number
    frozen: FrozenTrial = study.trials[number]
    relative = study.sampler.sample_relative(study, frozen, space)
    independent = {
        name: study.sampler.sample_independent(study, frozen, name, distribution)
        for name, distribution in space.items()
    }
    assert relative == independent
