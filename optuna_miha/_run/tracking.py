"""Epochs of a run in TensorBoard, MLflow, and Weights & Biases."""

from __future__ import annotations

import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from optuna_miha._history.optional_imports import try_import
from optuna_miha._run.epoch_report import EpochReport

_Tracker = TypeVar("_Tracker", bound="_TrackingCallback")


class _TrackingCallback(ABC):
    """Writes every epoch to the log of its trial; a context manager that closes the logs."""

    def __init__(self) -> None:
        self._cycle = -1
        self._logs: dict[int, Any] = {}

    def __enter__(self: _Tracker) -> _Tracker:
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
        if report.number not in self._logs:
            self._logs[report.number] = self._open(report)
        values = {"value": report.value, "train_loss": report.train_loss, **report.metrics}
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self._write(self._logs[report.number], finite, report.epoch)

    def close(self) -> None:
        """Close the logs."""
        for log in self._logs.values():
            self._close(log)
        self._logs.clear()

    @abstractmethod
    def _open(self, report: EpochReport) -> Any:
        """Open the log of a trial."""

    @abstractmethod
    def _write(self, log: Any, values: Mapping[str, float], epoch: int) -> None:
        """Write the finite values of an epoch."""

    @abstractmethod
    def _close(self, log: Any) -> None:
        """Close the log of a trial."""


class TensorBoardCallback(_TrackingCallback):
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
        super().__init__()
        self._log_dir = Path(log_dir)
        with try_import("tensorboard", needed_by="TensorBoardCallback"):
            self._module = importlib.import_module("torch.utils.tensorboard")

    def _open(self, report: EpochReport) -> Any:
        writer = self._module.SummaryWriter(str(self._log_dir / report.name))
        text = "\n".join(f"- {name}: {value}" for name, value in report.params.items())
        writer.add_text("params", text, report.epoch)
        return writer

    def _write(self, log: Any, values: Mapping[str, float], epoch: int) -> None:
        for name, value in values.items():
            log.add_scalar(name, value, epoch)
        log.flush()

    def _close(self, log: Any) -> None:
        log.close()


class MLflowCallback(_TrackingCallback):
    """Writes every epoch to MLflow: an epoch callback of :func:`optimize`.

    Each trial is a run of MLflow, nested in the active one if there is one, in the experiment and
    at the address that ``mlflow.set_experiment`` and ``mlflow.set_tracking_uri`` set. Its tags
    are role, cycle, branch index and number of the trial. The step is the lineage epoch.

    Raises:
        ImportError: If the package ``mlflow`` is not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        with try_import("mlflow", needed_by="MLflowCallback"):
            self._module = importlib.import_module("mlflow")

    def _open(self, report: EpochReport) -> Any:
        names = ("role", "cycle", "branch", "number")
        tags = {name: str(getattr(report, name)) for name in names}
        # The trials of a cycle are open at the same time, which an active run could not be.
        with self._module.start_run(run_name=report.name, nested=True, tags=tags) as run:
            self._module.log_params(dict(report.params))
        return run.info.run_id

    def _write(self, log: Any, values: Mapping[str, float], epoch: int) -> None:
        self._module.log_metrics(dict(values), step=epoch, run_id=log)

    def _close(self, log: Any) -> None:
        pass


class WeightsAndBiasesCallback(_TrackingCallback):
    """Writes every epoch to Weights & Biases: an epoch callback of :func:`optimize`.

    Each trial is a run, named by its number, role, cycle and branch index. Its job type is the
    role; its configuration are the hyperparameters, the cycle and the branch index. The metrics
    are drawn over ``epoch``, the lineage epoch, because a step of W&B must begin at zero.

    Args:
        **settings: Arguments of ``wandb.init``, such as ``project`` and ``group``.

    Raises:
        ImportError: If the package ``wandb`` is not installed.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self._settings = settings
        with try_import("wandb", needed_by="WeightsAndBiasesCallback"):
            self._module = importlib.import_module("wandb")

    def _open(self, report: EpochReport) -> Any:
        run = self._module.init(
            name=report.name,
            job_type=report.role,
            config={**report.params, "cycle": report.cycle, "branch": report.branch},
            reinit="create_new",
            **self._settings,
        )
        run.define_metric("*", step_metric="epoch")
        return run

    def _write(self, log: Any, values: Mapping[str, float], epoch: int) -> None:
        log.log({"epoch": epoch, **values})

    def _close(self, log: Any) -> None:
        log.finish()
