"""Choices of a categorical parameter that a storage writes as JSON."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from helpers.equality import same
from helpers.problems import SHORT, classifier, history, new_study, run, weights

import optuna_miha as miha


class Kind(str, enum.Enum):
    SMALL = "small"
    LARGE = "large"


def model_fn_with(choices: Any, *, later: bool = False) -> Any:
    """A ``model_fn`` with a categorical learning rate, or one that only some branches have."""

    def model_fn(trial: Any) -> miha.Recipe:
        recipe = classifier(trial)
        rate: Any = 1e-3
        if not later or trial.suggest_categorical("kind", ["plain", "other"]) == "other":
            rate = trial.suggest_categorical("choice", choices)
        is_rate = isinstance(rate, float) and 0 < rate < 1
        recipe.optimizer = torch.optim.Adam(recipe.model.parameters(), rate if is_rate else 1e-3)
        return recipe

    return model_fn


@pytest.mark.slow
@pytest.mark.parametrize(
    "choices",
    [[None, True, 1, "a", 0.5, float("inf"), -1e300], [[1, 2], [3], {"a": 1}, {"a": 2}]],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Choices for a categorical")
def test_choices_that_json_keeps_are_taken(choices: Any, tmp_path: Path) -> None:
    for storage in (None, f"sqlite:///{tmp_path}/study.db"):
        result = run(new_study(storage), model_fn_with(choices), plan=SHORT)
        assert all(s.params["choice"] in choices for s in result.segments)


@pytest.mark.slow
def test_floats_of_numpy_count_as_floats_in_memory_and_in_a_database(tmp_path: Path) -> None:
    rates = np.logspace(-3.5, -2, 4)
    expected = run(new_study(), model_fn_with(rates.tolist()), plan=SHORT)
    for storage in (None, f"sqlite:///{tmp_path}/study.db"):
        study = new_study(storage)

        def stop(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
            if trial.number == 2:
                study.stop()

        run(study, model_fn_with(list(rates)), plan=SHORT, callbacks=[stop])
        result = run(study, model_fn_with(list(rates)), plan=SHORT)
        assert history(result) == history(expected)
        assert same(weights(result), weights(expected))
    assert len({s.params["choice"] for s in expected.segments}) > 1, "the choice never changed"


@pytest.mark.parametrize(
    "choices",
    [
        [(0.9, 0.999), (0.5, 0.9)],
        [[1, (2, 3)]],
        list(np.arange(3)),
        list(np.float32([0.5, 1.0])),
        [np.True_, np.False_],
        list(Kind),
        [{1: "a"}],
        [float("nan"), 1.0],
        [print],
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Choices for a categorical")
def test_choices_that_json_changes_are_refused_before_anything_is_written(choices: Any) -> None:
    study = new_study()
    with pytest.raises(ValueError, match=r"choices of 'choice' must be .* unchanged, got"):
        run(study, model_fn_with(choices), plan=SHORT)
    assert not study.trials
    assert not study.user_attrs


@pytest.mark.filterwarnings("ignore:Choices for a categorical")
def test_choices_that_only_a_branch_has_are_refused_too() -> None:
    study = new_study()
    with pytest.raises(ValueError, match="choices of 'choice'"):
        run(study, model_fn_with([(1, 2), (3, 4)], later=True), plan=SHORT)
    repaired = model_fn_with(["1, 2", "3, 4"], later=True)
    assert miha.load_result(study, repaired).segments
