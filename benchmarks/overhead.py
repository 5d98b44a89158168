"""Overhead of optuna_miha over hand-written training loops at the same number of epochs.

Everything that changes the cost of an epoch is fixed: the network, the batch size, Adam. Also
measures plain Optuna with the same number of trials and no training, the time from the start of a
script to its first training step, and the peak memory.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

from _harness import STARTED, Benchmark, Case, stopwatch, write_json
from _overhead_table import NETWORKS, report
from _rows import Row

STORAGES = ("memory", "sqlite", "sqlite-wal", "journal")
_EPOCHS = (60, 200)
_QUICK_EPOCHS = 24
_QUICK_SAMPLES = 100
_STARTUP_EPOCHS = 30
_MEMORY_EPOCHS = 40
"""Enough for a race and a round."""


# Imports are local to the functions, so that a variant imports only what it needs.


def measure_loop(
    kind: str, problem: str, n_samples: int | None, n_epochs: int, n_checkpoints: int
) -> Row:
    """Measure a loop without optuna_miha, in alternation with the tuned loop.

    Args:
        kind: ``dataloader``, ``handwritten`` or ``plain``.
        problem: Name of the problem.
        n_samples: Total number of samples; :obj:`None` for all.
        n_epochs: Epochs to train.
        n_checkpoints: Number of checkpoints that ``handwritten`` writes.
    """
    from _loops import Turns, epochs_by_dataloader, epochs_by_hand
    from _problems import problem_of

    chosen_problem = problem_of(problem, n_samples)
    data = chosen_problem.data()
    _warm_up()
    with tempfile.TemporaryDirectory() as name:
        folder, seconds = Path(name), list[float]()
        reference = (chosen_problem, *data, n_epochs, n_checkpoints, folder / "reference.pt")
        turns = Turns(epochs_by_hand(*reference))
        path = folder / "checkpoint.pt"
        with stopwatch() as row:
            if kind == "dataloader":
                epochs = epochs_by_dataloader(chosen_problem, *data, n_epochs)
            else:
                options = (n_epochs, n_checkpoints, path, seconds)
                is_plain = kind == "plain"
                epochs = epochs_by_hand(chosen_problem, *data, *options, is_plain=is_plain)
            for _ in epochs:
                turns.take()
        extra: Row = {"n_epochs": n_epochs}
        if seconds:
            extra["checkpoint_bytes"] = path.stat().st_size
            extra["checkpoint_s"] = sum(seconds) / len(seconds)
    return _without(turns, row) | extra


def measure_run(
    storage: str, problem: str, n_samples: int | None, n_epochs: int, n_checkpoints: int
) -> Row:
    """Measure a run of optuna_miha, in alternation with the tuned loop.

    ``setup_s`` of the returned row is the time to create the study.

    Args:
        storage: Kind of storage.
        problem: Name of the problem.
        n_samples: Total number of samples; :obj:`None` for all.
        n_epochs: Epochs to train.
        n_checkpoints: Number of checkpoints that the loop writes.
    """
    from _loops import Turns, epochs_by_hand
    from _problems import problem_of
    from _runs import digest, open_storage, open_study, taking_turns
    from _runs import train as train_by_miha

    chosen_problem = problem_of(problem, n_samples)
    data = chosen_problem.data()
    _warm_up()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "reference.pt"
        turns = Turns(epochs_by_hand(chosen_problem, *data, n_epochs, n_checkpoints, path))
        start = time.perf_counter()
        study = open_study(open_storage(storage, folder))
        setup_s = time.perf_counter() - start
        with taking_turns(turns), stopwatch() as row:
            result = train_by_miha(study, chosen_problem, data, folder, n_epochs=n_epochs)
        trials = study.get_trials(deepcopy=False)
    return {
        **_without(turns, row),
        "setup_s": setup_s,
        "n_epochs": result.n_epochs_trained,
        "reports": [len(trial.intermediate_values) for trial in trials],
        "n_checkpoints": sum("miha:checkpoint" in trial.user_attrs for trial in trials),
        "model": digest(result.model),
    }


def _without(turns: Any, row: Row) -> Row:
    """Separate the seconds of a variant from those of the tuned loop."""
    return {
        "wall_s": row["wall_s"] - turns.wall_s,
        "cpu_s": row["cpu_s"] - turns.cpu_s,
        "loop_wall_s": turns.wall_s,
        "loop_cpu_s": turns.cpu_s,
    }


def measure_floor(storage: str, reports: list[int]) -> Row:
    """Measure plain Optuna without training: ask, suggest, report, check pruning, tell.

    The sampler is the cheapest one, random search.

    Args:
        storage: Kind of storage.
        reports: Number of reports of each trial.
    """
    import optuna
    from _runs import open_storage

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        study = optuna.create_study(
            storage=open_storage(storage, Path(name)),
            sampler=optuna.samplers.RandomSampler(seed=0),
            pruner=optuna.pruners.MedianPruner(),
        )
        with stopwatch() as row:
            for n_reports in reports:
                trial = study.ask()
                trial.suggest_categorical("optimizer", ["adam"])
                lr = trial.suggest_float("lr", 1e-5, 3.0, log=True)
                trial.suggest_categorical("weight_decay", [0.0, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1])
                for step in range(n_reports):
                    trial.report(lr / (step + 1), step)
                    trial.should_prune()
                study.tell(trial, lr)
    return {**row, "n_trials": len(reports)}


def measure_startup(kind: str, n_samples: int | None) -> Row:
    """Measure the seconds from the start of this script to its first training step.

    Args:
        kind: ``handwritten``, or a kind of storage.
        n_samples: Total number of samples; :obj:`None` for all.
    """
    from _problems import problem_of

    problem = problem_of("digits", n_samples)
    if kind == "handwritten":
        from _loops import train_by_hand
        from torch.optim.optimizer import register_optimizer_step_pre_hook

        first: list[float] = []
        register_optimizer_step_pre_hook(lambda *_: first.append(time.time()))
        train_by_hand(problem, *problem.data(), n_epochs=1)
        return {"first_step_s": first[0] - float(os.environ[STARTED])}
    from _runs import open_storage, open_study, read_marks
    from _runs import train as train_by_miha

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        marks = folder / "marks"
        marks.mkdir()
        study = open_study(open_storage(kind, folder))
        data = problem.data()
        train_by_miha(study, problem, data, folder, marks=marks, n_epochs=_STARTUP_EPOCHS)
        return {"first_step_s": min(read_marks(marks).values()) - float(os.environ[STARTED])}


def measure_memory(n_jobs: int, n_samples: int | None) -> Row:
    """Do a run whose memory is sampled from outside.

    Args:
        n_jobs: Worker processes; 0 means the hand-written loop.
        n_samples: Total number of samples; :obj:`None` for all.
    """
    from _problems import problem_of

    problem = problem_of("fnn", n_samples)
    data = problem.data()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if n_jobs == 0:
            from _loops import train_by_hand

            train_by_hand(problem, *data, _MEMORY_EPOCHS)
        else:
            from _runs import open_storage, open_study
            from _runs import train as train_by_miha

            study = open_study(open_storage("sqlite", folder))
            settings = {"n_epochs": _MEMORY_EPOCHS, "n_jobs": n_jobs}
            train_by_miha(study, problem, data, folder, **settings)
    return {"n_jobs": n_jobs}


def _warm_up() -> None:
    """Train the tiny problem once, so that torch's lazy initialization is not measured."""
    import torch
    from _loops import train_by_hand
    from _problems import PROBLEMS

    torch.set_num_threads(1)
    problem = PROBLEMS["tiny"]
    train_by_hand(problem, *problem.data(), n_epochs=1)


