"""A run is not resumed with another monitored value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna
import pytest
from helpers.problems import SHORT, blobs, explicit, history, new_study, run
from torch import nn

import optuna_miha as miha
from optuna_miha._history import attributes
from optuna_miha.exceptions import MonitorChangedError, RecordError

Change = Callable[[miha.Recipe], None]


def changed(change: Change | None) -> Any:
    """A ``model_fn`` whose recipe is changed."""

    def model_fn(trial: Any) -> miha.Recipe:
        recipe = explicit(trial)
        recipe.metrics = {"small": lambda o, t: nn.functional.cross_entropy(o, t) / 1000}
        if change is not None:
            change(recipe)
        return recipe

    return model_fn


def setting(name: str, value: Any) -> Change:
    return lambda recipe: setattr(recipe, name, value)


@pytest.fixture
def begun() -> optuna.Study:
    """A study whose run was stopped after its first trial."""
    study = new_study()
    run(study, changed(None), plan=SHORT, callbacks=[lambda study, trial: study.stop()])
    return study


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (setting("monitor", "small"), "with, loss, got small"),
        (
            setting("valid_loss_fn", nn.CrossEntropyLoss(label_smoothing=0.1)),
            r"label_smoothing=0.0\), got CrossEntropyLoss\(label_smoothing=0.1\)",
        ),
        (setting("valid_loss_fn", nn.MultiMarginLoss()), "got MultiMarginLoss"),
    ],
)
def test_another_monitor_or_loss_is_refused_before_anything_is_written(
    change: Change, words: str, begun: optuna.Study
) -> None:
    before = begun.get_trials(), begun.user_attrs
    with pytest.raises(MonitorChangedError, match=words):
        run(begun, changed(change), plan=SHORT)
    assert (begun.get_trials(), begun.user_attrs) == before


@pytest.mark.parametrize(
    "change",
    [
        setting("valid_data", blobs(30, seed=7)),
        setting("valid_loss_fn", lambda o, t: 3 * nn.functional.cross_entropy(o, t)),
    ],
)
def test_a_changed_value_of_the_untrained_network_is_warned_of(
    change: Change, begun: optuna.Study, log: pytest.LogCaptureFixture
) -> None:
    run(begun, changed(change), plan=SHORT)
    assert "The untrained network has loss" in log.text


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        setting("valid_loss_fn", nn.functional.cross_entropy),
        setting("metrics", {"another": lambda output, target: 0.0}),
        setting("batch_size", 16),
    ],
)
def test_an_equal_loss_or_another_metric_is_taken_without_a_word(
    change: Change, begun: optuna.Study, log: pytest.LogCaptureFixture
) -> None:
    whole = run(new_study(), changed(None), plan=SHORT)
    result = run(begun, changed(change), plan=SHORT)
    assert "untrained" not in log.text
    assert history(result) == history(whole)


def test_a_run_of_an_early_version_has_nothing_to_compare_with(begun: optuna.Study) -> None:
    study = new_study()
    for name, value in begun.user_attrs.items():
        if name != attributes.MONITOR:
            study.set_user_attr(name, value)
    assert run(study, changed(setting("monitor", "small")), plan=SHORT).segments


def test_a_metric_is_compared_by_its_name_and_value(log: pytest.LogCaptureFixture) -> None:
    def monitoring(recipe: miha.Recipe) -> None:
        recipe.monitor, recipe.valid_loss_fn = "small", nn.CrossEntropyLoss(label_smoothing=0.3)

    study = new_study()
    stop = [lambda study, trial: study.stop()]
    run(study, changed(setting("monitor", "small")), plan=SHORT, callbacks=stop)
    run(study, changed(monitoring), plan=SHORT)
    assert "untrained" not in log.text


@pytest.mark.parametrize("value", [3, {"name": "loss"}, {"name": 1, "loss": None, "value": 0.0}])
def test_an_invalid_attribute_is_named(value: Any, begun: optuna.Study) -> None:
    begun.set_user_attr(attributes.MONITOR, value)
    with pytest.raises(RecordError, match="miha:monitor"):
        run(begun, changed(None), plan=SHORT)
