"""PPO of ``examples/reinforcement_learning.py``: fixed settings, this package, and PBT.

All have the same number of steps of the environment. The policy that a method returns plays 512
episodes from starts that took no part in training or selection::

    python benchmarks/reinforcement.py
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # Before torch is imported.

import optuna
import torch
from _harness import environment, results_folder, write_json
from _pbt import search_pbt
from _rows import Row, append_row, mean_text, read_rows

import optuna_miha as miha
from optuna_miha._model.rng import preserved_rng, seed_all

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import reinforcement_learning as ppo

METHODS = ("fixed", "miha", "pbt")


def trained(method: str, n_epochs: int, seed: int) -> tuple[torch.nn.Module, float]:
    """The agent of a method, and its return in validation."""
    if method == "pbt":
        with preserved_rng():
            seed_all(seed)  # Syne Tune draws from NumPy's global generator.
            selected = search_pbt(
                ppo.model_fn,
                n_epochs,
                seed,
                trainer=ppo.trainer,
                sign=-1,
                initial_params=ppo.START,
            )
        agent = ppo.Agent()
        assert selected.weights is not None
        agent.load_state_dict(selected.weights)
        return agent, selected.value
    study = optuna.create_study(direction="maximize", sampler=miha.MihaSampler(seed=seed))
    plan = miha.Plan(n_epochs)
    if method == "fixed":
        plan = miha.Plan.no_search(n_epochs)
    result = miha.optimize(
        study,
        ppo.model_fn,
        plan=plan,
        trainer=ppo.trainer,
        initial_params=ppo.START,
        device="cpu",
        show_progress_bar=False,
    )
    return result.model, result.value


def main() -> None:
    """Do the missing runs, and print mean and standard deviation over seeds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, help="folder of results; default: a new one")
    parser.add_argument("--n-epochs", type=int, default=120, help="default %(default)s")
    parser.add_argument("--first-seed", type=int, default=40, help="default %(default)s")
    parser.add_argument("--seeds", type=int, default=5, help="at least 2; default %(default)s")
    args = parser.parse_args()
    out = args.out or results_folder("reinforcement")
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    write_json(out / "env.json", environment() | {"n_epochs": args.n_epochs})
    rows: list[Row] = read_rows(out)
    done = {(row["method"], row["seed"]) for row in rows}
    with (out / "raw.jsonl").open("a", encoding="utf-8") as file:
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            for method in METHODS:
                if (method, seed) in done:
                    continue
                before = time.process_time()
                agent, value = trained(method, args.n_epochs, seed)
                row: Row = {
                    "method": method,
                    "seed": seed,
                    "value": value,
                    "test": ppo.mean_return(agent, n_episodes=512, seed=1),
                }
                rows.append(row | {"cpu_seconds": time.process_time() - before})
                append_row(file, rows[-1])
    for method in METHODS:
        tests = [row["test"] for row in rows if row["method"] == method]
        seconds = statistics.mean(row["cpu_seconds"] for row in rows if row["method"] == method)
        print(f"{method:6} return {mean_text(tests, 2)}  CPU {seconds:.0f} s")


if __name__ == "__main__":
    main()
