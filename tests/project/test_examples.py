"""Every script of ``examples/``, run as a user would, with a small budget."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import optuna_miha

pytestmark = pytest.mark.slow

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))
OPTIONS = {
    "gap_filling": ["--n-epochs", "30", "--n-samples", "160", "--seed", "2"],
    "mnist": ["--n-samples", "300", "--baseline"],
    "reinforcement_learning": ["--n-epochs", "9"],
}
NEEDS = {
    "own_loop_accelerate": "accelerate",
    "own_loop_hugging_face": "transformers",
    "own_loop_lightning": "lightning",
    "own_loop_skorch": "skorch",
}
"""What an example needs besides what the tests need."""
LAUNCHERS = {"several_gpus": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]}
"""What starts an example instead of Python itself."""
LONG = {"reinforcement_learning", "several_gpus"}
"""Examples that take long even with a small budget."""
LEAST_ACCURACY = 0.5
"""Of ten classes; guessing gives 0.1."""
MOST_MSE = 0.027
"""Returning the mean of all pixels gives 0.0277."""
MOST_DISTANCE = 0.4
"""Of a circle of radius 1 and samples; from all samples in its centre it is 0.72."""
LEAST_RETURN = -60.4
"""Without any torque it is -60.49."""


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=[pytest.mark.long] * (p.stem in LONG), id=p.stem) for p in EXAMPLES],
)
def test_example_runs_and_learns(path: Path, tmp_path: Path) -> None:
    if path.stem in NEEDS:
        pytest.importorskip(NEEDS[path.stem])
    packages = str(Path(optuna_miha.__file__).parents[1])
    process = subprocess.run(
        [
            *(sys.executable, *LAUNCHERS.get(path.stem, []), str(path)),
            *("--n-epochs", "24", *OPTIONS.get(path.stem, [])),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": packages, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert process.returncode == 0, process.stderr
    kinds = "test accuracy|test MSE|validation distance|mean return"
    figure = re.search(rf"^({kinds}): (-?\d+\.\d{{4}})$", process.stdout, re.MULTILINE)
    assert figure is not None, process.stdout
    if figure[1] == "test accuracy":
        assert LEAST_ACCURACY < float(figure[2]) <= 1
    elif figure[1] == "validation distance":
        assert 0 <= float(figure[2]) < MOST_DISTANCE
    elif figure[1] == "mean return":
        assert LEAST_RETURN < float(figure[2]) < 0
    else:
        assert 0 <= float(figure[2]) < MOST_MSE
    assert (tmp_path / f"{path.stem}.db").exists()


def test_there_are_examples() -> None:
    assert EXAMPLES


@pytest.mark.long
def test_experiments_of_the_article_run_and_are_reported(tmp_path: Path) -> None:
    benchmark = EXAMPLES[0].parents[1] / "benchmarks" / "article.py"
    packages = str(Path(optuna_miha.__file__).parents[1])
    options = ["--quick", "--out", str(tmp_path / "runs"), "--docs", str(tmp_path / "docs")]
    for n_lines in (10, 10):  # The second call finds all runs done.
        process = subprocess.run(
            [sys.executable, str(benchmark), *options],
            env={**os.environ, "PYTHONPATH": packages, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert process.returncode == 0, process.stderr
        runs = (tmp_path / "runs" / "raw.jsonl").read_text("utf-8").splitlines()
        assert len(runs) == n_lines
    tables = (tmp_path / "docs" / "_article_tables.inc").read_text("utf-8")
    assert tables.count(".. list-table::") == 4
    rows = [json.loads(line) for line in runs]
    assert {row["epochs"] for row in rows} <= {29, 30}
    assert [row["dead"] for row in rows if row["experiment"] == "gaps"] == [True] * 4
