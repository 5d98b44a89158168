"""Arguments that several commands share."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from optuna_miha._history.error_text import describe_error


def load_function(reference: str) -> Any:
    """Import the function ``MODULE:FUNCTION``; the working directory is searched as well.

    Raises:
        ValueError: If the module or the function does not exist.
    """
    module_name, _, name = reference.partition(":")
    if not module_name or not name:
        raise ValueError(
            f"The model must be MODULE:FUNCTION, such as net:make, got {reference!r}."
        )
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ValueError(f"The module {module_name!r} cannot be imported: {error}.") from error
        raise ValueError(
            f"There is no module {module_name!r} in {folder} or among the installed packages: "
            "pass the name of the file without .py, and run the command in its folder."
        ) from error
    except Exception as error:
        *_, last = traceback.extract_tb(error.__traceback__)
        place = "" if isinstance(error, SyntaxError) else f", {last.filename}, line {last.lineno}"
        raise ValueError(
            f"The module {module_name!r} cannot be imported: {describe_error(error)}{place}."
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        found = "no such name" if function is None else f"{type(function).__qualname__}"
        raise ValueError(f"{reference!r} must name a function of a trial, got {found}.")
    return function


def check_outputs(*paths: Path | None) -> None:
    """Check that output files can be written, before anything is computed.

    Raises:
        ValueError: If the folder of a file does not exist.
    """
    for path in paths:
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f"The folder of {path} must exist: create {path.parent}.")


def positive(text: str) -> int:
    """Parse a positive integer.

    Raises:
        ArgumentTypeError: If ``text`` is anything else.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text!r}")
    return int(text)


def add_study(command: argparse.ArgumentParser, *, model: bool) -> None:
    """Add the arguments that identify a study.

    Args:
        command: The parser of the command.
        model: Whether to add the function that builds the network, too.
    """
    command.add_argument("study", metavar="STUDY", help="name of the study")
    if model:
        add_model(command)
    command.add_argument(
        "--storage",
        required=True,
        metavar="URL",
        help="URL of the Optuna storage, such as sqlite:///run.db, an SQLite or journal file, or "
        "a folder that contains one",
    )


def add_model(command: argparse.ArgumentParser) -> None:
    """Add the argument that names the function that builds the network."""
    command.add_argument(
        "model_fn",
        metavar="MODULE:FUNCTION",
        help="for example my_net:model_fn of my_net.py, which is imported: it must not train "
        'outside of `if __name__ == "__main__":`',
    )


def add_checkpoint_dir(command: argparse.ArgumentParser) -> None:
    """Add the argument for checkpoints that were moved."""
    command.add_argument(
        "--checkpoint-dir",
        type=Path,
        metavar="FOLDER",
        help="folder of the checkpoints (default: the folder stored in the study)",
    )
