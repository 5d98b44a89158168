"""A copy of a study is a run of its own, and leaves the files of the original alone."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
from helpers import services
from helpers.equality import same
from helpers.problems import SHORT, After, classifier, run, weights
from optuna.artifacts import FileSystemArtifactStore

import optuna_miha as miha
from optuna_miha._cli.main import main
from optuna_miha._history import attributes
from optuna_miha._study import checkpoint_store
from optuna_miha._study.folders import locate
from optuna_miha._study.lease import hold_lease
from optuna_miha.exceptions import CheckpointError

pytestmark = pytest.mark.slow


def study_of(file: Path, name: str = "t") -> optuna.Study:
    return optuna.create_study(
        storage=f"sqlite:///{file}",
        study_name=name,
        load_if_exists=True,
        sampler=miha.MihaSampler(seed=1),
        pruner=miha.SlopePruner(),
    )


def copy_file_and_folder(folder: Path) -> optuna.Study:
    shutil.copy(folder / "a.db", folder / "b.db")
    shutil.copytree(folder / "a-checkpoints", folder / "b-checkpoints")
    return study_of(folder / "b.db")


def copy_file(folder: Path) -> optuna.Study:
    shutil.copy(folder / "a.db", folder / "b.db")
    return study_of(folder / "b.db")


def copy_study(folder: Path) -> optuna.Study:
    url = f"sqlite:///{folder}/a.db"
    optuna.copy_study(from_study_name="t", from_storage=url, to_storage=url, to_study_name="copy")
    return study_of(folder / "a.db", "copy")


def copy_study_elsewhere(folder: Path) -> optuna.Study:
    (folder / "elsewhere").mkdir()
    optuna.copy_study(
        from_study_name="t",
        from_storage=f"sqlite:///{folder}/a.db",
        to_storage=f"sqlite:///{folder}/elsewhere/c.db",
    )
    return study_of(folder / "elsewhere" / "c.db")


WAYS = [
    copy_file_and_folder,
    copy_file,
    copy_study,
    pytest.param(copy_study_elsewhere, marks=pytest.mark.long),
]


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file() and path.suffix != ".db"}


@pytest.fixture(scope="module")
def longer() -> Any:
    """A run of 40 and then 60 epochs that shares nothing with another one."""
    study = optuna.create_study(sampler=miha.MihaSampler(seed=1), pruner=miha.SlopePruner())
    run(study, plan=SHORT)
    return run(study, plan=None, n_epochs=60)


@pytest.mark.parametrize("keep", ["final", pytest.param("trunk", marks=pytest.mark.long)])
@pytest.mark.parametrize("way", WAYS)
def test_copy_and_original_go_on_independently(
    way: Callable[[Path], optuna.Study],
    keep: str,
    longer: miha.Result,
    tmp_path: Path,
    log: pytest.LogCaptureFixture,
) -> None:
    original = study_of(tmp_path / "a.db")
    before = weights(run(original, plan=SHORT, keep=keep))
    originals = files(tmp_path)
    copy = way(tmp_path)
    assert same(weights(miha.load_result(copy, classifier)), before), "It was never opened."
    optuna.logging.set_verbosity(optuna.logging.INFO)
    result = run(copy, plan=None, n_epochs=60, keep=keep)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    assert "was copied from another one" in log.text
    assert same(weights(result), weights(longer))
    assert originals <= files(tmp_path)
    assert same(weights(miha.load_result(original, classifier)), before)

    copies = files(locate(copy).folder)
    result = run(original, plan=None, n_epochs=60, keep=keep)
    assert same(weights(result), weights(longer))
    assert copies <= files(locate(copy).folder)
    for study in (original, copy):
        assert same(weights(miha.load_result(study, classifier)), weights(longer))
    if keep == "final":
        own = [path.name for path in locate(copy).folder.glob(f"*-{run_id(copy)}-*.pt")]
        assert len(own) == 1


def run_id(study: optuna.Study) -> str:
    return str(study.user_attrs[attributes.RUN])


@pytest.mark.long
@pytest.mark.parametrize("way", [copy_file_and_folder, copy_study])
def test_an_interrupted_original_can_be_continued_after_its_copy(
    way: Callable[[Path], optuna.Study], longer: miha.Result, tmp_path: Path
) -> None:
    original = study_of(tmp_path / "a.db")
    run(original, plan=SHORT, callbacks=[After(2, original.stop)])
    copy = way(tmp_path)
    results = []
    for study in (original, copy):
        run(study, plan=SHORT)
        results.append(run(study, plan=None, n_epochs=60))
    for result in results:
        assert same(weights(result), weights(longer))


def check_shared_store(new_store: Callable[[], Any], folder: Path, longer: miha.Result) -> None:
    """Original and copy, and a copy of the copy, share an artifact store."""
    original = study_of(folder / "a.db")
    before = weights(run(original, plan=SHORT, artifact_store=new_store(), keep="final"))
    copy = copy_file(folder)
    shutil.copy(folder / "b.db", folder / "c.db")
    run(copy, plan=None, n_epochs=60, artifact_store=new_store(), keep="final")
    shutil.copy(folder / "b.db", folder / "d.db")
    for name in ("c.db", "d.db"):
        run(
            study_of(folder / name),
            plan=None,
            n_epochs=80,
            artifact_store=new_store(),
            keep="final",
        )
    assert same(weights(miha.load_result(original, classifier, new_store())), before)
    assert same(weights(miha.load_result(copy, classifier, new_store())), weights(longer))
    ids = {run_id(study_of(folder / name)) for name in ("a.db", "b.db", "c.db", "d.db")}
    assert len(ids) == 4


def test_copies_share_a_folder_of_artifacts(longer: miha.Result, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    check_shared_store(lambda: FileSystemArtifactStore(tmp_path / "store"), tmp_path, longer)


@pytest.mark.long
@pytest.mark.slow
def test_copies_share_a_bucket(longer: miha.Result, tmp_path: Path) -> None:
    with services.s3() as server:
        store = server.new_store()
        check_shared_store(lambda: store, tmp_path, longer)


def test_a_copy_in_the_folder_that_the_user_chose_leaves_the_originals_files(
    longer: miha.Result, tmp_path: Path
) -> None:
    chosen = tmp_path / "chosen"
    original = study_of(tmp_path / "a.db")
    before = weights(run(original, plan=SHORT, keep="final", checkpoint_dir=chosen))
    copy = copy_file(tmp_path)
    assert same(
        weights(run(copy, plan=None, n_epochs=60, keep="final", checkpoint_dir=chosen)),
        weights(longer),
    )
    assert same(weights(miha.load_result(original, classifier)), before)


def test_a_moved_study_is_the_same_run(longer: miha.Result, tmp_path: Path) -> None:
    (tmp_path / "before").mkdir()
    study = study_of(tmp_path / "before" / "a.db")
    run(study, plan=SHORT)
    shutil.move(tmp_path / "before", tmp_path / "after")
    moved = study_of(tmp_path / "after" / "a.db")
    n_files = len(files(tmp_path / "after"))
    assert same(weights(run(moved, plan=None, n_epochs=60)), weights(longer))
    assert run_id(moved) == run_id(study_of(tmp_path / "after" / "a.db"))
    names = {path.name.rsplit("-", 2)[1] for path in (tmp_path / "after").rglob("*-*-*-*.pt")}
    assert names == {run_id(moved)}, f"No file was copied; there were {n_files}."


def test_cleaning_a_copy_that_was_not_continued_removes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(study_of(tmp_path / "a.db"), plan=SHORT, keep="all")
    copy_study(tmp_path)
    before = files(tmp_path)
    url = f"sqlite:///{tmp_path}/a.db"
    assert main(["clean", "copy", "--storage", url, "--keep", "final"]) == 0
    assert "0 files (0.0 MB) freed" in capsys.readouterr().out
    assert files(tmp_path) == before


def test_a_copy_of_a_study_that_is_running_is_free(tmp_path: Path) -> None:
    study = study_of(tmp_path / "a.db")
    run(study, plan=SHORT)
    with hold_lease(study):
        copy = copy_file(tmp_path)
        with hold_lease(copy):
            pass


@pytest.mark.parametrize(
    "way", [copy_file_and_folder, pytest.param(copy_study, marks=pytest.mark.long)]
)
def test_a_copy_of_a_study_of_an_earlier_version_is_recognized_by_its_folder(
    way: Callable[[Path], optuna.Study], tmp_path: Path
) -> None:
    original = study_of(tmp_path / "a.db")
    before = weights(run(original, plan=SHORT, keep="final"))
    with closing(sqlite3.connect(tmp_path / "a.db")) as connection, connection:
        connection.execute("DELETE FROM study_user_attributes WHERE key = ?", (attributes.HOME,))
    run(way(tmp_path), plan=None, n_epochs=60, keep="final")
    assert same(weights(miha.load_result(study_of(tmp_path / "a.db"), classifier)), before)
    again = study_of(tmp_path / "a.db")
    run(again, plan=None, n_epochs=60, keep="final")
    assert run_id(again) == run_id(original), "The original is still itself."


class Full(FileSystemArtifactStore):
    """A store without room for more than one new file."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.n_left = 1

    def write(self, artifact_id: str, content_body: Any) -> None:
        if self.n_left == 0:
            raise OSError("no space left")
        self.n_left -= 1
        super().write(artifact_id, content_body)


def test_a_copy_that_was_interrupted_is_completed(
    longer: miha.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_store, "RETRY_DELAYS", ())
    folder = tmp_path / "store"
    folder.mkdir()
    original = study_of(tmp_path / "a.db")
    before = weights(run(original, plan=SHORT, artifact_store=FileSystemArtifactStore(folder)))
    copy = copy_file(tmp_path)
    with pytest.raises(CheckpointError):
        run(copy, plan=None, n_epochs=60, artifact_store=Full(folder))
    assert run_id(copy) == run_id(original), "It is still recognized as a copy."
    result = run(copy, plan=None, n_epochs=60, artifact_store=FileSystemArtifactStore(folder))
    assert same(weights(result), weights(longer))
    store = FileSystemArtifactStore(folder)
    assert same(weights(miha.load_result(original, classifier, store)), before)


def test_the_home_of_a_study_tells_neither_path_nor_password(tmp_path: Path) -> None:
    study = study_of(tmp_path / "a.db")
    run(study, plan=miha.Plan.no_search(n_epochs=2))
    assert len(study.user_attrs[attributes.HOME]) == 16
    assert set(study.user_attrs[attributes.HOME]) <= set("0123456789abcdef")
