"""The projects of ``examples/projects`` compared with their plain twins, on test data.

A twin tries three learning rates by the schedule of the script, for a third of the epochs each,
and tests the best by validation; that of ``outer_study.py`` searches everything by Optuna::

    python benchmarks/projects.py
"""

from __future__ import annotations

import argparse
import io
import os
import runpy
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # Before torch is imported.

import optuna
import torch
from _harness import environment, results_folder, write_json
from _rows import Row, append_row, mean_text

PROJECTS = Path(__file__).parents[1] / "examples" / "projects"
NAMES = sorted(path.stem for path in PROJECTS.glob("*.py") if path.stem != "project")


def measure(project: str, seed: int, *, plain: bool) -> Row:
    """Run a project or its plain twin.

    Args:
        project: The name of its file, without the suffix.
        seed: Seed of initial weights and proposals. Data and split are those of the project.
        plain: Whether to run the twin.

    Returns:
        The name of the metric, its value on the test data, and the CPU seconds.
    """
    output, argv, before = io.StringIO(), sys.argv, time.process_time()
    sys.argv = [project, "--seed", str(seed), *(["--plain"] if plain else [])]
    try:
        with redirect_stdout(output), redirect_stderr(io.StringIO()):
            runpy.run_path(str(PROJECTS / f"{project}.py"), run_name="__main__")
    finally:
        sys.argv = argv
    metric, value = output.getvalue().splitlines()[-1].split(": ")
    return {
        "project": project,
        "seed": seed,
        "plain": plain,
        "metric": metric,
        "value": float(value),
        "cpu_seconds": time.process_time() - before,
    }


def table(rows: Sequence[Row]) -> list[str]:
    """Mean and standard deviation over seeds, in Markdown."""
    lines = [
        "| project | metric | optuna_miha | plain script, three rates | CPU time, ratio |",
        "|---|---|---|---|---|",
    ]
    for project in NAMES:
        ours, plain = (
            [row for row in rows if row["project"] == project and row["plain"] == is_plain]
            for is_plain in (False, True)
        )
        if not ours or not plain:
            continue
        values = (mean_text([row["value"] for row in own], 4) for own in (ours, plain))
        seconds = (sum(row["cpu_seconds"] for row in own) / len(own) for own in (ours, plain))
        ratio = next(seconds) / next(seconds)
        lines.append(f"| `{project}` | {ours[0]['metric']} | {' | '.join(values)} | {ratio:.1f} |")
    return lines


def main() -> None:
    """Run all projects, write the rows, and print the table of ``docs/gallery.rst``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, help="folder of results; default: a new one")
    parser.add_argument("--first-seed", type=int, default=40, help="default %(default)s")
    parser.add_argument("--seeds", type=int, default=5, help="at least 2; default %(default)s")
    args = parser.parse_args()
    out = args.out or results_folder("projects")
    out.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    torch.set_num_threads(1)
    sys.path.insert(0, str(PROJECTS))
    write_json(out / "env.json", environment())
    rows: list[Row] = []
    with (out / "raw.jsonl").open("w", encoding="utf-8") as file:
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            for project in NAMES:
                for plain in (False, True):
                    rows.append(measure(project, seed, plain=plain))
                    append_row(file, rows[-1])
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
