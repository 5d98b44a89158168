"""Imports of optional packages fail with the feature and the command that installs them."""

from __future__ import annotations

import pytest

from optuna_miha._history.optional_imports import try_import


def test_an_installed_package_is_imported() -> None:
    with try_import("json", needed_by="The test"):
        import json
    assert json.loads("[1]") == [1]


def test_a_missing_package_is_named_with_the_feature_and_the_command() -> None:
    message = r"^The test needs missing_package: install it with `pip install missing_package`\.$"
    missing = try_import("missing_package", needed_by="The test")
    with pytest.raises(ImportError, match=message) as caught, missing:
        import missing_package  # noqa: F401
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_an_extra_and_an_alternative_are_part_of_the_message() -> None:
    message = r"A needs b and c: install them with `pip install 'd\[e\]'`, or do without\.$"
    with (
        pytest.raises(ImportError, match=message),
        try_import("b", "c", needed_by="A", install="'d[e]'", alternative=", or do without"),
    ):
        raise ImportError


def test_other_errors_pass_through() -> None:
    with pytest.raises(KeyError), try_import("json", needed_by="The test"):
        raise KeyError
