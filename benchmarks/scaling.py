"""How far a run scales: a model in plain arithmetic, fed with what the other scripts measured.

Prints three tables: a population on more and more workers, where each resource saturates, and
what the method itself leaves to do for so many workers.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from _figures import RESULTS, Row, chosen, figures, newest, read_rows, with_block

WORKERS = (1, 8, 64, 256, 1000)
EFFICIENCY = 0.5
"""What the last table asks for."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a population costs.

    Args:
        epoch_s: Seconds of an epoch on one worker.
        checkpoint_bytes: Size of the state of a network in training.
        storage_s: Seconds of a trial in the storage.
        commits: Commits of a trial.
        coordinator_s: Seconds of a trial in the coordinator, besides.
        copy_rate: Bytes per second that the coordinator serializes.
        network_rate: Bytes per second between it and its workers; assumed.
        branch_epochs: Epochs of a branch.
        rungs: Times that a branch is sent out and comes back.
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
        """Seconds that a branch trains."""
        return self.branch_epochs * self.epoch_s

    @property
    def traffic(self) -> float:
        """Bytes of a branch through the coordinator: out and back in every rung."""
        return 2 * self.rungs * self.checkpoint_bytes

    @property
    def per_branch(self) -> dict[str, float]:
        """Seconds that each branch occupies what all of them share."""
        return {
            "storage": self.storage_s,
            "coordinator": self.coordinator_s + self.traffic / self.copy_rate,
            "network": self.traffic / self.network_rate,
        }


@dataclass(frozen=True, kw_only=True)
class Run:
    """The epochs of a run by the default plan, as it came out.

    Args:
        race_epochs: Epochs of each configuration of the race.
        trunk: Epochs of the trunk.
        branches: Epochs of all branches.
        final: Epochs of the final phase.
        n_cycles: Cycles.
        population_size: Branches of each.
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
        """Epochs in all."""
        return sum(self.race_epochs) + self.trunk + self.branches + self.final

    def race_length(self, n_workers: int) -> int:
        """Epochs one after the other in the race."""
        length, age = 0, 0
        for end in sorted(set(self.race_epochs)):
            alive = sum(epochs >= end for epochs in self.race_epochs)
            length += math.ceil(alive / n_workers) * (end - age)
            age = end
        return length

    def length(self, n_workers: int) -> float:
        """Epochs one after the other in the whole run."""
        rounds = math.ceil(self.population_size / n_workers)
        branches = self.branches * rounds / self.population_size
        return self.race_length(n_workers) + self.trunk + branches + self.final


def population_table(inputs: Inputs) -> list[str]:
    """A population of one branch per worker, on more and more workers."""
    lines = [
        "| workers | population takes | commits per second | MB/s through the coordinator "
        "| storage, coordinator and network | efficiency |",
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
    """Workers at which a resource is busy for as long as a branch trains."""
    lines = [f"| saturates at | {' | '.join(networks)} |", "|---" * (len(networks) + 1) + "|"]
    for resource in ("storage", "coordinator", "network"):
        cells = [f"{i.training_s / i.per_branch[resource]:,.0f}" for i in networks.values()]
        lines.append(f"| {resource} | {' | '.join(cells)} |")
    return lines


def method_table(run: Run) -> list[str]:
    """What the default plan makes of many workers, were everything but training free."""
    lines = [
        "| workers | epochs one after the other | times as fast | efficiency |",
        "|---|---|---|---|",
    ]
    for n_workers in WORKERS:
        length = run.length(n_workers)
        gain = run.total / length
        lines.append(f"| {n_workers:,} | {length:.0f} | {gain:.2f} | {gain / n_workers:.1%} |")
    return lines


def needed_table(run: Run) -> list[str]:
    """The population that keeps many workers busy for a given share of the time."""
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
    """What the newest results say, and the names of their folders."""
    folders = {name: newest(results, name) for name in ("overhead", "storage", "parallel")}
    rows = {name: read_rows(folder) for name, folder in folders.items()}
    loop = chosen(rows["overhead"], variant="handwritten", network="fnn")
    in_memory, on_disk = (
        _trial_s(chosen(rows["storage"], storage=kind, n_before=0, count=False))
        for kind in ("memory", "sqlite-wal")
    )
    counted = next(iter(chosen(rows["storage"], n_before=0, count=True).values()))
    one = next(iter(chosen(rows["parallel"], plan="default", n_jobs=1).values()))
    size = figures(loop, lambda row: row["checkpoint_bytes"]).median
    inputs = Inputs(
        epoch_s=figures(loop, lambda row: row["wall_s"] / row["n_epochs"]).median,
        checkpoint_bytes=size,
        storage_s=on_disk - in_memory,
        commits=counted["n_commits"] / counted["n_trials"],
        coordinator_s=in_memory,
        copy_rate=size / figures(loop, lambda row: row["checkpoint_s"]).median,
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
    return figures(rows, lambda row: row["wall_s"] / row["n_trials"]).median


def report(small: Inputs, large: Inputs, run: Run, sources: list[str]) -> str:
    """All tables in Markdown."""
    networks = {"FNN 784-400-10": small, "large network": large}
    lines = [
        f"From {', '.join(f'`{name}`' for name in sources)}.",
        "",
        "| | " + " | ".join(networks),
    ]
    lines[-1] += " |"
    lines.append("|---|---|---|")
    for words, figure in _ROWS.items():
        lines.append(f"| {words} | {' | '.join(figure(i) for i in networks.values())} |")
    for name, inputs in networks.items():
        lines += ["", f"### {name}: a population of one branch per worker", ""]
        lines += population_table(inputs)
    lines += ["", "### Workers at which a resource saturates", "", *saturation_table(networks)]
    lines += [
        "",
        "### The default plan",
        "",
        f"A run of {run.total} epochs: race {sum(run.race_epochs)}, trunk {run.trunk}, "
        f"{run.n_cycles} cycles with {run.branches} epochs of branches, final phase {run.final}.",
        "",
        *method_table(run),
        "",
        f"### Plans that keep workers busy {EFFICIENCY:.0%} of the time",
        "",
        f"As many cycles, {run.branch_epochs} epochs a branch, and a trunk and a final phase of "
        "as many epochs as above.",
        "",
        *needed_table(run),
    ]
    return "\n".join(lines)


_ROWS: dict[str, Any] = {
    "an epoch": lambda i: f"{i.epoch_s:.3g} s",
    "a checkpoint": lambda i: f"{i.checkpoint_bytes / 1e6:.3g} MB",
    "a trial in the storage": lambda i: f"{1000 * i.storage_s:.1f} ms, {i.commits:.1f} commits",
    "a trial in the coordinator": lambda i: f"{1000 * i.coordinator_s:.1f} ms",
    "serializing, as fast as `torch.save`": lambda i: f"{i.copy_rate / 1e6:,.0f} MB/s",
    "network, assumed": lambda i: f"{i.network_rate / 1e6:,.0f} MB/s",
}


def main() -> None:
    """Print the tables, or write them between the marks of a page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder of the results folders"
    )
    parser.add_argument("--out", type=Path, help="folder to write scaling.md to")
    parser.add_argument("--write", type=Path, help="page to write the tables to")
    parser.add_argument("--large-epoch-s", type=float, default=60.0, help="default %(default)s")
    parser.add_argument(
        "--large-checkpoint-bytes", type=float, default=500e6, help="default %(default)s"
    )
    for field in fields(Inputs):
        option = f"--{field.name.replace('_', '-')}"
        parser.add_argument(option, type=float, help="in place of what was measured")
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
