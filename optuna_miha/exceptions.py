"""Exceptions of this package. Invalid arguments raise ``ValueError`` or ``TypeError``."""

from __future__ import annotations

from optuna.exceptions import OptunaError


class MihaError(OptunaError):
    """Base class of the exceptions of this package."""


class CheckpointError(MihaError):
    """A checkpoint cannot be written or read, is missing, or is damaged."""


class CheckpointLostError(CheckpointError):
    """A checkpoint is missing, or its content has changed since it was written."""


class FormatError(MihaError):
    """The study was written by a later version of this package, in a newer format."""


class InheritanceError(MihaError, ValueError):
    """A branch cannot inherit the trunk's weights, because its network has other parameters."""


class MonitorChangedError(MihaError, ValueError):
    """The monitored value or the validation loss differs from that at the start of the run."""


class NotInForceError(MihaError, ValueError):
    """A suggested value, which the study stores, is not the one in use."""


class PlanMismatchError(MihaError, ValueError):
    """The given plan differs from the one that the study was started with."""


class RecordError(MihaError, ValueError):
    """An attribute of the study or of a trial has a value that a run does not write."""


class SearchSpaceChangedError(MihaError, ValueError):
    """``model_fn`` suggests other parameters than when the study was started."""


class StorageError(MihaError):
    """The storage of the study cannot be read or written."""


class StudyLockedError(MihaError):
    """Another process or thread is running the study."""


class WorkerError(MihaError):
    """Worker processes or an executor failed to complete a job."""
