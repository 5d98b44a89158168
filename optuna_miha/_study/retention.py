"""Which checkpoints are written, and how long they are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

from optuna_miha._history.lineage import LIBRARY_SIZE, Lineage
from optuna_miha._history.segment import Segment
from optuna_miha._study.checkpoint_store import CheckpointStore
from optuna_miha._training.spool import STORED, inherited, references_of
from optuna_miha._training.state import State

Keep: TypeAlias = Literal["final", "trunk", "all"]


class Retention:
    """Writes and loads the checkpoints of a run, and removes those that are no longer needed.

    Args:
        store: The checkpoints.
        keep: Which checkpoints are kept when the run no longer needs them.
        lineage: The history of the run.
        verify: Called before files are written, and before they are removed, when it is known
            which; raises an error to prevent it. Files that are chosen before do not belong to
            a coordinator that takes over afterwards, which does not need them either.
    """

    def __init__(
        self,
        store: CheckpointStore,
        keep: Keep,
        lineage: Lineage,
        verify: Callable[[], None],
    ) -> None:
        self._store = store
        self._keep = keep
        self._lineage = lineage
        self._verify = verify
        self._references = {s.number: s.checkpoint for s in lineage if s.checkpoint is not None}
        self._members = {s.number: s.member for s in lineage if s.member is not None}
        self._states: dict[int, State] = {}

    def write(self, state: State, label: str) -> dict[str, Any]:
        """Write a checkpoint, unless its state is in the store already.

        Args:
            state: The state to save, or a reference to it.
            label: Prefix of the file name.

        Returns:
            A reference to the checkpoint, to be stored in an attribute of the trial.
        """
        self._verify()
        reference = state[STORED] if STORED in state else self._store.save(state, label)
        return {**reference, "best_epoch": state["best"]["epoch"]}

    def write_member(self, state: State, violation: float, label: str) -> dict[str, Any] | None:
        """Write the best weights of a segment if an ensemble may need them.

        During the run, weights are written if they are among the best so far. The files that
        remain in the end therefore do not depend on completion order.

        Args:
            state: The state at the end of the segment.
            violation: The sum of its violated constraints.
            label: Part of the file name.

        Returns:
            A reference to the weights, to be stored in an attribute of the trial; :obj:`None` if
            nothing was written.
        """
        best, library = state["best"], self._lineage.library()
        if self._keep == "final":
            return None
        if len(library) == LIBRARY_SIZE:
            worst = library[-1]
            assert worst.member is not None
            sign = self._lineage.sign
            if (violation, sign * best["value"]) > (worst.violation, sign * worst.member["value"]):
                return None
        self._verify()
        reference = best.get("member")
        if reference is None:
            reference = self._store.save({"weights": best["weights"]}, f"member-{label}")
        return {**reference, "value": best["value"]}

    def add_member(self, segment: Segment) -> None:
        """Manage the best weights of a segment from now on, if they were written."""
        if segment.member is not None:
            self._members[segment.number] = segment.member

    def add(self, number: int, checkpoint: dict[str, Any], state: State) -> None:
        """Manage the checkpoint of a trial from now on, and cache its state."""
        self._references[number] = checkpoint
        self._states[number] = state

    def state(self, segment: Segment, *, from_best: bool = False) -> State:
        """The state that heirs of ``segment`` continue from, or a reference if it is large.

        Args:
            segment: The segment.
            from_best: Whether they begin with its best weights instead of the last ones.
        """
        if segment.number not in self._states:
            reference = self._references[segment.number]
            if "n_bytes" in reference:  # Only large states have it.
                return inherited({STORED: reference}, from_best=from_best)
            self._states[segment.number] = self._store.load_state(reference)
        return inherited(self._states[segment.number], from_best=from_best)

    def release(self, state: State | None) -> None:
        """Remove the files of a state that is not continued, unless they are kept.

        Args:
            state: The state; only a reference has files.
        """
        kept = {file["id"] for file in (*self._references.values(), *self._members.values())}
        for reference in references_of(state):
            if reference["id"] not in kept:
                self._store.remove(reference)

    def needs_checkpoint(self, *, winner: bool, new_best: bool) -> bool:
        """Whether the checkpoint of a finished segment has to be written."""
        return winner or new_best or self._keep == "all"

    def remove_orphans(self) -> None:
        """Remove files of a killed run that no trial refers to."""
        files = (*self._references.values(), *self._members.values())
        known = {self._store.own_name(file) for file in files}
        orphans = [n for n in self._store.files() if self._store.owns(n) and n not in known]
        if orphans:
            self._verify()
        for name in orphans:
            self._store.remove({"id": name})

    def clean(self, head: Segment | None) -> None:
        """Remove the files that neither the run nor the user needs.

        Args:
            head: The segment that the next phase continues from.
        """
        heads = [s for s in (head, self._lineage.best()) if s is not None]
        numbers = {s.number for s in heads}
        self._states = {n: state for n, state in self._states.items() if n in numbers}
        checkpoints, members = segments_to_keep(self._lineage, self._keep, heads)
        unneeded = [self._members.pop(number) for number in self._members.keys() - members]
        unneeded += [self._references.pop(n) for n in self._references.keys() - checkpoints]
        if unneeded:
            self._verify()
        for reference in unneeded:
            self._store.remove(reference)


def segments_to_keep(
    lineage: Lineage, keep: Keep, heads: Sequence[Segment]
) -> tuple[set[int], set[int]]:
    """Select the segments whose files are kept.

    Args:
        lineage: The history of the run.
        keep: Which checkpoints are kept when the run no longer needs them.
        heads: The best segment, and those that the run continues from.

    Returns:
        Numbers of the trials whose checkpoints are kept, and of those whose best weights are kept.
    """
    members = {s.number for s in lineage.library()} if keep != "final" else set()
    if keep == "all":
        return {s.number for s in lineage}, members
    kept = heads if keep == "final" else [a for s in heads for a in lineage.ancestry(s)]
    return {s.number for s in kept}, members
