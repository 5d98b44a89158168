"""The experiments of MIHA's article: train the missing runs, then write tables and a figure.

Every run is one line of ``raw.jsonl``. Existing runs are not repeated, so that an interrupted call
loses only the run in progress.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

os.environ.setdefault("OMP_NUM_THREADS", "1")  # Before torch is imported.

import optuna
import torch
from _article_report import write_report
from _harness import environment, results_folder, write_json
from _rows import RESULTS, Row, newest, read_rows
from optuna.storages import InMemoryStorage

import optuna_miha as miha

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import gap_filling
import mnist

ModelFn: TypeAlias = Callable[[Any], miha.Recipe]

LINEAR = "linear-output"
"""No search, with a linear output: the change that a person would make by hand."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One network on one data set, by several methods.

    Args:
        methods: Methods of :func:`optuna_miha.compare`, or ``LINEAR``.
        n_seeds: Number of seeds, starting at 0.
        model_fn: Returns the ``model_fn`` of a method, given the number of samples.
        n_samples: Number of training samples; for MNIST, including the validation samples.
        describe: Returns further entries of a row, given method, seed and study.
    """

    methods: Sequence[str]
    n_seeds: int
    model_fn: Callable[[str, int], ModelFn]
    n_samples: int
    describe: Callable[[str, int, optuna.Study], Row]


def mnist_model_fn(method: str, n_samples: int) -> ModelFn:
    """Use the first four fifths of the samples for training, the rest for validation."""
    x, y = (part[:n_samples] for part in mnist.load("train"))
    n_train = n_samples * 4 // 5
    return partial(
        mnist.model_fn,
        train_data=(x[:n_train], y[:n_train]),
        valid_data=(x[n_train:], y[n_train:]),
        test_data=mnist.load("test"),
    )


def gap_model_fn(method: str, n_samples: int) -> ModelFn:
    """Use the data of ``examples/gap_filling.py``."""
    return partial(
        gap_filling.model_fn,
        train_data=gap_filling.make_fields(n_samples, seed=0),
        valid_data=gap_filling.make_fields(n_samples // 4, seed=1),
        test_data=gap_filling.make_fields(n_samples, seed=2),
        output=torch.nn.Identity if method == LINEAR else torch.nn.ReLU,
    )


def describe_nothing(method: str, seed: int, study: optuna.Study) -> Row:
    """Add nothing to the rows of MNIST."""
    return {}


def describe_output(method: str, seed: int, study: optuna.Study) -> Row:
    """Add whether the network is dead at the start, and what changed its output activation."""
    torch.manual_seed(seed)  # The same seed as before `model_fn` is called.
    model = gap_filling.make_model()
    inputs, _ = gap_filling.make_fields(100, seed=0)
    row: Row = {"dead": gap_filling.is_dead(model, inputs)}
    if method == "miha":
        row["freed"] = _change_of_output(study)
    return row


def _change_of_output(study: optuna.Study) -> Row | None:
    """The first segment in the lineage of the best trial whose output is not ReLU."""
    path = [study.best_trial]
    while (parent := path[-1].user_attrs.get("miha:parent")) is not None:
        path.append(study.trials[parent])
    for trial in reversed(path):
        output = trial.params[f"activation.{gap_filling.OUTPUT}"]
        if output != "relu":
            keys = ("role", "cycle", "mutation")
            return {"output": output} | {k: trial.user_attrs[f"miha:{k}"] for k in keys}
    return None


EXPERIMENTS: Mapping[str, Experiment] = {
    "gaps": Experiment(
        methods=("miha", "no-search", LINEAR, "miha-classic"),
        n_seeds=20,
        model_fn=gap_model_fn,
        n_samples=400,
        describe=describe_output,
    ),
    "mnist": Experiment(
        methods=(
            "miha",
            "no-search",
            "no-search-cosine",
            "tpe-median",
            "hyperband",
            "miha-classic",
        ),
        n_seeds=10,
        model_fn=mnist_model_fn,
        n_samples=10_000,
        describe=describe_nothing,
    ),
}


def runs_of(
    names: Sequence[str], methods: Sequence[str] | None, n_seeds: int | None
) -> Iterator[tuple[str, str, int]]:
    """Yield experiment, method and seed of every run, one seed after the other."""
    for name in names:
        experiment = EXPERIMENTS[name]
        for seed in range(experiment.n_seeds if n_seeds is None else n_seeds):
            for method in experiment.methods:
                if methods is None or method in methods:
                    yield name, method, seed


def train(name: str, method: str, seed: int, n_epochs: int, n_samples: int) -> Row:
    """Do one run and return its row."""
    experiment = EXPERIMENTS[name]
    storage = InMemoryStorage()
    base = "no-search" if method == LINEAR else method
    comparison = miha.compare(
        experiment.model_fn(method, n_samples),
        n_epochs=n_epochs,
        methods=[base],
        seeds=[seed],
        storage=storage,
        device="cpu",
        show_progress_bar=False,
    )
    (run,) = comparison.runs
    study = optuna.load_study(study_name=f"compare-{base}-{seed}", storage=storage)
    about = {"experiment": name, "n_samples": n_samples, "monitor": comparison.monitor}
    return about | run.asdict() | {"method": method} | experiment.describe(method, seed, study)


def _folder() -> Path:
    """The newest folder of results, or a new one with today's date."""
    try:
        return newest(RESULTS, "article")
    except LookupError:
        return results_folder("article")


def main() -> None:
    """Train the missing runs and write the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--out", type=Path, help="folder of results; default: the newest, or a new one"
    )
    parser.add_argument(
        "--experiments", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS), metavar="NAME"
    )
    parser.add_argument("--methods", nargs="+", help="restrict the methods of each experiment")
    parser.add_argument("--seeds", type=int, help="number of seeds; default: per experiment")
    parser.add_argument("--n-epochs", type=int, default=200, help="default %(default)s")
    parser.add_argument("--n-samples", type=int, help="default: per experiment")
    parser.add_argument("--report", action="store_true", help="write the report only")
    parser.add_argument(
        "--docs",
        type=Path,
        default=Path(__file__).parents[1] / "docs",
        help="folder to write the tables and the figure to",
    )
    parser.add_argument("--quick", action="store_true", help="smoke test: one seed, small data")
    args = parser.parse_args()
    if args.quick:
        args.seeds, args.n_epochs, args.n_samples = 1, 30, 40
        # Meaningless results stay out of the results and the pages.
        args.out = args.out or Path(tempfile.mkdtemp(prefix="article-"))
    out = args.out or _folder()
    if not args.report:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        torch.set_num_threads(1)
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "env.json", environment() | {"n_epochs": args.n_epochs})
        done = {(row["experiment"], row["method"], row["seed"]) for row in read_rows(out)}
        runs = runs_of(args.experiments, args.methods, args.seeds)
        missing = [run for run in runs if run not in done]
        for index, (name, method, seed) in enumerate(missing, start=1):
            n_samples = args.n_samples or EXPERIMENTS[name].n_samples
            row = train(name, method, seed, args.n_epochs, n_samples)
            with (out / "raw.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            values = f"validation {row['value']:.5g}, test {row['test']}, {row['seconds']:.0f} s"
            print(f"{index}/{len(missing)} {name} {method} {seed}: {values}", flush=True)
    print(write_report(read_rows(out), out.name, args.docs))


if __name__ == "__main__":
    main()
