"""What a comparison found: its runs and a table of them."""

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
"""The method that the others are compared with."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One method with one seed.

    Args:
        method: The method.
        seed: The seed of weights, data order and proposals.
        n_epochs: The budget.
        epochs: Epochs trained, pruned and failed ones included.
        seconds: Wall-clock time of training and of writing to the storage, interrupted attempts
            included. A run of ``optimize`` writes after every epoch, the others after every
            trial, which counts where epochs are short.
        value: The best validation value; NaN if there never was a finite one.
        test: ``"loss"`` and the metrics of the selected weights on the test data;
            :obj:`None` without test data.
        curve: Pairs of epochs spent and the best validation value so far, where it improved.
        trial_epochs: Epochs of a full trial; :obj:`None` where the method does not search by
            trials from scratch.
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

    def asdict(self) -> dict[str, Any]:
        """The run as a JSON-serializable dictionary, in which NaN is :obj:`None`."""
        return {**asdict(self), "value": _json(self.value), "test": _json(self.test)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Run:
        """Read what :meth:`asdict` returned, back from JSON."""
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
    """Methods at an equal number of trained epochs.

    Args:
        runs: All runs, those of a method together.
        monitor: What decides on validation data: ``"loss"``, or the name of a metric.
        direction: ``"minimize"`` or ``"maximize"``, of what is monitored.
    """

    runs: tuple[Run, ...]
    monitor: str = "loss"
    direction: str = "minimize"

    def table(self) -> list[dict[str, Any]]:
        """One row per method; ``pandas.DataFrame(comparison.table())`` takes it.

        Returns:
            Dictionaries of ``method``, ``n`` (seeds), ``value`` and ``value sd`` (mean and
            standard deviation of the validation value), ``epochs`` and ``seconds`` (medians).
            With test data also, for the loss and every metric, ``test NAME`` and
            ``test NAME sd``, and the paired difference to the method ``miha`` over equal seeds:
            ``test NAME vs miha`` (mean of method minus miha), ``… se`` (its standard error),
            ``… n`` (pairs) and ``… p`` (two-sided, by enumerating sign flips, which with five
            pairs cannot be below 0.0625). What cannot be computed is :obj:`None`.
        """
        figures = self._figures()
        reference = [run for run in self.runs if run.method == REFERENCE]
        rows = []
        for method, runs in self._by_method().items():
            values = [run.value for run in runs]
            row: dict[str, Any] = {"method": method, "n": len(runs)}
            row |= {"value": mean(values), "value sd": standard_deviation(values)}
            for figure in figures:
                tests = [run.test[figure] for run in runs if run.test and figure in run.test]
                row[f"test {figure}"] = mean(tests)
                row[f"test {figure} sd"] = standard_deviation(tests)
                pairs = _paired(runs, reference, figure) if method != REFERENCE else []
                name = f"test {figure} vs {REFERENCE}"
                row[name] = mean(pairs)
                row[f"{name} se"] = standard_error(pairs)
                row[f"{name} n"] = len(pairs)
                row[f"{name} p"] = sign_flip_p(pairs)
            row["epochs"] = statistics.median(run.epochs for run in runs)
            row["seconds"] = statistics.median(run.seconds for run in runs)
            rows.append({key: _json(value) for key, value in row.items()})
        return rows

    def describe(self) -> str:
        """The table as aligned text, with the paired differences of what is monitored."""
        figures = self._figures()
        paired = f"test {self.monitor} vs {REFERENCE}"
        header = ["method", "n", f"validation {self.monitor}", *(f"test {f}" for f in figures)]
        methods = self._by_method()
        is_paired = self.monitor in figures and REFERENCE in methods and len(methods) > 1
        header += [f"{paired} (± se)", "p"] if is_paired else []
        lines = [[*header, "epochs", "seconds"]]
        for row in self.table():
            line = [row["method"], str(row["n"]), _spread(row["value"], row["value sd"])]
            line += [_spread(row[f"test {f}"], row[f"test {f} sd"]) for f in figures]
            if is_paired:
                line.append(_spread(row[paired], row[f"{paired} se"], signed=True))
                p = row[f"{paired} p"]
                line.append("" if p is None else f"{p:.3g}")
            lines.append([*line, f"{row['epochs']:g}", f"{row['seconds']:.1f}"])
        text = text_table(lines)
        better = "smaller" if self.direction == "minimize" else "larger"
        text.append(f"Mean ± standard deviation over n seeds; {better} {self.monitor} is better.")
        if not figures:
            text.append(
                "Without `test_data` in the recipe there are only validation values, which every "
                "method selected by: they do not tell which model is better."
            )
        return "\n".join(text)

    def to_csv(self, path: str | PathLike[str]) -> None:
        """Write one row per run as CSV."""
        figures = self._figures()
        names = ["method", "seed", "value", *(f"test {f}" for f in figures), "epochs", "seconds"]
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names, extrasaction="ignore")
            writer.writeheader()
            for run in self.runs:
                tests = {f"test {f}": (run.test or {}).get(f) for f in figures}
                writer.writerow({**run.asdict(), **tests})

    def to_json(self, path: str | PathLike[str]) -> None:
        """Write runs, with their curves, and the table as JSON."""
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

    def _figures(self) -> list[str]:
        """What was measured on test data, in any run."""
        return list(dict.fromkeys(name for run in self.runs for name in run.test or {}))


def _paired(runs: Sequence[Run], reference: Sequence[Run], figure: str) -> list[float]:
    """Differences of a test figure over the seeds that both have."""
    theirs = {run.seed: run.test.get(figure, math.nan) for run in reference if run.test}
    differences = [
        run.test.get(figure, math.nan) - theirs.get(run.seed, math.nan) for run in runs if run.test
    ]
    return [difference for difference in differences if math.isfinite(difference)]


def _spread(centre: float | None, width: float | None, *, signed: bool = False) -> str:
    if centre is None:
        return ""
    text = f"{centre:+.4g}" if signed else f"{centre:.4g}"
    return text if width is None else f"{text} ± {width:.2g}"


def _json(value: Any) -> Any:
    """The same without NaN and infinity, which JSON lacks."""
    if isinstance(value, dict):
        return {key: _json(part) for key, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: float | None) -> float:
    return math.nan if value is None else value
