"""The commands that train: ``demo``, ``compare``, ``resume``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from optuna_miha._cli.arguments import (
    add_checkpoint_dir,
    add_model,
    add_study,
    check_outputs,
    load_function,
    positive,
)
from optuna_miha._cli.demo import demo
from optuna_miha._cli.storages import find_storage, load_study, open_storage
from optuna_miha._compare.compare import METHODS, compare
from optuna_miha._run.optimize import optimize
from optuna_miha._study.schema import check_run, read_lineage
from optuna_miha._study.setup import stored_settings
from optuna_miha.visualization import plot_comparison
from optuna_miha.visualization._style import import_plotly


def add_commands(commands: Any) -> None:
    """Add these commands to the console script."""
    _add_demo(commands)
    _add_compare(commands)
    _add_resume(commands)


def _demo(args: argparse.Namespace) -> int:
    return demo(
        args.folder,
        n_epochs=args.n_epochs,
        n_jobs=args.n_jobs,
        seed=args.seed,
        show_progress_bar=not args.quiet,
    )


def _compare(args: argparse.Namespace) -> int:
    if args.plot is not None:
        import_plotly()  # Fails before anything is trained, if plotly is missing.
    check_outputs(args.plot, args.csv, args.json)
    comparison = compare(
        load_function(args.model_fn),
        n_epochs=args.n_epochs,
        n_workers=args.n_workers,
        methods=args.methods,
        seeds=args.seeds,
        storage=open_storage(args.storage),
        name=args.name,
        direction=args.direction,
        device=args.device,
        show_progress_bar=not args.quiet,
    )
    print(comparison.describe())
    if args.plot is not None:
        plot_comparison(comparison).write_html(args.plot)
    if args.csv is not None:
        comparison.to_csv(args.csv)
    if args.json is not None:
        comparison.to_json(args.json)
    return 0


def _resume(args: argparse.Namespace) -> int:
    study = load_study(args.study, find_storage(args.storage))
    check_run(study)
    spent = read_lineage(study).spent
    if args.n_epochs is not None and args.n_epochs < spent:
        raise ValueError(
            f"--n-epochs is the total budget, and must be at least the {spent} epochs that the "
            f"run has trained, got {args.n_epochs}: omit it to complete the run."
        )
    keep, engine = stored_settings(study)
    result = optimize(
        study,
        load_function(args.model_fn),
        n_epochs=args.n_epochs,
        n_jobs=args.n_jobs,
        checkpoint_dir=args.checkpoint_dir,
        keep=keep,
        device=args.device,
        precision=engine.precision,
        channels_last=engine.channels_last,
        n_threads=engine.n_threads,
        show_progress_bar=not args.quiet,
    )
    print(result.describe())
    return 0


def _add_demo(commands: Any) -> None:
    command = commands.add_parser(
        "demo",
        help="train a small network on series, and compare it with training without search",
        description=(
            "Trains a small convolutional network to find one of six motifs in 1,000 noisy "
            "series, and compares it on test data with the initial configuration trained for the "
            "same number of epochs. Prints the schedule, and writes figure and report. Every "
            "segment of training is a trial in an SQLite file. A second call resumes the run, or "
            "continues it with a larger --n-epochs."
        ),
        epilog="example: optuna-miha demo --n-epochs 400 --folder motifs",
    )
    command.add_argument(
        "--n-epochs",
        type=positive,
        default=200,
        help="the total budget, in epochs (default: %(default)s)",
    )
    command.add_argument(
        "--n-jobs", type=positive, default=1, help="worker processes (default: %(default)s)"
    )
    command.add_argument(
        "--seed",
        type=int,
        default=1,
        help="seed of the run and of the data (default: %(default)s)",
    )
    command.add_argument(
        "--folder",
        type=Path,
        default=Path("miha-demo"),
        help="folder for study and model (default: %(default)s)",
    )
    command.set_defaults(run=_demo)


def _add_compare(commands: Any) -> None:
    command = commands.add_parser(
        "compare",
        help="train one model by several methods, each for the same number of epochs",
        description=(
            "Trains the optuna_miha.Recipe that FUNCTION(trial) of MODULE returns, by several "
            "methods and seeds, each for the same number of epochs, and prints a table. Every run "
            "is a study in the storage. A second call trains only missing runs."
        ),
        epilog=(
            "example: optuna-miha compare my_net:model_fn --n-epochs 200 --seeds 5 --methods "
            "miha tpe-median no-search-cosine --storage sqlite:///compare.db --plot compare.html"
        ),
    )
    add_model(command)
    command.add_argument(
        "--n-epochs", type=positive, default=200, help="the budget of every run (default: 200)"
    )
    command.add_argument(
        "--n-workers",
        type=positive,
        default=1,
        help="simulated workers that share the budget of a run (default: %(default)s)",
    )
    command.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        metavar="METHOD",
        help=f"one or more of {', '.join(METHODS)} (default: all)",
    )
    command.add_argument(
        "--seeds", type=int, default=5, help="number of seeds, starting at 0 (default: 5)"
    )
    command.add_argument(
        "--storage",
        default="sqlite:///compare.db",
        help="URL of an Optuna storage (default: sqlite:///compare.db)",
    )
    command.add_argument(
        "--name", default="compare", help="prefix of the study names (default: compare)"
    )
    command.add_argument(
        "--direction", choices=("minimize", "maximize"), help="needed for a custom metric"
    )
    command.add_argument("--device", help="where to train, for example cpu or cuda:0")
    command.add_argument("--plot", type=Path, metavar="FILE", help="write the figure as HTML")
    command.add_argument("--csv", type=Path, metavar="FILE", help="write one row per run")
    command.add_argument("--json", type=Path, metavar="FILE", help="write runs and table")
    command.set_defaults(run=_compare)


def _add_resume(commands: Any) -> None:
    command = commands.add_parser(
        "resume",
        help="resume an interrupted run, or continue a run with a larger budget",
        description=(
            "Resumes an interrupted run, or continues one with a larger budget. FUNCTION(trial) "
            "of MODULE must return the same recipe as before. Kept checkpoints, precision, memory "
            "format and threads are as in the last call. The sampler and pruner are those of this "
            "package; resume a run with others from Python."
        ),
        epilog=(
            "example: optuna-miha resume digits my_net:model_fn --storage sqlite:///digits.db "
            "--n-epochs 400"
        ),
    )
    add_study(command, model=True)
    command.add_argument(
        "--n-epochs",
        type=positive,
        help="the total budget, including epochs trained before (default: as before)",
    )
    command.add_argument(
        "--n-jobs", type=positive, default=1, help="worker processes (default: %(default)s)"
    )
    command.add_argument("--device", help="where to train, for example cpu or cuda:0")
    add_checkpoint_dir(command)
    command.set_defaults(run=_resume)
