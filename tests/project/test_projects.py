"""Every project of ``examples/projects``, with a small budget, and its plain twin."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[2] / "examples" / "projects"
PROJECTS = sorted(path for path in FOLDER.glob("*.py") if path.stem != "project")
LEAST = {"test accuracy": 0.6, "test ROC AUC": 0.7, "test IoU": 0.2}
MOST = {"test MSE": 0.07}
"""What guessing does not reach: accuracies of four to ten classes, and errors of a mean."""

_MAX_LINES = 80


def test_projects_are_short() -> None:
    assert len(PROJECTS) == 8
    assert all(len(p.read_text("utf-8").splitlines()) < _MAX_LINES for p in PROJECTS)


def _run(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *options: str
) -> tuple[str, float]:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "argv", [str(path), "--n-epochs", "24", *options])
    runpy.run_path(str(path), run_name="__main__")
    last = capsys.readouterr().out.splitlines()[-1]
    found = re.fullmatch(r"(test [\w ]+): (\d\.\d{4})", last)
    assert found is not None, last
    return found[1], float(found[2])


@pytest.mark.parametrize("path", PROJECTS, ids=lambda path: path.stem)
def test_project_runs_and_learns(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--n-trials", "2"] if path.stem == "outer_study" else []
    name, value = _run(path, monkeypatch, capsys, *options)
    assert LEAST.get(name, 0.0) < value < MOST.get(name, 1.0001)


def test_plain_twin_tries_three_rates(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = FOLDER / "imbalanced_table.py"
    name, value = _run(path, monkeypatch, capsys, "--plain")
    assert value > LEAST[name]
