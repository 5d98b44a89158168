"""The console script and its commands."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import torch
from helpers.problems import classifier, new_study

import optuna_miha as miha
from optuna_miha._cli.main import main
from optuna_miha._study.schema import read_keep

pytestmark = pytest.mark.slow


def demo(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "optuna_miha", "demo", "--folder", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder.parent)


@pytest.fixture(scope="module")
def first_demo(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """A short demo; its folder is the third argument from the end."""
    return demo(tmp_path_factory.mktemp("demo") / "demo", "--n-epochs", "12")


def test_demo_trains_and_prints_the_result(
    first_demo: subprocess.CompletedProcess[str],
) -> None:
    first, folder = first_demo, Path(first_demo.args[-3])
    assert first.returncode == 0, first.stderr
    rows = re.findall(r"(optuna_miha|no search) +(0|1)\.(\d{3}) +0\.(\d{3}) +12", first.stdout)
    assert [row[0] for row in rows] == ["optuna_miha", "no search"]
    assert "The result is " in first.stdout
    assert re.search(r"epochs +role", first.stdout)
    assert (folder / "lineage.png").stat().st_size > 10_000
    assert "<picture>" in (folder / "report.html").read_text(encoding="utf-8")
    assert "round 1: " in first.stdout
    assert "12/12" in first.stderr  # The progress bar.
    assert f"optuna-miha dashboard sqlite:///{folder}/motifs.db" in first.stdout
    study = optuna.load_study(study_name="motifs", storage=f"sqlite:///{folder}/motifs.db")
    assert f"trial {study.best_trial.number} " in first.stdout
    saved = torch.load(folder / "model.pt", weights_only=True)
    assert saved["value"] == study.best_value
    assert (folder / "schedule.csv").read_text().startswith("from_epoch,to_epoch")


@pytest.mark.long
def test_demo_can_be_continued(first_demo: subprocess.CompletedProcess[str]) -> None:
    resume = re.search(r"continue +\S*optuna-miha demo (.*)", first_demo.stdout)
    assert resume is not None
    folder = Path(first_demo.args[-3])
    second = demo(folder, *resume[1].split())
    assert second.returncode == 0, second.stderr
    assert "24 epochs trained in all" in second.stdout


def test_negative_seed_prints_an_error_without_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--seed", "-1", "--folder", str(tmp_path)]) == 2
    assert "non-negative integer, got -1" in capsys.readouterr().err


COMMANDS = ("demo", "compare", "resume", "report", "dashboard", "export", "clean")

NET = """\
from helpers.problems import classifier


def nothing(trial):
    pass
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that contains a short run."""
    folder = tmp_path_factory.mktemp("run")
    study = new_study(f"sqlite:///{folder}/run.db")
    miha.optimize(study, classifier, plan=miha.Plan.no_search(3), show_progress_bar=False)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a copy of that run, and the network ``net:classifier``."""
    shutil.copy(trained / "run.db", tmp_path)
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "broken.py").write_text("x = 1 / 0\n")
    (tmp_path / "invalid.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "net", raising=False)
    return tmp_path


def test_report_accepts_a_folder_as_storage(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "tiny", "--storage", ".", "-o", "out.html"]) == 0
    assert capsys.readouterr().out == "out.html\n"
    assert "tiny" in (run / "out.html").read_text()


