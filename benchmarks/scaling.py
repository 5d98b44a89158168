"""How far a run scales, computed from the plan and from the measurements of the other scripts.

The phases are those of the package's own plan. Training takes their epochs that follow each other;
the work of the coordinator, the storage and the network is added without any overlap.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from _rows import RESULTS, Row, chosen, newest, read_rows, spread, with_block
from _stragglers import WORKERS as UNEQUAL
from _stragglers import straggler_table
from optuna.study import StudyDirection
from optuna.trial import TrialState

from optuna_miha import Plan
from optuna_miha._history.lineage import Lineage
from optuna_miha._history.segment import Segment
from optuna_miha._search.phases import Phase, Stretch, next_phase
from optuna_miha._training.spool import LARGE_STATE

WORKERS = (1, 2, 4, 8, 64, 1000)
PATH = 50
"""Epochs of each worker."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The costs of a run.

    Args:
        epoch_s: Seconds of an epoch on one worker.
        state_bytes: Size of a state.
        storage_s: Seconds per trial in the storage.
        coordinator_s: Seconds per trial in the coordinator, without the storage.
        copy_rate: Bytes per second that the coordinator serializes.
        network_rate: Bytes per second between the workers together and the coordinator or the
            store of the checkpoints, assumed.
    """

    epoch_s: float
    state_bytes: float
    storage_s: float
    coordinator_s: float
    copy_rate: float
    network_rate: float = 1.25e9

    @property
    def is_by_reference(self) -> bool:
        """Whether workers read and write states in the store, not through the coordinator."""
        return self.state_bytes >= LARGE_STATE

    def shared_s(self, n_trials: int, n_transfers: int) -> float:
        """Seconds of coordinator, storage and network for some trials and transfers of states."""
        n_bytes = n_transfers * self.state_bytes
        copying = 0.0 if self.is_by_reference else n_bytes / self.copy_rate
        per_trial = self.storage_s + self.coordinator_s
        return n_trials * per_trial + copying + n_bytes / self.network_rate


@dataclass(frozen=True, kw_only=True)
class Rung:
    """Siblings that train at the same time.

    Args:
        size: Their number.
        n_epochs: Epochs of each.
        is_first: Whether they begin with it.
    """

    size: int
    n_epochs: int
    is_first: bool


def rungs_of(n_workers: int) -> list[Rung]:
    """The rungs of a run whose networks improve to their end, and are pruned as planned."""
    plan = Plan(n_workers * PATH, n_workers=n_workers)
    stretch = Stretch(first_cycle=0, start=0, end=plan.n_epochs)
    lineage, rungs = Lineage(StudyDirection.MINIMIZE), []
    while (phase := next_phase(plan, stretch, lineage)) is not None:
        sizes = (phase.size, phase.n_left)
        for i, n_epochs in enumerate(phase.rungs):
            rungs.append(Rung(size=sizes[i], n_epochs=n_epochs, is_first=i == 0))
        for branch in range(phase.size):
            lineage.add(_segment(phase, branch, len(lineage)))
    return rungs


def _segment(phase: Phase, branch: int, number: int) -> Segment:
    is_pruned = len(phase.rungs) > 1 and branch >= phase.n_left
    trained = phase.rungs[0] if is_pruned else phase.n_epochs
    birth = 0 if phase.parent is None else phase.parent.end
    cost = 1 / (number + 1)
    return Segment(
        number=number,
        role=phase.role,
        cycle=phase.cycle,
        branch=branch,
        parent=None if phase.parent is None else phase.parent.number,
        birth=birth,
        trained=trained,
        params={},
        distributions={},
        mutation="",
        scores=(cost,) * trained,
        train_losses=(),
        value=None if is_pruned else cost,
        fitness=-cost,
        state=TrialState.PRUNED if is_pruned else TrialState.COMPLETE,
        checkpoint={"id": "", "sha256": "", "best_epoch": birth + trained},
    )


def run_table(inputs: Inputs) -> list[str]:
    """Runs of the same length on increasing numbers of workers."""
    lines = [
        "| workers | epochs in all | networks | time | epochs per second of one worker "
        "| coordinator, storage, network | efficiency |",
        "|---|---|---|---|---|---|---|",
    ]
    for n_workers in WORKERS:
        rungs = rungs_of(n_workers)
        n_epochs = sum(rung.size * rung.n_epochs for rung in rungs)
        path = sum(math.ceil(rung.size / n_workers) * rung.n_epochs for rung in rungs)
        n_trials = sum(rung.size for rung in rungs if rung.is_first)
        shared = inputs.shared_s(n_trials, 2 * sum(rung.size for rung in rungs))
        length = path * inputs.epoch_s + shared
        gain = n_epochs * inputs.epoch_s / length
        cells = (
            f"{n_workers:,}",
            f"{n_epochs:,}",
            f"{n_trials:,}",
            f"{length:,.0f} s",
            f"{gain:.1f}",
            f"{shared / length:.0%}",
            f"{gain / n_workers:.0%}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def read_inputs(results: Path) -> tuple[Inputs, list[str]]:
    """Read the newest results; also returns the names of their folders."""
    folders = {name: newest(results, name) for name in ("overhead", "storage")}
    rows = {name: read_rows(folder) for name, folder in folders.items()}
    loop = chosen(rows["overhead"], variant="handwritten", network="fnn")
    in_memory, on_disk = (
        _trial_s(chosen(rows["storage"], storage=kind, n_before=0, count=False))
        for kind in ("memory", "sqlite-wal")
    )
    size = spread(loop, lambda row: row["checkpoint_bytes"]).median
    inputs = Inputs(
        epoch_s=spread(loop, lambda row: row["wall_s"] / row["n_epochs"]).median,
        state_bytes=size,
        storage_s=on_disk - in_memory,
        coordinator_s=in_memory,
        copy_rate=size / spread(loop, lambda row: row["checkpoint_s"]).median,
    )
    return inputs, [folder.name for folder in folders.values()]


def _trial_s(rows: dict[int, Row]) -> float:
    return spread(rows, lambda row: row["wall_s"] / row["n_trials"]).median


def report(networks: dict[str, Inputs], sources: list[str]) -> str:
    """Generate all tables in Markdown."""
    lines = [
        f"From {', '.join(f'`{name}`' for name in sources)}.",
        "",
        f"| | {' | '.join(networks)} |",
        "|---" * (len(networks) + 1) + "|",
    ]
    for name, text in _ROWS.items():
        lines.append(f"| {name} | {' | '.join(text(i) for i in networks.values())} |")
    for name, inputs in networks.items():
        lines += ["", f"### {name}", "", *run_table(inputs)]
    rungs = {n: [(rung.size, rung.n_epochs) for rung in rungs_of(n)] for n in UNEQUAL}
    lines += ["", "### Workers of unequal speed", "", *straggler_table(rungs)]
    return "\n".join(lines)


_ROWS: dict[str, Any] = {
    "epoch": lambda i: f"{i.epoch_s:.3g} s",
    "state": lambda i: f"{i.state_bytes / 1e6:.3g} MB",
    "a state travels": lambda i: "through the store" if i.is_by_reference else "with its job",
    "storage, per trial": lambda i: f"{1000 * i.storage_s:.1f} ms",
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
    for field in fields(Inputs):
        option = f"--{field.name.replace('_', '-')}"
        parser.add_argument(option, type=float, help="default: as measured")
    args = parser.parse_args()
    inputs, sources = read_inputs(args.results)
    given = {f.name: getattr(args, f.name) for f in fields(Inputs)}
    small = replace(inputs, **{name: value for name, value in given.items() if value is not None})
    networks = {
        "FNN 784-400-10": small,
        "medium network": replace(small, epoch_s=10.0, state_bytes=100e6),
        "large network": replace(small, epoch_s=60.0, state_bytes=500e6),
    }
    tables = report(networks, sources)
    print(tables)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "scaling.md").write_text(tables + "\n", encoding="utf-8")
    if args.write is not None:
        text = with_block(args.write.read_text(encoding="utf-8"), "scaling", tables)
        args.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
