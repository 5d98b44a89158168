"""Every script of ``examples/``, run as a user would, with a small budget."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import optuna_miha

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
OPTIONS = {
    "gap_filling": ["--n-objects", "160"],
    "mnist": ["--n-objects", "500", "--baseline"],
}
LEAST_ACCURACY = 0.5
"""Of ten classes; guessing gives 0.1."""
MOST_MSE = 0.9
"""Filling in the mean gives 1."""


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs_and_learns(path: Path, tmp_path: Path) -> None:
    packages = str(Path(optuna_miha.__file__).parents[1])
    process = subprocess.run(
        [sys.executable, str(path), "--n-epochs", "30", *OPTIONS.get(path.stem, [])],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": packages, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert process.returncode == 0, process.stderr
    figure = re.search(r"^test (accuracy|MSE): (\d\.\d{4})$", process.stdout, re.MULTILINE)
    assert figure is not None, process.stdout
    if figure[1] == "accuracy":
        assert LEAST_ACCURACY < float(figure[2]) <= 1
    else:
        assert 0 <= float(figure[2]) < MOST_MSE
    assert (tmp_path / f"{path.stem}.db").exists()


def test_there_are_examples() -> None:
    assert EXAMPLES
