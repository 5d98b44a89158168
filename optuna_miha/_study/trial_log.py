"""The trials of a run: started, and finished with all that is stored of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import optuna
from optuna.trial import FrozenTrial, TrialState

from optuna_miha._history import attributes
from optuna_miha._history.segment import Segment, segment_of
from optuna_miha._search.phases import Phase
from optuna_miha._search.plan import race_rungs
from optuna_miha._study.buffered_trial import BufferedTrial
from optuna_miha._study.optuna_internals import enqueued_params, tell
from optuna_miha._study.schema import read_lineage
from optuna_miha._study.sibling import Sibling, last_score_of

_logger = optuna.logging.get_logger("optuna.miha")

Callback: TypeAlias = Callable[[optuna.Study, FrozenTrial], None]


class TrialLog:
    """Keeps the study and the record of the run in step.

    Trials of an earlier process that died are failed on construction. Their places are then
    filled again, and get the same proposals.

    Args:
        study: The study.
        seed: The run's seed, noted in every trial.
        callbacks: Called after every trial.
        running: Kept up to date: the running trials by number.

    Attributes:
        lineage: The record of all finished segments.
    """

    def __init__(
        self,
        study: optuna.Study,
        *,
        seed: int,
        callbacks: Sequence[Callback],
        running: dict[int, optuna.Trial],
    ) -> None:
        self._study = study
        self._seed = seed
        self._callbacks = callbacks
        self._running = running
        self.fail_interrupted()
        self.lineage = read_lineage(study)

    def start(
        self, phase: Phase, branch: int, offline: optuna.Trial, mutation: str, *, brief: bool
    ) -> BufferedTrial:
        """The entry for one place of a phase.

        Args:
            phase: The phase.
            branch: The place.
            offline: What was suggested for it.
            mutation: What that changes.
            brief: Whether it is over so soon that nobody could watch it.
        """
        attrs = offline.user_attrs | self._birth_attrs(phase, branch)
        buffered = BufferedTrial(
            self._study,
            self._running,
            params=offline.params,
            distributions=offline.distributions,
            user_attrs=attrs | {attributes.MUTATION: mutation},
            intermediate_values={} if phase.parent is None else last_score_of(phase.parent),
        )
        if not brief:
            buffered.publish()
        return buffered

    def start_undecided(self, phase: Phase, branch: int) -> optuna.Trial:
        """A trial for one place of a phase, whose parameters are up to the study's sampler."""
        reports = {} if phase.parent is None else last_score_of(phase.parent)
        buffered = BufferedTrial(
            self._study,
            self._running,
            user_attrs=self._birth_attrs(phase, branch),
            intermediate_values=reports,
        )
        return buffered.publish()

    def started(self, trial: optuna.Trial) -> BufferedTrial:
        """A trial that was started already."""
        return BufferedTrial(self._study, self._running, trial)

    def admit_enqueued(self, phase: Phase, first: int, n_most: int) -> dict[int, optuna.Trial]:
        """Give trials that the user enqueued a place in a population.

        Args:
            phase: The population.
            first: The first free place.
            n_most: How many the budget has room for; the others go on waiting.

        Returns:
            Trials by place.
        """
        places: dict[int, optuna.Trial] = {}
        waiting = (TrialState.WAITING,)
        while len(places) < n_most and self._study.get_trials(deepcopy=False, states=waiting):
            trial = self._study.ask()
            if attributes.ROLE in trial.user_attrs:
                tell(self._study, trial, state=TrialState.FAIL)  # Somebody copied ours.
                continue
            branch = first + len(places)
            places[branch] = trial
            self._running[trial.number] = trial
            trial.set_user_attr(attributes.ENQUEUED, True)
            self._warn_of_unknown(trial)
            for key, value in self._birth_attrs(phase, branch).items():
                trial.set_user_attr(key, value)
            if phase.parent is not None:
                for step, value in last_score_of(phase.parent).items():
                    trial.report(value, step)
        return places

    def _warn_of_unknown(self, trial: optuna.Trial) -> None:
        asked = enqueued_params(self._study.get_trials(deepcopy=False)[trial.number])
        known = self._study.user_attrs[attributes.SPACE]
        for name in sorted(asked.keys() - known.keys()):
            _logger.warning(
                f"Trial {trial.number} was enqueued with {name!r}, which the initial "
                f"configuration does not suggest; it suggests {', '.join(known)}."
            )

    def complete(
        self,
        sibling: Sibling,
        checkpoint: dict[str, Any] | None,
        member: dict[str, Any] | None,
    ) -> Segment:
        """Record a sibling that trained to its end.

        Args:
            sibling: With its ``state``.
            checkpoint: Where that was written.
            member: Where the best weights alone were written.
        """
        assert sibling.state is not None
        attrs = {attributes.CHECKPOINT: checkpoint, attributes.MEMBER: member}
        value = sibling.state["best"]["value"]
        return self._finish(sibling, TrialState.COMPLETE, attrs, value=value)

    def prune(self, sibling: Sibling, member: dict[str, Any] | None) -> Segment:
        """Record a sibling that was cut; see :meth:`complete`."""
        return self._finish(sibling, TrialState.PRUNED, {attributes.MEMBER: member})

    def fail(self, sibling: Sibling, unfinished: int) -> Segment:
        """Record a sibling that failed.

        Args:
            sibling: With its ``error``.
            unfinished: Epochs that were begun and not finished; they count as trained.
        """
        attrs = {attributes.ERROR: sibling.error}
        return self._finish(sibling, TrialState.FAIL, attrs, unfinished=unfinished)

    def fail_interrupted(self) -> None:
        """Fail the trials that nobody trains any more; guests among them are enqueued again."""
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            attrs = trial.user_attrs
            if attributes.ROLE in attrs or attributes.ENQUEUED in attrs:
                tell(self._study, trial.number, state=TrialState.FAIL)
            if attributes.ENQUEUED in attrs:
                own = {k: v for k, v in attrs.items() if not k.startswith(attributes.PREFIX)}
                self._study.enqueue_trial(enqueued_params(trial), user_attrs=own)

    def _birth_attrs(self, phase: Phase, branch: int) -> dict[str, Any]:
        parent = phase.parent
        birth = 0 if parent is None else parent.end
        n_epochs = phase.n_epochs
        if phase.role == "startup":
            n_epochs = sum(n for _, n in race_rungs(phase.size))
        return {
            attributes.ROLE: phase.role,
            attributes.CYCLE: phase.cycle,
            attributes.BRANCH: branch,
            attributes.PARENT: None if parent is None else parent.number,
            attributes.BIRTH: birth,
            attributes.END: birth + n_epochs,
            attributes.SEED: self._seed,
        }

    def _finish(
        self,
        sibling: Sibling,
        state: TrialState,
        attrs: dict[str, Any],
        *,
        value: float | None = None,
        unfinished: int = 0,
    ) -> Segment:
        """Write what a trial has to say while it still accepts it, then finish it."""
        trial = sibling.trial
        assert trial is not None
        losses = [loss if math.isfinite(loss) else None for loss in sibling.train_losses]
        trial.set_user_attr(attributes.TRAIN_LOSS, losses)
        trial.set_user_attr(attributes.TRAINED, len(sibling.scores) + unfinished)
        if sibling.metrics:
            trial.set_user_attr(attributes.METRICS, sibling.metrics)
        if not math.isnan(sibling.fitness):
            trial.set_user_attr(attributes.FITNESS, sibling.fitness)
        for key, attr in attrs.items():
            if attr is not None:
                trial.set_user_attr(key, attr)
        frozen = trial.finish(state, value)
        segment = segment_of(frozen)
        assert segment is not None
        self.lineage.add(segment)
        sibling.segment, sibling.trial, sibling.state = segment, None, None
        for callback in self._callbacks:
            callback(self._study, frozen)
        return segment
