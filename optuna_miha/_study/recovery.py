"""What a run can do without checkpoints that are lost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import optuna

from optuna_miha._history import attributes
from optuna_miha._history.lineage import Lineage
from optuna_miha._history.segment import Segment
from optuna_miha._search.plan import Plan
from optuna_miha._study.checkpoint_store import CheckpointStore
from optuna_miha._study.schema import read_lineage, read_lost
from optuna_miha._study.setup import phase_ahead
from optuna_miha.exceptions import CheckpointLostError

_logger = optuna.logging.get_logger("optuna.miha")


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """A record of which all that the run needs is there.

    Args:
        lineage: The record.
        lost: Numbers of the trials that were set aside now, with all that descends from them.
        reasons: What happened to each checkpoint, in words.
    """

    lineage: Lineage
    lost: tuple[int, ...] = ()
    reasons: tuple[str, ...] = ()


def recover(
    study: optuna.Study, plan: Plan, n_epochs: int | None, store: CheckpointStore
) -> Recovery:
    """Find the newest record that the run can go on from. Nothing is written.

    What comes next follows from the record alone. So a segment whose checkpoint is lost is left
    out, with all that descends from it, as if it had not been trained yet: it is trained again
    from its parent, and with the same seed becomes what it was.

    Args:
        study: The study.
        plan: The run's plan.
        n_epochs: The budget asked for.
        store: The checkpoints.

    Raises:
        CheckpointLostError: If not one file of the run is there. It is more likely that they are
            elsewhere than that all are lost, and much would be trained for nothing.
        CheckpointError: If the store cannot be read.
    """
    whole = lineage = read_lineage(study)
    lost: list[int] = []
    reasons: list[str] = []
    # Each round loses a segment, so that the rounds come to an end.
    while (found := _first_lost(_needed(study, plan, n_epochs, lineage), store)) is not None:
        segment, reason = found
        if not reasons and not _is_anything_there(whole, store):
            raise CheckpointLostError(
                f"{reason} Nor is any other file of the study {study.study_name!r} there."
            )
        heirs = _with_heirs(lineage, segment)
        lost += heirs
        # Without the advice, which is for those who only load a result.
        reasons.append(f"trial {segment.number} ({reason.partition(': ')[0]})")
        trials = study.get_trials(deepcopy=False)
        known = (*read_lost(study), *lost)
        lineage = Lineage.from_trials(study.direction, trials, known)
    return Recovery(lineage=lineage, lost=tuple(sorted(lost)), reasons=tuple(reasons))


def record_lost(study: optuna.Study, recovery: Recovery) -> None:
    """Write down what was set aside, and say so."""
    if not recovery.lost:
        return
    study.set_user_attr(attributes.LOST, sorted({*read_lost(study), *recovery.lost}))
    trials = ", ".join(map(str, recovery.lost))
    best = recovery.lineage.best()
    start = "from scratch" if best is None else f"with {recovery.lineage.spent} epochs in hand"
    _logger.warning(
        f"Lost: {'; '.join(recovery.reasons)}. Trials {trials} are set aside "
        f"({attributes.LOST!r} of the study) and trained again: the run goes on {start}."
    )


def _needed(
    study: optuna.Study, plan: Plan, n_epochs: int | None, lineage: Lineage
) -> list[Segment]:
    """The segments that the run continues, or ends with."""
    phase = phase_ahead(study, plan, n_epochs, lineage)
    needed = [] if phase is None else [phase.parent]
    # Of a record from which something was left out, the best may have been tidied away long ago.
    # It is needed only if nothing comes any more.
    if phase is None or not _has_left_out(study, lineage):
        needed.append(lineage.best())
    return [segment for segment in needed if segment is not None]


def _has_left_out(study: optuna.Study, lineage: Lineage) -> bool:
    """Whether trials that ended as segments are not in the record."""
    trials = study.get_trials(deepcopy=False)
    return len(lineage) < len(Lineage.from_trials(study.direction, trials))


def _is_anything_there(lineage: Lineage, store: CheckpointStore) -> bool:
    files = (file for s in lineage for file in (s.checkpoint, s.member) if file is not None)
    return any(store.has(file) for file in files)


def _first_lost(needed: list[Segment], store: CheckpointStore) -> tuple[Segment, str] | None:
    """The first that cannot be had, and why; :obj:`None`: all is well."""
    for segment in needed:
        if segment.checkpoint is None:
            return segment, "Its weights were not kept: another was fitter."
        try:
            store.load(segment.checkpoint)
        except CheckpointLostError as error:
            return segment, str(error)
    return None


def _with_heirs(lineage: Lineage, segment: Segment) -> Iterable[int]:
    """The number of a segment, and of all that descends from it."""
    numbers = {segment.number}
    while True:
        heirs = {s.number for s in lineage if s.parent in numbers}
        if heirs <= numbers:
            return numbers
        numbers |= heirs
