"""Errors of their own kind; everything else is a plain ``ValueError`` or ``TypeError``."""

from __future__ import annotations

from optuna.exceptions import OptunaError


class MihaError(OptunaError):
    """Base class of the errors that only this package raises."""


class CheckpointError(MihaError):
    """A checkpoint is missing, or its content is not what the study says it is."""


class CheckpointLostError(CheckpointError):
    """A checkpoint is gone, or is not what was written."""


class FormatError(MihaError):
    """A study was written by a later version, whose record this one cannot read."""


class InheritanceError(MihaError, ValueError):
    """A branch cannot take over the trunk's weights, because the network is not the same."""


class PlanMismatchError(MihaError, ValueError):
    """The plan asked for contradicts the one that the study was started with."""


class RecordError(MihaError, ValueError):
    """An attribute of the study or of a trial is not what a run writes there."""


class SearchSpaceChangedError(MihaError, ValueError):
    """``model_fn`` suggests other parameters than it did when the study was started."""


class StorageError(MihaError):
    """The storage of the study cannot be read or written."""


class StudyLockedError(MihaError):
    """Another process, or another thread, runs the study."""


class WorkerError(MihaError):
    """Worker processes, or an executor, could not see a job through."""
