"""The console script ``optuna-miha``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from optuna_miha._demo import demo
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
        return demo(args.folder, n_epochs=args.n_epochs, n_jobs=args.n_jobs, seed=args.seed)
    except KeyboardInterrupt:
        return 130
    except (ValueError, MihaError) as error:
        print(f"optuna-miha: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="optuna-miha",
        description="Train one PyTorch network and find its hyperparameters on the way.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "demo",
        help="train a small network on scikit-learn's digits",
        description=(
            "Trains a 64-128-64-10 network on scikit-learn's digits, with every segment of "
            "training a trial in a SQLite file, and compares it on test data with the initial "
            "configuration at the same number of epochs. Run again, it resumes; with a larger "
            "--n-epochs it goes on."
        ),
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.add_argument("--n-epochs", type=int, default=200, help="the whole budget, in epochs")
    command.add_argument("--n-jobs", type=int, default=1, help="worker processes")
    command.add_argument(
        "--seed", type=int, default=0, help="seed of the run and of the data split"
    )
    command.add_argument(
        "--folder", type=Path, default=Path("miha-demo"), help="where study and model go"
    )
    return parser
