"""Removal of checkpoints that are no longer needed, such as leftovers of killed runs."""

from __future__ import annotations

from dataclasses import dataclass

import optuna

from optuna_miha._history import attributes
from optuna_miha._history.lineage import Lineage
from optuna_miha._history.segment import Segment
from optuna_miha._search.plan import Plan
from optuna_miha._study.checkpoint_store import CheckpointStore
from optuna_miha._study.lease import hold_lease
from optuna_miha._study.retention import Keep, segments_to_keep
from optuna_miha._study.schema import check_run, read_keep, read_lineage
from optuna_miha._study.setup import upcoming_phase


@dataclass(frozen=True, kw_only=True)
class Files:
    """The checkpoint files of a run, with their sizes in bytes by name.

    Args:
        needed: The files that the run continues from or keeps.
        unneeded: All other files.
    """

    needed: dict[str, int]
    unneeded: dict[str, int]


def clean(
    study: optuna.Study, store: CheckpointStore, *, keep: Keep | None = None, dry_run: bool = False
) -> Files:
    """Remove the checkpoints of a run that are no longer needed.

    The best checkpoint and those that an unfinished run continues from are always kept.

    Args:
        study: The study of the run.
        store: The checkpoints.
        keep: Which other checkpoints are kept, as in :func:`~optuna_miha.optimize`; default the
            setting of the last call.
        dry_run: Whether to only list the files.

    Returns:
        The files before the removal.

    Raises:
        StudyLockedError: If another process runs the study.
        RecordError: If an attribute does not have the form that a run writes.
        ValueError: If the study has no run.
    """
    check_run(study)
    with hold_lease(study) as lease:
        files = _classify_files(study, store, keep)
        lease.verify()
        for name in files.unneeded if not dry_run else ():
            store.remove({"id": name})
    return files


def _classify_files(study: optuna.Study, store: CheckpointStore, keep: Keep | None) -> Files:
    lineage = read_lineage(study)
    keep = keep or read_keep(study)
    checkpoints, members = segments_to_keep(lineage, keep, _heads(study, lineage))
    needed = {
        store.own_name(s.checkpoint) for s in lineage if s.checkpoint and s.number in checkpoints
    }
    needed |= {store.own_name(s.member) for s in lineage if s.member and s.number in members}
    # Without an id, the files cannot be told from those of other runs.
    found = {} if store.run_id is None else store.files()
    files = {name: size for name, size in found.items() if store.owns(name)}
    return Files(
        needed={name: size for name, size in files.items() if name in needed},
        unneeded={name: size for name, size in files.items() if name not in needed},
    )


def _heads(study: optuna.Study, lineage: Lineage) -> list[Segment]:
    """The best segment, and those that the run continues from."""
    phase = upcoming_phase(study, Plan(**study.user_attrs[attributes.PLAN]), None, lineage)
    heads = [lineage.best()]
    if phase is not None:
        # The fittest branch of an interrupted population may have finished already.
        heads += [phase.parent, *lineage.group(phase.role, phase.cycle).values()]
    return [segment for segment in heads if segment is not None]
