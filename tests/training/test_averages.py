"""The average of the weights by the step, and annealing by the step."""

from __future__ import annotations

import torch
from helpers.problems import classifier
from optuna.study import StudyDirection
from torch import nn
from torch.optim.swa_utils import AveragedModel

from optuna_miha._model.model_fn import build_initial
from optuna_miha._search.learning_rate import Course
from optuna_miha._training.averages import EpochSteps, StepAverage
from optuna_miha._training.context import Context
from optuna_miha._training.job import Job, run_job
from optuna_miha._training.state import from_best


def new_context(ema_decay: float = 0.72) -> Context:
    return Context.of(
        build_initial(classifier, 0).recipe,
        classifier,
        direction=StudyDirection.MINIMIZE,
        seed=0,
        devices=(torch.device("cpu"),),
        ema_decay=ema_decay,
    )


def test_early_averages_follow_the_weights_and_later_ones_have_the_decay_of_an_epoch() -> None:
    model = nn.Linear(1, 1, bias=False)
    ema = AveragedModel(model)
    steps = EpochSteps(4)
    average = StepAverage(ema, model, 0.5, steps)
    expected = torch.zeros(1, 1)
    for n in range(50):
        with torch.no_grad():
            model.weight.fill_(n)
        average.update()
        expected = torch.lerp(
            expected, torch.tensor([[float(n)]]), max(2 / (n + 2), 1 - 0.5**0.25)
        )
        torch.testing.assert_close(next(ema.module.parameters()).data, expected)
    average.end_epoch()
    assert int(ema.n_averaged) == 50


def test_frozen_weights_are_copied_until_they_are_trained() -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    model[0].requires_grad_(False)
    ema = AveragedModel(model)
    average = StepAverage(ema, model, 0.0, EpochSteps(1))
    trained, frozen = ema.module[1].weight, ema.module[0].weight

    def train(value: float) -> None:
        with torch.no_grad():
            model[0].weight.fill_(value)
            model[1].weight.fill_(value)
        average.update()

    train(1.0)
    assert trained.item() == 1.0
    average.end_epoch()
    assert frozen.item() == 1.0, "moved by user code, as in a target network"
    model[0].requires_grad_(True)
    train(2.0)
    assert (trained.item(), frozen.item()) == (2.0, 1.0)
    average.end_epoch()
    train(3.0)
    assert (trained.item(), frozen.item()) == (3.0, 3.0)


def test_without_a_length_the_first_epoch_gives_it() -> None:
    steps = EpochSteps(None)
    assert steps.length is None and steps.position(3) == 0.0
    steps.end_epoch(5)
    assert steps.length == 5 and steps.position(7) == 1.4
    assert steps.position(99) == 2.0  # A longer epoch waits at its end.


def test_a_segment_does_not_depend_on_its_division_into_rungs() -> None:
    context, params = new_context(), build_initial(classifier, 0).params
    whole = run_job(context, Job(params=params, state=None, n_epochs=5, course=Course(n_epochs=5)))
    first = run_job(context, Job(params=params, state=None, n_epochs=2, course=Course(n_epochs=5)))
    second = run_job(
        context,
        Job(params=params, state=first.state, n_epochs=3, course=Course(n_epochs=5, begin=2)),
    )
    assert [r.score for r in first.results + second.results] == [r.score for r in whole.results]
    assert whole.state is not None and second.state is not None
    for name, value in whole.state["ema"].items():
        assert torch.equal(value, second.state["ema"][name]), name


def test_only_the_average_is_validated_and_a_child_starts_from_the_best_one() -> None:
    context, params = new_context(), build_initial(classifier, 0).params
    outcome = run_job(
        context, Job(params=params, state=None, n_epochs=3, course=Course(n_epochs=3))
    )
    state = outcome.state
    assert state is not None
    assert all(r.ema_value is None for r in outcome.results)
    assert state["best"]["value"] == min(r.value for r in outcome.results)
    child = from_best(state)
    check = run_job(context, Job(params=params, state=child, n_epochs=0))
    assert check.state is not None
    assert check.state["best"]["value"] == state["best"]["value"]


def test_without_an_average_the_network_itself_is_validated() -> None:
    context, params = new_context(ema_decay=0.0), build_initial(classifier, 0).params
    outcome = run_job(
        context, Job(params=params, state=None, n_epochs=3, course=Course(n_epochs=3))
    )
    state = outcome.state
    assert state is not None
    assert state["ema"] is None
    assert state["best"]["value"] == min(r.value for r in outcome.results)
    last = {name: value for name, value in state.items() if name != "best"}
    check = run_job(context, Job(params=params, state=last, n_epochs=0))
    assert check.state is not None
    assert check.state["best"]["value"] == outcome.results[-1].value
