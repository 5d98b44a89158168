"""The figures of runs and comparisons, and the picture files written from them."""

from __future__ import annotations

import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import plotly.graph_objects as go
import pytest
from helpers.problems import blobs
from helpers.simulated import Simulation, simulated
from matplotlib.image import imread
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from torch import nn

import optuna_miha as miha
from optuna_miha import visualization
from optuna_miha._history import attributes
from optuna_miha._results.comparison import Comparison, Run
from optuna_miha.visualization import (
    plot_comparison,
    plot_lineage,
    plot_mutation_gains,
    plot_schedule,
    plot_training_history,
    write_picture,
)
from optuna_miha.visualization._phase_bands import phase_spans
from optuna_miha.visualization._run_view import read_run_view
from optuna_miha.visualization._style import escape, is_log_scale, number, scale, value_scale

STUDY_PLOTS = [plot_lineage, plot_training_history, plot_schedule, plot_mutation_gains]


def model_fn(trial: Any) -> miha.Recipe:
    x, y = blobs(80, seed=0)
    return miha.Recipe(
        model=nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)),
        loss_fn=nn.CrossEntropyLoss(),
        train_data=(x[:60], y[:60]),
        valid_data=(x[60:], y[60:]),
    )


@pytest.fixture(scope="module")
def run() -> tuple[optuna.Study, miha.Result]:
    study = optuna.create_study(sampler=miha.MihaSampler(seed=1))
    plan = miha.Plan(80, anneal="cosine")
    result = miha.optimize(study, model_fn, plan=plan, show_progress_bar=False)
    return study, result


@pytest.fixture(scope="module")
def large() -> optuna.Study:
    return simulated(147)


def trace_named(figure: Any, prefix: str) -> Any:
    """The first trace in the legend whose name begins with ``prefix``."""
    found = [t for t in figure.data if (t.name or "").startswith(prefix)]
    return next(t for t in found if t.showlegend is not False)


# A real run.


@pytest.mark.parametrize("plot", STUDY_PLOTS)
def test_plot_draws_a_real_run(plot: Any, run: tuple[optuna.Study, miha.Result]) -> None:
    figure = plot(run[0])
    assert isinstance(figure, go.Figure)
    assert figure.data
    figure.to_json()


def test_schedule_plot_matches_the_schedule_of_the_result(
    run: tuple[optuna.Study, miha.Result],
) -> None:
    study, result = run
    figure = plot_schedule(study)
    names = [a.text for a in figure.layout.annotations if a.xanchor == "right" and a.xshift == -10]
    assert names[0] == "lr"
    assert set(names) == set(result.params)
    lr = next(t for t in figure.data if t.type == "scatter")
    assert lr.y[0] == result.schedule[0]["lr"]
    before = [row for row in result.schedule if row["role"] != "final"]
    drawn = [(x, y) for x, y in zip(lr.x, lr.y, strict=True) if x is not None]
    for row in before:  # A step ends with its row, unless the next row has the same value.
        steps = [y for x, y in drawn if x <= row["to_epoch"]]
        assert steps[-1] in (row["lr"], *(later["lr"] for later in before))


def test_schedule_of_many_parameters_shows_the_learning_rate_and_those_that_changed() -> None:
    study = simulated(1, n_final=10)
    last = study.trials[-1]
    constant = {f"width.{k}": k for k in range(300)}
    params = last.params | constant
    distributions = last.distributions | dict.fromkeys(constant, IntDistribution(0, 300))
    wide = optuna.create_study(direction=study.direction)
    for name, value in study.user_attrs.items():
        wide.set_user_attr(name, value)
    for trial in study.trials:
        trial.params, trial.distributions = trial.params | constant, distributions
        wide.add_trial(trial)
    figure = plot_schedule(wide)
    names = [a.text for a in figure.layout.annotations if a.xanchor == "right" and a.xshift == -10]
    assert len(names) == len(figure.data) == 60
    assert names[0] == "lr"
    assert set(last.params) <= set(names)
    assert f"60 parameters that changed most, of {len(params)}" in figure.layout.title.text


