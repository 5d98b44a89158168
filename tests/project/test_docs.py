"""The documentation runs as it is printed, and names everything that is public."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from helpers.problems import classifier

import optuna_miha

pytestmark = pytest.mark.slow

DOCS = Path(__file__).resolve().parents[2] / "docs"
FOLDERS = ["howto", "migration"]
PAGES = [
    "quickstart.rst",
    "extending.rst",
    *(f"{folder}/{p.name}" for folder in FOLDERS for p in DOCS.glob(f"{folder}/*.rst")),
]

OTHERWISE = {
    "howto/resuming.rst",
    "howto/several_gpus.rst",  # tests/integrations/test_torch_distributed.py runs its trainers.
}
"""Pages that another test runs."""

SMALLER = {
    "n_epochs=200": "n_epochs=24",
    "n_epochs=300": "n_epochs=46",
    "n_epochs=40": "n_epochs=24",
    "n_epochs=30)": "n_epochs=24)",
    "n_epochs=30,": "n_epochs=24,",
    "n_trials=8": "n_trials=5",
    "n_threads=2": "n_threads=1",
    'mode="reduce-overhead"': 'backend="eager"',
    "split(order, [1000, ": "split(order[750:], [250, ",
    "runup_epochs=10, n_cycles=5": "runup_epochs=1, n_cycles=1",
}
"""Budgets, data, numbers of threads and compilers that are too large for a test."""

_DIRECTIVE = re.compile(r"^\.\. (include|code-block|skip):+ (\S+)$")


def _blocks(path: Path) -> Iterator[tuple[Path, int, str]]:
    """The Python blocks of a page, those of included files in their place, with their line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    skip = False
    for index, line in enumerate(lines):
        directive = _DIRECTIVE.match(line)
        if directive is None:
            continue
        match directive.groups():
            case "include", name:
                yield from _blocks(path.parent / name)
            case "skip", "next":
                skip = True
            case "code-block", "python":
                end = index + 1
                while end < len(lines) and (not lines[end] or lines[end].startswith("   ")):
                    end += 1
                if not skip:
                    code = textwrap.dedent("\n".join(lines[index + 1 : end]))
                    yield path, index + 1, code
                skip = False


def _run(page: str, *, smaller: Mapping[str, str] = SMALLER, **names: Any) -> int:
    """Run the blocks of a page in one namespace; returns how many there were."""
    namespace: dict[str, Any] = {"__name__": "page", **names}
    n_blocks = 0
    for path, line, code in _blocks(DOCS / page):
        for large, small in smaller.items():
            code = code.replace(large, small)
        # The empty lines make tracebacks point at the page.
        exec(compile("\n" * line + code, str(path), "exec"), namespace)
        n_blocks += 1
    return n_blocks


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("page", sorted(set(PAGES) - OTHERWISE))
def test_code_of_a_page_runs(page: str) -> None:
    assert _run(page) >= 2


def test_code_of_pages_that_leave_the_data_to_the_reader_runs() -> None:
    x, y = torch.randn(48, 64), torch.arange(48) % 10
    assert _run("index.rst", x_train=x, y_train=y, x_valid=x, y_valid=y) == 1
    names = {"study": optuna.create_study(), "model_fn": classifier}
    assert _run("algorithm.rst", miha=optuna_miha, **names) == 1


def test_page_on_resuming_trains_as_many_epochs_as_it_says(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _run("howto/resuming.rst", smaller={})
    interrupted, resumed, extended = map(int, capsys.readouterr().out.split())
    assert interrupted < 30
    assert (resumed, extended) == (30, 55)


def test_reference_lists_every_public_name() -> None:
    pages = [DOCS / "api.rst", *sorted(DOCS.glob("reference/*.rst"))]
    reference = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    directive = r"^\.\. (?:auto|py:)\w+:: (?:optuna_miha\.)?(\w+)(?:\(\))?$"
    listed = set(re.findall(directive, reference, re.M))
    assert set(optuna_miha.__all__) <= listed
    summary = pages[0].read_text(encoding="utf-8")
    objects = set(optuna_miha.__all__) - {"exceptions", "fitness", "integrations", "visualization"}
    assert {name for name in objects if f"   {name}\n" not in summary} == set()