def cases_of(network: str, n_samples: int | None, n_epochs: int, profile: Row) -> list[Case]:
    """The cases of one network.

    Args:
        network: Name of the network.
        n_samples: Total number of samples; :obj:`None` for all.
        n_epochs: Epochs to train.
        profile: A row of :func:`measure_run`, whose checkpoints and reports the others match.
    """
    size: Row = {
        "problem": network,
        "n_samples": n_samples,
        "n_epochs": n_epochs,
        "n_checkpoints": profile["n_checkpoints"],
    }
    cases = []
    for kind in ("dataloader", "handwritten", "plain"):
        options = {"kind": kind, **size}
        labels = {"variant": kind, "network": network}
        cases.append(Case(function="loop", labels=labels, options=options))
    for storage in STORAGES:
        labels = {"variant": f"miha-{storage}", "network": network}
        cases.append(Case(function="run", labels=labels, options={"storage": storage, **size}))
    for storage in ("sqlite", "sqlite-wal"):
        labels = {"variant": f"optuna-floor-{storage}", "network": network}
        options = {"storage": storage, "reports": profile["reports"]}
        cases.append(Case(function="floor", labels=labels, options=options))
    return cases


def main() -> None:
    """Measure and print the results."""
    functions = {
        "loop": measure_loop,
        "run": measure_run,
        "floor": measure_floor,
        "startup": measure_startup,
        "memory": measure_memory,
    }
    benchmark = Benchmark(__file__, __doc__, functions)
    benchmark.parser.add_argument(
        "--epochs",
        type=int,
        nargs=2,
        default=_EPOCHS,
        metavar=("FNN", "DIGITS"),
        help="epochs of the two networks; default %(default)s",
    )
    args = benchmark.parse()
    n_samples = _QUICK_SAMPLES if args.quick else None
    epochs = [_QUICK_EPOCHS] * 2 if args.quick else args.epochs
    profiles: dict[str, Any] = {}
    cases = []
    for network, n_epochs in zip(NETWORKS, epochs, strict=True):
        options = {"problem": network, "n_samples": n_samples, "n_epochs": n_epochs}
        options |= {"storage": "memory", "n_checkpoints": 0}
        run = Case(function="run", labels={}, options=options)
        profiles[network] = benchmark.measure(run, quick=args.quick)
        cases += cases_of(network, n_samples, n_epochs, profiles[network])
    write_json(args.out / "profile.json", profiles)
    for kind in ("handwritten", "sqlite"):
        options = {"kind": kind, "n_samples": n_samples}
        labels = {"variant": f"startup-{kind}"}
        cases.append(Case(function="startup", labels=labels, options=options, apart=True))
    for n_jobs in (1,) if args.quick else (0, 1, 2):
        options = {"n_jobs": n_jobs, "n_samples": n_samples}
        labels = {"variant": f"memory-{n_jobs}"}
        cases.append(
            Case(function="memory", labels=labels, options=options, apart=True, memory=True)
        )
    print("\n".join(report(benchmark.run(cases, args))))


if __name__ == "__main__":
    main()
