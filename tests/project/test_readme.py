"""What the README promises on its first screen."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import optuna_miha as miha

README = Path(__file__).parents[2] / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.slow
def test_quickstart_runs_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, study_in_a_file = blocks("python")
    assert len([line for line in code.splitlines() if line]) <= 13
    assert code.count("n_epochs=200") == 1
    [in_memory] = re.findall(r"^study = .*\n", code, re.MULTILINE)
    code = code.replace(in_memory, study_in_a_file)
    values = []
    for _ in range(2):
        namespace: dict[str, object] = {}
        exec(code.replace("n_epochs=200", "n_epochs=30"), namespace)
        result = namespace["result"]
        assert isinstance(result, miha.Result)
        assert result.n_epochs_trained == 30
        values.append(result.value)
    assert values[0] == values[1]
    assert "round 1: " in capsys.readouterr().out


def test_first_command_is_the_demo_and_the_second_the_tests() -> None:
    demo, tests = blocks("bash")[0].splitlines()
    # The build script runs the first line that names pytest.
    lines = README.read_text(encoding="utf-8").splitlines()
    assert next(line for line in lines if "pytest" in line) == tests
    ends = {demo: "/optuna-miha demo", tests: "/python -m pytest -q -n 2 --dist loadfile"}
    for command, end in ends.items():
        script = README.parent / command.split()[0]
        assert os.access(script, os.X_OK)
        text = script.read_text(encoding="utf-8")
        assert re.search(r"^\.ci/venv \w+$", text, re.MULTILINE)
        assert end in text
    environment = (README.parent / ".ci" / "venv").read_text(encoding="utf-8")
    assert environment.count("-c constraints.txt") == environment.count(" install ") == 2


def test_first_screen_shows_code_and_its_output_before_the_numbers() -> None:
    text = README.read_text(encoding="utf-8")
    parts = ["# optuna_miha", "loop.svg", "```bash", "```python", "```text", "methods.svg"]
    places = [text.index(part) for part in [*parts, "## When to use it"]]
    assert places == sorted(places)
    assert not re.search(r"^\|.*\|.*\|.*\|.*\|", text, re.MULTILINE), "a wide table"
    assert all((README.parent / path).exists() for path in re.findall(r"\]\(([^:)]+)\)", text))


def test_page_of_the_package_index_has_no_relative_links_and_the_same_quickstart() -> None:
    # An index shows this page alone: pictures and pages beside it do not exist there.
    page = (README.parent / "docs" / "pypi.md").read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)]*)\)|(?:src|href)=[\"']([^\"']*)", page)
    assert targets
    assert all((a or b).startswith("https://") for a, b in targets)
    assert re.findall(r"```python\n(.*?)```", page, re.DOTALL) == blocks("python")
    project = (README.parent / "pyproject.toml").read_text(encoding="utf-8")
    assert 'readme = "docs/pypi.md"' in project


def test_a_release_names_its_repository(tmp_path: Path) -> None:
    root, address = README.parent, "https://example.org/owner/name"
    for name in ("README.md", "pyproject.toml", "CITATION.cff"):
        shutil.copy(root / name, tmp_path)
    for folder in ("docs", "examples", "benchmarks"):
        (tmp_path / folder).symlink_to(root / folder)
    script = [sys.executable, str(root / ".ci" / "addresses")]
    subprocess.run([*script, address, "v1"], cwd=tmp_path, check=True)

    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)]*)\)|(?:src|href)=[\"']([^\"']*)", page)
    assert all((a or b).startswith("https://") for a, b in targets)
    own = set(re.findall(rf"{address}/(\w+)/v1/([^)\"]+)", page))
    assert {"raw", "blob", "tree"} == {kind for kind, _ in own}
    for kind, path in own:
        assert (root / path).is_dir() == (kind == "tree")
        assert (root / path).exists()
    assert f"git clone {address}\ncd name\n.ci/demo\n" in page
    project = (tmp_path / "pyproject.toml").read_text(encoding="utf-8")
    assert f'[project.urls]\nRepository = "{address}"\n' in project
    assert 'readme = "README.md"' in project
    assert f"repository-code: {address}\n" in (tmp_path / "CITATION.cff").read_text("utf-8")

    with pytest.raises(subprocess.CalledProcessError):
        subprocess.run([*script, "owner/name", "v1"], cwd=tmp_path, check=True)
