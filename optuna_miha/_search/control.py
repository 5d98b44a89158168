"""The segments without a mutation, with which others are compared."""

from __future__ import annotations

from collections.abc import Sequence

from optuna_miha._history.lineage import Lineage
from optuna_miha._history.segment import Segment
from optuna_miha._search.mutation import NO_CHANGE


def control_of(lineage: Lineage, cycle: int) -> Segment | None:
    """The control of a population; :obj:`None` if there is none, or if it has no values.

    Args:
        lineage: The history.
        cycle: The cycle of the population.
    """
    siblings = lineage.group("branch", cycle).values()
    return next((s for s in siblings if s.mutation == NO_CHANGE and s.scores), None)


def is_initial(segment: Segment) -> bool:
    """Whether a segment is the initial configuration in the start-up race.

    An annealed race raises its learning rate, which its mutation then names.
    """
    is_first = segment.by_step and segment.branch == 0
    return segment.role == "startup" and (segment.mutation == NO_CHANGE or is_first)


def is_without_effect(lineage: Lineage, segment: Segment) -> bool:
    """Whether a mutation changed nothing: the branch equals the control bit for bit.

    Both the validation values and the training losses must be equal, because a metric such as the
    accuracy may stay the same by chance.

    Args:
        lineage: The history.
        segment: A segment of any role; only a branch has a control.
    """
    if segment.role != "branch" or segment.mutation == NO_CHANGE or not segment.scores:
        return False
    control = control_of(lineage, segment.cycle)
    return (
        control is not None
        and _is_start(segment.scores, control.scores)
        and _is_start(segment.train_losses, control.train_losses)
    )


def _is_start(part: Sequence[float | None], whole: Sequence[float | None]) -> bool:
    """Whether ``whole`` starts with ``part``."""
    return tuple(whole[: len(part)]) == tuple(part)
