"""What optuna-dashboard makes of a run: served by the real thing, asked over the loopback."""

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
from optuna_miha._history.lineage import Lineage
from optuna_miha._report import dashboard
from optuna_miha._report.dashboard import HEADING, Dashboard
from optuna_miha._report.dashboard_server import RunArtifacts, find_storage

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
    """A copy of it, moved as a whole, that a test may change."""
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
    """A server in a process of its own; yields its address once it answers."""
    address = f"http://127.0.0.1:{port}"
    with subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as server:
        try:
            for _ in range(300):
                try:
                    ask(f"{address}/api/meta")
                    break
                except urllib.error.URLError:
                    assert server.poll() is None, server.stdout.read()  # type: ignore[union-attr]
                    time.sleep(0.2)
            yield address
        finally:
            server.terminate()


@contextmanager
def our_server(folder: Path) -> Iterator[str]:
    port = free_port()
    with serving(
        "-m", "optuna_miha", "dashboard", str(folder), "--port", str(port), port=port
    ) as address:
        yield address


@contextmanager
def their_server(folder: Path) -> Iterator[str]:
    """``optuna-dashboard``, as a person starts it who has only the file."""
    port = free_port()
    code = "from optuna_dashboard._cli import main; main()"
    arguments = [f"sqlite:///{folder}/run.db", "--port", str(port), "--host", "127.0.0.1"]
    with serving("-c", code, *arguments, port=port) as address:
        yield address


def ask(url: str, method: str = "GET", body: Any = None) -> bytes:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    request.method = method
    with urllib.request.urlopen(request, timeout=30) as response:
        content: bytes = response.read()
    return content


def page_of(address: str) -> dict[str, Any]:
    [study] = json.loads(ask(f"{address}/api/studies"))["study_summaries"]
    detail: dict[str, Any] = json.loads(ask(f"{address}/api/studies/{study['study_id']}"))
    return {**detail, "id": study["study_id"]}


def test_study_page_has_figures_note_and_files_and_is_deleted_with_them(run: Path) -> None:
    with our_server(run) as address:
        assert b"<title>Optuna Dashboard</title>" in ask(f"{address}/dashboard/")
        page = page_of(address)
        figures = {f["id"]: json.loads(f["graph_object"]) for f in page["plotly_graph_objects"]}
        assert figures.keys() == {"miha-lineage", "miha-schedule"}
        assert all(figure["data"] for figure in figures.values())
        assert HEADING in page["note"]["body"]
        assert f"trial {load(run).best_trial.number} " in page["note"]["body"]

        files = {meta["filename"]: meta["artifact_id"] for meta in page["artifacts"]}
        contents = {n: ask(f"{address}/artifacts/{page['id']}/{i}") for n, i in files.items()}
        model = contents["model-90-epochs.pt"]
        saved = torch.load(io.BytesIO(model), weights_only=True)
        assert saved["value"] == load(run).best_value
        rows = list(csv.DictReader(io.StringIO(contents["schedule-90-epochs.csv"].decode())))
        assert rows[0]["from_epoch"] == "0"

        paths = [run / "run-checkpoints" / "tiny" / artifact_id for artifact_id in files.values()]
        assert all(path.is_file() for path in paths)
        ask(f"{address}/api/studies/{page['id']}", "DELETE", {})
        assert json.loads(ask(f"{address}/api/studies"))["study_summaries"] == []
        assert not any(path.exists() for path in paths)


def test_study_can_be_deleted_where_its_files_are_gone(run: Path) -> None:
    shutil.rmtree(run / "run-checkpoints")
    with our_server(run) as address:
        ask(f"{address}/api/studies/{page_of(address)['id']}", "DELETE", {})
        assert json.loads(ask(f"{address}/api/studies"))["study_summaries"] == []


def test_plain_optuna_dashboard_shows_the_same_and_deletes_the_study(run: Path) -> None:
    with their_server(run) as address:
        page = page_of(address)
        assert len(page["plotly_graph_objects"]) == 2
        assert HEADING in page["note"]["body"]
        assert len(page["artifacts"]) == 2
        ask(f"{address}/api/studies/{page['id']}", "DELETE", {})
        assert json.loads(ask(f"{address}/api/studies"))["study_summaries"] == []


