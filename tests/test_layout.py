"""Rules of the layout that no linter checks. Imports between rooms: ``make lint``."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import optuna_miha

ROOT = Path(optuna_miha.__file__).parent

MODULES = {path.relative_to(ROOT).as_posix(): path for path in sorted(ROOT.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in MODULES.items()}

MAX_MODULE_LINES = 350
MAX_FUNCTION_LINES = 60

OPTUNA_PRIVATE = {
    "_backend",
    "_cached_frozen_trial",
    "_rng",
    "_stop_flag",
    "_storage",
    "_study_id",
    "_thread_local",
    "_trial_id",
}

OTHER_PRIVATE = {
    "_study/dashboard_notes.py": {"_storage", "_study_id", "_trial_id"},  # Optuna's ids.
    "_training/optimizer_steps.py": {"_optimizer_step_post_hooks"},
    "_model/activations.py": {"_modules"},  # Torch's.
    "_results/trained_model.py": {"_orig_mod"},  # Torch's.
    "_model/suggest_optimizer.py": {"_wrapped_by_lr_sched"},  # Torch's.
    "_model/tensors.py": {"_fields"},  # Public, in spite of its name, in named tuples.
    # Python's; before 3.14 there is no other way to end workers at once.
    "_training/pools.py": {"_processes"},
    "_training/worker.py": {"_exit"},
    # Python's and Dask's; executors have no interface for their number of workers.
    "_training/executor_size.py": {"_client", "_max_workers"},
}
"""Names that begin with an underscore and are not Optuna's."""


def test_root_holds_only_public_modules_and_rooms() -> None:
    files = {path.name for path in ROOT.glob("*.py")}
    assert files == {"__init__.py", "__main__.py", "_version.py", "exceptions.py", "fitness.py"}


def test_names_of_test_modules_are_unique() -> None:
    """Python imports them by their names alone, as their folders are no packages."""
    names = Counter(path.name for path in Path(__file__).parent.rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("name", MODULES)
def test_every_module_has_a_docstring(name: str) -> None:
    assert ast.get_docstring(TREES[name])


@pytest.mark.parametrize("name", [name for name in MODULES if name.count("/") == 1])
def test_door_plates_hold_no_code(name: str) -> None:
    if name.endswith("/__init__.py") and name != "visualization/__init__.py":
        [docstring] = TREES[name].body
        assert 3 <= len(MODULES[name].read_text("utf-8").splitlines()) <= 8
        assert isinstance(docstring, ast.Expr)


@pytest.mark.parametrize("name", MODULES)
def test_no_module_is_too_long(name: str) -> None:
    assert len(MODULES[name].read_text("utf-8").splitlines()) <= MAX_MODULE_LINES


@pytest.mark.parametrize("name", MODULES)
def test_no_function_is_too_long(name: str) -> None:
    too_long = {f.name: n for f, n in functions(TREES[name]) if n > MAX_FUNCTION_LINES}
    assert not too_long


def test_front_door_fits_on_a_screen() -> None:
    [length] = [n for f, n in functions(TREES["_run/optimize.py"]) if f.name == "optimize"]
    assert length <= 40


def functions(tree: ast.AST) -> Iterator[tuple[ast.FunctionDef, int]]:
    """Every function and the number of lines of its body, without the docstring."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            yield node, body[-1].end_lineno - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize("name", MODULES)
def test_no_module_imports_through_the_package(name: str) -> None:
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            assert "optuna_miha" not in {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            if node.module == "optuna_miha":
                public = {"exceptions", "fitness", "integrations", "visualization"}
                assert {a.name for a in node.names} <= public


@pytest.mark.parametrize("name", [n for n in MODULES if n != "_study/optuna_internals.py"])
def test_only_one_module_uses_private_names_of_optuna(name: str) -> None:
    assert private_names(TREES[name]) <= OTHER_PRIVATE.get(name, set())


def test_private_names_are_found() -> None:
    internals = private_names(TREES["_study/optuna_internals.py"])
    assert internals >= {"_storage", "_thread_local", "_stop_flag", "_rng"}
    assert private_names(ast.parse("self._study._storage")) == {"_storage"}
    assert private_names(ast.parse("getattr(trial, '_trial_id')")) == {"_trial_id"}
    assert private_names(ast.parse("from optuna.study._tell import x")) == {"_tell"}
    assert private_names(ast.parse("self._mine = cls._ours")) == set()


def private_names(tree: ast.AST) -> set[str]:
    """Private attributes that are read or written on anything but ``self`` and ``cls``."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            owner = node.value.id if isinstance(node.value, ast.Name) else None
            if owner not in ("self", "cls") or node.attr in OPTUNA_PRIVATE - {"_rng"}:
                found.add(node.attr)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            # getattr(study, "_storage")
            constants = [a.value for a in node.args if isinstance(a, ast.Constant)]
            if node.func.id in ("getattr", "setattr", "hasattr", "delattr"):
                found |= {c for c in constants if isinstance(c, str) and is_private(c)}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("optuna."):
            found |= {part for part in (node.module or "").split(".") if is_private(part)}
            found |= {alias.name for alias in node.names if is_private(alias.name)}
    return found


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")
