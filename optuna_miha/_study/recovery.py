"""Recovery of a run whose checkpoints are partly lost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import optuna

from optuna_miha._history import attributes
from optuna_miha._history.lineage import Lineage
from optuna_miha._history.segment import Segment
from optuna_miha._search.plan import Plan
from optuna_miha._study.checkpoint_store import CheckpointStore
from optuna_miha._study.claims import fenced_trials
from optuna_miha._study.lease import Lease
from optuna_miha._study.schema import read_lineage, read_lost, read_omitted
from optuna_miha._study.setup import upcoming_phase
from optuna_miha.exceptions import CheckpointLostError

_logger = optuna.logging.get_logger("optuna.miha")


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """A history for which all checkpoints that the run needs exist.

    Args:
        lineage: The history.
        lost: Numbers of the trials to be set aside: those with lost checkpoints, and their
            descendants.
        reasons: For each lost checkpoint, a description of what is wrong with it.
    """

    lineage: Lineage
    lost: tuple[int, ...] = ()
    reasons: tuple[str, ...] = ()


def recover(
    study: optuna.Study, plan: Plan, n_epochs: int | None, store: CheckpointStore
) -> Recovery:
    """Find the newest history that the run can continue. Nothing is written.

    The next phase depends only on the history. A segment whose checkpoint is lost is therefore
    left out together with its descendants. It is trained again from its parent, and with the same
    seed gives the same result.

    Args:
        study: The study.
        plan: The run's plan.
        n_epochs: The requested budget, in epochs.
        store: The checkpoints.

    Raises:
        CheckpointLostError: If no file of the run exists. Then the checkpoints are probably in
            another place, and to train everything again would be a waste.
        CheckpointError: If the store cannot be read.
    """
    complete = lineage = read_lineage(study)
    lost: list[int] = []
    reasons: list[str] = []
    # The loop ends, because each iteration removes at least one segment.
    while (found := _first_lost(_needed(study, plan, n_epochs, lineage), store)) is not None:
        segment, reason = found
        if not reasons and not _has_any_file(complete, store):
            raise CheckpointLostError(
                f"{reason} All other files of the study {study.study_name!r} are missing too."
            )
        lost += _with_descendants(lineage, segment)
        # The advice after the colon is for users who only load a result.
        reasons.append(f"trial {segment.number} ({reason.partition(': ')[0]})")
        trials = study.get_trials(deepcopy=False)
        omitted = read_omitted(study, trials).union(lost)
        lineage = Lineage.from_trials(study.direction, trials, omitted)
    return Recovery(lineage=lineage, lost=tuple(sorted(lost)), reasons=tuple(reasons))


def record_lost(study: optuna.Study, lease: Lease, recovery: Recovery) -> None:
    """Set aside the lost trials in the study, and log a warning."""
    if not recovery.lost:
        return
    lease.verify()
    lease.update({attributes.LOST: sorted({*read_lost(study), *recovery.lost})})
    trials = ", ".join(map(str, recovery.lost))
    best = recovery.lineage.best()
    start = "from scratch" if best is None else f"after {recovery.lineage.spent} trained epochs"
    _logger.warning(
        f"Lost checkpoints: {'; '.join(recovery.reasons)}. Trials {trials} are set aside and "
        f"trained again. The run continues {start}."
    )


def _needed(
    study: optuna.Study, plan: Plan, n_epochs: int | None, lineage: Lineage
) -> list[Segment]:
    """The segments that the run continues from or returns."""
    phase = upcoming_phase(study, plan, n_epochs, lineage)
    needed = [] if phase is None else [phase.parent]
    # If segments are left out of the history, the checkpoint of the best one may have been removed
    # earlier. It is needed only if the run is finished.
    if phase is None or not _has_omissions(study, lineage):
        needed.append(lineage.best())
    return [segment for segment in needed if segment is not None]


def _has_omissions(study: optuna.Study, lineage: Lineage) -> bool:
    """Whether segments of the study were set aside."""
    trials = study.get_trials(deepcopy=False)
    fenced = fenced_trials(study, trials)
    return len(lineage) < len(Lineage.from_trials(study.direction, trials, fenced))


def _has_any_file(lineage: Lineage, store: CheckpointStore) -> bool:
    files = (file for s in lineage for file in (s.checkpoint, s.member) if file is not None)
    return any(store.has(file) for file in files)


def _first_lost(needed: list[Segment], store: CheckpointStore) -> tuple[Segment, str] | None:
    """The first segment whose checkpoint cannot be loaded, with the reason, or :obj:`None`."""
    for segment in needed:
        if segment.checkpoint is None:
            return segment, "Its weights were not kept: a sibling was fitter."
        try:
            store.load_state(segment.checkpoint)
        except CheckpointLostError as error:
            return segment, str(error)
    return None


def _with_descendants(lineage: Lineage, segment: Segment) -> Iterable[int]:
    """Trial numbers of a segment and of all its descendants."""
    numbers = {segment.number}
    while True:
        children = {s.number for s in lineage if s.parent in numbers}
        if children <= numbers:
            return numbers
        numbers |= children