@pytest.mark.parametrize("storage", ["sqlite:///run.db", "run.db", "sqlite+pysqlite:///run.db"])
def test_resume_continues_a_run_by_the_name_of_its_model(
    run: Path, storage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    resume = ["resume", "tiny", "net:classifier", "--storage", storage]
    assert main([*resume, "--n-epochs", "5"]) == 0
    assert "5 epochs trained in all" in capsys.readouterr().out
    assert main(resume) == 0
    assert "5 epochs trained in all" in capsys.readouterr().out


def test_resume_uses_the_stored_settings_of_the_run(
    run: Path, log: pytest.LogCaptureFixture
) -> None:
    study = new_study("sqlite:///other.db")
    settings = {"keep": "all", "precision": "bf16", "channels_last": True, "n_threads": 2}
    plan = miha.Plan(24, startup=1, anneal="cosine")
    miha.optimize(study, classifier, plan=plan, show_progress_bar=False, **settings)
    files = {path.name for path in (run / "other-checkpoints" / "tiny").iterdir()}
    resume = ["resume", "tiny", "net:classifier", "--storage", "other.db", "--n-epochs", "30"]
    assert main(resume) == 0
    assert "so that its result may differ" not in log.text
    assert files <= {path.name for path in (run / "other-checkpoints" / "tiny").iterdir()}
    assert read_keep(new_study("sqlite:///other.db")) == "all"


def test_exported_model_accepts_batches_of_any_length(run: Path) -> None:
    export = ["export", "tiny", "net:classifier", "--storage", "sqlite:///run.db"]
    assert main([*export, "--example", "4", "-o", "net.pt2"]) == 0
    model = torch.export.load("net.pt2").module()
    inputs = torch.randn(7, 4)
    result = miha.load_result(new_study("sqlite:///run.db"), classifier)
    torch.testing.assert_close(model(inputs), result.model(inputs))


STORAGE = ["--storage", "sqlite:///run.db"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "other", *STORAGE], "those in the storage ('tiny', 'empty'), got 'other'"),
        (["report", "tiny", "--storage", "sqlite:///none.db"], "none.db"),
        (["report", "tiny", "--storage", "none.db"], "a URL, a file or a folder"),
        (["report", "tiny", "--storage", "bogus://me:secret@x"], "begins with 'bogus'"),
        (["compare", "net:classifier", "--storage", "bogus://me:secret@x"], "begins with 'bogus'"),
        (["compare", "net:classifier", "--storage", "none.db"], "begins with 'none.db'"),
        (["report", "tiny", "--storage", "net.py"], "neither"),
        (["report", "tiny", *STORAGE, "-o", "none/out.html"], "folder of none/out.html"),
        (["report", "empty", *STORAGE], "must hold a run"),
        (["resume", "empty", "net:classifier", *STORAGE], "must hold a run"),
        (["resume", "tiny", "net:other", *STORAGE], "got no such name"),
        (["resume", "tiny", "other:net", *STORAGE], "no module 'other'"),
        (["resume", "tiny", "net", *STORAGE], "MODULE:FUNCTION"),
        (["export", "tiny", "net:classifier", *STORAGE, "--example", "4:floating"], "1,28,28"),
        (["export", "tiny", "net:classifier", *STORAGE, "--example", "-4"], "1,28,28"),
        (["export", "tiny", "net:classifier", *STORAGE, "--example", "5"], "an input of the"),
        (["resume", "tiny", "broken:f", *STORAGE], "ZeroDivisionError: division by zero, "),
        (["resume", "tiny", "invalid:f", *STORAGE], "SyntaxError"),
        (["resume", "tiny", "net:nothing", *STORAGE], "must return an optuna_miha.Recipe"),
        (["resume", "tiny", "net:classifier", *STORAGE, "--n-epochs", "0"], "positive integer"),
        (["resume", "tiny", "net:classifier", *STORAGE, "--n-epochs", "2"], "at least the 3"),
        (["resume", "tiny", "net:classifier", *STORAGE, "--device", "gpu"], "available to torch"),
        (["demo", "--folder", "net.py"], "--folder"),
        (["demo", "--seed", "x"], "see optuna-miha demo --help"),
        ([], "COMMAND"),
        (["dashboard", "none.db"], "a URL, a file or a folder"),
        (["dashboard", "run.db", "--port", "70000"], "--port"),
    ],
)
def test_invalid_arguments_are_explained_on_stderr_and_exit_with_2(
    run: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    optuna.create_study(study_name="empty", storage="sqlite:///run.db")
    try:
        code = main(arguments)
    except SystemExit as error:  # Raised by argparse.
        code = int(str(error.code))
        message = "--example" if "--example" in arguments else message
    captured = capsys.readouterr()
    assert code == 2
    assert message in captured.err
    assert not arguments or len(captured.err.splitlines()) == 1
    assert "secret" not in captured.err
    assert captured.out == ""
    assert not (run / "none.db").exists()


def test_folder_with_two_storages_is_rejected(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    optuna.create_study(storage="sqlite:///second.db")
    assert main(["dashboard", "."]) == 2
    assert "run.db, second.db" in capsys.readouterr().err


def test_missing_package_exits_with_1(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    assert main(["dashboard", "run.db"]) == 1
    assert "pip install 'optuna-miha[dashboard]'" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["report", "tiny", *STORAGE]) == 1
    assert "matplotlib" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("oracle://me:secret@host/x", "No module named 'oracledb'): install the package that "),
        ("postgresql+psycopg://me:secret@127.0.0.1:1/x", "its server exists"),
    ],
)
def test_a_database_that_cannot_be_opened_exits_with_1_and_one_line(
    url: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("psycopg")
    assert main(["report", "tiny", "--storage", url]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
    assert "secret" not in line


def test_report_accepts_a_journal_file_as_storage(tmp_path: Path) -> None:
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "run.log"))
    study = new_study(optuna.storages.JournalStorage(backend))
    miha.optimize(study, classifier, plan=miha.Plan.no_search(3), show_progress_bar=False)
    output = str(tmp_path / "out.html")
    assert main(["report", "tiny", "--storage", str(tmp_path), "-o", output]) == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command_has_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert f"example: optuna-miha {command} " in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("arguments", [[], ["unknown"], ["demo", "--n-epochs", "many"]])
