"""The package for OptunaHub is what its registry asks for, and loads as it loads it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import optuna_miha as miha

pytestmark = pytest.mark.slow

REGISTRY = Path(__file__).parents[2] / "package"
PACKAGE = REGISTRY / "samplers" / "miha"


def test_files_and_front_matter_are_those_of_the_template() -> None:
    names = {path.name for path in PACKAGE.iterdir() if path.is_file()}
    assert {"LICENSE", "README.md", "__init__.py", "example.py"} <= names
    _, front, body = (PACKAGE / "README.md").read_text("utf-8").split("---\n", 2)
    fields = dict(line.split(": ", 1) for line in front.splitlines())
    assert list(fields) == ["author", "title", "description", "tags", "optuna_versions", "license"]
    assert "sampler" in re.findall(r"[\w ]+", fields["tags"])
    assert fields["license"] == "MIT License"
    sections = re.findall(r"^## (.*)$", body, re.M)
    assert sections[:4] == ["Abstract", "Class or Function Names", "Installation", "Example"]


def test_package_loads_from_the_registry_and_gives_the_sampler() -> None:
    optunahub = pytest.importorskip("optunahub", reason="needs the extra `examples`")
    module = optunahub.load_local_module("samplers/miha", registry_root=str(REGISTRY))
    assert module.MihaSampler is miha.MihaSampler


def test_its_example_runs(tmp_path: Path) -> None:
    pytest.importorskip("optunahub", reason="needs the extra `examples`")
    process = subprocess.run(
        [sys.executable, str(PACKAGE / "example.py")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(miha.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    assert "60 epochs trained in all" in process.stdout
