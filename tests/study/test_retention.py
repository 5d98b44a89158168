"""Files of a run on the disk, during training and at its end, and the files that `clean` frees."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from helpers.equality import same
from helpers.problems import SHORT, classifier, history, new_study, run, weights
from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial
from torch import nn
from torch.optim import SGD

import optuna_miha as miha
from optuna_miha._cli.main import main
from optuna_miha._history import attributes
from optuna_miha._history.lineage import Lineage
from optuna_miha._study.folders import locate
from optuna_miha._study.lease import hold_lease
from optuna_miha.exceptions import StudyLockedError

pytestmark = pytest.mark.slow


class CountingStore(FileSystemArtifactStore):
    """A store that counts its files after every write.

    Args:
        folder: The folder of the store.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = folder
        self.max_files = 0

    def write(self, artifact_id: str, content_body: Any) -> None:
        super().write(artifact_id, content_body)
        self.max_files = max(self.max_files, len(list(self.folder.iterdir())))


@pytest.mark.parametrize("population_size", [1, 3, 6])
def test_the_disk_has_few_checkpoints_at_any_time_and_one_at_the_end(
    population_size: int, tmp_path: Path
) -> None:
    store, n_epochs = CountingStore(tmp_path), 60 * population_size
    plan = miha.Plan(
        n_epochs, startup=4, fixing_epochs=3, population_size=population_size, anneal="cosine"
    )
    result = run(new_study(), plan=plan, artifact_store=store, keep="final")
    assert 2 <= store.max_files <= population_size + 3
    [file] = tmp_path.iterdir()
    assert file.name == result.trial.user_attrs[attributes.CHECKPOINT]["id"]


class AgingNetwork(nn.Linear):
    """A network that counts its epochs in a buffer."""

    def __init__(self) -> None:
        super().__init__(1, 1)
        self.register_buffer("age", torch.zeros((), dtype=torch.long))


def aging_network(trial: Any) -> miha.Recipe:
    model = AgingNetwork()
    lr = miha.suggest_optimizer(trial, model.parameters(), choices=("sgd",))
    data = torch.zeros(4, 1), torch.zeros(4, 1)
    return miha.Recipe(
        model=model, loss_fn=nn.MSELoss(), optimizer=lr, train_data=data, valid_data=data
    )


