"""What the two fittest branches pass on together: changes, or weights."""

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
from helpers.segments import FULL_SPACE, START, is_offered, segment
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
from optuna_miha._search.crossover import Child, check_crossover, cross_fittest
from optuna_miha._search.mutation import mutate
from optuna_miha._search.sampler import SearchContext
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
)
"""Several populations, all branches of which survive."""

RUN = SearchContext(seed=0, initial_params=START, distributions=FULL_SPACE, mutations=None)


def crossed(
    fitter: dict[str, Any],
    other: dict[str, Any],
    *,
    parent: dict[str, Any] = START,
    prob: float = 0.5,
    space: Any = FULL_SPACE,
) -> dict[str, Any]:
    """The child of two branches that are named by their changes."""
    crossover = miha.UniformCrossover(prob=prob)
    rng = np.random.default_rng(0)
    return crossover({**parent, **fitter}, {**parent, **other}, parent, space, rng)


def test_the_child_carries_the_changes_of_both() -> None:
    child = crossed({"activation.1": "gelu"}, {"batch_size": 64, "dropout.2": 0.3})
    assert child == START | {"activation.1": "gelu", "batch_size": 64, "dropout.2": 0.3}


@pytest.mark.parametrize(("prob", "expected"), [(0.0, 64), (1.0, 16)])
def test_where_both_changed_the_same_chance_decides(prob: float, expected: int) -> None:
    child = crossed({"batch_size": 64}, {"batch_size": 16, "weight_decay": 1e-3}, prob=prob)
    assert child == START | {"batch_size": expected, "weight_decay": 1e-3}


def test_a_contested_parameter_is_taken_from_the_other_as_often_as_asked_for() -> None:
    crossover, rng = miha.UniformCrossover(prob=0.3), np.random.default_rng(0)
    one, two = START | {"batch_size": 64}, START | {"batch_size": 16}
    children = [crossover(one, two, START, FULL_SPACE, rng) for _ in range(1000)]
    assert 250 < sum(child["batch_size"] == 16 for child in children) < 350


@pytest.mark.parametrize("prob", [0.0, 1.0])
@pytest.mark.parametrize("swap", [False, True])
def test_a_raised_rate_goes_with_the_optimizer_as_a_multiple_of_its_default(
    prob: float, swap: bool
) -> None:
    changes = [{"optimizer": "sgd", "lr": 0.03}, {"lr": 0.0025}]
    child = crossed(*(changes[::-1] if swap else changes), prob=prob)
    assert child == START | {"optimizer": "sgd", "lr": 0.075}


def test_an_optimizer_that_is_taken_over_alone_comes_with_its_own_rate() -> None:
    child = crossed({"batch_size": 64}, {"optimizer": "adadelta", "lr": 1.0})
    assert child == START | {"batch_size": 64, "optimizer": "adadelta", "lr": 1.0}


def test_a_scaled_rate_stays_within_its_bounds() -> None:
    space = FULL_SPACE | {"lr": FloatDistribution(1e-5, 0.05, log=True)}
    child = crossed({"optimizer": "sgd", "lr": 0.03}, {"lr": 0.0025}, space=space)
    assert child["lr"] == 0.05


def test_momentum_comes_with_sgd_and_its_change_is_no_use_without() -> None:
    adam = {k: v for k, v in START.items() if k != "momentum"}
    child = crossed({"batch_size": 64}, {"optimizer": "sgd", "lr": 0.03, "momentum": 0.9})
    assert (child["optimizer"], child["momentum"]) == ("sgd", 0.9)
    sgd = START | {"optimizer": "sgd", "lr": 0.03}
    lineage = population(adam, sgd | {"momentum": 0.8}, parent=sgd)
    assert cross(lineage, trunk=adam) is None


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_children_of_mutants_stay_within_the_search_space(seed: int, prob: float) -> None:
    rng = np.random.default_rng(seed)
    chosen = rng.choice(list(kinds(FULL_SPACE)), 2)
    one, two = (mutate(START, FULL_SPACE, str(kind), rng) for kind in chosen)
    child = miha.UniformCrossover(prob=prob)(one, two, START, FULL_SPACE, rng)
    assert child.keys() == START.keys()
    for name, value in child.items():
        assert is_offered(FULL_SPACE[name], value), name
    unchanged = {k for k in START if START[k] == one[k] == two[k]}
    assert all(child[k] == START[k] for k in unchanged - {"lr"})


