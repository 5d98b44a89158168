"""Cost of a run in a study that already holds thousands of trials, and its database traffic.

The network is tiny, so that nearly all of the time is overhead.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _harness import Benchmark, Case, stopwatch
from _rows import Row, chosen, ratios, spread

STORAGES = {
    "memory": "in memory",
    "sqlite": "`sqlite:///`",
    "sqlite-wal": "`create_storage`",
    "journal": "journal file",
}
_N_BEFORE = 5_000
_EPOCHS = 200
_QUICK_N_BEFORE = 20
_QUICK_EPOCHS = 40
_TIMES = ("wall_s", "cpu_s")
_WORST = 1e9
"""Value of the existing trials, so that none of them is ever the best."""


def measure_run(
    storage: str, n_before: int, n_epochs: int, template: str | None, count: bool
) -> Row:
    """Measure a run in a study with existing trials.

    ``setup_s`` of the returned row is the time to open the study and to read its trials.

    Args:
        storage: Kind of storage.
        n_before: Number of existing trials.
        n_epochs: Epochs to train.
        template: A folder with the storage's file, which is copied; :obj:`None` in memory.
        count: Whether to count statements and commits, which takes time itself.
    """
    import torch
    from _loops import train_by_hand
    from _problems import PROBLEMS
    from _runs import digest, open_storage, open_study, train

    torch.set_num_threads(1)
    problem = PROBLEMS["tiny"]
    data = problem.data()
    train_by_hand(problem, *data, n_epochs=1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if template is not None:
            shutil.copytree(template, folder, dirs_exist_ok=True)
        start = time.perf_counter()
        opened = open_storage(storage, folder)
        study = open_study(opened)
        study.get_trials(deepcopy=False)  # Optuna caches finished trials.
        setup_s = time.perf_counter() - start
        if template is None:
            fill(study, n_before)
        counts = _counted(opened.engine) if count else {}  # type: ignore[union-attr]
        with stopwatch() as row:
            result = train(study, problem, data, folder, n_epochs=n_epochs)
        counts = dict(counts)
        trials = study.get_trials(deepcopy=False)[n_before:]
    return {
        **row,
        "setup_s": setup_s,
        "n_epochs": result.n_epochs_trained,
        "n_trials": len(trials),
        "n_reports": sum(len(trial.intermediate_values) for trial in trials),
        "n_cycles": max(trial.user_attrs["miha:cycle"] for trial in trials),
        "model": digest(result.model),
        **counts,
    }


def measure_filling(storage: str, n_before: int, template: str) -> Row:
    """Create the template of a storage and measure the time.

    Args:
        storage: Kind of storage.
        n_before: Number of trials to add.
        template: Folder to write the storage's file to.
    """
    from _runs import open_storage, open_study
    from sqlalchemy import event

    opened = open_storage(storage, Path(template))
    if storage == "sqlite":
        # This file may be lost: do not wait for the disk.
        event.listen(
            opened.engine,  # type: ignore[union-attr]
            "connect",
            lambda connection, _: connection.execute("PRAGMA synchronous=OFF"),
        )
        opened.engine.dispose()  # type: ignore[union-attr]
    study = open_study(opened)
    with stopwatch() as row:
        fill(study, n_before)
    return row


def fill(study: Any, n_trials: int) -> None:
    """Add finished trials that have the search space of the run but do not belong to it."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution
    from optuna.trial import create_trial

    trial = create_trial(
        params={"optimizer": "adam", "lr": 1e-3, "weight_decay": 0.0},
        distributions={
            "optimizer": CategoricalDistribution(["adam"]),
            "lr": FloatDistribution(1e-5, 3.0, log=True),
            "weight_decay": CategoricalDistribution([0.0, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 0.3, 0.5]),
        },
        intermediate_values=dict.fromkeys(range(4), _WORST),
        value=_WORST,
    )
    study.add_trials([trial] * n_trials)


def _counted(engine: Any) -> dict[str, int]:
    """Count the statements and commits that are sent from now on."""
    from sqlalchemy import event

    counts = {"n_statements": 0, "n_commits": 0}

    def on_statement(*_: Any) -> None:
        counts["n_statements"] += 1

    def on_commit(*_: Any) -> None:
        counts["n_commits"] += 1

    event.listen(engine, "before_cursor_execute", on_statement)
    event.listen(engine, "commit", on_commit)
    return counts


