"""The study as Optuna's pruners see it: without a trace of interruptions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optuna
from optuna.pruners import (
    BasePruner,
    MedianPruner,
    NopPruner,
    PatientPruner,
    PercentilePruner,
    ThresholdPruner,
    WilcoxonPruner,
)
from optuna.trial import FrozenTrial, TrialState, create_trial

from optuna_miha._history import attributes
from optuna_miha._history.lineage import Lineage
from optuna_miha._history.segment import Segment
from optuna_miha._model.verbosity import warnings_only
from optuna_miha._search.phases import Phase
from optuna_miha._search.pruner import SlopePruner
from optuna_miha._study.optuna_internals import wrapped_pruner
from optuna_miha._study.sibling import Sibling, last_score_of

_STATELESS = (
    MedianPruner,
    NopPruner,
    PercentilePruner,
    SlopePruner,
    ThresholdPruner,
    WilcoxonPruner,
)


def is_stateless(pruner: BasePruner) -> bool:
    """Whether the decisions of a pruner depend on the trials alone, and it writes nothing.

    Of an unknown class, subclasses included, this is not known.
    """
    if type(pruner) is PatientPruner:
        wrapped = wrapped_pruner(pruner)
        return wrapped is None or is_stateless(wrapped)
    return type(pruner) in _STATELESS


class PrunerView:
    """A study in memory that holds what an undisturbed run holds when a rung is over.

    After an interruption, the study itself holds failed attempts, and siblings that have already
    finished later rungs. The view holds the user's own trials, the segments of earlier phases by
    position, and the siblings with their values up to the rung. Hyperparameters are left out.

    Args:
        study: The study.
        lineage: The history.
        phase: The phase of the siblings.
        siblings: All siblings.
        age: Epochs that those which survived the rung were trained.
    """

    def __init__(
        self,
        study: optuna.Study,
        lineage: Lineage,
        phase: Phase,
        siblings: Sequence[Sibling],
        *,
        age: int,
    ) -> None:
        with warnings_only():
            self._view = optuna.create_study(direction=study.direction)
        self._pruner = study.pruner
        present = {s.segment.number for s in siblings if s.segment is not None}
        earlier = sorted((s for s in lineage if s.number not in present), key=_position)
        trials = [_bare(trial) for trial in study.get_trials(deepcopy=False) if _is_own(trial)]
        trials += [_finished(segment, lineage.parent(segment)) for segment in earlier]
        self._numbers = {s.branch: number for number, s in enumerate(siblings, len(trials))}
        trials += [_under_way(phase, sibling, age) for sibling in siblings]
        self._view.add_trials(trials)

    def is_hopeless(self, sibling: Sibling) -> bool:
        """The decision of the study's pruner about one of the siblings."""
        trial = self._view.get_trials(deepcopy=False)[self._numbers[sibling.branch]]
        return bool(self._pruner.prune(self._view, trial))


def _position(segment: Segment) -> tuple[int, int, int, int]:
    return *segment.position, segment.number


def _is_own(trial: FrozenTrial) -> bool:
    """Whether the user added a trial by other means than a run."""
    is_of_a_run = attributes.ROLE in trial.user_attrs or attributes.ENQUEUED in trial.user_attrs
    return trial.state.is_finished() and not is_of_a_run


def _bare(trial: FrozenTrial) -> FrozenTrial:
    return create_trial(
        state=trial.state,
        value=trial.value,
        intermediate_values=trial.intermediate_values,
        constraints=trial.constraints,
    )


def _finished(segment: Segment, parent: Segment | None) -> FrozenTrial:
    value = segment.value
    if segment.state == TrialState.PRUNED:
        value = segment.scores[-1] if segment.scores else None
    return create_trial(
        state=segment.state,
        value=value,
        user_attrs=_attrs(segment.role, segment.cycle, parent),
        intermediate_values=_reports(segment.scores, parent),
        constraints={"violation": segment.violation},
    )


def _under_way(phase: Phase, sibling: Sibling, age: int) -> FrozenTrial:
    """A sibling as it was when the rung was over."""
    if sibling.segment is not None and not sibling.survives(age):
        return _finished(sibling.segment, sibling.parent)
    scores = sibling.scores if sibling.segment is None else sibling.segment.scores
    span = {attributes.BIRTH: sibling.birth, attributes.END: sibling.birth + phase.n_epochs}
    return create_trial(
        state=TrialState.RUNNING,
        user_attrs=_attrs(phase.role, phase.cycle, sibling.parent) | span,
        intermediate_values=_reports(scores[:age], sibling.parent),
    )


def _attrs(role: str, cycle: int, parent: Segment | None) -> dict[str, Any]:
    """The attributes by which a :class:`SlopePruner` recognizes siblings."""
    number = None if parent is None else parent.number
    return {attributes.ROLE: role, attributes.CYCLE: cycle, attributes.PARENT: number}


def _reports(scores: Sequence[float], parent: Segment | None) -> dict[int, float]:
    birth = 0 if parent is None else parent.end
    reports = {} if parent is None else last_score_of(parent)
    return reports | dict(enumerate(scores, start=birth + 1))
