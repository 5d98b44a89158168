"""A read-only view of a run, from which the figures are drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import optuna
from optuna.study import StudyDirection

from optuna_miha._history import attributes
from optuna_miha._history.lineage import Lineage
from optuna_miha._history.segment import Segment, place_of
from optuna_miha._search.control import is_initial, is_without_effect
from optuna_miha._search.mutation import NO_CHANGE
from optuna_miha._study.schema import read_segments
from optuna_miha.visualization._style import format_mutation, number


@dataclass(frozen=True, kw_only=True)
class RunView:
    """The current state of a run.

    Args:
        lineage: The finished segments.
        trunk:
            The latest winner and its ancestors, the oldest first. After restarts, which no
            segment continues, the best segment and its ancestors.
        winners: Trial numbers of the segments that the run continued, and of the trunk.
        label: Name of the monitored value, for an axis.
        is_loss: Whether the monitored value is minimized.
        final_ends: Lineage epochs at which the learning rate reaches zero, by the trial numbers
            of the segments that anneal it.
    """

    lineage: Lineage
    trunk: tuple[Segment, ...]
    winners: frozenset[int]
    label: str
    is_loss: bool
    final_ends: Mapping[int, int]

    def curve(self, segment: Segment) -> tuple[list[int], list[float]]:
        """Lineage epochs and finite values of a segment, starting at its parent's last value."""
        points = list(enumerate(segment.scores, start=segment.birth + 1))
        parent = self.lineage.parent(segment)
        if parent is not None and parent.scores:
            points.insert(0, (segment.birth, parent.last_score))
        points = [(epoch, value) for epoch, value in points if math.isfinite(value)]
        return [epoch for epoch, _ in points], [value for _, value in points]

    def has_won(self, segment: Segment) -> bool:
        """Whether a segment became the trunk."""
        return segment.number in self.winners

    def hover(self, segment: Segment) -> str:
        """Hover text of a segment: trial, role, outcome, change and fitness."""
        outcome = segment.state.name.lower()
        if outcome == "complete":
            outcome = "won" if self.has_won(segment) else "lost"
        lines = [f"trial {segment.number}: {place_of(segment)}, {outcome}"]
        if segment.role in ("startup", "branch", "restart"):
            lines.append(format_mutation(describe_change(segment)))
        if is_without_effect(self.lineage, segment):
            lines.append("no effect: equal to the control")
        if not math.isnan(segment.fitness):
            lines.append(f"fitness {number(segment.fitness)}")
        return "<br>".join(lines)


def describe_change(segment: Segment) -> str:
    """Describe what a segment changed in its parent's hyperparameters."""
    if segment.mutation != NO_CHANGE:
        return f"{'initial configuration, ' if is_initial(segment) else ''}{segment.mutation}"
    if segment.role == "restart":
        return "the best parameters so far"
    return "initial configuration" if segment.role == "startup" else "control"


def read_run_view(study: optuna.Study, target_name: str | None = None) -> RunView:
    """Read the run in a study.

    Args:
        study: The study.
        target_name: Name of the monitored value; :obj:`None`: derived from the study's metric
            name or its direction.

    Raises:
        TypeError: If ``study`` is not a study.
        ValueError: If the study contains no run, or no finished segment.
        RecordError: If a stored attribute is invalid.
    """
    if not isinstance(study, optuna.Study):
        raise TypeError(f"`study` must be an optuna.Study, got {type(study).__qualname__}.")
    lineage = read_segments(study)
    trials = study.get_trials(deepcopy=False)
    restarts = [s for s in lineage if s.role == "restart"]
    best = lineage.best()
    winners = [
        s for s in lineage if s.role != "restart" and lineage.continued(s.role, s.cycle) is s
    ]
    if not winners:
        raise ValueError(
            f"The study must hold a run with a finished segment, got {study.study_name!r} with "
            f"{len(trials)} trials and no finished segment: call "
            "`optuna_miha.optimize(study, model_fn, ...)` first, or load the study in which it "
            "ran."
        )
    # The final phase is the last of its cycle, even if it starts before the end of the trunk.
    head = max(winners, key=lambda s: (s.cycle, s.role == "final", s.end))
    if restarts and best is not None:
        head = best
    is_loss = study.direction == StudyDirection.MINIMIZE
    label = target_name or (
        f"validation {study.metric_names[0]}"
        if study.metric_names
        else f"validation {'loss' if is_loss else 'metric'}"
    )
    plan = study.user_attrs.get(attributes.PLAN, {})
    finals = [s for s in lineage if s.role == "final" and plan.get("anneal") == "cosine"]
    finals += restarts
    finals += [s for s in lineage if s.by_step and s.role != "restart"]
    trunk = tuple(lineage.ancestry(head))
    return RunView(
        lineage=lineage,
        trunk=trunk,
        winners=frozenset(s.number for s in (*winners, *trunk)),
        label=label,
        is_loss=is_loss,
        final_ends={
            s.number: trials[s.number].user_attrs.get(attributes.END, s.end) for s in finals
        },
    )
