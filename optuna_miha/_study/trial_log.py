"""Starts and finishes the trials of a run, with all their attributes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import optuna
from optuna.trial import FrozenTrial, TrialState

from optuna_miha._history import attributes
from optuna_miha._history.segment import Segment, segment_of
from optuna_miha._search.phases import Phase
from optuna_miha._search.startup_race import race_rungs
from optuna_miha._study.buffered_trial import BufferedTrial
from optuna_miha._study.lease import Lease
from optuna_miha._study.optuna_internals import enqueued_params, tell
from optuna_miha._study.schema import read_lineage
from optuna_miha._study.sibling import Sibling, last_score_of

_logger = optuna.logging.get_logger("optuna.miha")

Callback: TypeAlias = Callable[[optuna.Study, FrozenTrial], None]


class TrialLog:
    """Writes trials to the study, and keeps the history of the run up to date.

    On construction, running trials of an earlier process that died are failed. Their branch
    indices are then trained again with the same proposals.

    Args:
        study: The study.
        lease: The lease of the study, verified before every write.
        seed: The run's seed, stored in every trial.
        callbacks: Called after every trial.
        running: The running trials by number; kept up to date.

    Attributes:
        lineage: The history of all finished segments.
    """

    def __init__(
        self,
        study: optuna.Study,
        *,
        lease: Lease,
        seed: int,
        callbacks: Sequence[Callback],
        running: dict[int, optuna.Trial],
    ) -> None:
        self._study = study
        self._lease = lease
        self._seed = seed
        self._callbacks = callbacks
        self._running = running
        self.fail_interrupted()
        self.lineage = read_lineage(study)

    def start(
        self, phase: Phase, branch: int, offline: optuna.Trial, mutation: str, *, brief: bool
    ) -> BufferedTrial:
        """Start the trial of a sibling.

        Args:
            phase: The phase.
            branch: The branch index.
            offline: A trial outside of the study, with the suggested parameters.
            mutation: A description of the mutation.
            brief: Whether the trial is too short to be watched, and is written when it finishes.
        """
        attrs = offline.user_attrs | self._birth_attrs(phase, branch)
        buffered = BufferedTrial(
            self._study,
            self._running,
            verify=self._lease.verify,
            params=offline.params,
            distributions=offline.distributions,
            user_attrs=attrs | {attributes.MUTATION: mutation},
            constraints=offline.constraints,
            intermediate_values={} if phase.parent is None else last_score_of(phase.parent),
        )
        if not brief:
            buffered.publish()
        return buffered

    def start_without_params(self, phase: Phase, branch: int) -> optuna.Trial:
        """Start the trial of a sibling whose parameters the study's sampler will suggest."""
        reports = {} if phase.parent is None else last_score_of(phase.parent)
        buffered = BufferedTrial(
            self._study,
            self._running,
            verify=self._lease.verify,
            user_attrs=self._birth_attrs(phase, branch),
            intermediate_values=reports,
        )
        return buffered.publish()

    def wrap(self, trial: optuna.Trial) -> BufferedTrial:
        """Wrap a trial that is already running."""
        return BufferedTrial(self._study, self._running, trial, verify=self._lease.verify)

    def admit_enqueued(self, phase: Phase, branches: Sequence[int]) -> dict[int, optuna.Trial]:
        """Add trials that the user enqueued to a population.

        Args:
            phase: The phase of the population.
            branches: Free branch indices, as many as the budget allows. Other trials stay
                enqueued.

        Returns:
            The trials by branch index.
        """
        admitted: dict[int, optuna.Trial] = {}
        waiting = (TrialState.WAITING,)
        while len(admitted) < len(branches) and self._study.get_trials(
            deepcopy=False, states=waiting
        ):
            self._lease.verify()
            trial = self._study.ask()
            if attributes.ROLE in trial.user_attrs:
                tell(self._study, trial, state=TrialState.FAIL)  # A copy of a trial of a run.
                continue
            branch = branches[len(admitted)]
            admitted[branch] = trial
            self._running[trial.number] = trial
            trial.set_user_attr(attributes.ENQUEUED, True)
            self._warn_of_unknown_params(trial)
            for key, value in self._birth_attrs(phase, branch).items():
                trial.set_user_attr(key, value)
            if phase.parent is not None:
                for step, value in last_score_of(phase.parent).items():
                    trial.report(value, step)
        return admitted

    def _warn_of_unknown_params(self, trial: optuna.Trial) -> None:
        enqueued = enqueued_params(self._study.get_trials(deepcopy=False)[trial.number])
        suggested = self._study.user_attrs[attributes.SPACE]
        for name in sorted(enqueued.keys() - suggested.keys()):
            _logger.warning(
                f"Trial {trial.number} was enqueued with {name!r}, which `model_fn` does not "
                f"suggest for the initial configuration. It suggests {', '.join(suggested)}."
            )

    def close(self, sibling: Sibling, state: TrialState, unfinished: int = 0) -> None:
        """Store what training gave, and let the study's sampler process it.

        This precedes selection, because a sampler may find out that a trial is infeasible.

        Args:
            sibling: The sibling, whose ``violation`` is set.
            state: The state in which its trial will finish.
            unfinished: Epochs that were started and not finished. They count as trained.
        """
        trial = sibling.trial
        assert trial is not None
        self._lease.verify()
        for key, value in _outcome_attrs(sibling, unfinished).items():
            trial.set_user_attr(key, value)
        for key, curve in _curves(sibling).items():
            trial.set_curve(key, curve)
        value = None
        if state == TrialState.COMPLETE:
            assert sibling.state is not None
            value = sibling.state["best"]["value"]
        sibling.violation = trial.close(state, value)

    def update_violation(self, sibling: Sibling) -> None:
        """Set the violation of a sibling between two rungs."""
        if sibling.segment is not None:
            sibling.violation = sibling.segment.violation
        elif sibling.trial is not None:
            sibling.violation = sibling.trial.violation(_outcome_attrs(sibling, unfinished=0))

    def complete(
        self,
        sibling: Sibling,
        checkpoint: dict[str, Any] | None,
        member: dict[str, Any] | None,
    ) -> Segment:
        """Finish a sibling whose training is complete, and that is closed.

        Args:
            sibling: The sibling, with its ``state``.
            checkpoint: The reference to its checkpoint, if it was written.
            member: The reference to its best weights, if they were written.
        """
        assert sibling.state is not None
        attrs = {attributes.CHECKPOINT: checkpoint, attributes.MEMBER: member}
        value = sibling.state["best"]["value"]
        return self._finish(sibling, TrialState.COMPLETE, attrs, value=value)

    def prune(self, sibling: Sibling, member: dict[str, Any] | None) -> Segment:
        """Finish a sibling that was pruned and is closed; see :meth:`complete`."""
        return self._finish(sibling, TrialState.PRUNED, {attributes.MEMBER: member})

    def fail(self, sibling: Sibling, unfinished: int) -> Segment:
        """Close and finish a sibling that failed, or that the user's code pruned.

        Args:
            sibling: The sibling, with its ``error``.
            unfinished: Epochs that were started and not finished. They count as trained.
        """
        state = TrialState.PRUNED if sibling.is_pruned else TrialState.FAIL
        self.close(sibling, state, unfinished)
        return self._finish(sibling, state, {attributes.ERROR: sibling.error})

    def fail_interrupted(self) -> None:
        """Fail the running trials of a run that ended; enqueue the user's trials again."""
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            attrs = trial.user_attrs
            self._lease.verify()
            if attributes.ROLE in attrs or attributes.ENQUEUED in attrs:
                tell(self._study, trial.number, state=TrialState.FAIL)
            if attributes.ENQUEUED in attrs:
                own = {k: v for k, v in attrs.items() if not k.startswith(attributes.PREFIX)}
                self._study.enqueue_trial(enqueued_params(trial), user_attrs=own)

    def _birth_attrs(self, phase: Phase, branch: int) -> dict[str, Any]:
        parent = phase.parent
        birth = 0 if parent is None else parent.end
        n_epochs = phase.n_epochs
        if phase.role == "startup" and not phase.by_step:
            n_epochs = sum(n for _, n in race_rungs(phase.size))
        by_step = {attributes.BY_STEP: True} if phase.by_step else {}
        return by_step | {
            attributes.CLAIM: self._lease.claim,
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
    ) -> Segment:
        """Set the remaining attributes of a trial, finish it, and add it to the history."""
        trial = sibling.trial
        assert trial is not None
        self._lease.verify()
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


def _outcome_attrs(sibling: Sibling, unfinished: int) -> dict[str, Any]:
    """What training gave, as user attributes of the trial."""
    attrs: dict[str, Any] = {attributes.TRAINED: len(sibling.scores) + unfinished}
    if sibling.metrics:
        attrs[attributes.METRICS] = sibling.metrics
    if not math.isnan(sibling.fitness):
        attrs[attributes.FITNESS] = sibling.fitness
    return attrs


def _curves(sibling: Sibling) -> dict[str, Any]:
    """The training losses and the other metrics of every epoch, by attribute."""
    losses = [loss if math.isfinite(loss) else None for loss in sibling.train_losses]
    curves: dict[str, Any] = {attributes.TRAIN_LOSS: losses}
    if sibling.metric_curves:
        curves[attributes.METRIC_CURVES] = sibling.metric_curves
    return curves
