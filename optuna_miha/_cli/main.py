"""The console script ``optuna-miha``."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import optuna

from optuna_miha._cli import study_commands, training_commands
from optuna_miha._history.error_text import without_credentials
from optuna_miha._history.optional_imports import try_import
from optuna_miha._study.retry import convert_storage_errors
from optuna_miha._version import __version__
from optuna_miha.exceptions import MihaError, StorageError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the console script.

    Args:
        argv: The arguments; :obj:`None`: those of the process.

    Returns:
        The exit code: 0 on success, 1 if a package is missing or a file or database fails, 2 for
        an invalid argument, 130 after an interruption.
    """
    parser = _parser()
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments:
        parser.print_help(sys.stderr)
        parser.exit(2)
    args = parser.parse_args(arguments)
    verbosity = optuna.logging.get_verbosity()
    if args.quiet or args.verbose:
        level = optuna.logging.WARNING if args.quiet else optuna.logging.DEBUG
        optuna.logging.set_verbosity(level)
    try:
        with convert_storage_errors():
            code: int = args.run(args)
        return code
    except KeyboardInterrupt:
        return 130
    except (ImportError, OSError, StorageError) as error:
        print(f"optuna-miha: {without_credentials(str(error))}", file=sys.stderr)
        return 1
    except (ValueError, TypeError, MihaError) as error:
        if isinstance(error, TypeError) and not _is_explained(error):
            raise
        print(f"optuna-miha: {without_credentials(str(error))}", file=sys.stderr)
        return 2
    finally:
        optuna.logging.set_verbosity(verbosity)


def _is_explained(error: Exception) -> bool:
    """Whether this package raised an error; those of the user's code need their traceback."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return str(frames[-1].f_globals.get("__name__")).startswith("optuna_miha.")


_FILES = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}
"""How shells complete files, as in ``shtab.FILE``."""


class _Parser(argparse.ArgumentParser):
    """A parser with errors of one line, without credentials of a URL in the wrong place."""

    def add_argument(self, *args: Any, **kwargs: Any) -> argparse.Action:
        action = super().add_argument(*args, **kwargs)
        if action.type is Path or action.dest == "storage":
            vars(action)["complete"] = _FILES
        return action

    def error(self, message: str) -> NoReturn:
        text = f"{self.prog}: {message}; see {self.prog} --help"
        self.exit(2, f"{without_credentials(text)}\n")


class _PrintCompletion(argparse.Action):
    """Print the completion script of a shell, and exit."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: Any = None
    ) -> NoReturn:
        try:
            with try_import("shtab", needed_by=option):
                import shtab
        except ImportError as error:
            parser.exit(1, f"{parser.prog}: {error}\n")
        print(shtab.complete(parser, shell=values))
        parser.exit(0)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="optuna-miha",
        description="Train one PyTorch network while tuning its hyperparameters.",
        epilog=(
            "optuna-miha COMMAND --help shows the arguments of a command, and an example. "
            "Exit codes: 0 on success, 1 if a package is missing or a file or database cannot be "
            "read or written, 2 for an invalid argument, 130 after Ctrl-C."
        ),
    )
    versions = ", ".join(f"{name} {version(name)}" for name in ("optuna", "torch"))
    parser.add_argument(
        "--version", action="version", version=f"optuna-miha {__version__} ({versions})"
    )
    parser.add_argument(
        "--print-completion",
        action=_PrintCompletion,
        choices=("bash", "zsh", "tcsh"),
        help="print the completion script of a shell",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    training_commands.add_commands(commands)
    study_commands.add_commands(commands)
    for command in commands.choices.values():
        verbosity = command.add_mutually_exclusive_group()
        verbosity.add_argument(
            "-q", "--quiet", action="store_true", help="hide the progress bar; log only warnings"
        )
        verbosity.add_argument(
            "-v", "--verbose", action="store_true", help="log debug messages as well"
        )
    return parser
