"""A pruner that extrapolates the values of a trial."""

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
    """Prunes a trial that would stay worse than its best peer even if it kept improving.

    The last values of a trial are extrapolated to its end along their least-squares line, if they
    improve, and as a constant otherwise. The trial is pruned if the extrapolated value is worse
    than the best value of its peers at the present step. Learning curves flatten, so that a line
    is rather too optimistic. The best of all peers is never pruned.

    In a run of :func:`~optuna_miha.optimize`, the peers of a branch are its siblings, and its end
    is that of the population. A branch without siblings is compared with its parent's value. In
    any other study, the peers are all other trials that reached the present step, and the end is
    the last step of the longest of them.

    A trial whose last value is NaN is pruned. Other NaN values and missing steps are ignored.
    With fewer than two values, a trial is not pruned.

    Args:
        n_warmup_steps:
            Number of steps after the first reported one during which a trial is not pruned.
        window:
            Number of last values to which the line is fitted. In a run, the parent's value at
            birth is not one of them.
        margin:
            A trial is pruned only if it would be worse by more than this share of the best peer's
            absolute value.

    Raises:
        ValueError: If an argument is out of range.
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
        """Whether ``trial`` should be pruned, given the reported values of it and its peers."""
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
        """The pruning rule, for costs by step: values oriented so that lower is better, no NaN.

        Args:
            own: The costs of the trial so far.
            peers: The costs of its peers.
            birth: The step at which it inherited its weights. The cost at this step is that of
                its parent, and is not used for the slope.
            end: Its last step; :obj:`None`: the last step of the longest of its peers.
        """
        if not own:
            return False
        step = max(own)
        points = [(float(s), own[s]) for s in sorted(own) if s > birth][-self._window :]
        if len(points) < 2 or step - min(own) < self._n_warmup_steps:
            return False
        compared = [p for p in peers if p and min(p) <= step <= max(p)]
        if compared:
            target = min(p[max(s for s in p if s <= step)] for p in compared)
        elif birth in own:
            target = own[birth]
        else:
            return False
        if end is None:
            end = max((max(p) for p in compared), default=step)
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
    return [t for t in others if _sibling_key(t) == _sibling_key(trial)]


def _sibling_key(trial: FrozenTrial) -> tuple[object, ...]:
    """The attributes that are equal for siblings."""
    keys = (attributes.ROLE, attributes.CYCLE, attributes.PARENT)
    return tuple(trial.user_attrs.get(key) for key in keys)
