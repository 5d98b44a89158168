"""The pruner that judges a trial by the slope of its values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from optuna import Study
from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial, TrialState

from optuna_miha._history import attributes
from optuna_miha._history.lineage import sign_of
from optuna_miha.fitness import least_squares_slope

Costs: TypeAlias = Mapping[int, float]


class SlopePruner(BasePruner):
    """Prunes a trial that would not catch up even if it went on improving as it does now.

    The last values are continued along their least-squares line, if it improves, to the end of
    the trial. If what it reaches there is still worse than what the best of its peers has at
    the same step, the trial is cut. Learning curves flatten, so the line promises too much
    rather than too little; and the best of all peers is never cut.

    In a run of :func:`~optuna_miha.optimize` the peers are the siblings of a branch, a trial
    ends with its population, and a branch without siblings is held against its parent's value.
    In any other study the peers are all other trials that got as far as this one, and a trial
    is taken to end where the longest of them ended.

    A trial whose last value is NaN is pruned; other NaN values, and steps that were not
    reported, are passed over. With fewer than two values there is no slope, and no pruning.

    Args:
        n_warmup_steps:
            No pruning before a trial has reported more than this many steps after its first.
        window:
            How many of the last values the line is fitted to; in a run the parent's value at
            birth is not one of them.
        margin:
            A trial is cut only if it stays worse by more than this share of the best peer's
            absolute value.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(self, *, n_warmup_steps: int = 0, window: int = 3, margin: float = 0.0) -> None:
        if n_warmup_steps < 0:
            raise ValueError(f"`n_warmup_steps` must not be negative, got {n_warmup_steps}.")
        if window < 2:
            raise ValueError(f"`window` must be at least 2 for a slope, got {window}.")
        if not margin >= 0:
            raise ValueError(f"`margin` must not be negative, got {margin}.")
        self._n_warmup_steps = n_warmup_steps
        self._window = window
        self._margin = margin

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether ``trial`` should be pruned, given what it and its peers reported."""
        step = trial.last_step
        if step is None:
            return False
        if math.isnan(trial.intermediate_values[step]):
            return True
        sign = sign_of(study.direction)
        return self.is_hopeless(
            _costs(trial, sign),
            [_costs(peer, sign) for peer in _peers(study, trial)],
            birth=trial.user_attrs.get(attributes.BIRTH, -1),
            end=trial.user_attrs.get(attributes.END),
        )

    def is_hopeless(
        self, own: Costs, peers: Sequence[Costs], *, birth: int = -1, end: int | None = None
    ) -> bool:
        """The rule itself, on costs by step: values oriented so that lower is better, no NaN.

        Args:
            own: The costs of the one to be judged, up to now.
            peers: Those of its peers.
            birth: The step at which it inherited its weights; what it cost there is its
                parent's, and not a part of its slope.
            end: The step at which it ends; :obj:`None`: where the longest of its peers ended.
        """
        if not own:
            return False
        step = max(own)
        points = [(float(s), own[s]) for s in sorted(own) if s > birth][-self._window :]
        if len(points) < 2 or step - min(own) < self._n_warmup_steps:
            return False
        as_far = [p for p in peers if p and min(p) <= step <= max(p)]
        if as_far:
            target = min(p[max(s for s in p if s <= step)] for p in as_far)
        elif birth in own:
            target = own[birth]
        else:
            return False
        if end is None:
            end = max((max(p) for p in as_far), default=step)
        slope = least_squares_slope(points)
        gain = min(slope, 0.0) * (end - step) if math.isfinite(slope) else 0.0
        expected = points[-1][1] + gain
        return expected > target + self._margin * abs(target)


def _costs(trial: FrozenTrial, sign: int) -> Costs:
    """Reported values by step, oriented so that lower is better, without NaN."""
    values = sorted(trial.intermediate_values.items())
    return {step: sign * value for step, value in values if not math.isnan(value)}


def _peers(study: Study, trial: FrozenTrial) -> list[FrozenTrial]:
    states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
    others = [
        t for t in study.get_trials(deepcopy=False, states=states) if t.number != trial.number
    ]
    if attributes.ROLE not in trial.user_attrs:
        return others
    return [t for t in others if _position(t) == _position(trial)]


def _position(trial: FrozenTrial) -> tuple[object, ...]:
    keys = (attributes.ROLE, attributes.CYCLE, attributes.PARENT)
    return tuple(trial.user_attrs.get(key) for key in keys)