def test_learning_rate_rises_and_falls_along_a_cosine_to_zero() -> None:
    study = simulated(1, n_final=10)
    figure = plot_schedule(study)
    lr = next(t for t in figure.data if t.type == "scatter")
    base = study.trials[-1].params["lr"]
    falling = [0.5 * (1 + np.cos(np.pi * k / 9)) for k in range(9)]
    expected = [base * part for part in (1 / 3, *falling)]
    assert list(lr.y[-20::2]) == pytest.approx(expected)
    assert lr.x[-1] == study.trials[-1].user_attrs[attributes.END]


def test_learning_rate_is_not_annealed_if_the_plan_does_not_anneal() -> None:
    study = simulated(1, n_final=10)
    study.set_user_attr(attributes.PLAN, miha.Plan(anneal=None).asdict())
    figure = plot_schedule(study)
    bars = [t for t in figure.data if t.type == "bar"]
    assert len(bars) >= len(figure.data) - 1
    assert all(min(t.y) > 0 for t in figure.data if t.type == "scatter" and None not in t.y)


# The tree.


def test_curve_of_a_segment_starts_at_the_end_of_its_parent() -> None:
    study = simulated(6)
    view = read_run_view(study)
    for segment in view.lineage:
        epochs, values = view.curve(segment)
        parent = view.lineage.parent(segment)
        if parent is not None:
            assert (epochs[0], values[0]) == (parent.end, parent.scores[-1])
        assert len(epochs) == len(segment.scores) + (parent is not None)


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_legend_of_the_lineage_counts_segments_by_outcome(direction: str) -> None:
    study = simulated(60, direction=direction)
    figure = plot_lineage(study)
    counts = {}
    for trace in figure.data:
        if trace.showlegend is not False and "(" in trace.name:
            name, _, count = trace.name.rpartition(" (")
            counts[name] = int(count.rstrip(")"))
    states = [trial.state for trial in study.trials]
    assert counts["pruned"] == states.count(TrialState.PRUNED)
    assert counts["failed"] == states.count(TrialState.FAIL)
    assert counts["branch, won"] == 60
    assert sum(counts.values()) == len(states)
    star = trace_named(figure, "best")
    assert star.y[0] == study.best_value
    assert figure.layout.yaxis.type == ("log" if direction == "minimize" else "linear")


def test_winners_are_thicker_than_losers() -> None:
    figure = plot_lineage(simulated(10))
    thin = [trace_named(figure, f"{n}, lost").line.width for n in ("branch", "start-up race")]
    names = ("branch, won", "start-up race, won", "trunk", "final")
    assert max(thin) < min(trace_named(figure, n).line.width for n in names)


def test_many_losers_of_one_round_are_faded() -> None:
    study = optuna.create_study()
    Simulation(study).run(2, size=12)
    figure = plot_lineage(study)
    assert trace_named(figure, "branch, lost").opacity < 1
    assert trace_named(figure, "branch, won").opacity == 1
    assert trace_named(plot_lineage(simulated(10)), "branch, lost").opacity == 1


def test_segment_that_the_final_phase_continues_counts_as_a_winner() -> None:
    study = optuna.create_study()
    study.add_trial(branch(0, 0, START, [2.0, 1.0]))
    study.add_trial(branch(1, 1, START, [0.8, 0.3], mutation="no change"))
    study.add_trial(branch(2, 1, START | {"lr": 0.2}, [0.2, 0.4], mutation="lr 0.1 -> 0.2"))
    final = branch(3, 1, START | {"lr": 0.2}, [0.3, 0.2], branch=0)
    final.user_attrs |= {attributes.ROLE: "final", attributes.PARENT: 2, attributes.BIRTH: 4}
    final.intermediate_values = {5: 0.3, 6: 0.2}
    study.add_trial(final)
    assert [s.number for s in read_run_view(study).trunk] == [0, 2, 3]
    assert trace_named(plot_lineage(study), "branch, won").name == "branch, won (1)"
    assert trace_named(plot_training_history(study), "change won").name == "change won (1)"


