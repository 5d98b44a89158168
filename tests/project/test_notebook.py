"""The notebook of ``examples/`` runs, and holds what it printed when it was run as a whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOK = EXAMPLES / "mnist_vs_optuna.ipynb"
SMALLER = {
    "n_epochs = 100": "n_epochs = 24",
    "n_seeds = 3": "n_seeds = 1",
    "n_train, n_valid = 2400, 600": "n_train, n_valid = 200, 100",
}


def code_cells() -> list[dict[str, Any]]:
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_outputs_are_those_of_one_run_without_an_error_or_a_word_on_stderr() -> None:
    cells = code_cells()
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output.get("name", "stdout") for output in outputs} == {"stdout"}
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert "error" not in {output["output_type"] for output in outputs}


def test_cells_run_with_a_small_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("IPython", reason="needs the extra `examples`")
    (tmp_path / "data").symlink_to(EXAMPLES / "data")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "notebook"}
    code = "\n".join("".join(cell["source"]) for cell in code_cells())
    for large, small in SMALLER.items():
        assert code.count(large) == 1
        code = code.replace(large, small)
    exec(compile(code, str(NOTEBOOK), "exec"), namespace)
    assert "test accuracy: 0." in capsys.readouterr().out


@pytest.mark.long
def test_notebook_runs_as_it_is(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    (tmp_path / "data").symlink_to(EXAMPLES / "data")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=1200, resources=where).execute()
