"""The commands for a study that is there: ``report``, ``dashboard``, ``export``, ``clean``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

import torch

from optuna_miha._cli.arguments import add_checkpoint_dir, add_study, check_outputs, load_function
from optuna_miha._compare.runner import find_comparison
from optuna_miha._report.dashboard_server import find_storage, load_study, serve
from optuna_miha._report.page import write_report
from optuna_miha._run.load import load_result
from optuna_miha._study.cleaning import clean
from optuna_miha._study.retention import Keep
from optuna_miha._study.setup import open_store


def add_commands(commands: Any) -> None:
    """Add these commands to the console script."""
    _add_report(commands)
    _add_dashboard(commands)
    _add_export(commands)
    _add_clean(commands)


def _report(args: argparse.Namespace) -> int:
    check_outputs(args.output)
    storage = find_storage(args.storage)
    study = load_study(args.study, storage)
    comparison = find_comparison(study, storage)
    write_report(study, args.output, comparison=comparison, interactive=args.interactive)
    print(args.output)
    return 0


def _dashboard(args: argparse.Namespace) -> int:
    storage = find_storage(args.storage)

    def announce(address: str) -> None:
        print(f"{address}  (Ctrl-C ends it)", flush=True)

    serve(storage, port=args.port, announce=announce)
    return 0


def _export(args: argparse.Namespace) -> int:
    check_outputs(args.output)
    example = tuple(_example(text) for text in args.example)
    study = load_study(args.study, find_storage(args.storage))
    result = load_result(
        study, load_function(args.model_fn), checkpoint_dir=args.checkpoint_dir, device="cpu"
    )
    result.export(args.output, example)
    print(args.output)
    return 0


def _clean(args: argparse.Namespace) -> int:
    study = load_study(args.study, find_storage(args.storage))
    store = open_store(study, None, args.checkpoint_dir, read_only=True)
    files = clean(study, store, keep=args.keep, dry_run=args.dry_run)
    if args.dry_run:
        for name in sorted(files.unneeded):
            print(name)
    freed = "would be freed" if args.dry_run else "freed"
    print(f"{_amount(files.unneeded)} {freed}, {_amount(files.needed)} needed")
    return 0


def _amount(files: dict[str, int]) -> str:
    """How many files of which size, such as ``3 files (1.5 MB)``."""
    plural = "" if len(files) == 1 else "s"
    return f"{len(files)} file{plural} ({sum(files.values()) / 1e6:.1f} MB)"


def _example(text: str) -> torch.Tensor:
    """Two objects of zeros of a shape such as ``1,28,28`` or ``128:int64``.

    Raises:
        ValueError: If it is none.
    """
    shape, _, name = text.partition(":")
    dtype = getattr(torch, name or "float32", None)
    sizes = [part.strip() for part in shape.split(",") if part.strip()]
    if not isinstance(dtype, torch.dtype) or not all(size.isdecimal() for size in sizes):
        raise ValueError(
            f"An example must be the shape of one object, such as 1,28,28 or 128:int64, got "
            f"{text!r}."
        )
    return torch.zeros(2, *map(int, sizes), dtype=dtype)


def _add_report(commands: Any) -> None:
    command = commands.add_parser(
        "report",
        help="write a run as one HTML page",
        description=(
            "Writes summary, figures, cycles, versions and seed of a run as one HTML file that "
            "needs nothing else. If the study is one of `compare`, its comparison is included."
        ),
        epilog="example: optuna-miha report digits --storage sqlite:///digits.db -o digits.html",
    )
    add_study(command, model=False)
    command.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("report.html"),
        metavar="FILE",
        help="where to write (default: report.html)",
    )
    command.add_argument(
        "--interactive",
        action="store_true",
        help="figures that can be zoomed, in a file of some 5 MB, instead of pictures",
    )
    command.set_defaults(run=_report)


def _add_dashboard(commands: Any) -> None:
    command = commands.add_parser(
        "dashboard",
        help="serve optuna-dashboard for a storage, with the files of its runs",
        description=(
            "Serves optuna-dashboard to this machine, and prints its address. Unlike the command "
            "optuna-dashboard, it finds the files of every run in the storage by itself."
        ),
        epilog="example: optuna-miha dashboard sqlite:///digits.db --port 8081",
    )
    command.add_argument(
        "storage",
        metavar="STORAGE",
        help="URL of an Optuna storage, an SQLite or journal file, or a folder with one",
    )
    command.add_argument(
        "--port", type=int, default=8080, help="0: any that is free (default: 8080)"
    )
    command.set_defaults(run=_dashboard)


def _add_export(commands: Any) -> None:
    command = commands.add_parser(
        "export",
        help="write the best network of a run as a program that runs without its code",
        description=(
            "Writes the best network of a run so far by torch.export. "
            "torch.export.load(FILE).module() runs it, for batches of any length. If FILE ends in "
            ".onnx, an ONNX file is written."
        ),
        epilog=(
            "example: optuna-miha export digits my_net:model_fn --storage sqlite:///digits.db "
            "--example 64 -o digits.pt2"
        ),
    )
    add_study(command, model=True)
    command.add_argument(
        "--example",
        nargs="+",
        required=True,
        metavar="SHAPE",
        help="shape of one object, such as 1,28,28, or 128:int64 where it is not of floats; one "
        "for each input of the network",
    )
    command.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("model.pt2"),
        metavar="FILE",
        help="where to write (default: model.pt2)",
    )
    add_checkpoint_dir(command)
    command.set_defaults(run=_export)


def _add_clean(commands: Any) -> None:
    command = commands.add_parser(
        "clean",
        help="remove the checkpoints of a run that nothing needs",
        description=(
            "Removes what a run that was killed left behind, and checkpoints beyond those to be "
            "kept, and says how much that freed. What a run that is not over goes on from stays, "
            "and so does the best network. Refused while the study is run. Checkpoints in a "
            "bucket are not looked at."
        ),
        epilog="example: optuna-miha clean digits --storage sqlite:///digits.db --keep final",
    )
    add_study(command, model=False)
    command.add_argument(
        "--keep",
        choices=get_args(Keep),
        help="what stays, as in optimize: of the best segment alone, also of those that it "
        "descends from, or of all (default: as the run was last told)",
    )
    command.add_argument(
        "--dry-run", action="store_true", help="name the files instead of removing them"
    )
    add_checkpoint_dir(command)
    command.set_defaults(run=_clean)
