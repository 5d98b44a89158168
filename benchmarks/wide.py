"""What a plan for several workers gains: test loss at equal epochs that follow each other.

All networks train in one process, because the result does not depend on where they train::

    python benchmarks/wide.py --path 50 --workers 1 2 4 8
    python benchmarks/wide.py --out RESULTS --method pbt --workers 4 8
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # Before torch is imported.

import optuna
import torch
from _harness import environment, results_folder, temporary_files, write_json
from _rows import Row, append_row, read_rows
from _selection import examined
from methods import smoothed
from real_tasks import REAL_TASKS
from tasks import TASKS

import optuna_miha as miha

PARTS: dict[str, dict[str, Any]] = {
    "no-changes": {"mutations": ()},  # Neither in the race nor in the rounds.
    "no-control": {"control": False},
    "no-restarts": {"restarts": False},
    "one-round": {"n_cycles": 1},
}
"""What is changed in the plan to measure its parts."""


def measure(method: str, task: str, seed: int, n_workers: int, path: int) -> Row:
    """Do one run.

    Args:
        method: ``"miha"``, the default plan; ``"smoothed"``, the same with a smoothed validation
            loss; or one of :data:`PARTS`.
        task: Name of the task.
        seed: Seed of data, initial weights and proposals.
        n_workers: Workers of the plan.
        path: Epochs of each worker.

    Returns:
        Validation value, test loss, epochs of all networks, and CPU seconds.
    """
    model_fn, before = _ALL_TASKS[task].make(seed), time.process_time()
    told = smoothed(model_fn) if method == "smoothed" else model_fn
    changed = PARTS.get(method, {})
    study = optuna.create_study(
        study_name=f"{task}-{path}-{n_workers}-{seed}", sampler=miha.MihaSampler(seed=seed)
    )
    with temporary_files():
        result = miha.optimize(
            study,
            told,
            plan=miha.Plan(n_workers * path, n_workers=n_workers, **changed),
            keep="final",
            device="cpu",
            show_progress_bar=False,
        )
    return {
        "method": method,
        "task": task,
        "seed": seed,
        "n_workers": n_workers,
        "path": path,
        "value": result.value,
        "test": examined(model_fn, result.model, seed)["loss"],
        "epochs": result.n_epochs_trained,
        "cpu_seconds": time.process_time() - before,
    }


def measure_other(method: str, task: str, seed: int, n_workers: int, path: int) -> Row:
    """The same by another method with as many workers.

    Args:
        method: ``"pbt"``, Syne Tune's population based training with a member for each worker,
            or a method of :func:`optuna_miha.compare`.
        task: Name of the task.
        seed: Seed of data, initial weights and proposals.
        n_workers: Number of workers.
        path: Epochs of each worker.
    """
    from _pbt import run_pbt

    model_fn, before = _ALL_TASKS[task].make(seed), time.process_time()
    n_epochs = n_workers * path
    if method == "pbt":
        run = run_pbt(model_fn, n_epochs=n_epochs, seed=seed, population=n_workers)
    else:
        with temporary_files():
            comparison = miha.compare(
                model_fn,
                n_epochs=n_epochs,
                n_workers=n_workers,
                methods=[method],
                seeds=[seed],
                name=f"{task}-{path}-{n_workers}",
                device="cpu",
                show_progress_bar=False,
            )
        run = comparison.runs[0]
    return {
        "method": method,
        "task": task,
        "seed": seed,
        "n_workers": n_workers,
        "path": path,
        "value": run.value,
        "test": math.nan if run.test is None else run.test["loss"],
        "epochs": run.epochs,
        "cpu_seconds": time.process_time() - before,
    }


_ALL_TASKS = TASKS | REAL_TASKS

METHODS: dict[str, Callable[[str, int, int, int], Row]] = {
    **{name: partial(measure, name) for name in ("miha", "smoothed", *PARTS)},
    **{name: partial(measure_other, name) for name in ("pbt", "hyperband", "tpe-median")},
}


def table(rows: Sequence[Row]) -> list[str]:
    """Test loss of a plan for several workers relative to other runs, in Markdown.

    The other runs are those of one worker with the same path, and of other methods with the same
    number of workers. The last columns are the geometric mean over tasks with its
    standard error over tasks, and the number of runs.
    """
    tasks = [task for task in _ALL_TASKS if any(row["task"] == task for row in rows)]
    loss = {(_method(r), r["n_workers"], r["path"], r["task"], r["seed"]): r["test"] for r in rows}
    lines = [f"| path | workers | relative to | {' | '.join(tasks)} | mean | runs |"]
    lines.append("|---" * (len(tasks) + 5) + "|")
    for method, n_workers, path in sorted({key[:3] for key in loss}):
        is_own = method in ("miha", "smoothed")
        if is_own and n_workers == 1:
            continue
        plan = (method if is_own else "miha", n_workers, path)
        other = (method, 1 if is_own else n_workers, path)
        logs: dict[str, list[float]] = {task: [] for task in tasks}
        for (*own, task, seed), value in loss.items():
            theirs = loss.get((*other, task, seed))
            if tuple(own) == plan and theirs is not None:
                logs[task].append(math.log(value / theirs))
        means = [statistics.mean(values) for values in logs.values() if values]
        if not means:
            continue
        error = statistics.stdev(means) / math.sqrt(len(means)) if len(means) > 1 else math.nan
        cells = [f"{math.exp(statistics.mean(own)):.2f}" if own else "" for own in logs.values()]
        cells.append(f"{math.exp(statistics.mean(means)):.3f} ± {100 * error:.0f} %")
        cells.append(str(sum(map(len, logs.values()))))
        name = {"miha": "one worker", "smoothed": "one worker, both smoothed"}.get(method, method)
        lines.append(f"| {path} | {n_workers} | {name} | {' | '.join(cells)} |")
    return lines


def _method(row: Row) -> str:
    """The method of a row; the first ones were all of the plan."""
    return str(row.get("method", "miha"))


def main() -> None:
    """Do the missing runs, seed by seed, and print the table of decision 0021."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, help="folder of results; default: a new one")
    parser.add_argument("--path", type=int, default=50, help="epochs of each worker; default 50")
    parser.add_argument("--method", choices=list(METHODS), default="miha")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(_ALL_TASKS))
    parser.add_argument("--first-seed", type=int, default=5, help="default %(default)s")
    parser.add_argument("--seeds", type=int, default=5, help="default %(default)s")
    args = parser.parse_args()
    out = args.out or results_folder("wide")
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    write_json(out / "env.json", environment())
    rows = read_rows(out)
    done = {(_method(r), r["task"], r["seed"], r["n_workers"], r["path"]) for r in rows}
    with (out / "raw.jsonl").open("a", encoding="utf-8") as file:
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            for task in args.tasks:
                for n_workers in args.workers:
                    if (args.method, task, seed, n_workers, args.path) not in done:
                        rows.append(METHODS[args.method](task, seed, n_workers, args.path))
                        append_row(file, rows[-1])
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
