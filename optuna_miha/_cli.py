"""The console script ``optuna-miha``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from optuna_miha import _cli_study, _cli_train
from optuna_miha.exceptions import MihaError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the console script.

    Args:
        argv: Arguments; :obj:`None`: those of the process.

    Returns:
        The exit code: 0 on success, 1 if something that the command needs is missing, 2 for a
        wrong argument, 130 if it was interrupted.
    """
    args = _parser().parse_args(argv)
    try:
        code: int = args.run(args)
        return code
    except KeyboardInterrupt:
        return 130
    except (ImportError, OSError) as error:
        print(f"optuna-miha: {error}", file=sys.stderr)
        return 1
    except (ValueError, MihaError) as error:
        print(f"optuna-miha: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="optuna-miha",
        description="Train one PyTorch network and find its hyperparameters on the way.",
        epilog="optuna-miha COMMAND --help shows the arguments of a command, and an example.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _cli_train.add_commands(commands)
    _cli_study.add_commands(commands)
    return parser