def tied_values(recipe: miha.Recipe, n_epochs: int) -> Iterator[miha.EpochResult]:
    """All siblings have the same best value; with the initial learning rate, the last is worse."""
    assert isinstance(recipe.optimizer, SGD)
    is_initial = recipe.optimizer.param_groups[0]["lr"] < 0.05
    for n in range(n_epochs):
        recipe.model.age += 1
        age = int(recipe.model.age)
        worse = 0.01 if is_initial and n == n_epochs - 1 else 0.0
        yield miha.EpochResult(value=max(0.2, 1 / (1 + age // 6)) + worse)


def test_the_best_segment_has_a_checkpoint_if_siblings_tie() -> None:
    plan = miha.Plan(
        60,
        startup=1,
        fixing_epochs=4,
        population_size=4,
        restarts=False,
        patience=None,
        anneal="cosine",
    )
    study = new_study()
    n_ties = 0

    def check_best(study: optuna.Study, trial: FrozenTrial) -> None:
        nonlocal n_ties
        lineage = Lineage.from_trials(study.direction, study.trials)
        best = lineage.best()
        assert best is not None
        assert best.checkpoint is not None
        winner = lineage.winner(best.role, best.cycle)
        n_ties += winner is not best and winner is not None and winner.value == best.value

    run(study, aging_network, trainer=tied_values, plan=plan, callbacks=[check_best])
    assert n_ties, "the fittest segment is always the best one"


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*.pt")}


def stop_after(n: int) -> Any:
    trials = []

    def callback(study: optuna.Study, trial: FrozenTrial) -> None:
        trials.append(trial)
        if len(trials) == n:
            study.stop()

    return callback


def test_resuming_removes_orphans_of_a_killed_run_and_keeps_other_files(
    tmp_path: Path,
) -> None:
    study = new_study()
    run(study, plan=SHORT, callbacks=[stop_after(3)], checkpoint_dir=tmp_path)
    run_id = study.user_attrs[attributes.RUN]
    orphan = tmp_path / f"branch-001-0-{run_id}-0123456789ab.pt"
    others = tmp_path / "branch-001-0-00000000-0123456789ab.pt", tmp_path / "thesis.pt"
    for path in (orphan, *others):
        path.touch()
    run(study, plan=SHORT, checkpoint_dir=tmp_path)
    assert not orphan.exists()
    assert all(path.exists() for path in others)


@pytest.mark.parametrize(
    ("keep", "n_trials"),
    [
        ("final", 3),
        ("trunk", 3),
        ("final", 99),
        *(
            pytest.param(keep, n, marks=pytest.mark.long)
            for keep, n in itertools.product(("final", "trunk"), (1, 4))
        ),
    ],
)
def test_cleaning_does_not_change_the_result_of_a_run(
    keep: str, n_trials: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    run(new_study(url), plan=SHORT, callbacks=[stop_after(n_trials)], keep="all")
    before = files(tmp_path)
    command = ["clean", "tiny", "--storage", url, "--keep", keep]
    assert main([*command, "--dry-run"]) == 0
    assert files(tmp_path) == before
    assert "would be freed" in capsys.readouterr().out
    assert main(command) == 0
    output = capsys.readouterr().out
    assert f"{len(before) - len(files(tmp_path))} file" in output
    assert " MB) freed, " in output
    assert files(tmp_path)
    whole = run(new_study(), plan=SHORT)
    result = run(new_study(url), plan=SHORT, keep="all")
    assert history(result) == history(whole)
    assert same(weights(result), weights(whole))


def test_cleaning_uses_the_keep_of_the_run_unless_another_is_given(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    run(new_study(url), plan=SHORT, keep="all")
    before = files(tmp_path)
    assert main(["clean", "tiny", "--storage", url]) == 0
    assert files(tmp_path) == before
    assert main(["clean", "tiny", "--storage", url, "--keep", "final"]) == 0
    assert not [name for name in files(tmp_path) if name.startswith("member-")]
    assert same(
        weights(miha.load_result(new_study(url), classifier)),
        weights(run(new_study(url), plan=SHORT, keep="all")),
    )


def test_cleaning_is_refused_while_the_study_is_running(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    study = new_study(url)
    run(study, plan=SHORT, keep="all")
    before = files(tmp_path)
    with hold_lease(study):
        try:
            code: Any = main(["clean", "tiny", "--storage", url, "--keep", "final"])
        except StudyLockedError:
            code = 1
        except SystemExit as end:
            code = end.code
    assert code != 0
    assert files(tmp_path) == before


def test_with_keep_final_no_second_copy_of_the_model_is_registered(tmp_path: Path) -> None:
    study = new_study(RDBStorage(f"sqlite:///{tmp_path}/study.db"))
    run(study, plan=SHORT, keep="final")
    names = [meta.filename for meta in get_all_artifact_meta(study)]
    assert names == ["schedule-40-epochs.csv"]


@pytest.mark.long
@pytest.mark.parametrize("first", ["original", "copy"])
def test_a_copied_study_does_not_change_the_checkpoints_of_the_original(
    first: str, tmp_path: Path
) -> None:
    def study_in(name: str) -> optuna.Study:
        return new_study(f"sqlite:///{tmp_path}/{name}/a.db")

    (tmp_path / "original").mkdir()
    before = weights(run(study_in("original"), plan=SHORT))
    shutil.copytree(tmp_path / "original", tmp_path / "copy")
    second = "copy" if first == "original" else "original"
    folder = tmp_path / second / "a-checkpoints" / "tiny"
    files = {path.name for path in folder.iterdir()}

    after = weights(run(study_in(first), plan=None, n_epochs=60))
    assert {path.name for path in folder.iterdir()} == files
    assert same(weights(miha.load_result(study_in(second), classifier)), before)
    assert same(weights(miha.load_result(study_in(first), classifier)), after)
    longer = run(study_in(second), plan=None, n_epochs=60)
    assert same(weights(longer), after)
    assert same(weights(miha.load_result(study_in(first), classifier)), after)


def test_a_chosen_folder_takes_precedence_over_one_next_to_the_study(
    tmp_path: Path,
) -> None:
    study = new_study(f"sqlite:///{tmp_path}/a.db")
    run(study, plan=SHORT, checkpoint_dir=tmp_path / "chosen")
    (tmp_path / "a-checkpoints" / "tiny").mkdir(parents=True)
    assert locate(study).folder == tmp_path / "chosen"


@pytest.mark.parametrize("name", [".", "..", "a/../.."])
def test_no_study_name_leads_out_of_the_checkpoint_folder(name: str, tmp_path: Path) -> None:
    study = optuna.create_study(storage=f"sqlite:///{tmp_path}/a.db", study_name=name)
    folder = locate(study).folder.resolve()
    assert folder.parent == tmp_path / "a-checkpoints"
