"""Large states in the store of the run, so that jobs and siblings hold references to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import optuna

from optuna_miha._history.curve import EpochResult
from optuna_miha._model.tensors import n_bytes_of
from optuna_miha._training.context import Context
from optuna_miha._training.job import Job, run_job
from optuna_miha._training.outcome import Outcome
from optuna_miha._training.state import State
from optuna_miha._training.state import from_best as from_best_weights
from optuna_miha.exceptions import CheckpointError

_logger = optuna.logging.get_logger("optuna.miha")

LARGE_STATE = 16 * 2**20
"""Bytes of a state from which on it is written to the store of the run, and a reference to it
passed on. Smaller states stay in memory and travel with their jobs: writing and reading them would
take longer than it saves."""

STORED = "stored"
"""The key of the reference, ``{"id": …, "sha256": …, "n_bytes": …}``, in what is passed on instead
of a state. Beside it is ``best`` with the value and the epoch of the best weights, and the
reference to their file. For an heir, :data:`FROM_BEST` takes its place."""

FROM_BEST = "from_best"
"""The key of whether an heir begins with the best weights; see :func:`inherited`."""


class StateStore(Protocol):
    """The store of a run's checkpoints."""

    def save(self, state: State, label: str) -> dict[str, str]:
        """Write a state, and return a reference to it."""
        ...

    def load(self, reference: Mapping[str, str]) -> State:
        """Read any file, and verify its hash."""
        ...

    def load_state(self, reference: Mapping[str, str]) -> State:
        """Read a state, and verify it."""
        ...

    def remove(self, reference: Mapping[str, str]) -> None:
        """Delete a file of the run."""
        ...


class Spool:
    """Writes large states to the store of the run, and reads them from it.

    The last state that was written, and the one that siblings inherit, stay in memory until a
    job needs another one.

    Args:
        store: The store.
        keeps_members: Whether to write the best weights of a segment to a file of their own,
            which an ensemble may need.
    """

    def __init__(self, store: StateStore, *, keeps_members: bool) -> None:
        self._store = store
        self._keeps_members = keeps_members
        self._limit = LARGE_STATE
        self._cache: dict[str, State] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_cache": {}}

    def run(
        self,
        context: Context,
        job: Job,
        on_epoch: Callable[[EpochResult], None] | None = None,
        *,
        writes: bool = True,
    ) -> Outcome:
        """Run a job whose state may be a reference; see :func:`run_job`.

        Args:
            context: The context of the run.
            job: The job.
            on_epoch: As in :func:`run_job`.
            writes: Whether to write a large state.

        Returns:
            The outcome. A large state is written, and replaced by a reference. If it cannot be
            written, it is returned itself, and a warning is logged.

        Raises:
            CheckpointError: If the state of the job cannot be read.
        """
        outcome = run_job(context, replace(job, state=self.load(job.state)), on_epoch)
        state = outcome.state
        # The result of a validation is not continued.
        if not writes or state is None or job.n_epochs == 0 or n_bytes_of(state) < self._limit:
            return outcome
        try:
            stored = self._write(state, file_label(job.role, job.cycle, job.branch))
        except CheckpointError as error:
            _logger.warning(f"A state stays in memory. {error}")
            return outcome
        return replace(outcome, state=stored)

    def load(self, state: State | None) -> State | None:
        """Return the state itself if it is a reference, from memory if it is cached.

        Raises:
            CheckpointLostError: If it is missing or damaged.
            CheckpointError: If the store cannot be read.
        """
        cached = dict(self._cache)
        self._cache.clear()
        if state is None or STORED not in state:
            return state
        reference = state[STORED]
        found = cached.pop(reference["id"], None)
        cached.clear()  # They would occupy memory while a state is read.
        if found is None:
            found = self._store.load_state(reference)
        if "best" in state:  # No sibling continues from it.
            return found
        self._cache[reference["id"]] = found
        return inherited(found, from_best=state[FROM_BEST])

    def remove_trained(self, state: State | None) -> None:
        """Delete the files of a state that a job has continued, unless it inherited it.

        Args:
            state: The state of the job. An heir inherits without the best weights.
        """
        if state is not None and "best" in state:
            self.remove(state)

    def remove(self, state: State | None) -> None:
        """Delete the files of a state that is a reference."""
        for reference in references_of(state):
            self._cache.pop(reference["id"], None)
            self._store.remove(reference)

    def _write(self, state: State, label: str) -> State:
        reference = self._store.save(state, label)
        best = {key: state["best"][key] for key in ("value", "epoch")}
        if self._keeps_members:
            best["member"] = self._store.save(
                {"weights": state["best"]["weights"]}, f"member-{label}"
            )
        self._cache[reference["id"]] = state
        stored = {**reference, "n_bytes": n_bytes_of(state)}
        return {STORED: stored, "best": best}

    def ask(self) -> dict[str, str]:
        """Write a small file, and return the reference for :meth:`answer`."""
        return self._store.save({}, "probe")

    def answer(self, question: Mapping[str, str]) -> dict[str, str]:
        """Read the file that another process wrote, and write one for it.

        Raises:
            CheckpointError: If the store cannot be reached.
        """
        self._store.load(question)
        return self._store.save({}, "probe")

    def check(self, answer: Mapping[str, str]) -> None:
        """Read the answer.

        Raises:
            CheckpointError: If the other process wrote it to another place.
        """
        self._store.load(answer)

    def discard(self, file: Mapping[str, str]) -> None:
        """Delete a question or an answer."""
        self._store.remove(file)


def inherited(state: State, *, from_best: bool) -> State:
    """What an heir gets of a state or of a reference.

    Args:
        state: The state at the end of its parent.
        from_best: Whether it begins with the best weights instead of the last ones.
    """
    if STORED in state:
        return {STORED: state[STORED], FROM_BEST: from_best}
    rest = from_best_weights(state) if from_best else state
    return {k: v for k, v in rest.items() if k != "best"}


def may_be_large(n_bytes: int) -> bool:
    """Whether states of a run may be large, given the size of the state after one step.

    Other optimizers may have a larger state, and the best weights come on top.
    """
    return 4 * n_bytes >= LARGE_STATE


def references_of(state: State | None) -> list[dict[str, str]]:
    """The files of a state that is a reference: the state, and its best weights if written."""
    if state is None or STORED not in state:
        return []
    member = state.get("best", {}).get("member")
    return [state[STORED], *([] if member is None else [member])]


def file_label(role: str, cycle: int, branch: int) -> str:
    """The part of a file name that identifies a sibling."""
    return f"{role}-{cycle:03d}-{branch}"
