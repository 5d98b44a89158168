"""How close a replayed schedule comes to the run that discovered it.

For every seed, trains a run on the digits of ``examples/quickstart.py``. Its schedule is then
replayed from the run's initial weights and from those of other seeds. For comparison, the initial
configuration trains from the same weights for the same number of epochs. All are evaluated on test
data::

    python benchmarks/replay.py
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # Before torch is imported.

import optuna
import torch
from _harness import environment, results_folder, write_json
from _rows import Row, append_row, mean_text

import optuna_miha as miha

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import quickstart

N_OTHERS = 3
"""Number of replays of every schedule from other initial weights."""


@torch.no_grad()
def tested(model: torch.nn.Module) -> Row:
    """Loss and accuracy on the test data."""
    outputs, y = model(quickstart.x[quickstart.test]), quickstart.y[quickstart.test]
    loss = torch.nn.functional.cross_entropy(outputs, y).item()
    return {"loss": loss, "accuracy": (outputs.argmax(1) == y).double().mean().item()}


def trained(seed: int, plan: miha.Plan) -> miha.Result:
    """Run optuna_miha in memory."""
    sampler, pruner = miha.MihaSampler(seed=seed), miha.SlopePruner()
    study = optuna.create_study(sampler=sampler, pruner=pruner)
    return miha.optimize(
        study, quickstart.model_fn, plan=plan, device="cpu", show_progress_bar=False
    )


def rows_of(seed: int, n_epochs: int) -> Iterator[Row]:
    """Yield the rows of a seed: the run, its replays, and the initial configuration."""
    run = trained(seed, miha.Plan(n_epochs, anneal="cosine"))
    yield {"what": "run", "start": seed, "epochs": n_epochs, **tested(run.model)}
    for start in [seed, *range(1000 + seed * N_OTHERS, 1000 + (seed + 1) * N_OTHERS)]:
        again = miha.replay(run.schedule, quickstart.model_fn, seed=start, device="cpu")
        length = len(again.results)
        row: Row = {"what": "same start" if start == seed else "other start", "start": start}
        yield row | {"epochs": length, "equal": same(run, again), **tested(again.model)}
        alone = trained(start, miha.Plan.no_search(length))
        yield {"what": "initial", "start": start, "epochs": length, **tested(alone.model)}


def same(run: miha.Result, again: miha.Replay) -> bool:
    """Whether the weights are identical, bit for bit."""
    pairs = zip(run.model.state_dict().values(), again.model.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def main() -> None:
    """Train, write the rows, and print the table of ``docs/howto/take_home.rst``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, help="folder of results; default: a new one")
    parser.add_argument("--seeds", type=int, default=10, help="default %(default)s")
    parser.add_argument("--n-epochs", type=int, default=200, help="default %(default)s")
    args = parser.parse_args()
    out = args.out or results_folder("replay")
    out.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    write_json(out / "env.json", environment() | {"n_epochs": args.n_epochs})
    rows: list[Row] = []
    with (out / "raw.jsonl").open("w", encoding="utf-8") as file:
        for seed in range(args.seeds):
            for row in rows_of(seed, args.n_epochs):
                rows.append({"seed": seed, **row})
                append_row(file, rows[-1])
    for what in ("run", "same start", "other start", "initial"):
        chosen = [row for row in rows if row["what"] == what]
        values = (mean_text([row[name] for row in chosen], 4) for name in ("loss", "accuracy"))
        equal = sum(row.get("equal", False) for row in chosen)
        print(f"{what:12} n {len(chosen):3}  {'  '.join(values)}  equal {equal}")


if __name__ == "__main__":
    main()
