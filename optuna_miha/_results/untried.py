"""The parameters that no branch of a run has changed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from optuna_miha._history.lineage import Lineage
from optuna_miha._search.mutation import changed_names
from optuna_miha._search.space import kinds


def untried_kinds(
    lineage: Lineage, initial_params: Mapping[str, Any], mutations: Sequence[str] | None
) -> tuple[str, ...]:
    """The kinds of parameters that could mutate, and that no branch or candidate has changed.

    Args:
        lineage: The history.
        initial_params: The initial configuration.
        mutations: The kinds that may mutate; :obj:`None`: all.
    """
    found: dict[str, list[str]] = {}
    for segment in lineage:
        for kind, names in kinds(segment.distributions).items():
            found.setdefault(kind, []).extend(names)
    changed = {
        name
        for segment in lineage
        if segment.role in ("startup", "branch")  # The others scale the learning rate.
        for name in changed_names(initial_params, segment.params)
        if name in segment.params and name in initial_params
    }
    return tuple(
        kind
        for kind, names in sorted(found.items())
        if (mutations is None or kind in mutations) and changed.isdisjoint(names)
    )


def untried_line(lineage: Lineage, untried: Sequence[str]) -> str | None:
    """Name the kinds that were never tried, and estimate a budget that suffices to try them.

    Args:
        lineage: The history.
        untried: The kinds.

    Returns:
        The line; :obj:`None` if every kind was tried, or if the run had no cycles.
    """
    cycles = {segment.cycle for segment in lineage if segment.role == "branch"}
    mutated = [s for s in lineage if s.role == "branch" and s.branch > 0]
    if not untried or not mutated:
        return None
    missing = math.ceil(len(untried) * len(cycles) / len(mutated))
    budget = lineage.spent * (len(cycles) + missing) / len(cycles)
    rounded = 10 * math.ceil(budget / 10)
    return f"never tried: {', '.join(untried)}; about {rounded} epochs in all would suffice"
