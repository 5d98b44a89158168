"""How far a run scales, computed from the measurements of the other scripts.

Prints tables of a population on increasing numbers of workers, of the number of workers at which
each resource saturates, and of the parallelism that the method itself offers.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from _rows import RESULTS, Row, chosen, newest, read_rows, spread, with_block

WORKERS = (1, 8, 64, 256, 1000)
EFFICIENCY = 0.5
"""Efficiency required in the last table."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The costs of a population.

    Args:
        epoch_s: Seconds of an epoch on one worker.
        checkpoint_bytes: Size of a checkpoint.
        storage_s: Seconds per trial in the storage.
        commits: Commits per trial.
        coordinator_s: Seconds per trial in the coordinator, without the storage.
        copy_rate: Bytes per second that the coordinator serializes.
        network_rate: Bytes per second between coordinator and workers, assumed.
        branch_epochs: Epochs of a branch.
        rungs: Number of times that a branch is sent to a worker and returned.
    """

    epoch_s: float
    checkpoint_bytes: float
    storage_s: float
    commits: float
    coordinator_s: float
    copy_rate: float
    network_rate: float = 1.25e9
    branch_epochs: int = 4
    rungs: int = 2

    @property
    def training_s(self) -> float:
        """Training time of a branch in seconds."""
        return self.branch_epochs * self.epoch_s

    @property
    def traffic(self) -> float:
        """Bytes per branch through the coordinator: out and back in every rung."""
        return 2 * self.rungs * self.checkpoint_bytes

    @property
    def per_branch(self) -> dict[str, float]:
        """Seconds for which each branch occupies each shared resource."""
        return {
            "storage": self.storage_s,
            "coordinator": self.coordinator_s + self.traffic / self.copy_rate,
            "network": self.traffic / self.network_rate,
        }


@dataclass(frozen=True, kw_only=True)
class Run:
    """The measured epochs of a run with the default plan.

    Args:
        race_epochs: Epochs of each configuration of the race.
        trunk: Epochs of the trunk.
        branches: Epochs of all branches.
        final: Epochs of the final phase.
        n_cycles: Number of cycles.
        population_size: Branches per cycle.
        branch_epochs: Epochs of a branch that is not pruned.
    """

    race_epochs: tuple[int, ...]
    trunk: int
    branches: int
    final: int
    n_cycles: int
    population_size: int
    branch_epochs: int

    @property
    def total(self) -> int:
        """Total number of epochs."""
        return sum(self.race_epochs) + self.trunk + self.branches + self.final

    def race_length(self, n_workers: int) -> int:
        """Sequential epochs of the race."""
        length, age = 0, 0
        for end in sorted(set(self.race_epochs)):
            alive = sum(epochs >= end for epochs in self.race_epochs)
            length += math.ceil(alive / n_workers) * (end - age)
            age = end
        return length

    def length(self, n_workers: int) -> float:
        """Sequential epochs of the whole run."""
        rounds = math.ceil(self.population_size / n_workers)
        branches = self.branches * rounds / self.population_size
        return self.race_length(n_workers) + self.trunk + branches + self.final


def population_table(inputs: Inputs) -> list[str]:
    """A population with one branch per worker, for increasing numbers of workers."""
    lines = [
        "| workers | time of a population | commits per second | MB/s through the coordinator "
        "| share of storage, coordinator and network | efficiency |",
        "|---|---|---|---|---|---|",
    ]
    for n_workers in WORKERS:
        shared = n_workers * sum(inputs.per_branch.values())
        length = inputs.training_s + shared
        cells = (
            f"{n_workers:,}",
            f"{length:.1f} s",
            f"{n_workers * inputs.commits / length:.0f}",
            f"{n_workers * inputs.traffic / length / 1e6:.0f}",
            f"{shared / length:.0%}",
            f"{inputs.training_s / length:.0%}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def saturation_table(networks: dict[str, Inputs]) -> list[str]:
    """Number of workers at which a resource is busy for the training time of a branch."""
    lines = [f"| resource | {' | '.join(networks)} |", "|---" * (len(networks) + 1) + "|"]
    for resource in ("storage", "coordinator", "network"):
        cells = [f"{i.training_s / i.per_branch[resource]:,.0f}" for i in networks.values()]
        lines.append(f"| {resource} | {' | '.join(cells)} |")
    return lines


def method_table(run: Run) -> list[str]:
    """Speed-up of the default plan if everything but training were free."""
    lines = [
        "| workers | sequential epochs | speed-up | efficiency |",
        "|---|---|---|---|",
    ]
    for n_workers in WORKERS:
        length = run.length(n_workers)
        gain = run.total / length
        lines.append(f"| {n_workers:,} | {length:.0f} | {gain:.2f} | {gain / n_workers:.1%} |")
    return lines


def needed_table(run: Run) -> list[str]:
    """The population size that keeps the workers busy for the share ``EFFICIENCY`` of the time."""
    lines = [
        "| workers | `population_size` | `n_epochs` | `final_share` |",
        "|---|---|---|---|",
    ]
    for n_workers in WORKERS[1:]:
        serial = run.race_length(n_workers) + run.trunk + run.final
        # From efficiency = (serial + work) / (workers * (serial + work / workers)).
        work = serial * (EFFICIENCY * n_workers - 1) / (1 - EFFICIENCY)
        size = math.ceil(work / (run.n_cycles * run.branch_epochs))
        total = run.total - run.branches + size * run.n_cycles * run.branch_epochs
        lines.append(f"| {n_workers:,} | {size:,} | {total:,} | {run.final / total:.4f} |")
    return lines


def read_inputs(results: Path) -> tuple[Inputs, Run, list[str]]:
    """Read the newest results; also returns the names of their folders."""
    folders = {name: newest(results, name) for name in ("overhead", "storage", "parallel")}
    rows = {name: read_rows(folder) for name, folder in folders.items()}
    loop = chosen(rows["overhead"], variant="handwritten", network="fnn")
    in_memory, on_disk = (
        _trial_s(chosen(rows["storage"], storage=kind, n_before=0, count=False))
        for kind in ("memory", "sqlite-wal")
    )
    counted = next(iter(chosen(rows["storage"], n_before=0, count=True).values()))
    one = next(iter(chosen(rows["parallel"], plan="default", n_jobs=1).values()))
    size = spread(loop, lambda row: row["checkpoint_bytes"]).median
    inputs = Inputs(
        epoch_s=spread(loop, lambda row: row["wall_s"] / row["n_epochs"]).median,
        checkpoint_bytes=size,
        storage_s=on_disk - in_memory,
        commits=counted["n_commits"] / counted["n_trials"],
        coordinator_s=in_memory,
        copy_rate=size / spread(loop, lambda row: row["checkpoint_s"]).median,
        branch_epochs=one["branch_epochs"],
    )
    epochs = one["epochs"]
    run = Run(
        race_epochs=tuple(one["race_epochs"]),
        trunk=epochs["trunk"],
        branches=epochs["branch"],
        final=epochs["final"],
        n_cycles=one["n_cycles"],
        population_size=one["population_size"],
        branch_epochs=one["branch_epochs"],
    )
    return inputs, run, [folder.name for folder in folders.values()]


def _trial_s(rows: dict[int, Row]) -> float:
    return spread(rows, lambda row: row["wall_s"] / row["n_trials"]).median


def report(small: Inputs, large: Inputs, run: Run, sources: list[str]) -> str:
    """Generate all tables in Markdown."""
    networks = {"FNN 784-400-10": small, "large network": large}
    lines = [
        f"From {', '.join(f'`{name}`' for name in sources)}.",
        "",
        "| | " + " | ".join(networks),
    ]
    lines[-1] += " |"
    lines.append("|---|---|---|")
    for name, text in _ROWS.items():
        lines.append(f"| {name} | {' | '.join(text(i) for i in networks.values())} |")
    for name, inputs in networks.items():
        lines += ["", f"### {name}: population with one branch per worker", ""]
        lines += population_table(inputs)
    lines += ["", "### Number of workers at which a resource saturates", ""]
    lines += saturation_table(networks)
    lines += [
        "",
        "### The default plan",
        "",
        f"A run of {run.total} epochs: race {sum(run.race_epochs)}, trunk {run.trunk}, "
        f"branches {run.branches} ({run.n_cycles} cycles), final phase {run.final}.",
        "",
        *method_table(run),
        "",
        f"### Plans that keep workers busy {EFFICIENCY:.0%} of the time",
        "",
        "The number of cycles and the epochs of trunk and final phase are those of the run above. "
        f"Each branch trains for {run.branch_epochs} epochs.",
        "",
        *needed_table(run),
    ]
    return "\n".join(lines)


_ROWS: dict[str, Any] = {
    "epoch": lambda i: f"{i.epoch_s:.3g} s",
    "checkpoint": lambda i: f"{i.checkpoint_bytes / 1e6:.3g} MB",
    "storage, per trial": lambda i: f"{1000 * i.storage_s:.1f} ms, {i.commits:.1f} commits",
    "coordinator, per trial": lambda i: f"{1000 * i.coordinator_s:.1f} ms",
    "serialization, measured with `torch.save`": lambda i: f"{i.copy_rate / 1e6:,.0f} MB/s",
    "network bandwidth, assumed": lambda i: f"{i.network_rate / 1e6:,.0f} MB/s",
}


def main() -> None:
    """Print the tables, and write them between the marks of a page if requested."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder that contains the result folders"
    )
    parser.add_argument("--out", type=Path, help="folder to write scaling.md to")
    parser.add_argument("--write", type=Path, help="page to write the tables to")
    parser.add_argument("--large-epoch-s", type=float, default=60.0, help="default %(default)s")
    parser.add_argument(
        "--large-checkpoint-bytes", type=float, default=500e6, help="default %(default)s"
    )
    for field in fields(Inputs):
        option = f"--{field.name.replace('_', '-')}"
        parser.add_argument(option, type=float, help="default: as measured")
    args = parser.parse_args()
    inputs, run, sources = read_inputs(args.results)
    given = {f.name: getattr(args, f.name) for f in fields(Inputs)}
    small = replace(inputs, **{name: value for name, value in given.items() if value is not None})
    large = replace(
        small, epoch_s=args.large_epoch_s, checkpoint_bytes=args.large_checkpoint_bytes
    )
    tables = report(small, large, run, sources)
    print(tables)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "scaling.md").write_text(tables + "\n", encoding="utf-8")
    if args.write is not None:
        text = with_block(args.write.read_text(encoding="utf-8"), "scaling", tables)
        args.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