@pytest.mark.parametrize("is_averaged", [True, False])
@pytest.mark.parametrize("plot", [plot_lineage, plot_training_history])
def test_star_that_is_not_on_its_curve_is_connected_to_it(plot: Any, is_averaged: bool) -> None:
    study = optuna.create_study()
    trial = branch(0, 0, START, [2.0, 1.0, 0.8])
    trial.user_attrs[attributes.CHECKPOINT] = {
        "id": "trunk-000000000000.pt",
        "sha256": "0" * 64,
        "best_epoch": 2,
    }
    trial.value = 1.0 if is_averaged else 0.5
    study.add_trial(trial)
    figure = plot(study)
    star = trace_named(figure, "best")
    assert (star.x, star.y) == ((2,), (trial.value,))
    stems = [trace for trace in figure.data if trace.name == "not averaged"]
    assert [(stem.x, stem.y) for stem in stems] == ([] if is_averaged else [((2, 2), (1.0, 0.5))])
    low, high = figure.layout.yaxis.range or (0, 1)
    assert figure.layout.yaxis.type == "log" or low <= star.y[0] <= high


def test_training_history_marks_only_an_epoch_of_its_trunk() -> None:
    study = optuna.create_study()
    study.add_trial(branch(0, 0, START, [2.0, 1.0]))
    study.add_trial(branch(1, 1, START, [0.2, 0.6], mutation="no change"))
    study.add_trial(branch(2, 1, START | {"lr": 0.2}, [0.5, 0.4], mutation="lr 0.1 -> 0.2"))
    assert not [t for t in plot_training_history(study).data if t.name.startswith("best")]


def test_child_of_averaged_weights_starts_at_their_value() -> None:
    study = optuna.create_study()
    parent = branch(0, 0, START, [2.0, 1.0])
    parent.user_attrs[attributes.AVERAGED] = {"value": 0.9}
    study.add_trial(parent)
    study.add_trial(branch(1, 1, START, [0.8, 0.7]))
    view = read_run_view(study)
    assert view.curve(view.lineage[1])[1] == [0.9, 0.8, 0.7]


def test_branch_that_failed_before_its_first_epoch_is_marked_at_its_birth() -> None:
    study = simulated(40)
    untrained = [
        t for t in study.trials if t.state == TrialState.FAIL and not t.user_attrs["miha:trained"]
    ]
    assert untrained
    markers = trace_named(plot_lineage(study), "failed")
    assert {t.user_attrs["miha:epoch"] for t in untrained} <= set(markers.x)


@pytest.mark.slow
@pytest.mark.parametrize("plot", STUDY_PLOTS)
def test_figure_of_six_hundred_trials_has_few_traces(plot: Any, large: optuna.Study) -> None:
    assert len(large.trials) == 598
    assert len(plot(large).data) <= 40
    assert len(plot(large).to_json()) < 2_000_000


# Cycles.


def test_phases_cover_the_lineage_without_gaps(large: optuna.Study) -> None:
    spans = phase_spans(read_run_view(large))
    assert [label for label, *_ in spans[:3]] == ["race", "run-up", "cycle 1"]
    assert spans[-1][0] == "final"
    assert len(spans) == 147 + 3
    assert spans[0][1] == 0
    assert all(one[2] == other[1] for one, other in pairwise(spans))


def test_training_history_shows_every_epoch_of_the_trunk(
    run: tuple[optuna.Study, miha.Result],
) -> None:
    figure = plot_training_history(run[0])
    trunk = read_run_view(run[0]).trunk
    for name in ("validation", "training"):
        assert list(trace_named(figure, name).x) == list(range(1, trunk[-1].end + 1))
    losses = [loss for segment in trunk for loss in segment.train_losses]
    assert list(trace_named(figure, "training").y) == losses


def test_training_history_without_training_losses_has_one_panel() -> None:
    study = optuna.create_study()
    for trial in simulated(2).trials:
        trial.system_attrs.pop(attributes.TRAIN_LOSS)
        study.add_trial(trial)
    figure = plot_training_history(study)
    assert {t.name.split(" (")[0].split(":")[0] for t in figure.data} <= {
        "best",
        "validation",
        "control won",
        "change won",
    }
    assert figure.layout.yaxis.domain == (0, 1)


def test_labels_of_changes_do_not_overlap(large: optuna.Study) -> None:
    figure = plot_training_history(large)
    slanted = sorted(a.x for a in figure.layout.annotations if a.textangle == -45)
    pixels = (1000 - 78 - 150) / figure.layout.xaxis.range[1]
    assert len(slanted) > 10
    assert min(np.diff(slanted)) * pixels >= 19


# Gains.