def test_arguments_rejected_by_argparse_exit_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


def test_quiet_command_prints_only_its_result(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = optuna.logging.get_verbosity()
    resume = ["resume", "tiny", "net:classifier", "--storage", "run.db", "--n-epochs", "5"]
    assert main([*resume, "--quiet"]) == 0
    captured = capfd.readouterr()
    assert "5 epochs trained in all" in captured.out
    assert captured.err == ""
    assert optuna.logging.get_verbosity() == before


def test_progress_bar_writes_separate_lines_if_stderr_is_not_a_terminal(
    first_demo: subprocess.CompletedProcess[str],
) -> None:
    lines = [line for line in first_demo.stderr.splitlines() if "epoch/s" in line]
    assert 1 <= len(lines) < 12
    assert "12/12" in first_demo.stderr
    assert "\r" not in first_demo.stderr


def test_version_names_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out.startswith(f"optuna-miha {miha.__version__} (optuna ")


def test_printed_script_completes_commands_choices_and_files_in_bash(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit, match="0"):
        main(["--print-completion", "bash"])
    (tmp_path / "run.db").touch()
    completions = {
        "optuna-miha re": ["resume", "report"],
        "optuna-miha clean digits --keep ": ["final", "trunk", "all"],
        "optuna-miha dashboard ru": ["run.db"],
        "optuna-miha report digits --storage ru": ["run.db"],
        "optuna-miha report digits -o ru": ["run.db"],
    }
    script = capsys.readouterr().out
    for line in completions:
        *words, last = line.split(" ")
        script += f"\nCOMP_WORDS=({' '.join(words)} '{last}') COMP_CWORD={len(words)}"
        script += '\n_shtab_optuna_miha 2>/dev/null; echo "${COMPREPLY[*]}"'
    command = ["bash", "--norc", "-c", script]
    answers = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert answers.stdout.splitlines() == [" ".join(found) for found in completions.values()]


def test_completion_without_its_package_exits_with_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit, match="1"):
        main(["--print-completion", "bash"])
    error = "optuna-miha: --print-completion needs shtab: install it with `pip install shtab`.\n"
    assert capsys.readouterr().err == error
