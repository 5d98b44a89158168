"""The rules of the layout, read from the source of every module."""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import optuna_miha

PACKAGE = "optuna_miha"
ROOT = Path(optuna_miha.__file__).parent


def name_of(path: Path) -> str:
    """``optuna_miha/_a/_b.py`` -> ``_a._b``; the package itself is ``""``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


SOURCES = {name_of(path): path.read_text("utf-8") for path in sorted(ROOT.rglob("*.py"))}
TREES = {name: ast.parse(source) for name, source in SOURCES.items()}
MODULES = sorted(TREES.keys() - {""})

TORCH_MODULES = {
    "_activations",
    "_checkpoint",
    "_checkpoint_store",
    "_cli_study",
    "_code",
    "_combination",
    "_compare",
    "_contest",
    "_data",
    "_demo",
    "_engine",
    "_ensemble",
    "_job",
    "_losses",
    "_memory",
    "_model_fn",
    "_optimize",
    "_optimizers",
    "_plain",
    "_preflight",
    "_recipe",
    "_remote",
    "_replay",
    "_result",
    "_rng",
    "_study",
    "_suggest",
    "_suggest_activations",
    "_trained",
    "_trainer",
    "_transfer",
}
"""All others decide, record or propose, and need no tensor."""

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
    "_activations": {"_modules"},  # Torch's.
    "_data": {"_fields"},  # Public, in spite of its name, in named tuples.
    # Python's; there is no other way before 3.14 to end them, nor ever to end at once.
    "_workers": {"_processes"},
    "_remote": {"_exit"},
}
"""Names that begin with an underscore and are not Optuna's."""


def imported(tree: ast.AST) -> set[str]:
    """Full names of the modules that are imported anywhere in ``tree``, functions included."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "Imports are absolute."
            assert node.module is not None
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            ours = {name for name in submodules if name.removeprefix(f"{PACKAGE}.") in TREES}
            # `from optuna_miha import _keys` imports the submodule.
            rest = len(submodules - ours) > 0
            found |= ours | ({node.module} if rest else set())
    return found


def siblings(name: str) -> set[str]:
    """The package's own modules that ``name`` imports."""
    return {
        module.removeprefix(f"{PACKAGE}.")
        for module in imported(TREES[name])
        if module.startswith(f"{PACKAGE}.")
    }


def bottom_up() -> list[str]:
    """All modules, each after those that it imports."""
    return list(TopologicalSorter({name: siblings(name) for name in TREES}).static_order())


def test_the_modules_are_found() -> None:
    assert {"_phases", "_loop", "_sampler", "exceptions", "fitness"} <= set(MODULES)
    assert siblings("_phases") == {"_lineage", "_plan", "_segment", "_space"}


def test_imports_have_no_cycle() -> None:
    assert set(bottom_up()) >= set(MODULES)  # A cycle raises.


def test_table_of_the_layers_is_true() -> None:
    layers: dict[str, int] = {}
    for name in bottom_up():
        layers[name] = 1 + max((layers[below] for below in siblings(name)), default=-1)
    page = Path(__file__).parents[1] / "docs" / "decisions" / "0001-flat-package-in-layers.md"
    told = {
        "" if name == "__init__" else name: int(layer)
        for layer, names in re.findall(r"^\| (\d+) \| (.+) \|$", page.read_text("utf-8"), re.M)
        for name in re.findall(r"`([^`]+)`", names)
    }
    assert told == layers


def test_every_imported_sibling_exists() -> None:
    for name in ["", *MODULES]:
        assert siblings(name) <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_no_module_imports_through_the_package(name: str) -> None:
    assert PACKAGE not in imported(TREES[name])


def uses_torch(tree: ast.AST) -> bool:
    return any(module.split(".")[0] == "torch" for module in imported(tree))


def test_torch_is_imported_only_where_tensors_are() -> None:
    assert {name for name, tree in TREES.items() if uses_torch(tree)} == TORCH_MODULES


@pytest.mark.parametrize(
    "name",
    [
        "_phases",
        "_lineage",
        "_segment",
        "_plan",
        "_space",
        "_mutation",
        "_crossover",
        "_portfolio",
        "_sampler",
    ],
)
def test_what_decides_does_not_reach_torch_by_a_detour(name: str) -> None:
    reached, pending = set(), {name}
    while pending:
        module = pending.pop()
        reached.add(module)
        pending |= siblings(module) - reached
    assert not reached & TORCH_MODULES


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


@pytest.mark.parametrize("name", [name for name in MODULES if name != "_optuna"])
def test_only_one_module_touches_what_optuna_keeps_private(name: str) -> None:
    assert private_names(TREES[name]) <= OTHER_PRIVATE.get(name, set())


def test_private_names_are_seen_where_there_are_some() -> None:
    assert private_names(TREES["_optuna"]) >= {"_storage", "_thread_local", "_stop_flag", "_rng"}
    assert private_names(ast.parse("self._study._storage")) == {"_storage"}
    assert private_names(ast.parse("getattr(trial, '_trial_id')")) == {"_trial_id"}
    assert private_names(ast.parse("from optuna.study._tell import x")) == {"_tell"}
    assert private_names(ast.parse("self._mine = cls._ours")) == set()


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_lives_in_it(name: str) -> None:
    assert ast.get_docstring(TREES[name])
