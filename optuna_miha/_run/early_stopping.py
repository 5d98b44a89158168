"""Early stopping of a whole run."""

from __future__ import annotations

import optuna
from optuna.trial import FrozenTrial, TrialState

from optuna_miha._history import attributes
from optuna_miha._history.lineage import sign_of


class EarlyStopping:
    """Stops a run after cycles without a new best value: a callback of :func:`optimize`.

    The run ends after the phase in which the last of these cycles ends. The remaining budget,
    including that of the final phase, is not spent. Another call of :func:`optimize` without this
    callback spends it.

    Args:
        patience: Cycles without a new best value.

    Raises:
        ValueError: If ``patience`` is not a positive integer.
    """

    def __init__(self, patience: int) -> None:
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
            raise ValueError(f"`patience` must be a positive number of cycles, got {patience!r}.")
        self._patience = patience

    def __call__(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Stop the study if the patience is exhausted."""
        role, cycle = (trial.user_attrs.get(k) for k in (attributes.ROLE, attributes.CYCLE))
        if role not in ("branch", "trunk") or cycle is None:
            return
        complete = [
            t
            for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            if attributes.CYCLE in t.user_attrs and t.value is not None
        ]
        if not complete:
            return
        sign = sign_of(study.direction)
        best = min(complete, key=lambda t: (sign * t.values[0], t.number))
        age = cycle - best.user_attrs[attributes.CYCLE]
        # The trunk trains last in a cycle, if it trains alone at all.
        if age > self._patience or (age == self._patience and role == "trunk"):
            study.stop()