def main() -> None:
    """Measure and print the results."""
    functions = {"run": measure_run, "filling": measure_filling}
    benchmark = Benchmark(__file__, __doc__, functions)
    benchmark.parser.add_argument(
        "--trials", type=int, default=_N_BEFORE, help="trials in the full study; default 5000"
    )
    args = benchmark.parse()
    n_before = _QUICK_N_BEFORE if args.quick else args.trials
    n_epochs = _QUICK_EPOCHS if args.quick else _EPOCHS
    with tempfile.TemporaryDirectory() as name:
        templates = {}
        for storage in ("sqlite", "journal"):
            templates[storage] = str(Path(name) / storage)
            Path(templates[storage]).mkdir()
            options = {"storage": storage, "n_before": n_before, "template": templates[storage]}
            filling = Case(function="filling", labels={}, options=options)
            seconds = benchmark.measure(filling, quick=args.quick)["wall_s"]
            print(f"{storage}: {n_before} trials in {seconds:.1f} s", file=sys.stderr)
        # Both modes of SQLite read the same file format.
        templates["sqlite-wal"] = templates["sqlite"]
        cases = cases_of(n_before, n_epochs, templates)
        print("\n".join(report(benchmark.run(cases, args))))


def cases_of(n_before: int, n_epochs: int, templates: dict[str, str]) -> list[Case]:
    """The cases: every storage, empty and full, and SQLite once more with counting.

    Args:
        n_before: Number of trials in a full study.
        n_epochs: Epochs to train.
        templates: Folders with the files of full storages.
    """
    cases = []
    for storage in STORAGES:
        for number in (0, n_before):
            options = {
                "storage": storage,
                "n_before": number,
                "n_epochs": n_epochs,
                "template": templates.get(storage) if number else None,
            }
            for count in (False, True) if storage == "sqlite" else (False,):
                labels = {"storage": storage, "n_before": number, "count": count}
                options = {**options, "count": count}
                cases.append(Case(function="run", labels=labels, options=options))
    return cases


def report(rows: list[Row]) -> list[str]:
    """A table of the storages in Markdown, and the traffic to SQLite."""
    n_before = max(row["n_before"] for row in rows)
    lines = [
        f"| storage | ms per trial, empty study | with {n_before:,} trials | ratio "
        "| ratio of CPU time | time to open |",
        "|---|---|---|---|---|---|",
    ]
    for storage, title in STORAGES.items():
        empty, full = (
            chosen(rows, storage=storage, n_before=number, count=False) for number in (0, n_before)
        )
        cells = [f"{1000 * spread(own, per_trial).median:.1f}" for own in (empty, full)]
        cells += [ratios(full, empty, lambda r, key=key: r[key]).text(2) for key in _TIMES]
        once = spread(full, lambda row: row["setup_s"])
        cells.append("" if storage == "memory" else f"{once.median:.1f} s")
        lines.append(f"| {title} | {' | '.join(cells)} |")
    sent = []
    for number in (0, n_before):
        row = next(iter(chosen(rows, storage="sqlite", n_before=number, count=True).values()))
        each = (f"{row[key] / row['n_trials']:.1f}" for key in ("n_commits", "n_statements"))
        sent.append("{} commits and {} statements".format(*each))
    lines += [
        "",
        f"A trial with {row['n_reports'] / row['n_trials']:.1f} reports sends {sent[0]} to "
        f"SQLite; with {n_before:,} existing trials, {sent[1]}.",
    ]
    return lines


def summary(rows: list[Row]) -> list[str]:
    """One list item in Markdown: the slow-down of a run in a full study."""
    n_before = max(row["n_before"] for row in rows)
    parts = []
    for storage, title in STORAGES.items():
        empty, full = (
            chosen(rows, storage=storage, n_before=number, count=False) for number in (0, n_before)
        )
        parts.append(f"{ratios(full, empty, per_trial).text(2)} {title}")
    return [
        f"- Time per trial in a study with {n_before:,} existing trials, relative to an empty "
        f"study: {', '.join(parts)}."
    ]


def per_trial(row: Row) -> float:
    """Seconds per trial."""
    return row["wall_s"] / row["n_trials"]


if __name__ == "__main__":
    main()
