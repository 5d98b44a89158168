"""Memory, traffic and disk of states of a large network, by reference and by value.

A network of ``--weights-mb`` of weights trains on little data: a start-up race of 8 in a single
process, and a population of 8 branches on an executor of two worker processes. States are passed
on by reference, as large ones are, or by value, as small ones are.
"""

from __future__ import annotations

import math
import tempfile
import threading
import time
from collections import defaultdict
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from _harness import Benchmark, Case, stopwatch
from _rows import Row, chosen, spread

_MB = 1e6
_WEIGHTS_MB = 100.0
_QUICK_WEIGHTS_MB = 0.1
WHERE = ("process", "executor")
HOW = ("value", "reference")
_SIZE = 8
"""Siblings of the race and of the population."""

# Imports are local to the functions, because a child process needs few of them.


class ModelFn:
    """The ``model_fn`` of the runs: a square layer, Adam, and one step per epoch.

    Args:
        width: Rows and columns of the layer.
    """

    def __init__(self, width: int) -> None:
        self.width = width

    def __call__(self, trial: Any) -> Any:
        """Build the recipe."""
        import torch
        from torch import nn

        import optuna_miha as miha

        generator = torch.Generator().manual_seed(0)
        x = torch.randn(32, 1, generator=generator)
        model = nn.Sequential(
            nn.Linear(1, self.width), nn.ReLU(), nn.Linear(self.width, self.width), nn.Tanh()
        )
        lr = trial.suggest_float("lr", 1e-6, 1e-3, log=True)
        return miha.Recipe(
            model=model,
            loss_fn=_loss,
            train_data=(x, x),
            valid_data=(x, x),
            optimizer=torch.optim.Adam(model.parameters(), lr=lr),
            batch_size=32,
        )


def _loss(output: Any, target: Any) -> Any:
    return ((output.mean(dim=1, keepdim=True) - target) ** 2).mean()


class Meter:
    """Samples the resident memory of this process, and what is on the disk, by role of phase."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._role = "start"
        self._is_running = True
        self.peak: dict[str, float] = {}
        self.first: dict[str, float] = {}
        self.disk: dict[str, int] = {}
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def enter(self, role: str) -> None:
        """Note that a phase begins."""
        if role != self._role:
            self._role = role
            self.first[role] = _rss()

    def __enter__(self) -> Meter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_running = False
        self._thread.join()

    def _sample(self) -> None:
        while self._is_running:
            role = self._role
            self.peak[role] = max(self.peak.get(role, 0.0), _rss())
            self.disk[role] = max(self.disk.get(role, 0), _disk_usage(self._folder))
            time.sleep(0.02)


def _rss() -> float:
    """Resident memory of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024.0


def _disk_usage(folder: Path) -> int:
    total = 0
    for path in folder.iterdir():
        try:
            total += path.stat().st_size
        except OSError:  # It has just been removed.
            continue
    return total


class CountingExecutor(ProcessPoolExecutor):
    """Worker processes that share nothing with this one but the disk, with counted traffic."""

    def __init__(self, number: int) -> None:
        super().__init__(number, get_context("spawn"))
        self.n_bytes: dict[tuple[Any, ...], int] = defaultdict(int)
        """Bytes in both directions by rung."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Count the bytes of a call and of what it returns."""
        from optuna_miha._training.pickling import unpack

        future = super().submit(fn, *args, **kwargs)
        if len(args) != 4:
            return future
        job = unpack(args[2])
        rung = (job.role, job.cycle, job.share)
        self.n_bytes[rung] += sum(len(arg) for arg in args if isinstance(arg, bytes))

        def count(done: Future[Any]) -> None:
            if not done.cancelled() and done.exception() is None:
                self.n_bytes[rung] += len(done.result() or b"")

        future.add_done_callback(count)
        return future