def branch(
    number: int, cycle: int, params: dict[str, Any], scores: list[float], **more: Any
) -> Any:
    """A branch born at lineage epoch 2, or the first trunk segment (number 0)."""
    birth = 2 if number else 0
    state = more.get("state", TrialState.COMPLETE)
    attrs = {
        attributes.ROLE: "branch" if number else "trunk",
        attributes.CYCLE: cycle,
        attributes.BRANCH: more.get("branch", number),
        attributes.PARENT: 0 if number else None,
        attributes.BIRTH: birth,
        attributes.TRAINED: len(scores),
        attributes.MUTATION: more.get("mutation", ""),
        attributes.FITNESS: -scores[-1],
    }
    choices = CategoricalDistribution(("adam", "sgd"))
    space = {"lr": FloatDistribution(1e-5, 1.0, log=True), "optimizer": choices}
    return create_trial(
        state=state,
        value=min(scores),
        params=params,
        distributions={name: space.get(name, FloatDistribution(0, 1)) for name in params},
        intermediate_values=dict(enumerate(scores, start=birth + 1)),
        user_attrs=attrs,
    )


START = {"lr": 0.1, "optimizer": "adam", "dropout.1": 0.1}


def gains(figure: Any) -> dict[str, list[str]]:
    """The hover texts of the branches, by kind of mutation."""
    labels = [label.split("<br>")[0] for label in figure.layout.yaxis.ticktext]
    found: dict[str, list[str]] = {label: [] for label in labels}
    for trace in figure.data:
        for y, text in zip(trace.y, trace.hovertext or (), strict=False):
            found[labels[round(y)]].append(text)
    return found


def test_gain_compares_a_branch_with_its_control_at_the_same_epoch() -> None:
    study = optuna.create_study()
    study.add_trial(branch(0, 0, START, [2.0, 1.0]))
    study.add_trial(branch(1, 1, START, [0.8, 0.5], mutation="no change"))
    study.add_trial(branch(2, 1, START | {"lr": 0.2}, [0.9, 0.4], mutation="lr 0.1 -> 0.2"))
    study.add_trial(
        branch(3, 1, START | {"dropout.1": 0.2}, [1.0], mutation="d", state=TrialState.PRUNED)
    )
    new = START | {"lr": 0.3, "optimizer": "sgd"}
    study.add_trial(branch(4, 1, new, [0.8, 0.5], mutation="optimizer adam -> sgd"))
    figure = plot_mutation_gains(study)
    found = gains(figure)
    assert found["lr"][0].endswith("gain over the control: 20 %")
    assert found["dropout"][0].endswith("gain over the control: -25 %")
    assert found["optimizer"] == []  # It had no effect.
    assert "optimizer<br>0 won of 1, 1 without effect" in figure.layout.yaxis.ticktext
    assert "control" not in found  # It has no gain over itself.
    assert "lr<br>1 won of 1, +20\u202f%" in figure.layout.yaxis.ticktext
    [counts] = figure.layout.annotations
    assert (
        counts.text == "3 mutations in 1 cycle<br>The control won 0 of 1 cycle; too few for errors"
    )
    assert "than the control (%)" in figure.layout.xaxis.title.text


def test_gain_compares_a_branch_with_its_parent_if_there_is_no_control() -> None:
    study = optuna.create_study()
    study.add_trial(branch(0, 0, START, [2.0, 1.0]))
    study.add_trial(branch(1, 1, START | {"lr": 0.2}, [0.9, 0.4], mutation="lr 0.1 -> 0.2"))
    both = START | {"lr": 0.2, "dropout.1": 0.3}
    study.add_trial(branch(2, 1, both, [0.9, 1.1], mutation="by hand"))
    figure = plot_mutation_gains(study)
    assert gains(figure)["lr"][0].endswith("gain over the parent: 60 %")
    assert gains(figure)["several at once"][0].endswith("gain over the parent: -10 %")
    assert "than the parent (%)" in figure.layout.xaxis.title.text


def test_higher_value_is_a_gain_if_the_study_maximizes() -> None:
    study = optuna.create_study(direction="maximize")
    study.add_trial(branch(0, 0, START, [0.2, 0.5]))
    study.add_trial(branch(1, 1, START | {"lr": 0.2}, [0.5, 0.75], mutation="lr 0.1 -> 0.2"))
    found = gains(plot_mutation_gains(study))
    assert "gain over the parent: 0.25" in found["lr"][0]


