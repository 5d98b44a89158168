"""The benchmarks of speed run, and their tables get into the pages. No figure is judged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import optuna_miha

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
MEASURING = ("overhead", "parallel", "storage")
PAGE = "# Title\n\n<!-- speed:begin -->\n<!-- speed:end -->\n\nThe end.\n"


# The scripts of its arguments one after the other, which load torch but once.
ALL = """
import runpy, sys
benchmarks, folder, *names = sys.argv[1:]
for name in names:
    sys.argv = [name, "--quick", "--out", f"{folder}/2026-01-01_{name}_test"]
    runpy.run_path(f"{benchmarks}/{name}.py", run_name="__main__")
"""


def start(*command: object, paths: Sequence[Path] = (), status: int = 0) -> str:
    packages = Path(optuna_miha.__file__).parents[1]
    path = os.pathsep.join(map(str, (packages, *paths)))
    process = subprocess.run(
        [sys.executable, *map(str, command)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert process.returncode == status, process.stderr
    return process.stdout + process.stderr


def run(script: str, *options: object, status: int = 0) -> str:
    return start(BENCHMARKS / f"{script}.py", *options, status=status)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results of a quick run of each script."""
    folder = tmp_path_factory.mktemp("results")
    start("-c", ALL, BENCHMARKS, folder, *MEASURING, paths=[BENCHMARKS])
    return folder


def rows(results: Path, name: str) -> list[dict[str, Any]]:
    (path,) = results.glob(f"*_{name}_*/raw.jsonl")
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.mark.parametrize("name", MEASURING)
def test_script_writes_rows_and_its_environment(results: Path, name: str) -> None:
    assert rows(results, name)
    (path,) = results.glob(f"*_{name}_*/env.json")
    environment = json.loads(path.read_text("utf-8"))
    assert {"platform", "cpu", "cores", "python", "torch", "optuna", "sqlalchemy"} <= set(
        environment
    )
    assert environment["settings"]["quick"] is True


def test_variants_of_a_network_train_equally_long(results: Path) -> None:
    measured = [row for row in rows(results, "overhead") if "n_epochs" in row]
    assert {row["network"] for row in measured} == {"fnn", "digits"}
    for network in ("fnn", "digits"):
        own = [row for row in measured if row["network"] == network]
        assert len({row["variant"] for row in own}) == len(own) == 7
        assert len({row["n_epochs"] for row in own}) == 1
        # What the storage is makes no difference to the model.
        assert len({row["model"] for row in own if "model" in row}) == 1


def test_workers_get_the_same_model(results: Path) -> None:
    measured = rows(results, "parallel")
    assert [(row["n_workers"], row["n_jobs"]) for row in measured] == [(1, 1), (2, 1), (2, 2)]
    assert [row["n_epochs"] for row in measured] == [10, 20, 20]
    one, *two = [row["model"] for row in measured]
    assert len(set(two)) == 1
    assert one not in two


def test_trials_that_were_there_before_make_no_difference_to_the_model(results: Path) -> None:
    measured = rows(results, "storage")
    assert {row["n_before"] for row in measured} == {0, 20}
    assert len({row["model"] for row in measured}) == 1
    counted = [row for row in measured if row["count"]]
    assert counted
    assert all(row["n_statements"] >= row["n_commits"] > 0 for row in counted)


def test_readme_is_written_checked_and_found_out_of_date(results: Path, tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text(PAGE, encoding="utf-8")
    options = ("--results", results, "--page", page)
    assert "run python benchmarks/tables.py" in run("tables", *options, "--check", status=1)
    assert page.read_text("utf-8") == PAGE

    run("tables", *options)
    run("tables", *options, "--check")
    text = page.read_text("utf-8")
    assert text.startswith("# Title\n\n<!-- speed:begin -->\n")
    assert text.endswith("<!-- speed:end -->\n\nThe end.\n")
    assert "optuna_miha, `create_storage`" in text

    page.write_text(text.replace("`create_storage`", "`another`"), encoding="utf-8")
    run("tables", *options, "--check", status=1)


def test_tables_name_what_is_missing(results: Path, tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("No marks.\n", encoding="utf-8")
    said = run("tables", "--results", results, "--page", page, status=1)
    assert "<!-- speed:begin -->" in said
    said = run("tables", "--results", tmp_path, "--page", page, status=1)
    assert "no results of overhead" in said


def test_scaling_writes_its_page(results: Path, tmp_path: Path) -> None:
    page = tmp_path / "scaling.md"
    shutil.copy(ROOT / "docs" / "scaling.md", page)
    options: Mapping[str, object] = {"--results": results, "--write": page, "--epoch-s": 7}
    run("scaling", *(part for option in options.items() for part in option))
    text = page.read_text("utf-8")
    assert "| epoch | 7 s | 10 s | 60 s |" in text
    assert text.count("| 1,000 | 50,000 |") == 3  # One row of each network.
    assert "| 8 | one at 0.5 | 2.00 |" in text
