"""Which checkpoints exist, and how long."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from optuna_miha._history.lineage import LIBRARY_SIZE, Lineage
from optuna_miha._history.segment import Segment
from optuna_miha._study.checkpoint_store import CheckpointStore
from optuna_miha._training.state import State

Keep: TypeAlias = Literal["final", "trunk", "all"]


class Retention:
    """Writes the checkpoints of a run, hands them out, and removes those of no more use.

    Args:
        store: Where they lie.
        keep: Which of them outlive their use.
        lineage: The record of the run.
        run: A part of the names of the run's files.
    """

    def __init__(self, store: CheckpointStore, keep: Keep, lineage: Lineage, run: str) -> None:
        self._store = store
        self._keep = keep
        self._lineage = lineage
        self._run = run
        self._references = {s.number: s.checkpoint for s in lineage if s.checkpoint is not None}
        self._members = {s.number: s.member for s in lineage if s.member is not None}
        self._states: dict[int, State] = {}

    def write(self, state: State, label: str) -> dict[str, Any]:
        """Write a checkpoint; returns the attribute of a trial by which it is found.

        Args:
            state: What to write.
            label: Beginning of its file's name.
        """
        reference = self._store.save(state, f"{label}-{self._run}")
        return {**reference, "best_epoch": state["best"]["epoch"]}

    def write_member(self, state: State, label: str) -> dict[str, Any] | None:
        """Write the best weights of a segment, if an ensemble may come to want them.

        Whether it does is settled in the end; until then all are written that are among the
        best so far. What remains thus does not hang on the order in which segments end.

        Args:
            state: The state at the end of the segment.
            label: Part of the file's name.

        Returns:
            The attribute of a trial by which they are found; :obj:`None` if nothing was written.
        """
        best, library = state["best"], self._lineage.library()
        if self._keep == "final":
            return None
        if len(library) == LIBRARY_SIZE:
            worst = library[-1].member
            assert worst is not None
            if self._lineage.sign * (best["value"] - worst["value"]) > 0:
                return None
        reference = self._store.save({"weights": best["weights"]}, f"member-{label}-{self._run}")
        return {**reference, "value": best["value"]}

    def add_member(self, segment: Segment) -> None:
        """Take charge of the weights that were written for a segment, if they were."""
        if segment.member is not None:
            self._members[segment.number] = segment.member

    def add(self, number: int, checkpoint: dict[str, Any], state: State) -> None:
        """Take charge of the checkpoint that was written for a trial."""
        self._references[number] = checkpoint
        self._states[number] = state

    def state(self, segment: Segment) -> State:
        """The state at the end of ``segment``, from memory if it is there."""
        if segment.number not in self._states:
            self._states[segment.number] = self._store.load(self._references[segment.number])
        return self._states[segment.number]

    def is_wanted(self, *, winner: bool, new_best: bool) -> bool:
        """Whether a segment that just ended needs a checkpoint."""
        return winner or new_best or self._keep == "all"

    def sweep(self) -> None:
        """Remove what a run that was killed wrote and did not come to record."""
        recorded = {file["id"] for file in (*self._references.values(), *self._members.values())}
        for name in self._store.files().keys() - recorded:
            if f"-{self._run}-" in name:
                self._store.remove({"id": name})

    def clean(self, head: Segment | None) -> None:
        """Remove what neither the run nor the user needs.

        Args:
            head: The segment that the next phase continues.
        """
        heads = [s for s in (head, self._lineage.best()) if s is not None]
        numbers = {s.number for s in heads}
        self._states = {n: state for n, state in self._states.items() if n in numbers}
        checkpoints, members = wanted(self._lineage, self._keep, heads)
        for number in self._members.keys() - members:
            self._store.remove(self._members.pop(number))
        for number in self._references.keys() - checkpoints:
            self._store.remove(self._references.pop(number))


def wanted(lineage: Lineage, keep: Keep, heads: Sequence[Segment]) -> tuple[set[int], set[int]]:
    """The trials whose checkpoints, and those whose best weights, are to be kept.

    Args:
        lineage: The record of the run.
        keep: What outlives its use.
        heads: The segments that the run goes on from, and the best.
    """
    members = {s.number for s in lineage.library()} if keep != "final" else set()
    if keep == "all":
        return {s.number for s in lineage}, members
    kept = heads if keep == "final" else [a for s in heads for a in lineage.ancestry(s)]
    return {s.number for s in kept}, members
