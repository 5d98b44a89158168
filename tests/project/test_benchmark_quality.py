"""The benchmark of quality runs, resumes, and its tables get into the pages."""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from optuna.trial import FixedTrial

import optuna_miha
from optuna_miha._model.model_fn import build_initial

pytestmark = [pytest.mark.slow, pytest.mark.long]

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
PAGE = "# Title\n\n<!-- quality:begin -->\n<!-- quality:end -->\n\nThe end.\n"
TINY = ("--tasks", "diabetes", "--budgets", 24, "--seeds", 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of two methods."""
    folder = tmp_path_factory.mktemp("results") / "2026-01-01_quality_test"
    options = (*TINY, "--methods", "miha", "no-search", "--jobs", 2, "--out", folder)
    process = subprocess.run(
        [sys.executable, str(BENCHMARKS / "run.py"), *map(str, options)],
        env={**os.environ, "PYTHONPATH": str(Path(optuna_miha.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    return folder


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, ModuleType]]:
    """Modules of the benchmark, as its scripts import them."""
    names = ("run", "tasks", "methods", "analyse", "_quality")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            patch.setenv(name, "1")  # As `run` has it, for good.
        yield {name: importlib.import_module(name) for name in names}


Run = Callable[..., str]


@pytest.fixture
def run(modules: dict[str, ModuleType], capsys: pytest.CaptureFixture[str]) -> Run:
    """Calls the script in this process, which has loaded torch; returns what it says."""

    def call(*options: object) -> str:
        modules["run"].main([str(option) for option in options])
        return capsys.readouterr().err

    return call


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "runs.jsonl").read_text("utf-8").splitlines()]


def setting(modules: dict[str, ModuleType], task: str = "diabetes", n_epochs: int = 24) -> Any:
    model_fn = modules["tasks"].TASKS[task].make(0)
    return modules["methods"].Setting(task=task, model_fn=model_fn, n_epochs=n_epochs, seed=0)


@pytest.mark.long
def test_every_run_is_a_line_with_its_figures(folder: Path) -> None:
    found = {(row["method"], row["seed"]): row for row in rows(folder)}
    assert len(found) == len(rows(folder)) == 4
    versions = json.loads((folder / "env.json").read_text("utf-8"))
    for row in found.values():
        assert row["error"] is None
        assert row["epochs"] == row["n_epochs"] == 24
        assert 0 < row["test"]["loss"] < 2
        assert row["version"] in versions
    assert {"cpu", "torch", "optuna", "scikit-learn"} <= set(versions[row["version"]])


@pytest.mark.long
def test_second_call_runs_only_what_is_missing(
    modules: dict[str, ModuleType], run: Run, folder: Path, tmp_path: Path
) -> None:
    part = tmp_path / "part"
    part.mkdir()
    lines = (folder / "runs.jsonl").read_text("utf-8").splitlines(keepends=True)
    (part / "runs.jsonl").write_text("".join(lines[:3]) + lines[3][:20], "utf-8")
    said = run(*TINY, "--methods", "miha", "no-search", "--out", part)
    assert "3 of 4 runs exist" in said

    read_runs = modules["_quality"].read_runs
    figures = [
        {(row["method"], row["seed"]): row["test"] for row in read_runs(path / "runs.jsonl")}
        for path in (folder, part)
    ]
    assert figures[0] == figures[1]


@pytest.mark.long
def test_failed_run_is_recorded_and_the_others_go_on(run: Run, tmp_path: Path) -> None:
    # A cycle of the published loop does not fit into so few epochs.
    options = ("--budgets", 5, "--seeds", 1, "--methods", "miha-classic", "no-search")
    said = run("--tasks", "diabetes", *options, "--out", tmp_path)
    assert "FAILED, ValueError: n_epochs=5 is too small" in said
    errors = {row["method"]: row["error"] for row in rows(tmp_path)}
    assert errors["no-search"] is None
    assert errors["miha-classic"].startswith("ValueError")


def test_unknown_name_is_refused(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run("--methods", "magic", "--out", tmp_path)
    assert "unknown method 'magic': choose from miha, " in capsys.readouterr().err


def analyse(modules: dict[str, ModuleType], *options: object) -> str:
    """What it says as it ends; nothing if all went well."""
    try:
        modules["analyse"].main([str(option) for option in options])
    except SystemExit as end:
        return str(end.code)
    return ""


def test_analysis_writes_tables_and_figure_and_finds_them_out_of_date(
    modules: dict[str, ModuleType], folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    paths = {name: tmp_path / name for name in ("README.md", "page.md", "figure.svg", "bars.svg")}
    for name in ("README.md", "page.md"):
        paths[name].write_text(PAGE, "utf-8")
    options: list[object] = ["--results", folder.parent, "--readme", paths["README.md"]]
    options += ["--page", paths["page.md"], "--figure", paths["figure.svg"]]
    options += ["--bars", paths["bars.svg"], "--cycles", folder]
    said = analyse(modules, *options, "--check")
    assert all(str(path) in said for path in paths.values())
    assert paths["README.md"].read_text("utf-8") == PAGE

    assert analyse(modules, *options) == ""
    assert analyse(modules, *options, "--check") == ""
    for name in ("README.md", "page.md"):
        text = paths[name].read_text("utf-8")
        assert text.startswith("# Title\n")
        assert text.endswith("<!-- quality:end -->\n\nThe end.\n")
    assert "| task | miha | no-search |" in paths["page.md"].read_text("utf-8")
    # The same rows as of the plan of cycles.
    assert "| all | 1.000 ± 0.0 % |" in paths["page.md"].read_text("utf-8")
    assert "its test loss is higher than that of training without a search on" in paths[
        "README.md"
    ].read_text("utf-8")
    assert "<svg" in paths["figure.svg"].read_text("utf-8")
    assert ">no search<" in paths["bars.svg"].read_text("utf-8")

    changed = paths["page.md"].read_text("utf-8").replace("24 epochs", "25 epochs")
    paths["page.md"].write_text(changed, "utf-8")
    said = analyse(modules, *options, "--check")
    assert str(paths["page.md"]) in said
    assert str(paths["README.md"]) not in said


def test_analysis_names_what_is_missing(modules: dict[str, ModuleType], tmp_path: Path) -> None:
    assert "no results of quality" in analyse(modules, "--results", tmp_path)


def test_tasks_depend_on_the_seed_and_nothing_else(modules: dict[str, ModuleType]) -> None:
    tasks = modules["tasks"].TASKS
    assert len(tasks) >= 10
    assert len([t for t in tasks.values() if t.half == "development"]) == len(tasks) / 2
    for task in tasks.values():
        first, again, other = (recipe_of(task.make(seed)) for seed in (0, 0, 1))
        for part in ("train_data", "valid_data", "test_data"):
            assert all(map(torch.equal, getattr(first, part), getattr(again, part)))
            assert not torch.equal(getattr(first, part)[0], getattr(other, part)[0])


def recipe_of(model_fn: Any) -> Any:
    from optuna_miha._model.model_fn import build_initial

    params = build_initial(model_fn, 0).params
    return model_fn(FixedTrial(params))


def test_variant_without_a_difference_is_the_method_itself(modules: dict[str, ModuleType]) -> None:
    methods = modules["methods"]
    itself = methods.METHODS["miha"].run(setting(modules))
    same = {"anneal": "rounds"}
    variant = methods._variant("miha-same", "nothing changed", same).run(setting(modules))
    assert variant.value == itself.value
    assert variant.test == itself.test
    assert variant.epochs == itself.epochs == 24


def test_networks_that_are_combined_validate_no_worse(modules: dict[str, ModuleType]) -> None:
    methods = modules["methods"]
    itself = methods._variant("miha-cycles", "nothing changed").run(setting(modules))
    for name in ("miha-ensemble", "miha-soup"):
        combined = methods.METHODS[name].run(setting(modules))
        assert combined.value <= itself.value
        assert combined.epochs == itself.epochs
        assert combined.value == itself.value or combined.test != itself.test


@pytest.mark.parametrize(
    ("name", "suggested"), [("miha-losses", "loss"), ("miha-neurons", "activation.2.3")]
)
def test_variants_let_more_mutate(
    modules: dict[str, ModuleType], name: str, suggested: str
) -> None:
    model_fn = modules["tasks"].TASKS["diabetes"].make(0)
    task = modules["methods"].METHODS[name].run.keywords["task"]
    assert suggested in build_initial(task(model_fn), 0).params
    assert suggested not in build_initial(model_fn, 0).params


@pytest.mark.parametrize("method", ["pbt", "pbt-numbers"])
def test_population_based_training_spends_the_same_epochs(
    modules: dict[str, ModuleType], method: str
) -> None:
    pytest.importorskip("syne_tune")
    runs = [modules["methods"].METHODS[method].run(setting(modules)) for _ in range(2)]
    assert runs[0].epochs == 24
    assert runs[0].value == runs[0].curve[-1][1]
    assert runs[0].test is not None
    assert runs[0].test == runs[1].test


def test_ratios_are_paired_over_seeds_and_tasks_count_equally(
    modules: dict[str, ModuleType],
) -> None:
    losses = {
        ("a", "ours"): [1.0, 2.0, 5.0],
        ("a", "theirs"): [2.0, 4.0],
        ("b", "ours"): [8.0, 2.0],
        ("b", "theirs"): [1.0, 1.0],
    }
    table = [
        {"task": t, "method": m, "n_epochs": 200, "seed": s, "test": {"loss": v}}
        for (t, m), values in losses.items()
        for s, v in enumerate(values)
    ]
    results = modules["_quality"].Results(table, 200)
    on_a = results.ratio("ours", "theirs", ["a"])
    assert on_a.value == pytest.approx(0.5)
    assert on_a.se == pytest.approx(0)
    assert on_a.full_text() == "0.500 (0.0 %)"
    both = results.ratio("ours", "theirs", ["a", "b"])
    assert both.value == pytest.approx((0.5 * 4.0) ** 0.5)
    assert both.n_tasks == 2
    # By seed, the mean logarithms over both tasks are log(2) and 0.
    assert both.se == pytest.approx(math.log(2) / 2)
    # By task, they are -log(2) and the mean of log(8) and log(2).
    assert both.task_se == pytest.approx(1.5 * math.log(2))
    assert both.full_text() == "1.414 ± 104.0 % (34.7 %)"
    assert results.mean_ranks(["ours", "theirs"], ["a", "b"]) == {"ours": 1.5, "theirs": 1.5}
    assert results.worst("ours", ["theirs"], ["a", "b"]) == (5.0, "b")
    # The third seed of `a` is left out: one of the two lacks it.
    headroom = results.headroom("theirs", ["ours", "theirs"], ["a", "b"])
    assert headroom.value == pytest.approx((0.5 * 1.0) ** 0.5)
    assert results.headroom("ours", ["ours"], ["a"]).value == pytest.approx(1)
