"""Checkpoints that nothing needs: what runs that were killed, or kept more, left behind."""

from __future__ import annotations

from dataclasses import dataclass

import optuna

from optuna_miha._history import attributes
from optuna_miha._history.lineage import Lineage
from optuna_miha._history.segment import Segment
from optuna_miha._search.plan import Plan
from optuna_miha._study.checkpoint_store import CheckpointStore
from optuna_miha._study.lease import held
from optuna_miha._study.retention import Keep, wanted
from optuna_miha._study.schema import check_run, read_lineage
from optuna_miha._study.setup import phase_ahead


@dataclass(frozen=True, kw_only=True)
class Files:
    """The files of a run: bytes by name.

    Args:
        needed: Those that it goes on from, or that are to be kept.
        unneeded: The others.
    """

    needed: dict[str, int]
    unneeded: dict[str, int]


def clean(
    study: optuna.Study, store: CheckpointStore, *, keep: Keep | None = None, dry_run: bool = False
) -> Files:
    """Remove the checkpoints that nothing needs.

    What a run that is not over goes on from stays in any case, and so does the best.

    Args:
        study: The study of the run.
        store: Its checkpoints.
        keep: What else stays, as in :func:`~optuna_miha.optimize`; :obj:`None`: as the run was
            last told.
        dry_run: Whether nothing is removed.

    Returns:
        The files as they were found.

    Raises:
        StudyLockedError: If somebody runs the study.
        RecordError: If an attribute is not what a run writes there.
        ValueError: If the study holds no run.
    """
    check_run(study)
    with held(study):
        files = _sorted_out(study, store, keep)
        for name in files.unneeded if not dry_run else ():
            store.remove({"id": name})
    return files


def _sorted_out(study: optuna.Study, store: CheckpointStore, keep: Keep | None) -> Files:
    lineage = read_lineage(study)
    kept: Keep = keep or study.user_attrs.get(attributes.KEEP, "trunk")
    checkpoints, members = wanted(lineage, kept, _heads(study, lineage))
    needed = {s.checkpoint["id"] for s in lineage if s.checkpoint and s.number in checkpoints}
    needed |= {s.member["id"] for s in lineage if s.member and s.number in members}
    run, named = study.user_attrs.get(attributes.RUN), _named(study)
    ours = {
        name: size
        for name, size in store.files().items()
        if (run is not None and f"-{run}-" in name) or name in named
    }
    return Files(
        needed={name: size for name, size in ours.items() if name in needed},
        unneeded={name: size for name, size in ours.items() if name not in needed},
    )


def _heads(study: optuna.Study, lineage: Lineage) -> list[Segment]:
    """The segments that the run goes on from, and the best."""
    phase = phase_ahead(study, Plan(**study.user_attrs[attributes.PLAN]), None, lineage)
    found = [lineage.best()]
    if phase is not None:
        # Of a population that was interrupted, the fittest may be on record already.
        found += [phase.parent, *lineage.group(phase.role, phase.cycle).values()]
    return [segment for segment in found if segment is not None]


def _named(study: optuna.Study) -> set[str]:
    """The files that any trial names, those that were set aside included."""
    attrs = [trial.user_attrs for trial in study.get_trials(deepcopy=False)]
    files = [
        a[key] for a in attrs for key in (attributes.CHECKPOINT, attributes.MEMBER) if key in a
    ]
    return {str(file.get("id")) for file in files if isinstance(file, dict)}