def test_labels_of_gains_count_every_branch(large: optuna.Study) -> None:
    figure = plot_mutation_gains(large)
    labels = [label.split("<br>") for label in figure.layout.yaxis.ticktext]
    counts = [count.split(" won of ") for kind, count in labels if kind != "start-up race"]
    [by_control] = re.findall(
        r" (\d+) mutations .* control won (\d+) of", figure.layout.annotations[0].text
    )
    assert sum(int(won) for won, _ in counts) + int(by_control[1]) == 147
    assert sum(int(tried.split(",")[0]) for _, tried in counts) == int(by_control[0]) == 2 * 147
    assert all(" ± " in tried for _, tried in counts)
    assert "too few" not in figure.layout.annotations[0].text


def test_gains_of_a_default_run_include_race_and_restarts() -> None:
    study = optuna.create_study()
    run = {attributes.PARENT: None, attributes.BIRTH: 0, attributes.BY_STEP: True}
    rows = [
        ("startup", 0, 0, START, [2.0, 1.0]),
        ("startup", 0, 1, START | {"lr": 0.2, "dropout.1": 0.2}, [1.0, 0.7]),
        ("restart", 1, 0, START | {"lr": 0.2, "dropout.1": 0.2}, [1.0, 0.5]),
        ("restart", 2, 0, START | {"lr": 0.2, "dropout.1": 0.3}, [1.0, 0.6]),
        ("restart", 3, 0, START | {"lr": 0.4, "dropout.1": 0.2}, [1.0, 0.4]),
        ("restart", 4, 0, START | {"lr": 0.1, "dropout.1": 0.2}, [1.0, 0.3, 0.2]),
    ]
    for role, cycle, index, params, scores in rows:
        trial = branch(1, cycle, params, scores, branch=index, mutation="changed")
        trial.user_attrs |= run | {attributes.ROLE: role}
        trial.intermediate_values = dict(enumerate(scores, start=1))
        study.add_trial(trial)
    figure = plot_mutation_gains(study)
    assert list(figure.layout.yaxis.ticktext) == [
        "dropout<br>0 won of 1, -20\u202f%",
        "lr<br>1 won of 2, +20\u202f%",  # The last restart is longer.
        "start-up race<br>1 won of 1, +30\u202f%",
    ]
    [counts] = figure.layout.annotations
    assert counts.text == "A race of 2, 4 restarts<br>Too few for errors"
    assert "than<br>the first restart or initial configuration" in figure.layout.xaxis.title.text


def test_a_few_small_gains_do_not_fill_the_axis() -> None:
    study = optuna.create_study()
    study.add_trial(branch(0, 0, START, [2.0, 1.0]))
    study.add_trial(branch(1, 1, START, [0.8, 0.5], mutation="no change"))
    study.add_trial(branch(2, 1, START | {"lr": 0.2}, [0.9, 0.4999], mutation="lr 0.1 -> 0.2"))
    low, high = plot_mutation_gains(study).layout.xaxis.range
    assert low < -0.9 and high > 0.9


def test_plot_mutation_gains_rejects_a_run_without_branches() -> None:
    study = optuna.create_study()
    study.add_trial(branch(0, 0, START, [2.0, 1.0]))
    with pytest.raises(ValueError, match="finished a branch, got 1 segments and no branch"):
        plot_mutation_gains(study)


def test_gains_of_a_control_alone_are_an_empty_picture(tmp_path: Path) -> None:
    study = optuna.create_study()
    study.add_trial(branch(0, 0, START, [2.0, 1.0]))
    study.add_trial(branch(1, 1, START, [1.0, 0.5], branch=0, mutation="no change"))
    write_picture(plot_mutation_gains(study), tmp_path / "gains.png")
    assert ink_fraction(tmp_path / "gains.png") > 0


# Studies with unusual content.


@pytest.mark.parametrize("plot", STUDY_PLOTS)
def test_plot_rejects_a_study_without_a_run(plot: Any) -> None:
    study = optuna.create_study(study_name="mine")
    study.add_trial(create_trial(value=1.0))
    message = r"got 'mine' with 1 trials and no finished segment: call `optuna_miha"
    with pytest.raises(ValueError, match=message):
        plot(study)
    with pytest.raises(ValueError, match="must hold a run"):
        plot(optuna.create_study(directions=["minimize", "maximize"]))
    with pytest.raises(TypeError, match=r"must be an optuna\.Study, got Result"):
        plot(type("Result", (), {})())


