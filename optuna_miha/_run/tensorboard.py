"""Epochs of a run in TensorBoard."""

from __future__ import annotations

import importlib
import math
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any

from optuna_miha._results.optional_imports import try_import
from optuna_miha._run.epoch_report import EpochReport


class TensorBoardCallback:
    """Writes every epoch to TensorBoard: an epoch callback of :func:`optimize`.

    Each trial is a run of TensorBoard, named by its number, role, cycle and branch index. The
    step is the lineage epoch, so that a branch continues the curve of its parent. The scalars are
    ``value``, ``train_loss`` and the metrics; the hyperparameters are a text.

    Args:
        log_dir: The folder, which ``tensorboard --logdir`` shows.

    Raises:
        ImportError: If the package ``tensorboard`` is not installed.
    """

    def __init__(self, log_dir: str | PathLike[str]) -> None:
        self._log_dir = Path(log_dir)
        with try_import("tensorboard", needed_by="TensorBoardCallback"):
            self._module = importlib.import_module("torch.utils.tensorboard")
        self._cycle = -1
        self._writers: dict[int, Any] = {}

    def __enter__(self) -> TensorBoardCallback:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __call__(self, report: EpochReport) -> None:
        """Write an epoch."""
        if report.cycle != self._cycle:  # The trials of the last cycle have ended.
            self.close()
            self._cycle = report.cycle
        writer = self._writers.get(report.number)
        if writer is None:
            writer = self._module.SummaryWriter(str(self._log_dir / report.name))
            self._writers[report.number] = writer
            text = "\n".join(f"- {name}: {value}" for name, value in report.params.items())
            writer.add_text("params", text, report.epoch)
        scalars = {"value": report.value, "train_loss": report.train_loss, **report.metrics}
        for name, value in scalars.items():
            if math.isfinite(value):
                writer.add_scalar(name, value, report.epoch)
        writer.flush()

    def close(self) -> None:
        """Close the files."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
