"""How the states of jobs reach other processes: by reference, or with the job."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import optuna

from optuna_miha._history.error_text import describe_error
from optuna_miha._training.job import Job
from optuna_miha._training.pickling import pack
from optuna_miha._training.spool import Spool
from optuna_miha._training.state import State

_logger = optuna.logging.get_logger("optuna.miha")

Probe: TypeAlias = Callable[[bytes, dict[str, str]], dict[str, str]]
"""Lets a worker answer the question of a spool, given the packed spool."""


class SentStates:
    """Packs jobs with references to large states, if the workers can reach the store."""

    def __init__(self) -> None:
        self._spool: Spool | None = None
        self._packed_spool: bytes | None = None

    def share(self, spool: Spool, *, is_tried: bool, probe: Probe | None = None) -> None:
        """Use a spool from now on.

        Args:
            spool: The spool.
            is_tried: Whether workers use it too, if they can.
            probe: Finds out whether they can. :obj:`None`: they are on this machine.
        """
        self._spool = spool
        if not is_tried:
            return
        try:
            packed = pack(spool)
            if probe is not None:
                _check(spool, packed, probe)
        except Exception as error:
            _logger.warning(
                "Workers cannot reach the store of the checkpoints, so that the state of every "
                f"network is sent through this process: {describe_error(error)}. Pass a "
                "`checkpoint_dir` on a file system that they share with this process, or an "
                "`artifact_store` that can be serialized."
            )
            return
        self._packed_spool = packed

    def pack(self, job: Job, *, by_value: bool = False) -> tuple[bytes, bytes | None]:
        """Serialize a job for a worker.

        Args:
            job: The job.
            by_value: Whether its worker cannot read the state.

        Returns:
            The packed job, and the packed spool if the worker uses it.

        Raises:
            CheckpointError: If the state cannot be read.
        """
        if self._packed_spool is not None and not by_value:
            return pack(job), self._packed_spool
        state = job.state if self._spool is None else self._spool.load(job.state)
        return pack(replace(job, state=state)), None

    def remove_trained(self, state: State | None) -> None:
        """Delete the files of a state that a job has continued, unless it inherited it."""
        if self._spool is not None:
            self._spool.remove_trained(state)


def _check(spool: Spool, packed: bytes, probe: Probe) -> None:
    question = spool.ask()
    files = [question]
    try:
        files.append(probe(packed, question))
        spool.check(files[-1])
    finally:
        for file in files:
            spool.discard(file)