def test_plot_draws_an_unfinished_run() -> None:
    study = optuna.create_study()
    for trial in simulated(3).trials[:12]:
        study.add_trial(trial)
    study.ask()  # Still running.
    for plot in STUDY_PLOTS:
        plot(study)


def test_value_axis_is_labelled_with_the_monitored_value() -> None:
    study = simulated(2, direction="maximize")
    assert plot_lineage(study).layout.yaxis.title.text == "validation metric"
    study.set_metric_names(["accuracy"])
    assert plot_lineage(study).layout.yaxis.title.text == "validation accuracy"
    figure = plot_training_history(study, target_name="R²")
    assert figure.layout.yaxis.title.text == "R²"


def test_text_from_the_study_is_escaped() -> None:
    study = optuna.create_study()
    evil = "<b>$x$</b>&amp;"
    name = f"{evil}.1"
    study.add_trial(branch(0, 0, START | {name: 0.5}, [2.0, 1.0]))
    study.add_trial(branch(1, 1, START | {name: 0.7}, [0.9, 0.4], mutation=f"{name} 0.5 -> 0.7"))
    study.add_trial(branch(2, 1, START, [0.9, 0.6], mutation="no change"))
    for plot in STUDY_PLOTS:
        figure = plot(study)
        shown = str(figure.to_plotly_json())
        assert evil not in shown
        assert "&lt;b&gt;$x$&lt;/b&gt;&amp;amp;" in shown
    assert plot_lineage(study, target_name="<i>").layout.yaxis.title.text == "&lt;i&gt;"


# Axes and numbers.


def test_log_scale_has_few_round_ticks() -> None:
    for low, high in [
        (0.1, 0.9),
        (1e-5, 1.0),
        (0.011, 0.012),
        (1.0, 1e30),
        (3.0, 3.0),
        (1, 1e308),
    ]:
        axis = scale(low, high, is_log=True)
        assert 1 <= len(axis["tickvals"]) <= 7
        assert axis["range"][0] < np.log10(low) <= np.log10(high) < axis["range"][1]
    assert scale(0.1, 0.9, is_log=True)["ticktext"] == ["0.1", "0.15", "0.2", "0.3", "0.5", "0.7"]


def test_axis_is_cut_only_if_few_values_take_half_of_it() -> None:
    usual = [0.9 + 0.001 * k for k in range(100)]
    assert value_scale([0.1, *usual], is_loss=False)["range"][0] > 0.85
    assert value_scale([0.88, *usual], is_loss=False)["range"][0] < 0.88
    assert value_scale([*usual, 2.0], is_loss=True)["range"][1] < 1.1
    # A log scale shows the whole trunk, but cuts off a branch that diverged.
    decades = [10.0**-k for k in range(4)]
    assert value_scale([*usual, *decades], [1e9], is_loss=True)["range"][1] < 1
    assert value_scale([*usual, *decades, 1e9], is_loss=True)["range"][1] > 9


def test_log_scale_is_chosen_for_positive_values_far_apart() -> None:
    assert is_log_scale([0.1, 1.0])
    assert not is_log_scale([0.4, 1.0])
    assert not is_log_scale([0.0, 1.0])
    assert not is_log_scale([])


def test_number_formats_values_briefly() -> None:
    values = [0.00001, 0.0005, 1 / 3, 1e7, 32, "relu", True]
    assert [number(v) for v in values] == ["1e-5", "0.0005", "0.3333", "1e7", "32", "relu", "True"]


def test_missing_plotly_raises_only_when_a_figure_is_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study = simulated(1)
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    for plot in STUDY_PLOTS:
        with pytest.raises(ImportError, match="pip install plotly"):
            plot(study)


# Comparisons.


def comparison() -> Comparison:
    runs = [
        Run(
            method=method,
            seed=seed,
            n_epochs=100,
            epochs=100,
            seconds=1.0,
            value=0.1,
            test=None,
            curve=((1, 2.0 + seed), (40, 0.5), (90, 0.1 * (1 + seed))),
            trial_epochs=None,
        )
        for method in ("miha", "hyperband")
        for seed in (0, 1)
    ]
    return Comparison(runs=tuple(runs))


