"""What the speed benchmarks share: options, processes and interleaved repeats.

A script registers its functions. Each is called with the options of a case, in its own process,
and returns the measurements of one row. This module imports nothing heavy, so that the start-up
time of a variant contains only the imports of that variant.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeAlias

from _memory import peak_memory
from _rows import RESULTS, Row, append_row, read_rows

Function: TypeAlias = Callable[..., Row]

STARTED = "BENCHMARK_STARTED"
"""Environment variable with the start time of a child process, as :func:`time.time` returns it."""
_PACKAGES = ("torch", "optuna", "sqlalchemy", "numpy", "optuna-miha")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One thing to measure.

    Args:
        function: Name of the script's function that measures it.
        labels: What identifies its rows, for example the variant.
        options: Arguments of the function, JSON-serializable.
        apart: Whether to use a separate process even in a quick run.
        memory: Whether to sample the memory of its processes as well, which disturbs the timing.
    """

    function: str
    labels: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    apart: bool = False
    memory: bool = False


class Benchmark:
    """The command line and the runs of a script.

    Args:
        script: ``__file__`` of the script.
        description: Docstring of the script.
        functions: The functions that measure, by name.
        repeats: Default of ``--repeats``, the number of times that each case is measured.
    """

    def __init__(
        self,
        script: str,
        description: str | None,
        functions: Mapping[str, Function],
        *,
        repeats: int = 5,
    ) -> None:
        self.name = Path(script).stem
        self._script = script
        self._functions = functions
        self.parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
        self.parser.add_argument(
            "--out",
            type=Path,
            help=f"results; default benchmarks/results/{results_folder(self.name).name}",
        )
        self.parser.add_argument(
            "--repeats", type=int, default=repeats, help="default %(default)s"
        )
        self.parser.add_argument(
            "--more", action="store_true", help="add repeats to the existing results"
        )
        self.parser.add_argument(
            "--quick",
            action="store_true",
            help="smoke test: smallest sizes, once, mostly in one process",
        )
        self.parser.add_argument("--child", help=argparse.SUPPRESS)

    def parse(self) -> argparse.Namespace:
        """Parse the command line and prepare the folder; a child process measures and exits."""
        args = self.parser.parse_args()
        if args.child is not None:
            call = json.loads(args.child)
            print(json.dumps(self._functions[call["function"]](**call["options"])))
            sys.exit()
        if args.quick:
            args.repeats = 1
            # Meaningless measurements stay out of the results.
            args.out = args.out or Path(tempfile.mkdtemp(prefix=f"{self.name}-"))
        args.out = args.out or results_folder(self.name)
        args.out.mkdir(parents=True, exist_ok=True)
        settings = {k: v for k, v in vars(args).items() if k not in ("out", "child")}
        write_json(args.out / "env.json", environment() | {"settings": settings})
        return args

    def run(self, cases: Sequence[Case], args: argparse.Namespace) -> list[Row]:
        """Measure all cases ``--repeats`` times and write ``raw.jsonl`` row by row.

        Returns:
            The rows of the file; with ``--more``, including those of earlier calls.
        """
        rows = read_rows(args.out) if args.more else []
        first = 1 + max((row["repeat"] for row in rows), default=-1)
        with (args.out / "raw.jsonl").open("a" if args.more else "w", encoding="utf-8") as file:
            for repeat, case in interleaved(cases, first, args.repeats):
                row = {"repeat": repeat, **case.labels, **self.measure(case, quick=args.quick)}
                append_row(file, row)
                rows.append(row)
                print(json.dumps(row), file=sys.stderr)
        return rows

    def measure(self, case: Case, *, quick: bool) -> Row:
        """Measure one case."""
        if quick and not case.apart:
            return self._functions[case.function](**case.options)
        call = {"function": case.function, "options": case.options}
        environ = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        environ[STARTED] = repr(time.time())
        process = subprocess.Popen(
            [sys.executable, self._script, "--child", json.dumps(call)],
            stdout=subprocess.PIPE,
            env=environ,
            text=True,
        )
        memory = peak_memory(process) if case.memory else {}
        output, _ = process.communicate()
        if process.returncode != 0:
            raise RuntimeError(f"{case.labels} ended with exit status {process.returncode}.")
        return {**json.loads(output.splitlines()[-1]), **memory}


def interleaved(cases: Sequence[Case], first: int, n_repeats: int) -> Iterator[tuple[int, Case]]:
    """Yield every case once per repeat; each repeat begins with a different case.

    A machine that is slower for a while then slows all variants alike.

    Args:
        cases: The cases.
        first: Index of the first repeat.
        n_repeats: Number of repeats.
    """
    for repeat in range(first, first + n_repeats):
        start = repeat % len(cases)
        for case in [*cases[start:], *cases[:start]]:
            yield repeat, case


@contextmanager
def stopwatch() -> Iterator[Row]:
    """Measure the seconds of the block as ``wall_s`` and ``cpu_s`` of this process."""
    row: Row = {}
    wall, cpu = time.perf_counter(), time.process_time()
    yield row
    row["wall_s"] = time.perf_counter() - wall
    row["cpu_s"] = time.process_time() - cpu


def environment() -> Row:
    """The machine and the versions of the packages."""
    return {
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "intra_op_threads": 1,
    }


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def results_folder(name: str) -> Path:
    """The folder for results of today on this machine."""
    return RESULTS / f"{date.today().isoformat()}_{name}_{os.cpu_count()}-core-cpu"


@contextmanager
def temporary_files() -> Iterator[None]:
    """Put temporary files into a folder of their own, which is removed at the end.

    Studies in memory write their checkpoints there.
    """
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder
        try:
            yield
        finally:
            tempfile.tempdir = None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((s.partition(":")[2].strip() for s in lines if s.startswith("model name")), "")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