def measure_run(where: str, how: str, weights_mb: float) -> Row:
    """Measure a run.

    Args:
        where: ``process`` or ``executor``.
        how: ``reference`` or ``value``.
        weights_mb: Megabytes of weights.
    """
    import optuna
    import torch
    from _runs import digest

    import optuna_miha as miha
    from optuna_miha._training import spool

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    torch.set_num_threads(1)
    # An unlimited size is what all states had before they could be passed on by reference.
    spool.LARGE_STATE = 1 if how == "reference" else 2**62
    model_fn = ModelFn(round(math.sqrt(weights_mb * _MB / 4)))
    if where == "process":
        plan = miha.Plan(200, startup=_SIZE, anneal="cosine")  # It is stopped after the race.
    else:
        plan = miha.Plan(
            28,
            startup=1,
            population_size=_SIZE,
            branch_epochs=2,
            fixing_epochs=1,
            n_cycles=1,
            restarts=False,
            anneal="cosine",
        )
    executor = CountingExecutor(2) if where == "executor" else None
    with tempfile.TemporaryDirectory() as name, Meter(Path(name)) as meter:
        study = optuna.create_study(
            sampler=miha.MihaSampler(seed=0), pruner=optuna.pruners.NopPruner()
        )
        with _watched_phases(meter), stopwatch() as row:
            result = miha.optimize(
                study,
                model_fn,
                plan=plan,
                executor=executor,
                checkpoint_dir=name,
                callbacks=[_stop_after_race] if where == "process" else [],
                n_threads=1,
                show_progress_bar=False,
            )
        n_bytes = {} if executor is None else executor.n_bytes
        roles = {rung[0] for rung in n_bytes}
        checkpoint = Path(name, result.trial.user_attrs["miha:checkpoint"]["id"]).stat().st_size
        if executor is not None:
            executor.shutdown()
    return {
        **row,
        "weights_bytes": sum(p.nbytes for p in result.model.parameters()),
        "checkpoint_bytes": checkpoint,
        "growth_bytes": {role: meter.peak[role] - meter.first[role] for role in meter.first},
        "first_bytes": meter.first,
        "disk_bytes": meter.disk,
        "rung_bytes": {
            role: max(total for rung, total in n_bytes.items() if rung[0] == role)
            for role in sorted(roles)
        },
        "model": digest(result.model),
    }


def _stop_after_race(study: Any, trial: Any) -> None:
    from optuna.trial import TrialState

    if trial.user_attrs["miha:role"] == "startup" and trial.state == TrialState.COMPLETE:
        study.stop()


class _watched_phases:
    """Notifies a meter of the phases of a run.

    Args:
        meter: The meter.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def __enter__(self) -> None:
        from optuna_miha._run.population import Population

        self._train = train = Population.create_siblings

        def create(population: Population, phase: Any, stretch: Any) -> Any:
            self._meter.enter(phase.role)
            return train(population, phase, stretch)

        Population.create_siblings = create  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        from optuna_miha._run.population import Population

        Population.create_siblings = self._train  # type: ignore[method-assign]


def main() -> None:
    """Measure and print the results."""
    benchmark = Benchmark(__file__, __doc__, {"run": measure_run}, repeats=1)
    benchmark.parser.add_argument(
        "--weights-mb", type=float, default=_WEIGHTS_MB, help="default %(default)s"
    )
    benchmark.parser.add_argument("--where", nargs="+", choices=WHERE, default=WHERE)
    benchmark.parser.add_argument("--how", nargs="+", choices=HOW, default=HOW)
    args = benchmark.parse()
    weights_mb = _QUICK_WEIGHTS_MB if args.quick else args.weights_mb
    cases = [
        Case(
            function="run",
            labels={"where": where, "how": how},
            options={"where": where, "how": how, "weights_mb": weights_mb},
            apart=True,
        )
        for where in args.where
        for how in args.how
    ]
    print("\n".join(report(benchmark.run(cases, args))))


def report(rows: list[Row]) -> list[str]:
    """A table in Markdown, and whether the models are identical."""
    lines = [
        "| | states | seconds | growth of the memory, MB | most bytes of a rung, MB "
        "| most on the disk, MB |",
        "|---|---|---|---|---|---|",
    ]
    for where in ("process", "executor"):
        role = "startup" if where == "process" else "branch"
        for how in [h for h in HOW if any((r["where"], r["how"]) == (where, h) for r in rows)]:
            own = chosen(rows, where=where, how=how)

            def megabytes(get: Any, own: list[Row] = own, digits: int = 0) -> str:
                return spread(own, lambda row: get(row) / _MB).text(digits)

            sent = "0"
            if where == "executor":
                sent = megabytes(lambda row: max(row["rung_bytes"].values()), digits=2)
            cells = [
                "race of 8 in one process" if where == "process" else "population of 8, executor",
                f"by {how}",
                spread(own, lambda row: row["wall_s"]).text(0),
                megabytes(lambda row, role=role: row["growth_bytes"][role]),
                sent,
                megabytes(lambda row: max(row["disk_bytes"].values())),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    models = {(row["where"], row["model"]) for row in rows}
    is_equal = len(models) == len({row["where"] for row in rows})
    equal = "are identical, bit for bit" if is_equal else "DIFFER"
    return [*lines, "", f"The models by reference and by value {equal}."]


if __name__ == "__main__":
    main()
