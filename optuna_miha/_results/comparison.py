"""The runs of a comparison, and tables of them."""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from optuna_miha._history.text_table import text_table
from optuna_miha._results.significance import mean, sign_flip_p, standard_deviation, standard_error

REFERENCE = "miha"
"""The method that the other methods are compared with."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run of one method with one seed.

    Args:
        method: The method.
        seed: The seed of weights, data order and proposals.
        n_epochs: The budget, in epochs.
        n_workers: Number of workers that share it.
        epochs: Trained epochs, including those of pruned and failed trials.
        seconds: Wall-clock time of training and of writing to the storage, including interrupted
            attempts. A run of ``optimize`` writes after every epoch, other methods write after
            every trial. The difference matters if epochs are short. All networks train in one
            process, also those of several workers.
        value: The best validation value; NaN if none was finite.
        test: ``"loss"`` and the metrics of the selected weights on the test data;
            :obj:`None` without test data.
        curve: Pairs of trained epochs and best validation value so far, one per improvement.
        trial_epochs: Epochs of a full trial; :obj:`None` if the method does not train trials from
            scratch.
    """

    method: str
    seed: int
    n_epochs: int
    epochs: int
    seconds: float
    value: float
    test: dict[str, float] | None
    curve: tuple[tuple[int, float], ...]
    trial_epochs: int | None
    n_workers: int = 1

    def asdict(self) -> dict[str, Any]:
        """Convert the run to a JSON-serializable dictionary, in which NaN is :obj:`None`."""
        return {**asdict(self), "value": _json(self.value), "test": _json(self.test)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Run:
        """Create a run from a dictionary of :meth:`asdict`."""
        test = content["test"]
        return cls(
            **{
                **content,
                "value": _number(content["value"]),
                "test": None if test is None else {k: _number(v) for k, v in test.items()},
                "curve": tuple((epochs, value) for epochs, value in content["curve"]),
            }
        )


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The results of several methods with equal budgets of epochs.

    Args:
        runs: All runs, grouped by method.
        monitor: The monitored validation value: ``"loss"``, or the name of a metric.
        direction: ``"minimize"`` or ``"maximize"``: the direction of the monitored value.
    """

    runs: tuple[Run, ...]
    monitor: str = "loss"
    direction: str = "minimize"

    def table(self) -> list[dict[str, Any]]:
        """A table with one row per method, for example for ``pandas.DataFrame``.

        Returns:
            Dictionaries with ``method``, ``n`` (number of seeds), ``value`` and ``value sd`` (mean
            and standard deviation of the validation value), ``epochs`` and ``seconds`` (medians).
            With test data, also ``test NAME`` and ``test NAME sd`` for the loss and every metric,
            and the paired difference from the method ``miha`` over equal seeds:
            ``test NAME vs miha`` (mean of method minus miha), ``… se`` (its standard error),
            ``… n`` (number of pairs) and ``… p`` (two-sided p value of the sign-flip test, which
            is at least 0.0625 with five pairs). Values that cannot be computed are :obj:`None`.
        """
        metrics = self._metric_names()
        reference = [run for run in self.runs if run.method == REFERENCE]
        rows = []
        for method, runs in self._by_method().items():
            values = [run.value for run in runs]
            row: dict[str, Any] = {"method": method, "n": len(runs)}
            row |= {"value": mean(values), "value sd": standard_deviation(values)}
            for metric in metrics:
                tests = [run.test[metric] for run in runs if run.test and metric in run.test]
                row[f"test {metric}"] = mean(tests)
                row[f"test {metric} sd"] = standard_deviation(tests)
                is_compared = method != REFERENCE
                differences = _paired_differences(runs, reference, metric) if is_compared else []
                name = f"test {metric} vs {REFERENCE}"
                row[name] = mean(differences)
                row[f"{name} se"] = standard_error(differences)
                row[f"{name} n"] = len(differences)
                row[f"{name} p"] = sign_flip_p(differences)
            row["epochs"] = statistics.median(run.epochs for run in runs)
            row["seconds"] = statistics.median(run.seconds for run in runs)
            rows.append({key: _json(value) for key, value in row.items()})
        return rows

    def describe(self) -> str:
        """The table as aligned text, with the paired differences of the monitored value."""
        metrics = self._metric_names()
        difference = f"test {self.monitor} vs {REFERENCE}"
        header = ["method", "n", f"validation {self.monitor}", *(f"test {m}" for m in metrics)]
        methods = self._by_method()
        is_paired = self.monitor in metrics and REFERENCE in methods and len(methods) > 1
        header += [f"{difference} (± se)", "p"] if is_paired else []
        rows = [[*header, "epochs", "seconds"]]
        for row in self.table():
            cells = [row["method"], str(row["n"]), _mean_text(row["value"], row["value sd"])]
            cells += [_mean_text(row[f"test {m}"], row[f"test {m} sd"]) for m in metrics]
            if is_paired:
                cells.append(_mean_text(row[difference], row[f"{difference} se"], signed=True))
                p = row[f"{difference} p"]
                cells.append("" if p is None else f"{p:.3g}")
            rows.append([*cells, f"{row['epochs']:g}", f"{row['seconds']:.1f}"])
        lines = text_table(rows)
        better = "smaller" if self.direction == "minimize" else "larger"
        lines.append(f"Mean ± standard deviation over n seeds; {better} {self.monitor} is better.")
        run = self.runs[0] if self.runs else None
        if run is not None and run.n_workers > 1:
            lines.append(
                f"Each method had {run.n_workers} workers of {run.n_epochs / run.n_workers:g} "
                "epochs; in the table are the epochs of all workers, and the seconds of one "
                "process that trained them all."
            )
        if not metrics:
            lines.append(
                "These are validation values, by which every method selected its weights: they do "
                "not show which model is better. Add `test_data` to the recipe."
            )
        return "\n".join(lines)

    def to_csv(self, path: str | PathLike[str]) -> None:
        """Write one row per run as CSV."""
        metrics = self._metric_names()
        names = ["method", "seed", "value", *(f"test {m}" for m in metrics), "epochs", "seconds"]
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names, extrasaction="ignore")
            writer.writeheader()
            for run in self.runs:
                tests = {f"test {m}": (run.test or {}).get(m) for m in metrics}
                writer.writerow({**run.asdict(), **tests})

    def to_json(self, path: str | PathLike[str]) -> None:
        """Write the table and all runs with their curves as JSON."""
        content = {
            "monitor": self.monitor,
            "direction": self.direction,
            "table": self.table(),
            "runs": [run.asdict() for run in self.runs],
        }
        Path(path).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def _by_method(self) -> dict[str, list[Run]]:
        groups: dict[str, list[Run]] = {}
        for run in self.runs:
            groups.setdefault(run.method, []).append(run)
        return groups

    def _metric_names(self) -> list[str]:
        """Names of the values that any run has on test data."""
        return list(dict.fromkeys(name for run in self.runs for name in run.test or {}))


def _paired_differences(runs: Sequence[Run], reference: Sequence[Run], metric: str) -> list[float]:
    """Differences of a test metric between two methods, over the seeds of both."""
    by_seed = {run.seed: run.test.get(metric, math.nan) for run in reference if run.test}
    differences = [
        run.test.get(metric, math.nan) - by_seed.get(run.seed, math.nan)
        for run in runs
        if run.test
    ]
    return [difference for difference in differences if math.isfinite(difference)]


def _mean_text(mean: float | None, spread: float | None, *, signed: bool = False) -> str:
    """A mean with its standard deviation or standard error, such as ``"0.25 ± 0.01"``."""
    if mean is None:
        return ""
    text = f"{mean:+.4g}" if signed else f"{mean:.4g}"
    return text if spread is None else f"{text} ± {spread:.2g}"


def _json(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not support, by :obj:`None`."""
    if isinstance(value, dict):
        return {key: _json(part) for key, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: float | None) -> float:
    return math.nan if value is None else value
