"""The experiments of MIHA's article: train what is missing, then write tables and figures.

Every run is one line of ``raw.jsonl``; a run that is there is not repeated, so that an interrupted
call goes on where it was, at the cost of the run that it was in.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

os.environ.setdefault("OMP_NUM_THREADS", "1")  # Before torch is imported.

import optuna
import torch
from _article_report import write_report
from _figures import RESULTS, Row, newest, read_rows
from _harness import environment, write_json
from optuna.storages import InMemoryStorage

import optuna_miha as miha

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import gap_filling
import mnist

ModelFn: TypeAlias = Callable[[Any], miha.Recipe]

LINEAR = "linear-output"
"""No search, on the network without its output activation: what one would change by hand."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One network on one data set, by several methods.

    Args:
        methods: Those of :func:`optuna_miha.compare`, or ``LINEAR``.
        n_seeds: How many seeds, from 0 on.
        model_fn: Makes the function for a method, of data of a size.
        n_objects: That size: objects for training, and of MNIST for validation, too.
        describe: More that is to be known of a run, from method, seed and study.
    """

    methods: Sequence[str]
    n_seeds: int
    model_fn: Callable[[str, int], ModelFn]
    n_objects: int
    describe: Callable[[str, int, optuna.Study], Row]


def mnist_model_fn(method: str, n_objects: int) -> ModelFn:
    """Four fifths of the training objects train, the last fifth validates."""
    x, y = (part[:n_objects] for part in mnist.load("train"))
    n_train = n_objects * 4 // 5
    return partial(
        mnist.model_fn,
        train_data=(x[:n_train], y[:n_train]),
        valid_data=(x[n_train:], y[n_train:]),
        test_data=mnist.load("test"),
    )


def gap_model_fn(method: str, n_objects: int) -> ModelFn:
    """The data of ``examples/gap_filling.py``."""
    return partial(
        gap_filling.model_fn,
        train_data=gap_filling.make_fields(n_objects, seed=0),
        valid_data=gap_filling.make_fields(n_objects // 4, seed=1),
        test_data=gap_filling.make_fields(n_objects, seed=2),
        output=torch.nn.Identity if method == LINEAR else torch.nn.ReLU,
    )


def describe_nothing(method: str, seed: int, study: optuna.Study) -> Row:
    """MNIST needs no more."""
    return {}


def describe_output(method: str, seed: int, study: optuna.Study) -> Row:
    """Whether the network is dead before it is trained, and what changed its output."""
    torch.manual_seed(seed)  # As before `model_fn` is called.
    model = gap_filling.make_model()
    inputs, _ = gap_filling.make_fields(100, seed=0)
    row: Row = {"dead": gap_filling.is_dead(model, inputs)}
    if method == "miha":
        row["freed"] = _change_of_output(study)
    return row


def _change_of_output(study: optuna.Study) -> Row | None:
    """The first segment of the best one's lineage whose output is not ReLU."""
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
        n_objects=400,
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
        n_objects=10_000,
        describe=describe_nothing,
    ),
}


def runs_of(
    names: Sequence[str], methods: Sequence[str] | None, n_seeds: int | None
) -> Iterator[tuple[str, str, int]]:
    """Experiment, method and seed of every run; all methods of a seed before the next seed."""
    for name in names:
        experiment = EXPERIMENTS[name]
        for seed in range(experiment.n_seeds if n_seeds is None else n_seeds):
            for method in experiment.methods:
                if methods is None or method in methods:
                    yield name, method, seed


def train(name: str, method: str, seed: int, n_epochs: int, n_objects: int) -> Row:
    """One run."""
    experiment = EXPERIMENTS[name]
    storage = InMemoryStorage()
    base = "no-search" if method == LINEAR else method
    comparison = miha.compare(
        experiment.model_fn(method, n_objects),
        n_epochs=n_epochs,
        methods=[base],
        seeds=[seed],
        storage=storage,
        device="cpu",
        show_progress_bar=False,
    )
    (run,) = comparison.runs
    study = optuna.load_study(study_name=f"compare-{base}-{seed}", storage=storage)
    about = {"experiment": name, "n_objects": n_objects, "monitor": comparison.monitor}
    return about | run.asdict() | {"method": method} | experiment.describe(method, seed, study)


def _folder() -> Path:
    """The newest results, which a call goes on with, or new ones of today."""
    try:
        return newest(RESULTS, "article")
    except LookupError:
        return RESULTS / f"{date.today().isoformat()}_article_{os.cpu_count()}-core-cpu"


def main() -> None:
    """Train and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, help="results; default the newest, or else new ones")
    parser.add_argument(
        "--experiments", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS), metavar="NAME"
    )
    parser.add_argument("--methods", nargs="+", help="only these of each experiment's own")
    parser.add_argument("--seeds", type=int, help="how many, in place of each experiment's own")
    parser.add_argument("--n-epochs", type=int, default=200, help="default %(default)s")
    parser.add_argument("--n-objects", type=int, help="in place of each experiment's own")
    parser.add_argument("--report", action="store_true", help="train nothing")
    parser.add_argument(
        "--docs",
        type=Path,
        default=Path(__file__).parents[1] / "docs",
        help="folder to write tables and figures to",
    )
    parser.add_argument(
        "--quick", action="store_true", help="one seed, small data: whether it runs, not how well"
    )
    args = parser.parse_args()
    if args.quick:
        args.seeds, args.n_epochs, args.n_objects = 1, 30, 40
        # Figures that mean nothing stay out of the results and the pages.
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
            n_objects = args.n_objects or EXPERIMENTS[name].n_objects
            row = train(name, method, seed, args.n_epochs, n_objects)
            with (out / "raw.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            figures = f"validation {row['value']:.5g}, test {row['test']}, {row['seconds']:.0f} s"
            print(f"{index}/{len(missing)} {name} {method} {seed}: {figures}", flush=True)
    print(write_report(read_rows(out), out.name, args.docs))


if __name__ == "__main__":
    main()
