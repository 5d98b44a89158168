"""A trial of the run, as the coordinator writes it."""

from __future__ import annotations

import datetime
import math
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from optuna_miha._study.optuna_internals import add_finished_trial, start_trial, tell


class BufferedTrial:
    """A trial that was started already, or that is kept in memory until it is over.

    A storage takes one transaction for each report and each attribute of a trial, but also one
    for a whole trial that is over: what is too brief to be watched is written so.

    Args:
        study: The study.
        running: Kept up to date: the running trials of the study by number.
        trial: The trial; :obj:`None`: it is yet to be written.
        params: Its parameters, if it is yet to be written, as are the others below.
        distributions: Their distributions.
        user_attrs: What is known of it.
        intermediate_values: What was reported of it.
    """

    def __init__(
        self,
        study: optuna.Study,
        running: dict[int, optuna.Trial],
        trial: optuna.Trial | None = None,
        *,
        params: dict[str, Any] | None = None,
        distributions: dict[str, BaseDistribution] | None = None,
        user_attrs: dict[str, Any] | None = None,
        intermediate_values: dict[int, float] | None = None,
    ) -> None:
        self._study = study
        self._running = running
        self._trial = trial
        self._content: dict[str, Any] = {
            "params": params or {},
            "distributions": distributions or {},
            "user_attrs": user_attrs or {},
            "intermediate_values": intermediate_values or {},
        }
        self._start = datetime.datetime.now()
        if trial is not None:
            running[trial.number] = trial

    @property
    def params(self) -> dict[str, Any]:
        """Its parameters."""
        return self._content["params"] if self._trial is None else self._trial.params

    @property
    def user_attrs(self) -> dict[str, Any]:
        """What is known of it."""
        return self._content["user_attrs"] if self._trial is None else self._trial.user_attrs

    def publish(self) -> optuna.Trial:
        """The trial, which is written now if it is not yet."""
        if self._trial is None:
            self._trial = start_trial(self._study, start=self._start, **self._content)
            self._running[self._trial.number] = self._trial
        return self._trial

    def report(self, value: float, step: int) -> None:
        """Report a value; see :meth:`optuna.trial.Trial.report`."""
        if self._trial is None:
            self._content["intermediate_values"][step] = value
        else:
            self._trial.report(value, step)

    def set_user_attr(self, key: str, value: Any) -> None:
        """Set an attribute."""
        if self._trial is None:
            self._content["user_attrs"][key] = value
        else:
            self._trial.set_user_attr(key, value)

    def finish(self, state: TrialState, value: float | None = None) -> FrozenTrial:
        """Finish it.

        Args:
            state: What became of it.
            value: Its value, if it is complete; a pruned trial gets its last report.
        """
        if self._trial is not None:
            frozen = tell(self._study, self._trial, value, state)
            self._running.pop(frozen.number, None)
            return frozen
        reports = self._content["intermediate_values"]
        if state == TrialState.PRUNED and reports and not math.isnan(reports[max(reports)]):
            value = reports[max(reports)]  # As `study.tell` does.
        return add_finished_trial(
            self._study, state=state, value=value, start=self._start, **self._content
        )