@pytest.mark.parametrize("prob", [-0.1, 1.1, float("nan")])
def test_prob_must_be_a_probability(prob: float) -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        miha.UniformCrossover(prob=prob)


def population(
    *branches: dict[str, Any], parent: dict[str, Any] = START, **changes: Any
) -> Lineage:
    """A trunk and its branches in cycle 1, from the fittest on; ``changes`` are the second's."""
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
    """The child of cycle 2; the trunk has the parameters of the fittest, unless given."""
    params = lineage.ranking("branch", 1)[0].params if trunk is None else trunk
    trunk_segment = segment(9, cycle=1, params=params, distributions=FULL_SPACE)
    crossover = crossover or miha.UniformCrossover()
    return cross_fittest(crossover, lineage, trunk_segment, context=RUN, cycle=2, branch=3)


ONE, TWO, THREE = (START | change for change in ({"lr": 3e-3}, {"batch_size": 64}, {"width": 11}))


def test_the_two_fittest_are_crossed() -> None:
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
def test_a_branch_that_was_cut_or_failed_has_no_child(changes: dict[str, Any]) -> None:
    child = cross(population(ONE, TWO, THREE, **changes))
    assert child is not None
    assert child.parents == (1, 3)
    assert cross(population(ONE, TWO, **changes)) is None


@pytest.mark.parametrize("branches", [(), (ONE,), (ONE, START), (ONE, ONE)])
def test_there_is_no_child_without_a_second_change(branches: tuple[dict[str, Any], ...]) -> None:
    assert cross(population(*branches), trunk=ONE) is None


def test_the_change_of_the_second_is_tried_on_a_control_that_won() -> None:
    child = cross(population(START, TWO))
    assert child is not None
    assert child.params == TWO


def test_a_population_from_scratch_is_compared_with_the_initial_configuration() -> None:
    def orphans() -> Any:
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

    child = cross(Lineage(optuna.study.StudyDirection.MINIMIZE, orphans()))
    assert child is not None
    assert child.params == START | {"lr": 3e-3, "batch_size": 64}


@pytest.mark.parametrize(
    ("made", "error", "words"),
    [
        ({"lr": 99.0}, ValueError, ["'lr'", "99.0", "low=1e-05"]),
        ({"optimizer": "lion"}, ValueError, ["'optimizer'", "'lion'", "adadelta"]),
        ({"lrr": 0.1}, ValueError, ["'lrr'", "weight_decay"]),
        (None, TypeError, ["a dictionary", "None", "return {**fitter"]),
    ],
)
def test_what_nobody_suggests_is_refused(
    made: Any, error: type[Exception], words: list[str]
) -> None:
    def mine(*_: Any) -> Any:
        return made

    with pytest.raises(error) as caught:
        cross(population(ONE, TWO), mine)
    for word in [*words, "mine"]:
        assert word in str(caught.value)


def test_a_function_gets_copies_and_may_return_a_part() -> None:
    def greedy(fitter: Any, other: Any, parent: Any, distributions: Any, rng: Any) -> Any:
        for argument in (fitter, other, parent, distributions):
            argument.clear()
        return {"width": 14}

    lineage = population(ONE, TWO)
    child = cross(lineage, greedy)
    assert child is not None
    assert child.params == ONE | {"width": 14}
    assert [s.params for s in lineage] == [START, ONE, TWO]