@needs_chromium
def test_browser_draws_the_figures_and_its_console_has_no_error(run: Path) -> None:
    assert CHROMIUM is not None
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    console = ["--enable-logging=stderr", "--v=0"]
    with our_server(run) as address:
        url = f"{address}/dashboard/studies/{page_of(address)['id']}"
        done = subprocess.run(
            [CHROMIUM, *flags, *console, "--virtual-time-budget=8000", "--dump-dom", url],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
    titles = re.findall(r'class="gtitle"[^>]*>(?:<[^>]*>)*([^<]+)', done.stdout)
    assert {"Lineage", "Schedule"} <= set(titles)
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not [line for line in said if "rror" in line], said


def test_run_that_goes_on_adds_files_and_leaves_the_former_ones(run: Path) -> None:
    study = load(run)
    miha.optimize(study, classifier, n_epochs=90, show_progress_bar=False)
    assert len(get_all_artifact_meta(study)) == 2
    miha.optimize(study, classifier, n_epochs=100, show_progress_bar=False)
    names = {meta.filename for meta in get_all_artifact_meta(study)}
    assert {"model-90-epochs.pt", "model-100-epochs.pt"} <= names
    artifacts = RunArtifacts(find_storage(str(run)))
    for meta in get_all_artifact_meta(study):
        assert read(artifacts, meta.artifact_id)


def test_files_are_registered_only_when_the_run_is_over(tmp_path: Path) -> None:
    study = new_study(f"sqlite:///{tmp_path}/run.db")
    stop = [lambda study, trial: study.stop() if trial.number > 5 else None]
    miha.optimize(study, classifier, plan=TINY, callbacks=stop, show_progress_bar=False)
    assert get_all_artifact_meta(study) == []
    miha.optimize(study, classifier, show_progress_bar=False)
    assert len(get_all_artifact_meta(study)) == 2


def test_files_go_where_the_checkpoints_are(tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    store = FileSystemArtifactStore(tmp_path / "bucket")
    study = new_study(f"sqlite:///{tmp_path}/run.db")
    plan = miha.Plan.no_search(3)
    miha.optimize(study, classifier, plan=plan, artifact_store=store, show_progress_bar=False)
    for meta in get_all_artifact_meta(study):
        assert read(store, meta.artifact_id)


def test_what_a_person_wrote_above_the_note_stays(run: Path) -> None:
    study = load(run)
    ours = optuna_dashboard.get_note(study)
    optuna_dashboard.save_note(study, f"My *own* words.\n\n{ours}")
    miha.optimize(study, classifier, n_epochs=100, show_progress_bar=False)
    body = optuna_dashboard.get_note(study)
    assert body.startswith(f"My *own* words.\n\n{HEADING}")
    assert body.count(HEADING) == 1
    assert "100 epochs trained" in body


def test_note_takes_no_word_of_the_study_for_markdown() -> None:
    study = simulated(2)
    lineage = Lineage.from_trials(study.direction, study.get_trials())
    best = lineage.best()
    assert best is not None
    best.params["<b>|*a*"] = "[x](http://example.org)\n\n# big"
    text = dashboard.note(lineage)
    assert r"| \<b\>\|\*a\* | \[x\]\(http://example\.org\) \# big |" in text


def test_study_in_memory_is_left_alone() -> None:
    study = new_study()
    miha.optimize(study, classifier, plan=miha.Plan.no_search(3), show_progress_bar=False)
    assert optuna_dashboard.get_note(study) == ""
    assert get_all_artifact_meta(study) == []


def test_short_cycles_are_not_shown_one_by_one(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = load(run)
    dashboard = Dashboard(study)
    optuna_dashboard.save_note(study, "")
    dashboard.refresh()
    assert optuna_dashboard.get_note(study) == ""
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 60)
    dashboard.refresh()
    assert optuna_dashboard.get_note(study) != ""


def test_what_fails_is_warned_of_once_and_ends_nothing(
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


def test_run_needs_no_dashboard(tmp_path: Path) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
sys.modules["optuna_dashboard"] = None  # As if it were not installed.
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
