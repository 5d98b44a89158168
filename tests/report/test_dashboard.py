"""The page of a run in optuna-dashboard, tested against a real server."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import optuna
import optuna_dashboard
import pytest
import torch
from helpers.problems import TINY, classifier, new_study
from helpers.simulated import simulated
from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta
from optuna.artifacts.exceptions import ArtifactNotFound

import optuna_miha as miha
from optuna_miha._cli.storages import find_storage
from optuna_miha._history import attributes
from optuna_miha._history.lineage import Lineage
from optuna_miha._report import dashboard
from optuna_miha._report.dashboard import HEADING, Dashboard
from optuna_miha._report.notes import study_note
from optuna_miha._report.run_artifacts import RunArtifacts

pytestmark = pytest.mark.slow

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed.")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one short run."""
    folder = tmp_path_factory.mktemp("run")
    study = new_study(f"sqlite:///{folder}/run.db")
    miha.optimize(study, classifier, plan=TINY, show_progress_bar=False)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of that folder, which a test may change."""
    folder = Path(shutil.copytree(trained, tmp_path / "copy"))
    load(folder).set_user_attr("miha:checkpoint_dir", str(folder / "run-checkpoints" / "tiny"))
    return folder


def load(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="tiny", storage=f"sqlite:///{folder}/run.db")


def read(store: Any, artifact_id: str) -> bytes:
    with store.open_reader(artifact_id) as reader:
        content: bytes = reader.read()
    return content


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(*command: str, port: int) -> Iterator[str]:
    """Start a server in a separate process; yields its address once it answers."""
    address = f"http://127.0.0.1:{port}"
    with subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as server:
        try:
            for _ in range(300):
                try:
                    request(f"{address}/api/meta")
                    break
                except urllib.error.URLError:
                    assert server.poll() is None, server.stdout.read()  # type: ignore[union-attr]
                    time.sleep(0.2)
            yield address
        finally:
            server.terminate()


@contextmanager
def miha_server(folder: Path) -> Iterator[str]:
    port = free_port()
    with serving(
        "-m", "optuna_miha", "dashboard", str(folder), "--port", str(port), port=port
    ) as address:
        yield address


@contextmanager
def plain_server(folder: Path) -> Iterator[str]:
    """The command ``optuna-dashboard``, started for the database alone."""
    port = free_port()
    code = "from optuna_dashboard._cli import main; main()"
    arguments = [f"sqlite:///{folder}/run.db", "--port", str(port), "--host", "127.0.0.1"]
    with serving("-c", code, *arguments, port=port) as address:
        yield address


def request(url: str, method: str = "GET", body: Any = None) -> bytes:
    data = None if body is None else json.dumps(body).encode()
    prepared = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    prepared.method = method
    with urllib.request.urlopen(prepared, timeout=30) as response:
        content: bytes = response.read()
    return content


def get_page(address: str) -> dict[str, Any]:
    [study] = json.loads(request(f"{address}/api/studies"))["study_summaries"]
    detail: dict[str, Any] = json.loads(request(f"{address}/api/studies/{study['study_id']}"))
    return {**detail, "id": study["study_id"]}


def test_study_page_has_figures_note_and_files_and_is_deleted_with_them(run: Path) -> None:
    with miha_server(run) as address:
        assert b"<title>Optuna Dashboard</title>" in request(f"{address}/dashboard/")
        page = get_page(address)
        figures = {f["id"]: json.loads(f["graph_object"]) for f in page["plotly_graph_objects"]}
        assert figures.keys() == {"miha-gains", "miha-lineage", "miha-schedule"}
        assert all(figure["data"] for figure in figures.values())
        assert HEADING in page["note"]["body"]
        best = load(run).best_trial
        assert f"trial {best.number} " in page["note"]["body"]
        assert page["objective_names"] == ["loss"]
        notes = {trial["number"]: trial["note"]["body"] for trial in page["trials"]}
        parent = best.user_attrs[attributes.PARENT]
        assert (
            f"continues [trial {parent}](/dashboard/studies/{page['id']}/trials"
            in notes[best.number]
        )
        assert all("**Outcome:**" in note for note in notes.values())
        assert list(figures) == sorted(figures)
        assert b"overflow-wrap:anywhere" in request(f"{address}/dashboard/studies/1")

        files = {meta["filename"]: meta["artifact_id"] for meta in page["artifacts"]}
        contents = {n: request(f"{address}/artifacts/{page['id']}/{i}") for n, i in files.items()}
        model = contents["model-90-epochs.pt"]
        saved = torch.load(io.BytesIO(model), weights_only=True)
        assert saved["value"] == load(run).best_value
        rows = list(csv.DictReader(io.StringIO(contents["schedule-90-epochs.csv"].decode())))
        assert rows[0]["from_epoch"] == "0"

        paths = [run / "run-checkpoints" / "tiny" / artifact_id for artifact_id in files.values()]
        assert all(path.is_file() for path in paths)
        request(f"{address}/api/studies/{page['id']}", "DELETE", {})
        assert json.loads(request(f"{address}/api/studies"))["study_summaries"] == []
        assert not any(path.exists() for path in paths)


def test_study_without_its_files_can_be_deleted(run: Path) -> None:
    shutil.rmtree(run / "run-checkpoints")
    with miha_server(run) as address:
        request(f"{address}/api/studies/{get_page(address)['id']}", "DELETE", {})
        assert json.loads(request(f"{address}/api/studies"))["study_summaries"] == []


def test_plain_optuna_dashboard_shows_the_same_page_and_deletes_the_study(run: Path) -> None:
    with plain_server(run) as address:
        page = get_page(address)
        assert len(page["plotly_graph_objects"]) == 3
        assert HEADING in page["note"]["body"]
        assert len(page["artifacts"]) == 2
        request(f"{address}/api/studies/{page['id']}", "DELETE", {})
        assert json.loads(request(f"{address}/api/studies"))["study_summaries"] == []


@needs_chromium
def test_browser_draws_the_figures_without_console_errors(run: Path) -> None:
    assert CHROMIUM is not None
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    console = ["--enable-logging=stderr", "--v=0"]
    with miha_server(run) as address:
        url = f"{address}/dashboard/studies/{get_page(address)['id']}"
        done = subprocess.run(
            [CHROMIUM, *flags, *console, "--virtual-time-budget=8000", "--dump-dom", url],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
    titles = re.findall(r'class="gtitle"[^>]*>(?:<[^>]*>)*([^<]+)', done.stdout)
    assert {"Lineage", "Schedule"} <= set(titles)
    messages = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not [line for line in messages if "rror" in line], messages


def test_larger_budget_adds_files_and_keeps_the_previous_ones(run: Path) -> None:
    study = load(run)
    miha.optimize(study, classifier, n_epochs=90, show_progress_bar=False)
    assert len(get_all_artifact_meta(study)) == 2
    miha.optimize(study, classifier, n_epochs=100, show_progress_bar=False)
    names = {meta.filename for meta in get_all_artifact_meta(study)}
    assert {"model-90-epochs.pt", "model-100-epochs.pt"} <= names
    artifacts = RunArtifacts(find_storage(str(run)))
    for meta in get_all_artifact_meta(study):
        assert read(artifacts, meta.artifact_id)


def test_files_are_registered_only_at_the_end_of_the_run(tmp_path: Path) -> None:
    study = new_study(f"sqlite:///{tmp_path}/run.db")
    stop = [lambda study, trial: study.stop() if trial.number > 5 else None]
    miha.optimize(study, classifier, plan=TINY, callbacks=stop, show_progress_bar=False)
    assert get_all_artifact_meta(study) == []
    miha.optimize(study, classifier, show_progress_bar=False)
    assert len(get_all_artifact_meta(study)) == 2


def test_files_are_stored_beside_the_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    store = FileSystemArtifactStore(tmp_path / "bucket")
    study = new_study(f"sqlite:///{tmp_path}/run.db")
    plan = miha.Plan.no_search(3)
    miha.optimize(study, classifier, plan=plan, artifact_store=store, show_progress_bar=False)
    for meta in get_all_artifact_meta(study):
        assert read(store, meta.artifact_id)


def test_user_text_above_the_heading_of_the_note_is_kept(run: Path) -> None:
    study = load(run)
    generated = optuna_dashboard.get_note(study)
    optuna_dashboard.save_note(study, f"My *own* words.\n\n{generated}")
    miha.optimize(study, classifier, n_epochs=100, show_progress_bar=False)
    body = optuna_dashboard.get_note(study)
    assert body.startswith(f"My *own* words.\n\n{HEADING}")
    assert body.count(HEADING) == 1
    assert "100 epochs trained" in body


def test_note_escapes_markdown_from_the_study() -> None:
    study = simulated(2)
    lineage = Lineage.from_trials(study.direction, study.get_trials())
    best = lineage.best()
    assert best is not None
    best.params["<b>|*a*"] = "[x](http://example.org)\n\n# big"
    text = study_note(lineage, "/trials?numbers=")
    assert r"| \<b\>\|\*a\* | \[x\]\(http://example\.org\) \# big |" in text


def test_study_in_memory_gets_no_note_and_no_files() -> None:
    study = new_study()
    miha.optimize(study, classifier, plan=miha.Plan.no_search(3), show_progress_bar=False)
    assert optuna_dashboard.get_note(study) == ""
    assert get_all_artifact_meta(study) == []


def test_refresh_is_skipped_shortly_after_the_last_one(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = load(run)
    dashboard = Dashboard(study)
    optuna_dashboard.save_note(study, "")
    dashboard.refresh()
    assert optuna_dashboard.get_note(study) == ""
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 60)
    dashboard.refresh()
    assert optuna_dashboard.get_note(study) != ""


def test_failing_dashboard_is_logged_once_and_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("the disk is full")

    for name in ("save_note", "save_plotly_graph_object"):
        monkeypatch.setattr(optuna_dashboard, name, fails)
    monkeypatch.setattr(dashboard, "upload_artifact", fails)
    study = new_study(f"sqlite:///{tmp_path}/run.db")
    plan = miha.Plan.no_search(3)
    result = miha.optimize(study, classifier, plan=plan, show_progress_bar=False)
    assert result.n_epochs_trained == 3
    lines = capfd.readouterr().err.splitlines()
    warnings = [line for line in lines if "optuna-dashboard" in line]
    assert len(warnings) == 1
    assert "the disk is full" in warnings[0]


def test_run_works_without_optuna_dashboard(tmp_path: Path) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
sys.modules["optuna_dashboard"] = None  # Pretend that it is not installed.
from helpers.problems import classifier, new_study
import optuna_miha as miha
study = new_study("sqlite:///{tmp_path}/run.db")
miha.optimize(study, classifier, plan=miha.Plan.no_search(3), show_progress_bar=False)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "optuna-dashboard" not in done.stderr


def test_artifacts_are_found_in_the_folder_of_any_run(run: Path, tmp_path: Path) -> None:
    storage = find_storage(str(run))
    artifacts = RunArtifacts(storage)
    artifacts.write("one", io.BytesIO(b"two"))
    assert read(artifacts, "one") == b"two"
    artifacts.remove("one")
    artifacts.remove("one")
    with pytest.raises(ArtifactNotFound, match="one"):
        artifacts.open_reader("one")
