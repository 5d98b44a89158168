"""Crossover of the parameters, and averaging of the weights, of the two fittest branches."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from helpers.equality import same
from helpers.networks import run_context
from helpers.problems import blobs, classifier, explicit, history, new_study, run, weights
from helpers.segments import FULL_SPACE, START, is_valid, segment
from hypothesis import given
from hypothesis import strategies as st
from optuna.artifacts import FileSystemArtifactStore
from optuna.distributions import FloatDistribution
from optuna.trial import FixedTrial, FrozenTrial, TrialState
from torch import Tensor, nn

import optuna_miha as miha
from optuna_miha._history.lineage import Lineage
from optuna_miha._history.segment import Segment
from optuna_miha._model.model_fn import build_recipe
from optuna_miha._run.averaging import average_fittest
from optuna_miha._search.context import SearchContext
from optuna_miha._search.crossover import Child, check_crossover, cross_fittest
from optuna_miha._search.mutation import mutate
from optuna_miha._search.plan import Plan
from optuna_miha._search.space import kinds
from optuna_miha._study.buffered_trial import BufferedTrial
from optuna_miha._study.checkpoint_store import CheckpointStore
from optuna_miha._study.sibling import Sibling
from optuna_miha._training.job import Job, run_job
from optuna_miha._training.state import averaged_state
from optuna_miha._training.trainer import evaluate

PLAN = miha.Plan(
    80,
    startup=1,
    fixing_epochs=2,
    population_size=4,
    branch_epochs=2,
    prune=False,
    restarts=False,
    anneal="cosine",
)
"""A plan with several populations without pruning."""

CONTEXT = SearchContext(
    seed=0,
    initial_params=START,
    distributions=FULL_SPACE,
    plan=Plan(100, control=False, anneal="cosine"),
)


def crossed(
    fitter: dict[str, Any],
    other: dict[str, Any],
    *,
    parent: dict[str, Any] = START,
    prob: float = 0.5,
    space: Any = FULL_SPACE,
) -> dict[str, Any]:
    """The child of two branches, which are given by their changes."""
    crossover = miha.UniformCrossover(prob=prob)
    rng = np.random.default_rng(0)
    return crossover({**parent, **fitter}, {**parent, **other}, parent, space, rng)


def test_the_child_has_the_changes_of_both_branches() -> None:
    child = crossed({"activation.1": "gelu"}, {"batch_size": 64, "dropout.2": 0.3})
    assert child == START | {"activation.1": "gelu", "batch_size": 64, "dropout.2": 0.3}


@pytest.mark.parametrize(("prob", "expected"), [(0.0, 64), (1.0, 16)])
def test_a_parameter_that_both_branches_changed_is_drawn(prob: float, expected: int) -> None:
    child = crossed({"batch_size": 64}, {"batch_size": 16, "weight_decay": 1e-3}, prob=prob)
    assert child == START | {"batch_size": expected, "weight_decay": 1e-3}


def test_prob_is_the_frequency_of_the_less_fit_branch() -> None:
    crossover, rng = miha.UniformCrossover(prob=0.3), np.random.default_rng(0)
    one, two = START | {"batch_size": 64}, START | {"batch_size": 16}
    children = [crossover(one, two, START, FULL_SPACE, rng) for _ in range(1000)]
    assert 250 < sum(child["batch_size"] == 16 for child in children) < 350


@pytest.mark.parametrize("prob", [0.0, 1.0])
@pytest.mark.parametrize("swap", [False, True])
def test_a_raised_rate_keeps_its_multiple_of_the_default_with_another_optimizer(
    prob: float, swap: bool
) -> None:
    changes = [{"optimizer": "sgd", "lr": 0.03}, {"lr": 0.0025}]
    child = crossed(*(changes[::-1] if swap else changes), prob=prob)
    assert child == START | {"optimizer": "sgd", "lr": 0.075}


def test_an_optimizer_from_the_other_branch_has_the_rate_of_that_branch() -> None:
    child = crossed({"batch_size": 64}, {"optimizer": "adadelta", "lr": 1.0})
    assert child == START | {"batch_size": 64, "optimizer": "adadelta", "lr": 1.0}


def test_the_childs_rate_is_clipped_to_its_range() -> None:
    space = FULL_SPACE | {"lr": FloatDistribution(1e-5, 0.05, log=True)}
    child = crossed({"optimizer": "sgd", "lr": 0.03}, {"lr": 0.0025}, space=space)
    assert child["lr"] == 0.05


def test_momentum_is_inherited_with_sgd_and_ignored_without() -> None:
    adam = {k: v for k, v in START.items() if k != "momentum"}
    child = crossed({"batch_size": 64}, {"optimizer": "sgd", "lr": 0.03, "momentum": 0.9})
    assert (child["optimizer"], child["momentum"]) == ("sgd", 0.9)
    sgd = START | {"optimizer": "sgd", "lr": 0.03}
    lineage = population(adam, sgd | {"momentum": 0.8}, parent=sgd)
    assert cross(lineage, trunk=adam) is None


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_children_of_mutants_are_within_the_search_space(seed: int, prob: float) -> None:
    rng = np.random.default_rng(seed)
    chosen = rng.choice(list(kinds(FULL_SPACE)), 2)
    one, two = (mutate(START, FULL_SPACE, str(kind), rng) for kind in chosen)
    child = miha.UniformCrossover(prob=prob)(one, two, START, FULL_SPACE, rng)
    assert child.keys() == START.keys()
    for name, value in child.items():
        assert is_valid(FULL_SPACE[name], value), name
    unchanged = {k for k in START if START[k] == one[k] == two[k]}
    assert all(child[k] == START[k] for k in unchanged - {"lr"})


@pytest.mark.parametrize("prob", [-0.1, 1.1, float("nan")])
def test_a_prob_outside_of_its_range_is_rejected(prob: float) -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        miha.UniformCrossover(prob=prob)


def population(
    *branches: dict[str, Any], parent: dict[str, Any] = START, **changes: Any
) -> Lineage:
    """A trunk and its branches in cycle 1, the fittest first.

    ``changes`` apply to the segment of the second branch.
    """
    common = {"distributions": FULL_SPACE}
    trunk = segment(0, params=parent, **common)
    lineage = Lineage(optuna.study.StudyDirection.MINIMIZE, [trunk])
    for branch, params in enumerate(branches):
        settings = {"fitness": -float(branch), **common, **(changes if branch == 1 else {})}
        lineage.add(
            segment(
                branch + 1,
                role="branch",
                cycle=1,
                branch=branch,
                parent=0,
                params=params,
                **settings,
            )
        )
    return lineage


def cross(
    lineage: Lineage, crossover: Any = None, trunk: dict[str, Any] | None = None
) -> Child | None:
    """The child of cycle 2; by default the trunk has the parameters of the fittest branch."""
    params = lineage.ranking("branch", 1)[0].params if trunk is None else trunk
    trunk_segment = segment(9, cycle=1, params=params, distributions=FULL_SPACE)
    crossover = crossover or miha.UniformCrossover()
    return cross_fittest(crossover, lineage, trunk_segment, context=CONTEXT, cycle=2, branch=3)


ONE, TWO, THREE = (START | change for change in ({"lr": 3e-3}, {"batch_size": 64}, {"width": 11}))


def test_the_two_fittest_branches_are_crossed() -> None:
    child = cross(population(ONE, TWO, THREE))
    assert child == Child(params=ONE | TWO | {"lr": 3e-3}, parents=(1, 2))


@pytest.mark.parametrize(
    "changes",
    [
        {"state": TrialState.PRUNED, "value": None},
        {"state": TrialState.FAIL, "value": None},
        {"fitness": float("nan")},
    ],
)
def test_a_pruned_or_failed_branch_is_not_crossed(changes: dict[str, Any]) -> None:
    child = cross(population(ONE, TWO, THREE, **changes))
    assert child is not None
    assert child.parents == (1, 3)
    assert cross(population(ONE, TWO, **changes)) is None


@pytest.mark.parametrize("branches", [(), (ONE,), (ONE, START), (ONE, ONE)])
def test_there_is_no_child_without_two_different_changes(
    branches: tuple[dict[str, Any], ...],
) -> None:
    assert cross(population(*branches), trunk=ONE) is None


def test_the_child_of_a_control_has_the_change_of_the_second_branch() -> None:
    child = cross(population(START, TWO))
    assert child is not None
    assert child.params == TWO


def test_there_is_no_child_whose_change_has_no_effect() -> None:
    adamw = START | {"optimizer": "adamw"}  # Without weight decay it is the same as Adam.
    assert cross(population(START, adamw)) is None
    child = cross(population(START, adamw | {"weight_decay": 0.01}))
    assert child is not None
    assert child.params["weight_decay"] == 0.01


def test_branches_from_initial_weights_are_compared_with_the_initial_configuration() -> None:
    def branches_without_parent() -> Any:
        for branch, params in enumerate((ONE, TWO)):
            yield segment(
                branch,
                role="branch",
                cycle=1,
                branch=branch,
                params=params,
                fitness=-float(branch),
                distributions=FULL_SPACE,
            )

    child = cross(Lineage(optuna.study.StudyDirection.MINIMIZE, branches_without_parent()))
    assert child is not None
    assert child.params == START | {"lr": 3e-3, "batch_size": 64}


@pytest.mark.parametrize(
    ("returned", "error", "words"),
    [
        ({"lr": 99.0}, ValueError, ["'lr'", "99.0", "low=1e-05"]),
        ({"optimizer": "lion"}, ValueError, ["'optimizer'", "'lion'", "adadelta"]),
        ({"lrr": 0.1}, ValueError, ["'lrr'", "weight_decay"]),
        (None, TypeError, ["a dictionary", "None", "return {**fitter"]),
    ],
)
def test_invalid_return_values_of_a_crossover_are_rejected(
    returned: Any, error: type[Exception], words: list[str]
) -> None:
    def custom_crossover(*_: Any) -> Any:
        return returned

    with pytest.raises(error) as caught:
        cross(population(ONE, TWO), custom_crossover)
    for word in [*words, "custom_crossover"]:
        assert word in str(caught.value)


def test_a_function_gets_copies_and_may_return_some_parameters() -> None:
    def modify_arguments(
        fitter: Any, other: Any, parent: Any, distributions: Any, rng: Any
    ) -> Any:
        for argument in (fitter, other, parent, distributions):
            argument.clear()
        return {"width": 14}

    lineage = population(ONE, TWO)
    child = cross(lineage, modify_arguments)
    assert child is not None
    assert child.params == ONE | {"width": 14}
    assert [s.params for s in lineage] == [START, ONE, TWO]


@pytest.mark.parametrize("crossover", [miha.UniformCrossover(prob=0.2), miha.AverageWeights()])
def test_valid_crossovers_are_accepted(crossover: Any) -> None:
    check_crossover(crossover, miha.Plan(anneal="cosine"), custom_trainer=False)
    check_crossover(None, miha.Plan(90, population_size=1, anneal="cosine"), custom_trainer=True)


@pytest.mark.parametrize(
    ("crossover", "changes", "words"),
    [
        (miha.UniformCrossover(), {"population_size": 2}, ["at least 3 with", "got 2", "=4)"]),
        (miha.AverageWeights(), {"population_size": 1}, ["at least 2, got 1", "=3)"]),
        (
            miha.UniformCrossover(),
            {"population_size": 1, "control": False},
            ["at least 2, got 1", "=3)"],
        ),
    ],
)
def test_a_population_that_is_too_small_is_rejected_with_a_suggestion(
    crossover: Any, changes: dict[str, Any], words: list[str]
) -> None:
    study = new_study()
    with pytest.raises(ValueError, match="population_size") as caught:
        run(study, plan=miha.Plan(90, **changes, anneal="cosine"), crossover=crossover)
    assert all(word in str(caught.value) for word in words), caught.value
    assert not study.user_attrs


@pytest.mark.parametrize(
    ("crossover", "words"),
    [
        (miha.UniformCrossover, "UniformCrossover()"),
        (True, "got True"),
        ("uniform", "got 'uniform'"),
    ],
)
def test_objects_that_are_not_crossovers_are_rejected(crossover: Any, words: str) -> None:
    with pytest.raises(TypeError) as caught:
        run(new_study(), crossover=crossover)
    assert words in str(caught.value)


def test_averaging_with_a_custom_trainer_is_rejected() -> None:
    from optuna_miha._training.trainer import train

    with pytest.raises(ValueError, match="built-in trainer"):
        run(new_study(), trainer=train, crossover=miha.AverageWeights())


def children(study: optuna.Study) -> list[FrozenTrial]:
    """The trials whose parameters come from a crossover."""
    return [t for t in study.trials if "miha:crossover" in t.user_attrs]


@pytest.mark.slow
@pytest.mark.parametrize("model_fn", [classifier, explicit])
def test_the_child_is_the_last_branch_and_starts_from_the_trunk(model_fn: Any) -> None:
    study = new_study()
    result = run(study, model_fn, plan=PLAN, crossover=miha.UniformCrossover())
    by_number = {s.number: s for s in result.segments}
    assert children(study), "the case does not occur: choose another seed"
    for trial in children(study):
        child = by_number[trial.number]
        fitter, other = (by_number[number] for number in trial.user_attrs["miha:crossover"])
        assert (child.role, child.branch) == ("branch", PLAN.population_size - 1)
        assert fitter.cycle == other.cycle == child.cycle - 1
        assert fitter.fitness >= other.fitness
        assert child.parent is not None
        trunk = by_number[child.parent]
        # Without fixing, the trunk is the fitter branch itself.
        assert fitter.number in (trunk.number, trunk.parent)
        assert trunk.params == fitter.params
        assert fitter.parent is not None
        parent = by_number[fitter.parent]
        changed = {k for k, v in other.params.items() if v != parent.params.get(k)}
        new = {k for k, v in child.params.items() if v != trunk.params.get(k)}
        assert new
        assert new <= changed | {"lr"}
        assert child.mutation.endswith(" by crossover")
    assert result.n_epochs_trained == PLAN.n_epochs


@pytest.mark.slow
def test_crossover_does_not_change_the_other_branches() -> None:
    plain, crossing = new_study(), new_study()
    one = run(plain, plan=PLAN)
    two = run(crossing, plan=PLAN, crossover=miha.UniformCrossover())

    cycle = children(crossing)[0].user_attrs["miha:cycle"]

    def others_until_then(result: miha.Result) -> list[Any]:
        position = (cycle, 1, PLAN.population_size - 1)
        rows = [row for row in history(result) if row[:2] <= (cycle, 1)]
        assert position in [row[:3] for row in rows]
        return [row for row in rows if row[:3] != position]

    assert others_until_then(one) == others_until_then(two)


@pytest.mark.slow
def test_a_custom_crossover_works_with_any_sampler() -> None:
    def smallest_batches(
        fitter: Any, other: Any, parent: Any, distributions: Any, rng: Any
    ) -> dict[str, Any]:
        return {"batch_size": distributions["batch_size"].low + int(rng.integers(3))}

    study = new_study(sampler=optuna.samplers.RandomSampler(seed=0))
    run(study, plan=PLAN, crossover=smallest_batches)
    low = children(study)[0].distributions["batch_size"].low
    assert {t.params["batch_size"] for t in children(study)} <= {low, low + 1, low + 2}


BOTH = pytest.mark.parametrize(
    "crossover", [miha.UniformCrossover(), miha.AverageWeights()], ids=["child", "average"]
)


def crossover_attrs(study: optuna.Study) -> list[Any]:
    """The attributes of the trials that describe a crossover, without trial numbers."""
    rows = []
    for trial in study.trials:
        attrs = trial.user_attrs
        if "miha:trained" not in attrs:
            continue  # The trial was interrupted.
        parents = [
            study.trials[number].user_attrs["miha:branch"]
            for number in attrs.get("miha:crossover", [])
        ]
        position = (attrs["miha:cycle"], attrs["miha:role"], attrs["miha:branch"])
        if parents or "miha:averaged" in attrs:
            rows.append((position, parents, attrs.get("miha:averaged")))
    assert rows, "the case does not occur: choose another seed"
    return sorted(rows, key=lambda row: row[0])


@pytest.fixture(scope="module")
def uninterrupted_run() -> Callable[[Any], tuple[miha.Result, list[Any]]]:
    """A function that returns the result of a run and its :func:`crossover_attrs`."""

    @functools.cache
    def train(crossover: Any) -> tuple[miha.Result, list[Any]]:
        study = new_study(seed=1)
        return run(study, plan=PLAN, crossover=crossover), crossover_attrs(study)

    return train


@pytest.mark.long
@pytest.mark.slow
@BOTH
def test_worker_processes_train_the_same_model_bit_for_bit(
    crossover: Any, uninterrupted_run: Any
) -> None:
    expected, expected_attrs = uninterrupted_run(crossover)
    study = new_study(seed=1)
    result = run(study, plan=PLAN, crossover=crossover, n_jobs=2)
    assert history(result) == history(expected)
    assert same(weights(result), weights(expected))
    assert crossover_attrs(study) == expected_attrs


@pytest.mark.slow
def test_an_executor_validates_averages_with_the_same_result() -> None:
    one, two = new_study(seed=1), new_study(seed=1)
    local = run(one, plan=PLAN, crossover=miha.AverageWeights())
    with ThreadPoolExecutor(2) as executor:
        remote = run(two, plan=PLAN, crossover=miha.AverageWeights(), executor=executor)
    assert history(local) == history(remote)
    assert same(weights(local), weights(remote))
    assert crossover_attrs(one) == crossover_attrs(two)


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize(
    "n", [*(pytest.param(n, marks=pytest.mark.long) for n in (7, 10, 17)), 12]
)
def test_an_interrupted_run_equals_an_uninterrupted_one(
    crossover: Any, n: int, uninterrupted_run: Any, tmp_path: Path
) -> None:
    def interrupt(study: optuna.Study, trial: FrozenTrial) -> None:
        finished.append(trial.number)
        if len(finished) == n:
            raise KeyboardInterrupt

    finished: list[int] = []
    storage = f"sqlite:///{tmp_path}/study.db"
    settings = {"plan": PLAN, "crossover": crossover}
    with pytest.raises(KeyboardInterrupt):
        run(new_study(storage, seed=1), callbacks=[interrupt], **settings)
    study = new_study(storage, seed=1)
    resumed = run(study, **settings)
    expected, expected_attrs = uninterrupted_run(crossover)
    assert history(resumed) == history(expected)
    assert same(weights(resumed), weights(expected))
    assert crossover_attrs(study) == expected_attrs


@pytest.mark.slow
def test_a_run_can_be_resumed_with_another_crossover_or_without_one() -> None:
    def stop(study: optuna.Study, trial: FrozenTrial) -> None:
        if trial.user_attrs["miha:cycle"] == 2:
            study.stop()

    study = new_study(seed=1)
    run(study, plan=PLAN, crossover=miha.AverageWeights(), callbacks=[stop])
    run(study, plan=PLAN, crossover=miha.UniformCrossover(), callbacks=[stop])
    assert run(study, plan=PLAN).n_epochs_trained == PLAN.n_epochs


@pytest.mark.slow
def test_the_first_population_of_an_extension_is_not_crossed_with_earlier_branches() -> None:
    def increment(fitter: Any, other: Any, parent: Any, distributions: Any, rng: Any) -> Any:
        return {"batch_size": fitter["batch_size"] + 1}

    study = new_study(seed=1)
    first = run(study, plan=PLAN, crossover=increment)
    longer = {"n_epochs": 140, "plan": None, "crossover": increment}
    assert run(study, **longer).n_epochs_trained == 140
    new = [t for t in children(study) if t.number >= len(first.segments)]
    assert new, "the case does not occur: choose another budget"
    for trial in new:
        assert min(trial.user_attrs["miha:crossover"]) >= len(first.segments)


def test_integers_optimizer_and_random_state_are_not_averaged() -> None:
    one, two = (
        {
            "model": {"w": torch.tensor([value]), "n": torch.tensor(int(value)), "extra": value},
            "ema": {"module.w": torch.tensor([2 * value]), "n_averaged": torch.tensor(3)},
            "optimizer": {"step": value},
            "rng": {"torch": value},
            "epoch": int(value),
        }
        for value in (1.0, 4.0)
    )
    mean = averaged_state(one, two)
    assert mean["model"] == {"w": torch.tensor([2.5]), "n": torch.tensor(1), "extra": 1.0}
    assert mean["ema"] == {"module.w": torch.tensor([5.0]), "n_averaged": torch.tensor(3)}
    assert {k: mean[k] for k in ("optimizer", "rng", "epoch")} == {
        k: one[k] for k in ("optimizer", "rng", "epoch")
    }
    assert float(one["model"]["w"]) == 1.0
    assert averaged_state({**one, "ema": None}, {**two, "ema": None})["ema"] is None


def single_weight(trial: Any) -> miha.Recipe:
    """A network with one weight, whose optimum is zero."""
    x = torch.ones(8, 1)
    model = nn.Linear(1, 1, bias=False)
    lr = trial.suggest_float("lr", 0.0, 1.0)
    return miha.Recipe(
        model=model,
        loss_fn=nn.MSELoss(),
        optimizer=torch.optim.SGD(model.parameters(), lr=lr),
        train_data=(x, 0 * x),
        valid_data=(x, 0 * x),
    )


FIXED_WEIGHT = {"lr": 0.0}

JOB_CONTEXT = run_context(single_weight, valid_loss_fn=nn.MSELoss(), ema_decay=0.0)


def sibling(branch: int, weight: float, best: float) -> Sibling:
    """A branch with the given weight and the best value ``best``."""
    state = run_job(JOB_CONTEXT, Job(params=FIXED_WEIGHT, state=None, n_epochs=1)).state
    assert state is not None
    state["model"]["weight"].fill_(weight)
    state["best"] = {"value": best, "epoch": 1, "weights": {}}
    space = {"lr": FloatDistribution(0.0, 1.0)}
    entry = BufferedTrial(
        optuna.create_study(),
        {},
        verify=lambda: None,
        params=FIXED_WEIGHT,
        distributions=space,
    )
    return Sibling(branch, trial=entry, state=state, scores=[9.0, weight**2])


@pytest.mark.parametrize(
    ("other", "value", "best"),
    [
        (-2.0, 0.0, 0.0),  # Better than the best value.
        (1.0, 2.25, 1.0),  # Better than the last value, but not than the best one.
        (3.0, None, 1.0),
        (2.0, None, 1.0),  # Equal.
        (float("nan"), None, 1.0),
    ],
)
def test_the_average_replaces_the_weights_only_if_its_value_is_better(
    other: float, value: float | None, best: float
) -> None:
    fitter, second = sibling(0, 2.0, best=1.0), sibling(2, other, best=1.0)

    def validate(job: Job) -> Any:
        return run_job(JOB_CONTEXT, job)

    old_state = fitter.state
    average_fittest([fitter, second], validate, sign=1, catch=())
    assert fitter.state is not None
    assert fitter.trial is not None
    assert fitter.state["best"]["value"] == best
    attr = fitter.trial.user_attrs.get("miha:averaged")
    if value is None:
        assert fitter.state is old_state
        assert attr is None
        return
    assert attr == {"branch": 2, "value": value}
    weight = fitter.state["model"]["weight"]
    assert float(weight) == (2.0 + other) / 2
    if best == value:
        assert torch.equal(fitter.state["best"]["weights"]["weight"], weight)
        assert fitter.state["best"]["epoch"] == fitter.state["epoch"]


def test_a_larger_value_is_better_if_the_study_maximizes() -> None:
    def validate(job: Job) -> Any:
        return run_job(JOB_CONTEXT, job)

    for other, attr in [(5.0, {"branch": 1, "value": 9.0}), (-1.0, None)]:
        pair = [sibling(0, 1.0, best=4.0), sibling(1, other, best=4.0)]
        average_fittest(pair, validate, sign=-1, catch=())
        assert pair[0].trial is not None
        assert pair[0].trial.user_attrs.get("miha:averaged") == attr
        assert pair[0].state is not None
        assert pair[0].state["best"]["value"] == (9.0 if attr else 4.0)


def test_fewer_than_two_survivors_are_not_averaged() -> None:
    def must_not_be_called(job: Job) -> Any:
        raise AssertionError

    average_fittest([sibling(0, 2.0, best=1.0)], must_not_be_called, sign=1, catch=())
    average_fittest([], must_not_be_called, sign=1, catch=())


def test_validation_errors_are_raised_unless_they_are_in_catch() -> None:
    def failing(output: Tensor, target: Tensor) -> Tensor:
        raise RuntimeError("failed")

    context = run_context(single_weight, valid_loss_fn=failing, ema_decay=0.0)

    def validate(job: Job) -> Any:
        return run_job(context, job)

    pair = [sibling(0, 2.0, best=1.0), sibling(1, -2.0, best=1.0)]
    with pytest.raises(RuntimeError, match="failed"):
        average_fittest(pair, validate, sign=1, catch=(ValueError,))
    old_state = pair[0].state
    average_fittest(pair, validate, sign=1, catch=(RuntimeError,))
    assert pair[0].state is old_state


def value_of(result: miha.Result, number: int, state: dict[str, Any]) -> float:
    """The validation value of the moving average in a state."""
    params = next(s.params for s in result.segments if s.number == number)
    recipe = build_recipe(classifier, FixedTrial(params), 0)
    average = {k.removeprefix("module."): v for k, v in state["ema"].items() if k != "n_averaged"}
    recipe.model.load_state_dict(average)
    recipe.loss_fn = nn.CrossEntropyLoss()
    return evaluate(recipe, recipe.model)["loss"]


@pytest.mark.slow
def test_a_run_continues_with_averages_only_if_they_are_better(tmp_path: Path) -> None:
    study = new_study(seed=1)
    result = run(
        study,
        plan=PLAN,
        crossover=miha.AverageWeights(),
        keep="all",
        checkpoint_dir=tmp_path,
    )
    store = CheckpointStore(FileSystemArtifactStore(tmp_path))
    lineage = Lineage(study.direction, result.segments)

    def state_of(one: Segment) -> dict[str, Any]:
        assert one.checkpoint is not None
        return store.load(one.checkpoint)

    n_replaced, n_kept = 0, 0
    for cycle in range(1, max(s.cycle for s in result.segments) + 1):
        survivors = lineage.ranking("branch", cycle)
        if len(survivors) < 2:
            continue
        fitter, other = survivors[:2]
        attrs = study.trials[fitter.number].user_attrs
        if "miha:averaged" in attrs:
            n_replaced += 1
            value = attrs["miha:averaged"]["value"]
            assert attrs["miha:averaged"]["branch"] == other.branch
            assert value < fitter.scores[-1]
            assert fitter.value is not None
            assert fitter.value <= value
            assert value_of(result, fitter.number, state_of(fitter)) == pytest.approx(value)
            followers = [s for s in result.segments if s.parent == fitter.number]
            reported = [study.trials[s.number].intermediate_values[s.birth] for s in followers]
            assert reported == [value] * len(followers)
        else:
            n_kept += 1
            mean = averaged_state(state_of(fitter), state_of(other))
            assert value_of(result, fitter.number, mean) >= fitter.scores[-1] * (1 - 1e-6)
    assert n_replaced, "the case does not occur: choose another seed"
    assert n_kept, "the case does not occur: choose another seed"


@pytest.mark.slow
def test_the_returned_model_can_be_an_average() -> None:
    def is_best(result: miha.Result) -> bool:
        return result.value == result.lineage[-1].averaged_score

    plan = miha.Plan(
        14,
        startup=1,
        fixing_epochs=1,
        branch_epochs=2,
        final_share=0.0,
        ema_decay=0.0,
        control=False,
        prune=False,
        anneal="cosine",
    )
    settings = {"plan": plan, "initial_params": {"lr": 0.03}}
    results = (
        run(new_study(seed=seed), crossover=miha.AverageWeights(), **settings)
        for seed in range(2, 9)
    )
    result = next(filter(is_best, results))
    x, y = blobs(30, seed=1)
    with torch.no_grad():
        loss = float(nn.functional.cross_entropy(result.model(x), y))
    assert loss == pytest.approx(result.value, rel=1e-5)
    assert result.schedule[-1]["to_epoch"] == result.lineage[-1].end