def test_plot_comparison_accepts_only_a_comparison() -> None:
    assert len(plot_comparison(comparison()).data) == 6
    assert isinstance(plot_comparison(Comparison(runs=())), go.Figure)
    with pytest.raises(TypeError, match=r"must be an optuna_miha\.Comparison, got list"):
        plot_comparison([])  # type: ignore[arg-type]


# Pictures.


def ink_fraction(path: Path) -> float:
    """The fraction of pixels that are not white."""
    return float((imread(path)[..., :3].min(axis=2) < 0.9).mean())


@pytest.mark.slow
@pytest.mark.parametrize("plot", STUDY_PLOTS)
@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_picture_is_not_blank_and_has_the_size_of_the_figure(
    plot: Any, direction: str, tmp_path: Path
) -> None:
    figure = plot(simulated(8, direction=direction))
    write_picture(figure, tmp_path / "a.png", scale=1)
    height, width = imread(tmp_path / "a.png").shape[:2]
    assert (width, height) == (1000, figure.layout.height)
    assert ink_fraction(tmp_path / "a.png") > 0.005
    write_picture(figure, tmp_path / "a.svg")
    svg = (tmp_path / "a.svg").read_text("utf-8")
    assert svg.count("<path") > 20
    write_picture(figure, str(tmp_path / "a.PDF"))
    assert (tmp_path / "a.PDF").read_bytes().startswith(b"%PDF")


def test_comparison_is_written_as_a_picture(tmp_path: Path) -> None:
    write_picture(plot_comparison(comparison()), tmp_path / "a.png")
    assert imread(tmp_path / "a.png").shape[1] == 2000
    assert ink_fraction(tmp_path / "a.png") > 0.01


def test_picture_has_the_colours_of_the_figure(tmp_path: Path) -> None:
    figure = plot_lineage(simulated(8))
    write_picture(figure, tmp_path / "a.png", scale=1)
    pixels = imread(tmp_path / "a.png")[..., :3]
    for name in ("trunk", "final phase", "branch, won", "start-up race, won"):
        colour = trace_named(figure, name).line.color
        rgb = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        assert (abs(pixels - rgb).max(axis=2) < 0.02).sum() > 30, name


@pytest.mark.slow
def test_same_figure_gives_the_same_file(tmp_path: Path) -> None:
    figure = plot_schedule(simulated(3))
    for suffix in ("svg", "png", "pdf"):
        for name in ("a", "b"):
            write_picture(figure, tmp_path / f"{name}.{suffix}")
        one, other = (tmp_path / f"{name}.{suffix}" for name in ("a", "b"))
        assert one.read_bytes() == other.read_bytes()


def test_picture_shows_dollar_signs_and_brackets(tmp_path: Path) -> None:
    study = simulated(2)
    write_picture(plot_lineage(study, target_name="$<x>$ & $y"), tmp_path / "a.svg")
    write_picture(plot_lineage(study), tmp_path / "b.svg")
    one, other = ((tmp_path / f"{n}.svg").read_text("utf-8") for n in "ab")
    assert one != other
    assert "&lt;x&gt;" not in plot_lineage(study).to_json()
    assert escape("<x>") in plot_lineage(study, target_name="<x>").layout.yaxis.title.text


def test_write_picture_rejects_invalid_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = plot_lineage(simulated(1))
    with pytest.raises(ValueError, match=r"must end in \.pdf, \.png, \.svg, got .*html"):
        write_picture(figure, tmp_path / "a.html")
    with pytest.raises(ValueError, match="`scale` must be positive, got 0"):
        write_picture(figure, tmp_path / "a.png", scale=0)
    with pytest.raises(TypeError, match="must be a plotly figure, got Study"):
        write_picture(simulated(1), tmp_path / "a.png")
    with pytest.raises(TypeError, match="got traces of type box"):
        write_picture(go.Figure(go.Box(y=[1, 2])), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        write_picture(figure, tmp_path / "a.png")


# The package.


def test_all_figures_are_documented() -> None:
    assert visualization.__all__ == sorted(visualization.__all__)
    public = {n for n in vars(visualization) if not n.startswith("_")}
    assert public == set(visualization.__all__)
    pages = Path(__file__).parents[2] / "docs" / "reference"
    for name in visualization.__all__:
        assert getattr(visualization, name).__doc__
        reference = (pages / f"visualization.{name}.rst").read_text("utf-8")
        assert f".. autofunction:: {name}\n" in reference