@pytest.mark.parametrize("crossover", [miha.UniformCrossover(prob=0.2), miha.AverageWeights()])
def test_what_can_be_used_is_accepted(crossover: Any) -> None:
    check_crossover(crossover, miha.Plan(), custom_trainer=False)
    check_crossover(None, miha.Plan(90, population_size=1), custom_trainer=True)


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
def test_a_population_that_is_too_small_is_refused_with_the_way_out(
    crossover: Any, changes: dict[str, Any], words: list[str]
) -> None:
    study = new_study()
    with pytest.raises(ValueError, match="population_size") as caught:
        run(study, plan=miha.Plan(90, **changes), crossover=crossover)
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
def test_anything_else_is_refused(crossover: Any, words: str) -> None:
    with pytest.raises(TypeError) as caught:
        run(new_study(), crossover=crossover)
    assert words in str(caught.value)


def test_weights_of_a_trainer_of_ones_own_are_not_averaged() -> None:
    from optuna_miha._training.trainer import train

    with pytest.raises(ValueError, match="built-in trainer"):
        run(new_study(), trainer=train, crossover=miha.AverageWeights())


def children(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that came of a crossover."""
    return [t for t in study.trials if "miha:crossover" in t.user_attrs]


@pytest.mark.parametrize("model_fn", [classifier, explicit])
def test_the_child_is_the_last_branch_and_starts_from_the_fitters_heir(model_fn: Any) -> None:
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
        assert fitter.number in (trunk.number, trunk.parent)  # Or there was no fixing.
        assert trunk.params == fitter.params
        assert fitter.parent is not None
        parent = by_number[fitter.parent]
        changed = {k for k, v in other.params.items() if v != parent.params.get(k)}
        new = {k for k, v in child.params.items() if v != trunk.params.get(k)}
        assert new
        assert new <= changed | {"lr"}
        assert child.mutation.endswith(" by crossover")
    assert result.n_epochs_trained == PLAN.n_epochs


def test_the_other_places_are_mutations_as_ever() -> None:
    plain, crossing = new_study(), new_study()
    one = run(plain, plan=PLAN)
    two = run(crossing, plan=PLAN, crossover=miha.UniformCrossover())

    cycle = children(crossing)[0].user_attrs["miha:cycle"]

    def until_then(result: miha.Result) -> list[Any]:
        place = (cycle, 1, PLAN.population_size - 1)
        rows = [row for row in history(result) if row[:2] <= (cycle, 1)]
        assert place in [row[:3] for row in rows]
        return [row for row in rows if row[:3] != place]

    assert until_then(one) == until_then(two)


def test_a_function_of_ones_own_fills_the_place_under_any_sampler() -> None:
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


def marks(study: optuna.Study) -> list[Any]:
    """What the trials say of a crossover, apart from trial numbers."""
    rows = []
    for trial in study.trials:
        attrs = trial.user_attrs
        if "miha:trained" not in attrs:
            continue  # It was interrupted.
        parents = [
            study.trials[number].user_attrs["miha:branch"]
            for number in attrs.get("miha:crossover", [])
        ]
        place = (attrs["miha:cycle"], attrs["miha:role"], attrs["miha:branch"])
        if parents or "miha:averaged" in attrs:
            rows.append((place, parents, attrs.get("miha:averaged")))
    assert rows, "the case does not occur: choose another seed"
    return sorted(rows, key=lambda row: row[0])


@pytest.fixture(scope="module")
def undisturbed() -> Callable[[Any], tuple[miha.Result, list[Any]]]:
    """Gives the run with a crossover that nothing interrupts, and its :func:`marks`."""

    @functools.cache
    def train(crossover: Any) -> tuple[miha.Result, list[Any]]:
        study = new_study()
        return run(study, plan=PLAN, crossover=crossover), marks(study)

    return train


@BOTH
def test_worker_processes_give_the_same_model_bit_for_bit(
    crossover: Any, undisturbed: Any
) -> None:
    whole, whole_marks = undisturbed(crossover)
    study = new_study()
    result = run(study, plan=PLAN, crossover=crossover, n_jobs=2)
    assert history(result) == history(whole)
    assert same(weights(result), weights(whole))
    assert marks(study) == whole_marks


def test_averages_are_validated_where_the_branches_are_trained() -> None:
    one, two = new_study(), new_study()
    here = run(one, plan=PLAN, crossover=miha.AverageWeights())
    with ThreadPoolExecutor(2) as executor:
        there = run(two, plan=PLAN, crossover=miha.AverageWeights(), executor=executor)
    assert history(here) == history(there)
    assert same(weights(here), weights(there))
    assert marks(one) == marks(two)


@BOTH
@pytest.mark.parametrize("n", [7, 10, 12, 17])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    crossover: Any, n: int, undisturbed: Any, tmp_path: Path
) -> None:
    def interrupt(study: optuna.Study, trial: FrozenTrial) -> None:
        counted.append(trial.number)
        if len(counted) == n:
            raise KeyboardInterrupt

    counted: list[int] = []
    storage = f"sqlite:///{tmp_path}/study.db"
    settings = {"plan": PLAN, "crossover": crossover}
    with pytest.raises(KeyboardInterrupt):
        run(new_study(storage), callbacks=[interrupt], **settings)
    again = new_study(storage)
    resumed = run(again, **settings)
    whole, whole_marks = undisturbed(crossover)
    assert history(resumed) == history(whole)
    assert same(weights(resumed), weights(whole))
    assert marks(again) == whole_marks


def test_a_run_may_go_on_with_another_crossover_or_none() -> None:
    def stop(study: optuna.Study, trial: FrozenTrial) -> None:
        if trial.user_attrs["miha:cycle"] == 2:
            study.stop()

    study = new_study()
    run(study, plan=PLAN, crossover=miha.AverageWeights(), callbacks=[stop])
    run(study, plan=PLAN, crossover=miha.UniformCrossover(), callbacks=[stop])
    assert run(study, plan=PLAN).n_epochs_trained == PLAN.n_epochs


def test_the_first_population_after_a_final_phase_has_no_child_of_the_time_before() -> None:
    def one_more(fitter: Any, other: Any, parent: Any, distributions: Any, rng: Any) -> Any:
        return {"batch_size": fitter["batch_size"] + 1}

    study = new_study()
    before = run(study, plan=PLAN, crossover=one_more)
    longer = {"n_epochs": 140, "plan": None, "crossover": one_more}
    assert run(study, **longer).n_epochs_trained == 140
    new = [t for t in children(study) if t.number >= len(before.segments)]
    assert new, "the case does not occur: choose another budget"
    for trial in new:
        assert min(trial.user_attrs["miha:crossover"]) >= len(before.segments)


def test_the_mean_leaves_integers_optimizer_and_generators_alone() -> None:
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


def line(trial: Any) -> miha.Recipe:
    """One weight, of which zero is the best."""
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


STILL = {"lr": 0.0}

CONTEXT = run_context(line, valid_loss_fn=nn.MSELoss(), ema_decay=0.0)


def sibling(branch: int, weight: float, best: float) -> Sibling:
    """A branch of the given weight whose best value was ``best``."""
    state = run_job(CONTEXT, Job(params=STILL, state=None, n_epochs=1)).state
    assert state is not None
    state["model"]["weight"].fill_(weight)
    state["best"] = {"value": best, "epoch": 1, "weights": {}}
    space = {"lr": FloatDistribution(0.0, 1.0)}
    entry = BufferedTrial(optuna.create_study(), {}, params=STILL, distributions=space)
    return Sibling(branch, trial=entry, state=state, scores=[9.0, weight**2])


@pytest.mark.parametrize(
    ("other", "value", "best"),
    [
        (-2.0, 0.0, 0.0),  # Better than anything before.
        (1.0, 2.25, 1.0),  # Better than the last value, not than the best.
        (3.0, None, 1.0),
        (2.0, None, 1.0),  # No better.
        (float("nan"), None, 1.0),
    ],
)
def test_the_average_is_taken_only_where_it_validates_better(
    other: float, value: float | None, best: float
) -> None:
    fitter, second = sibling(0, 2.0, best=1.0), sibling(2, other, best=1.0)

    def validate(job: Job) -> Any:
        return run_job(CONTEXT, job)

    before = fitter.state
    average_fittest([fitter, second], validate, sign=1, catch=())
    assert fitter.state is not None
    assert fitter.trial is not None
    assert fitter.state["best"]["value"] == best
    mark = fitter.trial.user_attrs.get("miha:averaged")
    if value is None:
        assert fitter.state is before
        assert mark is None
        return
    assert mark == {"branch": 2, "value": value}
    weight = fitter.state["model"]["weight"]
    assert float(weight) == (2.0 + other) / 2
    if best == value:
        assert torch.equal(fitter.state["best"]["weights"]["weight"], weight)
        assert fitter.state["best"]["epoch"] == fitter.state["epoch"]


def test_where_the_study_maximizes_the_larger_value_is_the_better() -> None:
    def validate(job: Job) -> Any:
        return run_job(CONTEXT, job)

    for other, mark in [(5.0, {"branch": 1, "value": 9.0}), (-1.0, None)]:
        pair = [sibling(0, 1.0, best=4.0), sibling(1, other, best=4.0)]
        average_fittest(pair, validate, sign=-1, catch=())
        assert pair[0].trial is not None
        assert pair[0].trial.user_attrs.get("miha:averaged") == mark
        assert pair[0].state is not None
        assert pair[0].state["best"]["value"] == (9.0 if mark else 4.0)


def test_one_survivor_is_left_alone() -> None:
    def never(job: Job) -> Any:
        raise AssertionError

    average_fittest([sibling(0, 2.0, best=1.0)], never, sign=1, catch=())
    average_fittest([], never, sign=1, catch=())


def test_errors_of_the_validation_end_the_run_unless_they_are_caught() -> None:
    def failing(output: Tensor, target: Tensor) -> Tensor:
        raise RuntimeError("too bad")

    context = run_context(line, valid_loss_fn=failing, ema_decay=0.0)

    def validate(job: Job) -> Any:
        return run_job(context, job)

    pair = [sibling(0, 2.0, best=1.0), sibling(1, -2.0, best=1.0)]
    with pytest.raises(RuntimeError, match="too bad"):
        average_fittest(pair, validate, sign=1, catch=(ValueError,))
    before = pair[0].state
    average_fittest(pair, validate, sign=1, catch=(RuntimeError,))
    assert pair[0].state is before


def value_of(result: miha.Result, number: int, state: dict[str, Any]) -> float:
    """What the moving average in a state validates to."""
    params = next(s.params for s in result.segments if s.number == number)
    recipe = build_recipe(classifier, FixedTrial(params), 0)
    own = {k.removeprefix("module."): v for k, v in state["ema"].items() if k != "n_averaged"}
    recipe.model.load_state_dict(own)
    recipe.loss_fn = nn.CrossEntropyLoss()
    return evaluate(recipe, recipe.model)["loss"]


def test_a_run_goes_on_from_averages_that_are_better_and_from_no_other(tmp_path: Path) -> None:
    study = new_study()
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

    taken, left = 0, 0
    for cycle in range(1, max(s.cycle for s in result.segments) + 1):
        survivors = lineage.ranking("branch", cycle)
        if len(survivors) < 2:
            continue
        fitter, other = survivors[:2]
        attrs = study.trials[fitter.number].user_attrs
        if "miha:averaged" in attrs:
            taken += 1
            value = attrs["miha:averaged"]["value"]
            assert attrs["miha:averaged"]["branch"] == other.branch
            assert value < fitter.scores[-1]
            assert fitter.value is not None
            assert fitter.value <= value
            assert value_of(result, fitter.number, state_of(fitter)) == pytest.approx(value)
            heirs = [s for s in result.segments if s.parent == fitter.number]
            reported = [study.trials[s.number].intermediate_values[s.birth] for s in heirs]
            assert reported == [value] * len(heirs)
        else:
            left += 1
            mean = averaged_state(state_of(fitter), state_of(other))
            assert value_of(result, fitter.number, mean) >= fitter.scores[-1] * (1 - 1e-6)
    assert taken, "the case does not occur: choose another seed"
    assert left, "the case does not occur: choose another seed"


def test_an_average_that_is_the_best_is_the_model_that_is_returned() -> None:
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
