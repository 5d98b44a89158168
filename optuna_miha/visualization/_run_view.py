"""What the figures of a run are drawn from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import optuna
from optuna.study import StudyDirection

from optuna_miha._history import attributes
from optuna_miha._history.lineage import Lineage
from optuna_miha._history.segment import Segment
from optuna_miha._search.mutation import NO_CHANGE
from optuna_miha._study.schema import read_segments
from optuna_miha.visualization._style import number, sentence

_ROLES = {
    "startup": "start-up race",
    "branch": "branch",
    "trunk": "trunk",
    "restart": "new training",
    "final": "final phase",
}


@dataclass(frozen=True, kw_only=True)
class RunView:
    """A run as it stands.

    Args:
        lineage: Its finished segments.
        trunk:
            The latest one that was chosen and those that it descends from, the oldest first.
            Where there were new trainings, which nothing grows from, that of the best network.
        winners: Trial numbers of all that became the trunk: the fittest of their siblings, and
            what the final phase brought back, for its value, although it had not been.
        label: What is monitored, for an axis.
        is_loss: Whether it is minimized.
        final_ends: By trial number of a segment whose learning rate falls to zero: the lineage
            epoch at which it gets there.
    """

    lineage: Lineage
    trunk: tuple[Segment, ...]
    winners: frozenset[int]
    label: str
    is_loss: bool
    final_ends: Mapping[int, int]

    def course(self, segment: Segment) -> tuple[list[int], list[float]]:
        """Lineage epochs and finite values of a segment, from its parent's last value on."""
        points = list(enumerate(segment.scores, start=segment.birth + 1))
        parent = self.lineage.parent(segment)
        if parent is not None and parent.scores:
            points.insert(0, (segment.birth, parent.last_score))
        points = [(epoch, value) for epoch, value in points if math.isfinite(value)]
        return [epoch for epoch, _ in points], [value for _, value in points]

    def has_won(self, segment: Segment) -> bool:
        """Whether it became the trunk."""
        return segment.number in self.winners

    def hover(self, segment: Segment) -> str:
        """What is to be known of a segment."""
        place = _ROLES[segment.role]
        if segment.role in ("branch", "trunk"):
            place += f" of cycle {segment.cycle}"
        outcome = segment.state.name.lower()
        if outcome == "complete":
            outcome = "won" if self.has_won(segment) else "lost"
        lines = [f"trial {segment.number}: {place}, {outcome}"]
        if segment.role in ("startup", "branch", "restart"):
            lines.append(sentence(change(segment)))
        if not math.isnan(segment.fitness):
            lines.append(f"fitness {number(segment.fitness)}")
        return "<br>".join(lines)


def change(segment: Segment) -> str:
    """What a segment changed, in words."""
    if segment.mutation != NO_CHANGE:
        return segment.mutation
    if segment.role == "restart":
        return "the best parameters so far"
    return "initial configuration" if segment.role == "startup" else "no change (control)"


def read_run_view(study: optuna.Study, target_name: str | None = None) -> RunView:
    """Read the run that a study holds.

    Args:
        study: The study.
        target_name: What is monitored; :obj:`None`: by the study's metric name, or by its
            direction.

    Raises:
        TypeError: If ``study`` is not a study.
        ValueError: If it holds no run, or none that has finished a segment.
        RecordError: If an attribute is not what a run writes there.
    """
    if not isinstance(study, optuna.Study):
        raise TypeError(f"`study` must be an optuna.Study, got {type(study).__qualname__}.")
    lineage = read_segments(study)
    trials = study.get_trials(deepcopy=False)
    restarts = [s for s in lineage if s.role == "restart"]
    best = lineage.best()
    winners = [s for s in lineage if s.role != "restart" and lineage.winner(s.role, s.cycle) is s]
    if not winners:
        raise ValueError(
            f"The study must hold a run with a finished segment, got {study.study_name!r} with "
            f"{len(trials)} trials and none: call `optuna_miha.optimize(study, model_fn, ...)` "
            "first, or load the study in which it ran."
        )
    # The final phase is the last of its cycle, although it may start before the trunk's end.
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
