"""What the benchmarks share: options, processes and interleaved repeats.

A script names its functions; each is called with the options of a case, in a process of its own,
and returns the figures of one row. Nothing heavy is imported here, so that the start-up of a
variant holds its own imports alone.
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

from _figures import RESULTS, Row, read_rows
from _memory import peak_memory

Function: TypeAlias = Callable[..., Row]

STARTED = "BENCHMARK_STARTED"
"""The environment variable that tells a child when it was started, as :func:`time.time` has it."""
_PACKAGES = ("torch", "optuna", "sqlalchemy", "numpy", "optuna-miha")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One thing to measure.

    Args:
        function: Name of the script's function that measures it.
        labels: What its rows say besides figures, for instance the variant.
        options: Arguments of the function; JSON.
        apart: Whether it needs a process of its own even in a quick run.
        memory: Whether to sample the memory of its processes, too, which disturbs its times.
    """

    function: str
    labels: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    apart: bool = False
    memory: bool = False


class Benchmark:
    """A script's command line and its runs.

    Args:
        script: Its ``__file__``.
        description: Its docstring.
        functions: What measures, by name.
        repeats: How often everything is measured, unless the command line says otherwise.
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
            help=f"results; default benchmarks/results/{_folder_name(self.name)}",
        )
        self.parser.add_argument(
            "--repeats", type=int, default=repeats, help="default %(default)s"
        )
        self.parser.add_argument(
            "--more", action="store_true", help="add repeats to the results that are there"
        )
        self.parser.add_argument(
            "--quick",
            action="store_true",
            help="smallest sizes, once, mostly in one process: whether it runs, not how fast",
        )
        self.parser.add_argument("--child", help=argparse.SUPPRESS)

    def parse(self) -> argparse.Namespace:
        """Read the command line, and prepare the folder; a child measures and ends here."""
        args = self.parser.parse_args()
        if args.child is not None:
            call = json.loads(args.child)
            print(json.dumps(self._functions[call["function"]](**call["options"])))
            sys.exit()
        if args.quick:
            args.repeats = 1
            # Figures that mean nothing stay out of the results.
            args.out = args.out or Path(tempfile.mkdtemp(prefix=f"{self.name}-"))
        args.out = args.out or RESULTS / _folder_name(self.name)
        args.out.mkdir(parents=True, exist_ok=True)
        settings = {k: v for k, v in vars(args).items() if k not in ("out", "child")}
        write_json(args.out / "env.json", environment() | {"settings": settings})
        return args

    def run(self, cases: Sequence[Case], args: argparse.Namespace) -> list[Row]:
        """Measure all cases, as often as asked for, and write ``raw.jsonl`` row by row.

        Returns:
            The rows of the file, with ``--more`` those of earlier calls included.
        """
        rows = read_rows(args.out) if args.more else []
        first = 1 + max((row["repeat"] for row in rows), default=-1)
        with (args.out / "raw.jsonl").open("a" if args.more else "w", encoding="utf-8") as file:
            for repeat, case in interleaved(cases, first, args.repeats):
                row = {"repeat": repeat, **case.labels, **self.measure(case, quick=args.quick)}
                file.write(json.dumps(row) + "\n")
                file.flush()
                rows.append(row)
                print(json.dumps(row), file=sys.stderr)
        return rows

    def measure(self, case: Case, *, quick: bool) -> Row:
        """The figures of one case."""
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
    """Every case once per repeat, each repeat beginning with another one.

    So that a machine that is slower for a while slows all variants alike.

    Args:
        cases: The cases.
        first: Number of the first repeat.
        n_repeats: How many.
    """
    for repeat in range(first, first + n_repeats):
        start = repeat % len(cases)
        for case in [*cases[start:], *cases[:start]]:
            yield repeat, case


@contextmanager
def stopwatch() -> Iterator[Row]:
    """Seconds of the block, as ``wall_s`` and ``cpu_s`` of this process."""
    row: Row = {}
    wall, cpu = time.perf_counter(), time.process_time()
    yield row
    row["wall_s"] = time.perf_counter() - wall
    row["cpu_s"] = time.process_time() - cpu


def environment() -> Row:
    """The machine and the versions."""
    return {
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "intra_op_threads": 1,
    }


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` so that it can be read by people, too."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _folder_name(name: str) -> str:
    return f"{date.today().isoformat()}_{name}_{os.cpu_count()}-core-cpu"


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
