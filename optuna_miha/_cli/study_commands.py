"""The commands for existing studies: ``report``, ``dashboard``, ``export``, ``clean``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

import torch

from optuna_miha._cli.arguments import add_checkpoint_dir, add_study, check_outputs, load_function
from optuna_miha._cli.storages import find_storage, load_study
from optuna_miha._compare.runner import find_comparison
from optuna_miha._report.dashboard_server import serve
from optuna_miha._report.page import write_report
from optuna_miha._run.load import load_result
from optuna_miha._study.cleaning import clean
from optuna_miha._study.retention import Keep
from optuna_miha._study.stores import open_store


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
        print(f"{address}  (press Ctrl-C to stop)", flush=True)

    serve(storage, port=args.port, announce=announce)
    return 0


def _export(args: argparse.Namespace) -> int:
    check_outputs(args.output)
    example = tuple(_example_input(text) for text in args.example)
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
    print(f"{_summary(files.unneeded)} {freed}, {_summary(files.needed)} needed")
    return 0


def _summary(files: dict[str, int]) -> str:
    """Number and total size of files, such as ``3 files (1.5 MB)``."""
    plural = "" if len(files) == 1 else "s"
    return f"{len(files)} file{plural} ({sum(files.values()) / 1e6:.1f} MB)"


def _example_input(text: str) -> torch.Tensor:
    """A batch of two samples of zeros, for a shape such as ``1,28,28`` or ``128:int64``.

    Raises:
        ValueError: If ``text`` is not a shape.
    """
    shape, _, name = text.partition(":")
    dtype = getattr(torch, name or "float32", None)
    sizes = [part.strip() for part in shape.split(",") if part.strip()]
    if not isinstance(dtype, torch.dtype) or not all(size.isdecimal() for size in sizes):
        raise ValueError(
            f"An example must be the shape of one sample, such as 1,28,28 or 128:int64, got "
            f"{text!r}."
        )
    return torch.zeros(2, *map(int, sizes), dtype=dtype)


def _add_report(commands: Any) -> None:
    command = commands.add_parser(
        "report",
        help="write a report of a run as one HTML page",
        description=(
            "Writes summary, figures, cycles, versions and seed of a run as one self-contained "
            "HTML file. If the study belongs to a comparison, the comparison is included."
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
        help="zoomable figures instead of pictures; the file has about 5 MB",
    )
    command.set_defaults(run=_report)


def _add_dashboard(commands: Any) -> None:
    command = commands.add_parser(
        "dashboard",
        help="serve optuna-dashboard for a storage, with the files of its runs",
        description=(
            "Serves optuna-dashboard on this machine, and prints its address. Unlike the command "
            "optuna-dashboard, it finds the files of all runs in the storage automatically."
        ),
        epilog="example: optuna-miha dashboard sqlite:///digits.db --port 8081",
    )
    command.add_argument(
        "storage",
        metavar="STORAGE",
        help="URL of an Optuna storage, an SQLite or journal file, or a folder that contains one",
    )
    command.add_argument(
        "--port", type=int, default=8080, help="0 selects any free port (default: 8080)"
    )
    command.set_defaults(run=_dashboard)


def _add_export(commands: Any) -> None:
    command = commands.add_parser(
        "export",
        help="export the best network of a run, so that it runs without its source code",
        description=(
            "Exports the best network of a run so far with torch.export. "
            "torch.export.load(FILE).module() loads it; it accepts batches of any length. If FILE "
            "ends in .onnx, an ONNX file is written."
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
        help="shape of one sample, such as 1,28,28, or 128:int64 if its dtype is not float32; one "
        "shape for each input of the network",
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
        help="remove the checkpoints of a run that are no longer needed",
        description=(
            "Removes the files that a killed run left behind, and checkpoints that need not be "
            "kept, and prints how much space was freed. The best network and the checkpoints from "
            "which an unfinished run resumes are never removed. The command fails while the study "
            "is running. Checkpoints in a bucket are ignored."
        ),
        epilog="example: optuna-miha clean digits --storage sqlite:///digits.db --keep final",
    )
    add_study(command, model=False)
    command.add_argument(
        "--keep",
        choices=get_args(Keep),
        help="checkpoints to keep, as in optimize: that of the best segment, also those of its "
        "ancestors, or all (default: as in the last call of optimize)",
    )
    command.add_argument(
        "--dry-run", action="store_true", help="list the files instead of removing them"
    )
    add_checkpoint_dir(command)
    command.set_defaults(run=_clean)
