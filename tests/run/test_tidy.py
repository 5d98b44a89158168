"""A run that was killed after its last segment is completed by the next call."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import optuna
import pytest
from helpers.equality import same
from helpers.kills import start_process
from helpers.problems import SHORT, classifier, new_study, run, weights
from optuna.artifacts import get_all_artifact_meta

import optuna_miha as miha
from optuna_miha._history import attributes
from optuna_miha._study.lease import hold_lease

pytestmark = pytest.mark.slow


def run_and_die(url: str, keep: Any) -> None:
    def die(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if trial.user_attrs[attributes.ROLE] == "final":
            os.kill(os.getpid(), signal.SIGKILL)

    run(new_study(url), plan=SHORT, keep=keep, callbacks=[die])


def killed(folder: Path, keep: str) -> str:
    """A study whose process was killed right after its last segment."""
    url = f"sqlite:///{folder}/a.db"
    process = start_process(run_and_die, url, keep)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert new_study(url).user_attrs[attributes.LEASE] is not None
    return url


def files(folder: Path) -> set[str]:
    """Names of files without the id of the run and random digits."""
    return {path.name.rsplit("-", 2)[0] for path in folder.rglob("*-*-*-*.pt")}


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["final", pytest.param("trunk", marks=pytest.mark.long)])
def test_it_ends_as_if_it_had_not_been_killed(
    keep: str, whole: miha.Result, tmp_path: Path
) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    url = killed(tmp_path / "one", keep)
    result = run(new_study(url), plan=SHORT, keep=keep)
    undisturbed = new_study(f"sqlite:///{tmp_path}/other/a.db")
    run(undisturbed, plan=SHORT, keep=keep)
    assert same(weights(result), weights(whole))
    study = new_study(url)
    for key in (attributes.SPENT, attributes.FINISHED, attributes.LEASE):
        assert study.user_attrs[key] == undisturbed.user_attrs[key]
    assert files(tmp_path / "one") == files(tmp_path / "other")
    names = [
        {meta.filename for meta in get_all_artifact_meta(each)} for each in (study, undisturbed)
    ]
    assert names[0] == names[1]
    before = study.user_attrs
    run(study, plan=SHORT, keep=keep)
    assert study.user_attrs == before, "A run that is tidy is only read."


@pytest.mark.long
@pytest.mark.slow
def test_a_run_that_another_process_tidies_up_is_only_read(tmp_path: Path) -> None:
    url = killed(tmp_path, "final")
    with hold_lease(new_study(url)):
        result = run(new_study(url), plan=SHORT, keep="final")
    assert result.n_epochs_trained == 40
    assert new_study(url).user_attrs[attributes.FINISHED] is None
    run(new_study(url), plan=SHORT, keep="final")
    assert new_study(url).user_attrs[attributes.FINISHED] == 40


def test_a_finished_run_of_an_earlier_version_keeps_its_files(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    run(new_study(url), plan=SHORT, keep="all")
    study = optuna.create_study(storage=url, study_name="earlier")
    own = (attributes.FINISHED, attributes.HOME)
    for key, value in new_study(url).user_attrs.items():
        if key not in own and not key.startswith(attributes.CLAIM_PREFIX):
            study.set_user_attr(key, value)
    study.add_trials(new_study(url).trials)
    before = {path.name for path in tmp_path.rglob("*.pt")}
    miha.optimize(study, classifier, plan=SHORT, keep="final", show_progress_bar=False)
    assert before <= {path.name for path in tmp_path.rglob("*.pt")}
