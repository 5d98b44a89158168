"""A trial of the run, as the coordinator writes it."""

from __future__ import annotations

import copy
import datetime
import math
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from optuna_miha._history.segment import violation_of
from optuna_miha._study.optuna_internals import (
    add_finished_trial,
    after_trial,
    constraints_of,
    finish_trial,
    set_system_attr,
    start_trial,
)


class BufferedTrial:
    """A trial that is already in the study, or one that is buffered in memory until it finishes.

    A storage needs one transaction for each report and each attribute of a running trial, but
    only one for a complete finished trial. Trials that are too short to be watched are therefore
    written when they finish.

    Args:
        study: The study.
        running: The running trials of the study by number; kept up to date.
        trial: A trial that exists in the study; :obj:`None` to buffer a new one, for which the
            arguments after ``verify`` are.
        verify: Called before the study is written to; raises an error to prevent it.
        params: Its parameters.
        distributions: Their distributions.
        user_attrs: Its user attributes.
        constraints: Its constraints, as ``Trial.set_constraint`` sets them.
        intermediate_values: Its reported values by step.
    """

    def __init__(
        self,
        study: optuna.Study,
        running: dict[int, optuna.Trial],
        trial: optuna.Trial | None = None,
        *,
        verify: Callable[[], None],
        params: dict[str, Any] | None = None,
        distributions: dict[str, BaseDistribution] | None = None,
        user_attrs: dict[str, Any] | None = None,
        constraints: dict[str, float] | None = None,
        intermediate_values: dict[int, float] | None = None,
    ) -> None:
        self._study = study
        self._running = running
        self._trial = trial
        self._verify = verify
        self._content: dict[str, Any] = {
            "params": params or {},
            "distributions": distributions or {},
            "user_attrs": user_attrs or {},
            "system_attrs": {},
            "constraints": constraints or {},
            "intermediate_values": intermediate_values or {},
        }
        self._last_report = math.nan
        self._start = datetime.datetime.now()
        if trial is not None:
            running[trial.number] = trial

    @property
    def number(self) -> int | None:
        """Its number; :obj:`None` while it is buffered."""
        return None if self._trial is None else self._trial.number

    @property
    def params(self) -> dict[str, Any]:
        """The parameters."""
        return self._content["params"] if self._trial is None else self._trial.params

    @property
    def user_attrs(self) -> dict[str, Any]:
        """The user attributes."""
        return self._content["user_attrs"] if self._trial is None else self._trial.user_attrs

    def publish(self) -> optuna.Trial:
        """Write a buffered trial to the study as a running one.

        Returns:
            The trial in the study.
        """
        if self._trial is None:
            self._verify()
            self._trial = start_trial(self._study, start=self._start, **self._content)
            self._running[self._trial.number] = self._trial
        return self._trial

    def report(self, value: float, step: int) -> None:
        """Report a value; see :meth:`optuna.trial.Trial.report`."""
        self._last_report = value
        if self._trial is None:
            self._content["intermediate_values"][step] = value
        else:
            self._verify()
            self._trial.report(value, step)

    def set_user_attr(self, key: str, value: Any) -> None:
        """Set a user attribute."""
        if self._trial is None:
            self._content["user_attrs"][key] = value
        else:
            self._trial.set_user_attr(key, value)

    def set_curve(self, key: str, values: Any) -> None:
        """Set an attribute with numbers of every epoch, as a system attribute."""
        if self._trial is None:
            self._content["system_attrs"][key] = values
        else:
            set_system_attr(self._study, self._trial, key, values)

    def violation(self, attrs: Mapping[str, Any]) -> float:
        """The sum of the violated constraints, as :meth:`close` would return it now.

        Args:
            attrs: User attributes that are not set before the trial is closed.
        """
        if self._trial is None:
            return violation_of(self._content["constraints"])
        constraints = self._trial.constraints
        function = constraints_of(self._study.sampler)
        if function is not None:
            trials = self._study.get_trials(deepcopy=False)
            frozen = copy.deepcopy(trials[self._trial.number])
            frozen.user_attrs.update(attrs)
            constraints |= {str(key): value for key, value in enumerate(function(frozen))}
        return violation_of(constraints)

    def close(self, state: TrialState, value: float | None = None) -> float:
        """Let the study's sampler process the result of the trial, before :meth:`finish`.

        Args:
            state: The state in which it will finish.
            value: Its value, if it will be complete.

        Returns:
            The sum of the violated constraints.
        """
        if self._trial is None:
            return violation_of(self._content["constraints"])
        value = self._value_in(state, value)
        return violation_of(after_trial(self._study, self._trial, state, value).constraints)

    def finish(self, state: TrialState, value: float | None = None) -> FrozenTrial:
        """Finish the trial, which was closed.

        Args:
            state: The final state.
            value: The value of a complete trial; the value of a pruned trial is its last report.

        Returns:
            The finished trial.
        """
        self._verify()
        value = self._value_in(state, value)
        if self._trial is not None:
            frozen = finish_trial(self._study, self._trial, state, value)
            self._running.pop(frozen.number, None)
            return frozen
        return add_finished_trial(
            self._study, state=state, value=value, start=self._start, **self._content
        )

    def _value_in(self, state: TrialState, value: float | None) -> float | None:
        """The value in a final state, as ``study.tell`` sets it."""
        if state == TrialState.PRUNED and not math.isnan(self._last_report):
            return self._last_report
        return value
