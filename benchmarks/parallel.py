"""Speed-up by worker processes: the same run with one and with several of them.

There are two plans: the default one, whose trunk trains alone for much of the time, and
``branches``, which consists mostly of populations. For each, measures the whole run including the
start of the workers, and the race (from the first training step) plus populations alone. The
models must be identical, bit for bit.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _harness import Benchmark, Case, stopwatch
from _rows import Row, chosen, ratios, spread

PLANS: dict[str, dict[str, Any]] = {
    "default": {},
    "branches": {"population_size": 4, "fixing_epochs": 1, "patience": 1, "final_share": 0.1},
}
_EPOCHS = 200
_QUICK_EPOCHS = 40
_QUICK_SAMPLES = 100


def measure_run(n_jobs: int, plan: str, n_samples: int | None, n_epochs: int) -> Row:
    """Measure a run on SQLite.

    Args:
        n_jobs: Worker processes; 1 means none.
        plan: A key of ``PLANS``.
        n_samples: Total number of samples; :obj:`None` for all.
        n_epochs: Epochs to train.

    Returns:
        The seconds of the whole run (CPU time of all processes, including their start-up),
        ``race_s`` from the first training step to the end of the race, ``branches_s`` of the
        populations, and ``first_step_s`` from the start of the run to the first step.
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
    chosen_plan = miha.Plan(n_epochs, **PLANS[plan], anneal="cosine")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        marks = folder / "marks"
        marks.mkdir()
        study = open_study(open_storage("sqlite-wal", folder))
        begun = time.time()
        with stopwatch() as row:
            settings: dict[str, Any] = {"plan": chosen_plan, "n_jobs": n_jobs}
            result = train(study, problem, data, folder, marks=marks, **settings)
        first_step = min(read_marks(marks).values())
        trials = study.get_trials(deepcopy=False)
    row["cpu_s"] += _cpu_of_children() - before  # All child processes have ended.
    return {
        **row,
        "n_epochs": result.n_epochs_trained,
        "population_size": chosen_plan.population_size,
        "branch_epochs": chosen_plan.branch_epochs,
        "n_trials": len(trials),
        "epochs": _epochs_by_role(trials),
        "race_epochs": sorted(t.user_attrs["miha:trained"] for t in _of_role(trials, "startup")),
        "n_cycles": max(t.user_attrs["miha:cycle"] for t in trials),
        "race_s": max((_end(trial) for trial in _of_role(trials, "startup")), default=first_step)
        - first_step,
        "branches_s": _seconds(_of_role(trials, "branch")),
        "first_step_s": first_step - begun,
        "model": digest(result.model),
    }


def _cpu_of_children() -> float:
    times = os.times()
    return times.children_user + times.children_system


def _of_role(trials: Sequence[Any], role: str) -> list[Any]:
    return [trial for trial in trials if trial.user_attrs["miha:role"] == role]


def _epochs_by_role(trials: Sequence[Any]) -> dict[str, int]:
    return {
        role: sum(trial.user_attrs["miha:trained"] for trial in _of_role(trials, role))
        for role in ("startup", "trunk", "branch", "final")
    }


def _end(trial: Any) -> float:
    return float(trial.datetime_complete.timestamp())


def _seconds(trials: Sequence[Any]) -> float:
    """Seconds during which any of the trials was running."""
    total, end = 0.0, float("-inf")
    spans = ((trial.datetime_start.timestamp(), _end(trial)) for trial in trials)
    for first, last in sorted(spans):
        total += max(0.0, last - max(first, end))
        end = max(end, last)
    return total


def main() -> None:
    """Measure and print the results."""
    benchmark = Benchmark(__file__, __doc__, {"run": measure_run}, repeats=3)
    benchmark.parser.add_argument(
        "--jobs", type=int, nargs="+", default=[1, 2], help="worker processes; default 1 2"
    )
    benchmark.parser.add_argument(
        "--epochs",
        type=int,
        default=_EPOCHS,
        help="epochs of the default plan; the other has half as many; default %(default)s",
    )
    args = benchmark.parse()
    epochs = _QUICK_EPOCHS if args.quick else args.epochs
    n_epochs = {"default": epochs, "branches": epochs // 2}
    n_samples = _QUICK_SAMPLES if args.quick else None
    cases = [
        Case(
            function="run",
            labels={"plan": plan, "n_jobs": n_jobs},
            options={
                "plan": plan,
                "n_jobs": n_jobs,
                "n_samples": n_samples,
                "n_epochs": n_epochs[plan],
            },
        )
        for plan in (("default",) if args.quick else PLANS)
        for n_jobs in args.jobs
    ]
    print("\n".join(report(benchmark.run(cases, args))))


def report(rows: list[Row]) -> list[str]:
    """A list in Markdown: speed-ups, start-up, and whether the models are identical."""
    lines = []
    words = {
        "default": "the default plan",
        "branches": "a plan with populations of 4 and little training of the trunk",
    }
    numbers = sorted({row["n_jobs"] for row in rows})
    plans = {row["plan"] for row in rows}
    for plan, what in words.items():
        if plan not in plans:  # A quick run measures the default plan only.
            continue
        one = chosen(rows, plan=plan, n_jobs=1)
        for n_jobs in numbers[1:]:
            more = chosen(rows, plan=plan, n_jobs=n_jobs)
            whole = ratios(one, more, lambda row: row["wall_s"])
            phases = ratios(one, more, lambda row: row["race_s"] + row["branches_s"])
            lines.append(
                f"- Speed-up of `n_jobs={n_jobs}` over `n_jobs=1`, {what}: {whole.text(2)} for "
                f"the whole run including the start of the workers; {phases.text(2)} for race and "
                "populations only."
            )
    first = [
        f"{spread(own, lambda row: row['first_step_s']).text(1)} s with `n_jobs={n_jobs}`"
        for n_jobs in numbers
        for own in [chosen(rows, n_jobs=n_jobs)]
    ]
    lines.append(f"- Time from calling `optimize` to the first training step: {', '.join(first)}.")
    models = {(row["plan"], row["model"]) for row in rows}
    equal = "are identical, bit for bit" if len(models) == len(plans) else "DIFFER"
    lines.append(f"- The models of the runs with `n_jobs` {_words(numbers)} {equal}.")
    return lines


def _words(numbers: list[int]) -> str:
    return " and ".join(map(str, numbers))


if __name__ == "__main__":
    main()
