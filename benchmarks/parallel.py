"""Speed-up by worker processes: the plan for several workers in one process and in as many.

Each worker trains the same number of epochs. Three runs are compared: the plan for one worker, the
plan for several workers in one process, and the same plan in as many processes. The models of the
last two must be identical, bit for bit.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from _harness import Benchmark, Case, stopwatch
from _rows import Row, chosen, ratios, spread

_PATH = 30
_QUICK_PATH = 10
_QUICK_SAMPLES = 100


def measure_run(n_workers: int, n_jobs: int, n_samples: int | None, path: int) -> Row:
    """Measure a run on SQLite.

    Args:
        n_workers: Workers of the plan.
        n_jobs: Worker processes; 1 means none.
        n_samples: Total number of samples; :obj:`None` for all.
        path: Epochs of each worker.

    Returns:
        The seconds of the whole run (CPU time of all processes, including their start-up),
        ``training_s`` from the first training step to the end of the last trial, and
        ``first_step_s`` from the start of the run to the first step.
    """
    import torch
    from _loops import train_by_hand
    from _problems import PROBLEMS, problem_of
    from _runs import digest, open_storage, open_study, read_marks, train

    import optuna_miha as miha

    torch.set_num_threads(1)
    problem, tiny = problem_of("fnn", n_samples), PROBLEMS["tiny"]
    data = problem.data()
    train_by_hand(tiny, *tiny.data(), n_epochs=1)
    before = _cpu_of_children()
    plan = miha.Plan(n_workers * path, n_workers=n_workers, restarts=False)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        marks = folder / "marks"
        marks.mkdir()
        study = open_study(open_storage("sqlite-wal", folder))
        begun = time.time()
        with stopwatch() as row:
            result = train(study, problem, data, folder, marks=marks, plan=plan, n_jobs=n_jobs)
        steps = read_marks(marks)
        if n_jobs > 1:  # This process only checks that the network can be trained.
            del steps[os.getpid()]
        first_step = min(steps.values())
        trials = study.get_trials(deepcopy=False)
    row["cpu_s"] += _cpu_of_children() - before  # All child processes have ended.
    ends = [t.datetime_complete.timestamp() for t in trials if t.datetime_complete is not None]
    return {
        **row,
        "n_epochs": result.n_epochs_trained,
        "n_trials": len(trials),
        "training_s": max(ends) - first_step,
        "first_step_s": first_step - begun,
        "model": digest(result.model),
    }


def _cpu_of_children() -> float:
    times = os.times()
    return times.children_user + times.children_system


def main() -> None:
    """Measure and print the results."""
    benchmark = Benchmark(__file__, __doc__, {"run": measure_run}, repeats=3)
    benchmark.parser.add_argument(
        "--workers", type=int, nargs="+", default=[2], help="workers beside one; default 2"
    )
    benchmark.parser.add_argument(
        "--path", type=int, default=_PATH, help="epochs of each worker; default %(default)s"
    )
    args = benchmark.parse()
    options = {
        "n_samples": _QUICK_SAMPLES if args.quick else None,
        "path": _QUICK_PATH if args.quick else args.path,
    }
    pairs = [(1, 1), *((n, n_jobs) for n in args.workers for n_jobs in (1, n))]
    cases = [
        Case(function="run", labels=labels, options=labels | options)
        for n_workers, n_jobs in pairs
        for labels in [{"n_workers": n_workers, "n_jobs": n_jobs}]
    ]
    print("\n".join(report(benchmark.run(cases, args))))


def report(rows: list[Row]) -> list[str]:
    """A list in Markdown: speed-ups, start-up, and whether the models are identical."""
    lines = []
    one = chosen(rows, n_workers=1, n_jobs=1)
    path = next(iter(one.values()))["n_epochs"]
    for n in sorted({row["n_workers"] for row in rows} - {1}):
        alone, side_by_side = (chosen(rows, n_workers=n, n_jobs=n_jobs) for n_jobs in (1, n))
        whole = ratios(alone, side_by_side, lambda row: row["wall_s"])
        training = ratios(alone, side_by_side, lambda row: row["training_s"])
        length = ratios(side_by_side, one, lambda row: row["training_s"])
        models = {row["model"] for runs in (alone, side_by_side) for row in runs.values()}
        lines.append(
            f"- Speed-up of `n_jobs={n}` over one process, plan for {n} workers, {path} epochs of "
            f"each: {whole.text(2)} for the whole run including the start of the workers; "
            f"{training.text(2)} from the first training step on. The models "
            f"{'are identical, bit for bit' if len(models) == 1 else 'DIFFER'}."
        )
        lines.append(
            f"- Time of `n_jobs={n}` with this plan, relative to the plan for one worker with "
            f"{path} epochs, from the first training step on: {length.text(2)}."
        )
    numbers = sorted({row["n_jobs"] for row in rows})
    first = [
        f"{spread(chosen(rows, n_jobs=n), lambda row: row['first_step_s']).text(1)} s with "
        f"`n_jobs={n}`"
        for n in numbers
    ]
    lines.append(f"- Time from calling `optimize` to the first training step: {', '.join(first)}.")
    return lines


if __name__ == "__main__":
    main()
