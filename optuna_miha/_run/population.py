"""The siblings of a phase: creating them, and training them rung by rung."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import optuna
from optuna.samplers import BaseSampler

from optuna_miha._history import attributes
from optuna_miha._history.curve import EpochResult
from optuna_miha._history.error_text import describe_error
from optuna_miha._model.model_fn import build_recipe, offline_trial
from optuna_miha._run.epoch_report import EpochReport
from optuna_miha._run.progress import Progress
from optuna_miha._run.session import Session
from optuna_miha._search.learning_rate import Course
from optuna_miha._search.mutation import describe
from optuna_miha._search.phases import Phase, Stretch
from optuna_miha._search.proposals import Proposer
from optuna_miha._search.sampler import MihaSampler
from optuna_miha._search.startup_race import race_cost
from optuna_miha._study.buffered_trial import BufferedTrial
from optuna_miha._study.retention import Retention
from optuna_miha._study.sibling import Sibling
from optuna_miha._study.trial_log import TrialLog
from optuna_miha._training.job import Job
from optuna_miha._training.out_of_memory import is_out_of_memory
from optuna_miha._training.trainer_context import takes_context

_logger = optuna.logging.get_logger("optuna.miha")

_NO_ATTRS: Mapping[str, Any] = MappingProxyType({})

_BRIEF_SECONDS = 30.0
"""Duration of a phase below which its trials are written only when they finish."""


class Population:
    """Creates the siblings of a phase and trains them.

    Args:
        session: The session.
        trial_log: Starts and finishes the trials of the run.
        retention: The checkpoints of the run.
        proposer: Proposes hyperparameters.
        progress: The progress bar, which counts epochs.
    """

    def __init__(
        self,
        session: Session,
        *,
        trial_log: TrialLog,
        retention: Retention,
        proposer: Proposer,
        progress: Progress,
    ) -> None:
        self._study = session.study
        self._plan = session.plan
        self._context = session.context
        self._workers = session.workers
        self._catch = session.arguments.catch
        self._trial_log = trial_log
        self._lineage = trial_log.lineage
        self._retention = retention
        self._proposer = proposer
        self._progress = progress
        self._epoch_callbacks = session.arguments.epoch_callbacks
        self._epoch_seconds: float | None = None
        self._workers.on_running = progress.show_running

    def create_siblings(self, phase: Phase, stretch: Stretch) -> list[Sibling]:
        """Create one sibling for each branch index, and one for each admitted enqueued trial.

        Args:
            phase: The phase.
            stretch: The stretch, whose budget limits the number of admitted enqueued trials.

        Returns:
            The siblings by branch index, including those that an earlier process finished.
        """
        finished = self._lineage.group(phase.role, phase.cycle)
        siblings = [
            Sibling(branch, phase.parent, segment=segment) for branch, segment in finished.items()
        ]
        if phase.role == "branch" and phase.by_step:  # The round has no epochs for more siblings.
            first = 1 if self._plan.control else 0
            free = [b for b in range(first, phase.size) if b not in finished]
            siblings += self._admit_enqueued(phase, free)
        taken = {s.branch for s in siblings}
        siblings += [
            self._create_sibling(phase, branch)
            for branch in range(phase.size)
            if branch not in taken
        ]
        if phase.role == "branch" and not phase.by_step:
            spare = stretch.end - self._lineage.spent - self._plan.population_epochs - 1
            first = max(phase.size, *(s.branch + 1 for s in siblings))
            max_trials = max(0, spare // self._plan.branch_epochs)
            siblings += self._admit_enqueued(phase, range(first, first + max_trials))
        return sorted(siblings, key=lambda s: s.branch)

    def _admit_enqueued(self, phase: Phase, branches: Sequence[int]) -> list[Sibling]:
        admitted = self._trial_log.admit_enqueued(phase, branches)
        return [self._from_trial(phase, branch, trial) for branch, trial in admitted.items()]

    def _create_sibling(self, phase: Phase, branch: int) -> Sibling:
        """Let ``model_fn`` suggest the proposed hyperparameters, and start the trial."""
        sibling = Sibling(branch, phase.parent)
        proposal = self._proposer.propose(phase, branch)
        if proposal is None:
            trial = self._trial_log.start_without_params(phase, branch)
            return self._from_trial(phase, branch, trial)
        offline = offline_trial(proposal.params)
        failure: BaseException | None = None
        try:
            build_recipe(self._context.model_fn, offline, self._context.seed)
        except BaseException as error:
            failure = error
        mutation = (
            describe(self._proposer.reference_params(phase), offline.params) + proposal.origin
        )
        for key, value in proposal.attrs.items():
            offline.set_user_attr(key, value)
        # A trial whose error ends the run stays in the study.
        brief = failure is None and self._is_brief(phase)
        sibling.trial = self._trial_log.start(phase, branch, offline, mutation, brief=brief)
        if failure is not None:
            if not self._fails_only_trial(failure, phase):
                raise failure
            _set_failure(sibling, failure)
        self._inherit_state(phase, sibling)
        return sibling

    def _from_trial(self, phase: Phase, branch: int, trial: optuna.Trial) -> Sibling:
        """Create a sibling from a running trial, with which ``model_fn`` makes suggestions."""
        sibling = Sibling(branch, phase.parent, self._trial_log.wrap(trial))
        try:
            build_recipe(self._context.model_fn, trial, self._context.seed)
        except Exception as error:
            if not self._fails_only_trial(error, phase, trial.user_attrs):
                raise
            _set_failure(sibling, error)
        mutation = describe(self._proposer.reference_params(phase), trial.params)
        trial.set_user_attr(attributes.MUTATION, mutation)
        self._inherit_state(phase, sibling)
        return sibling

    def _is_brief(self, phase: Phase) -> bool:
        """Whether a phase is too short to be watched, at the speed of the last rung.

        Samplers that process each trial, such as those with constraints, need it in the study,
        and a trainer or a callback may log under the trial's number.
        """
        if (
            self._epoch_seconds is None
            or self._epoch_callbacks
            or _processes_trials(self._study.sampler)
        ):
            return False
        trainer = self._context.trainer
        if trainer is not None and takes_context(trainer):
            return False
        n_epochs = phase.size * phase.n_epochs
        if phase.role == "startup" and not phase.by_step:
            n_epochs = race_cost(phase.size)
        return n_epochs * self._epoch_seconds < _BRIEF_SECONDS

    def _inherit_state(self, phase: Phase, sibling: Sibling) -> None:
        """Set the state of a new sibling to that of its parent."""
        if sibling.parent is not None:
            sibling.state = self._retention.state(sibling.parent, from_best=phase.by_step)

    def train(
        self, phase: Phase, siblings: list[Sibling], n_epochs: int, share: tuple[float, float]
    ) -> None:
        """Train the unfinished siblings for one rung, and report their values.

        Args:
            phase: The phase.
            siblings: The siblings that were neither pruned nor failed.
            n_epochs: The number of epochs of the rung.
            share: The fractions of the run's budget at its beginning and its end.
        """
        for sibling in siblings:
            if sibling.trial is not None and sibling.error is not None:
                self._fail(sibling, unfinished=0)
        pending = [(s, s.trial) for s in siblings if s.trial is not None]
        jobs = [
            self._make_job(phase, index, sibling, trial, n_epochs, share)
            for index, (sibling, trial) in enumerate(pending)
        ]
        start = time.monotonic()

        def on_epoch(index: int, result: EpochResult) -> None:
            self._progress.count_epoch(result)
            _report(*pending[index], result)
            if self._epoch_callbacks:
                self._call_back(phase, *pending[index], result)

        outcomes = self._workers.run(jobs, on_epoch)
        n_trained = sum(len(outcome.results) for outcome in outcomes)
        if n_trained:
            self._epoch_seconds = (time.monotonic() - start) / n_trained
        for (sibling, _), outcome in zip(pending, outcomes, strict=True):
            sibling.state, sibling.error = outcome.state, outcome.error
        for (sibling, trial), outcome in zip(pending, outcomes, strict=True):
            error = outcome.exception
            if error is not None and not self._fails_only_trial(error, phase, trial.user_attrs):
                trial.publish()  # A trial whose error ends the run stays in the study.
                raise error
            if outcome.error is not None:
                sibling.is_pruned = isinstance(error, optuna.TrialPruned)
                self._fail(sibling, unfinished=outcome.begun - len(outcome.results))

    def _call_back(
        self, phase: Phase, sibling: Sibling, trial: BufferedTrial, result: EpochResult
    ) -> None:
        """Call the user's epoch callbacks."""
        report = EpochReport(
            number=trial.publish().number,
            role=phase.role,
            cycle=phase.cycle,
            branch=sibling.branch,
            epoch=sibling.birth + len(sibling.scores),
            params=dict(trial.params),
            value=result.score,
            train_loss=result.train_loss,
            metrics=dict(result.metrics),
        )
        for callback in self._epoch_callbacks:
            callback(report)

    def _fails_only_trial(
        self, error: BaseException, phase: Phase, user_attrs: Mapping[str, Any] = _NO_ATTRS
    ) -> bool:
        """Whether an exception ends only its trial, instead of the run.

        ``TrialPruned`` does, as in :meth:`optuna.study.Study.optimize`: ``model_fn`` does not
        accept the values.
        An invalid enqueued trial is a user error, which would otherwise end every attempt to
        resume. A mutation, such as a larger batch size, may need too much memory. Without a
        mutation, memory is used by something else, and the run can be resumed later.
        """
        if isinstance(error, (*self._catch, optuna.TrialPruned)):
            return True
        if is_out_of_memory(error):
            return phase.role not in ("trunk", "final")
        return isinstance(error, Exception) and attributes.ENQUEUED in user_attrs

    def _make_job(
        self,
        phase: Phase,
        index: int,
        sibling: Sibling,
        trial: BufferedTrial,
        n_epochs: int,
        share: tuple[float, float],
    ) -> Job:
        parent = sibling.parent
        return Job(
            params=trial.params,
            state=sibling.state,
            n_epochs=n_epochs,
            anneal=phase.role in ("restart", "final") and self._plan.anneal == "cosine",
            course=_course(phase, sibling),
            patience=self._plan.patience if phase.role == "trunk" else None,
            birth_cost=math.inf if parent is None else self._lineage.sign * parent.last_score,
            index=index,
            role=phase.role,
            cycle=phase.cycle,
            branch=sibling.branch,
            number=trial.number,
            share=share,
        )

    def _fail(self, sibling: Sibling, *, unfinished: int) -> None:
        segment = self._trial_log.fail(sibling, unfinished)
        if sibling.is_pruned:
            _logger.info(f"Trial {segment.number} pruned. {sibling.error}")
        else:
            _logger.warning(f"Trial {segment.number} failed. {sibling.error}")

    def fail_interrupted(self) -> None:
        """Fail the trials that are still running after an interruption."""
        self._trial_log.fail_interrupted()


def _set_failure(sibling: Sibling, error: BaseException) -> None:
    sibling.error = describe_error(error)
    sibling.is_pruned = isinstance(error, optuna.TrialPruned)


def _processes_trials(sampler: BaseSampler) -> bool:
    cls, neutral = type(sampler), (BaseSampler, MihaSampler)
    return all(cls.before_trial is not other.before_trial for other in neutral) or all(
        cls.after_trial is not other.after_trial for other in neutral
    )


def _course(phase: Phase, sibling: Sibling) -> Course | None:
    """The course of the learning rate of a sibling, from the epoch that it has reached."""
    if not phase.by_step:
        return None
    is_fresh = sibling.parent is None
    return Course(n_epochs=phase.n_epochs, begin=len(sibling.scores), is_fresh=is_fresh)


def _report(sibling: Sibling, trial: BufferedTrial, result: EpochResult) -> None:
    sibling.scores.append(result.score)
    sibling.train_losses.append(result.train_loss)
    sibling.add_metrics(result.metrics)
    trial.report(result.score, step=sibling.birth + len(sibling.scores))
