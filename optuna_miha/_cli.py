"""The console script ``optuna-miha``."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optuna_miha._compare import METHODS, compare
from optuna_miha._demo import demo
from optuna_miha._figure import import_plotly
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
        if args.command == "compare":
            return _compare(args)
        return demo(args.folder, n_epochs=args.n_epochs, n_jobs=args.n_jobs, seed=args.seed)
    except KeyboardInterrupt:
        return 130
    except (ValueError, MihaError) as error:
        print(f"optuna-miha: {error}", file=sys.stderr)
        return 2


def _compare(args: argparse.Namespace) -> int:
    if args.plot is not None:
        try:
            import_plotly()  # Before anything is trained.
        except ImportError as error:
            print(f"optuna-miha: {error}", file=sys.stderr)
            return 1
    outputs = [path for path in (args.plot, args.csv, args.json) if path is not None]
    for path in outputs:
        if not path.absolute().parent.is_dir():
            raise ValueError(f"The folder of {path} must exist: create {path.parent}.")
    comparison = compare(
        _load(args.model_fn),
        n_epochs=args.n_epochs,
        methods=args.methods,
        seeds=args.seeds,
        storage=args.storage,
        name=args.name,
        direction=args.direction,
        device=args.device,
    )
    print(comparison.describe())
    if args.plot is not None:
        comparison.plot().write_html(args.plot)
    if args.csv is not None:
        comparison.to_csv(args.csv)
    if args.json is not None:
        comparison.to_json(args.json)
    return 0


def _load(reference: str) -> Any:
    """The function that ``MODULE:FUNCTION`` names; modules of the working directory included.

    Raises:
        ValueError: If there is none.
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
            f"There is no module {module_name!r} in {folder} or among what is installed: name "
            "the file without its .py, from the folder that it is in."
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        found = "nothing of this name" if function is None else f"{type(function).__qualname__}"
        raise ValueError(f"{reference!r} must name a function of a trial, got {found}.")
    return function


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
    _add_compare(commands)
    return parser


def _add_compare(commands: Any) -> None:
    command = commands.add_parser(
        "compare",
        help="train one model by several methods, each for the same number of epochs",
        description=(
            "Trains what FUNCTION(trial) of MODULE returns, an optuna_miha.Recipe, by several "
            "methods and seeds, each for the same number of epochs, every one a study in one "
            "storage. Prints a table. Run again, it trains only what is missing."
        ),
        epilog=(
            "example: optuna-miha compare my_net:model_fn --n-epochs 200 --seeds 5 --methods "
            "miha tpe-median no-search-cosine --storage sqlite:///compare.db --plot compare.html"
        ),
    )
    command.add_argument("model_fn", metavar="MODULE:FUNCTION", help="for example my_net:model_fn")
    command.add_argument(
        "--n-epochs", type=int, default=200, help="the budget of every run (default: 200)"
    )
    command.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        metavar="METHOD",
        help=f"some of {', '.join(METHODS)} (default: all)",
    )
    command.add_argument(
        "--seeds", type=int, default=5, help="how many seeds, from 0 on (default: 5)"
    )
    command.add_argument(
        "--storage",
        default="sqlite:///compare.db",
        help="URL of an Optuna storage (default: sqlite:///compare.db)",
    )
    command.add_argument(
        "--name", default="compare", help="beginning of the studies' names (default: compare)"
    )
    command.add_argument(
        "--direction", choices=("minimize", "maximize"), help="for a metric of your own"
    )
    command.add_argument("--device", help="where to train, for example cpu or cuda:0")
    command.add_argument("--plot", type=Path, metavar="FILE", help="write the figure as HTML")
    command.add_argument("--csv", type=Path, metavar="FILE", help="write one row per run")
    command.add_argument("--json", type=Path, metavar="FILE", help="write runs and table")
