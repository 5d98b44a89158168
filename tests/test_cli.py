"""The console script, as a person runs it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import torch

from optuna_miha._cli import main


def demo(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "optuna_miha", "demo", "--folder", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder.parent)


def test_demo_trains_reports_and_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    first = demo(folder, "--n-epochs", "30")
    assert first.returncode == 0, first.stderr
    accuracies = [
        float(x) for x in re.findall(r"(?:accuracy|configuration) +(0\.\d+)", first.stdout)
    ]
    assert len(accuracies) == 2
    assert all(accuracy > 0.8 for accuracy in accuracies)
    assert "cycle 1: " in first.stdout
    assert "30/30" in first.stderr  # The progress bar, at its end.
    assert f"optuna-dashboard sqlite:///{folder}/digits.db" in first.stdout
    study = optuna.load_study(study_name="digits", storage=f"sqlite:///{folder}/digits.db")
    assert f"trial {study.best_trial.number} " in first.stdout
    saved = torch.load(folder / "model.pt", weights_only=True)
    assert saved["value"] == study.best_value
    assert (folder / "schedule.csv").read_text().startswith("from_epoch,to_epoch")

    resume = re.search(r"go on +\S*optuna-miha demo (.*)", first.stdout)
    assert resume is not None
    second = demo(folder, *resume[1].split())
    assert second.returncode == 0, second.stderr
    assert "60 epochs trained in all" in second.stdout


def test_a_budget_that_is_too_small_is_an_error_not_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--n-epochs", "5", "--folder", str(tmp_path)]) == 2
    assert "at least 21" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["unknown"], ["demo", "--n-epochs", "many"]])
def test_wrong_arguments_exit_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
