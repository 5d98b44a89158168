"""Whose turn it is: the kinds that the heirs and restarts of earlier cycles have changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from optuna_miha._history.lineage import Lineage
from optuna_miha._history.segment import Segment
from optuna_miha._search.context import SearchContext
from optuna_miha._search.mutation import changed_names
from optuna_miha._search.rounds import is_overfitted
from optuna_miha._search.space import kind_of


@dataclass(frozen=True, kw_only=True)
class Turn:
    """Which mutation an heir or a restart gets.

    Args:
        number: The number of mutations before it, as planned. It seeds the draw.
        index: The index among its mutated siblings, which get different kinds.
        tried: How often earlier cycles have changed each kind.
        regularizes_more: Whether kinds that regularize do so more at their first turn, because
            the parent overfits.
    """

    number: int
    index: int = 0
    tried: Mapping[str, int] = field(default_factory=dict)
    regularizes_more: bool = False


def heir_turn(
    lineage: Lineage, context: SearchContext, parent: Segment | None, cycle: int, branch: int
) -> Turn:
    """The turn of an heir of a round.

    Args:
        lineage: The history, of which only earlier cycles count.
        context: The data that proposals depend on.
        parent: The segment whose best weights it continues.
        cycle: The cycle.
        branch: The branch index of the heir, which is not the control.
    """
    first = context.first_branch
    tried: Counter[str] = Counter()
    for segment in lineage:
        if segment.role == "branch" and segment.cycle < cycle and segment.branch >= first:
            origin = lineage.parent(segment)
            old = context.initial_params if origin is None else origin.params
            tried.update(_changed_kinds(old, segment.params))
    return Turn(
        number=context.visit(cycle, branch),
        index=branch - first,
        tried=tried,
        regularizes_more=parent is not None and is_overfitted(lineage, parent),
    )


def restart_turn(lineage: Lineage, cycle: int, branch: int) -> Turn | None:
    """The turn of a restart; :obj:`None` for the first one, which changes nothing.

    A run makes restarts because its network overfits.

    Args:
        lineage: The history, of which only earlier cycles count.
        cycle: The cycle.
        branch: The branch index of the restart.
    """
    restarts = (s for s in lineage if s.role == "restart" and s.cycle < cycle)
    earlier = sorted(restarts, key=lambda segment: segment.position)
    tried: Counter[str] = Counter()
    for segment in earlier[1:]:
        best = lineage.best_before(segment.cycle)
        if best is not None:
            tried.update(_changed_kinds(best.params, segment.params))
    n_before = len(earlier) + branch
    if n_before == 0:
        return None
    index = branch if earlier else branch - 1
    return Turn(number=n_before - 1, index=index, tried=tried, regularizes_more=True)


def _changed_kinds(old: Mapping[str, Any], new: Mapping[str, Any]) -> set[str]:
    """The kinds that a mutation has changed.

    The learning rate is scaled by the role of a segment and converted to the optimizer. It has
    mutated if nothing else has changed.
    """
    changed = {kind_of(name) for name in changed_names(old, new)}
    if "optimizer" in changed:
        return {"optimizer"}
    return changed - {"lr"} or {"lr"}
