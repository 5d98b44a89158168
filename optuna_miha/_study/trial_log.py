"""The run's book: asks for trials, and writes what became of them into the study."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import optuna
from optuna.trial import FrozenTrial, TrialState

from optuna_miha._history import attributes
from optuna_miha._history.segment import Segment, segment_of
from optuna_miha._search.phases import Phase
from optuna_miha._search.plan import race_rungs
from optuna_miha._study.buffered_trial import Entry
from optuna_miha._study.optuna_internals import enqueued_params, tell
from optuna_miha._study.schema import read_lineage
from optuna_miha._training.state import State

_logger = optuna.logging.get_logger("optuna.miha")

Callback: TypeAlias = Callable[[optuna.Study, FrozenTrial], None]


@dataclass(eq=False)
class Sibling:
    """A network in training (``entry``), or one that was seen through to its end (``record``).

    Args:
        branch: Its place among its siblings.
        parent: The segment that it started from.
        entry: Its trial, until that is finished.
        record: Its record, afterwards; siblings that an earlier process finished have only it.
        state: Where its training stands.
        scores: The score of each epoch so far.
        train_losses: The training loss of each epoch so far.
        metrics: Further figures of the last epoch, by name.
        fitness: What it is compared by, once it trained to its end.
        error: Why it failed.
    """

    branch: int
    parent: Segment | None = None
    entry: Entry | None = None
    record: Segment | None = None
    state: State | None = None
    scores: list[float] = field(default_factory=list)
    train_losses: list[float] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    fitness: float = math.nan
    error: str | None = None

    @property
    def birth(self) -> int:
        """Epochs that its lineage had behind it."""
        return 0 if self.parent is None else self.parent.end

    @property
    def is_failed(self) -> bool:
        """Whether it went wrong."""
        if self.record is not None:
            return self.record.state == TrialState.FAIL
        return self.error is not None

    def costs(self, sign: int) -> dict[int, float]:
        """Its scores by lineage epoch, the parent's at birth included, as pruners see them.

        Args:
            sign: 1 where the study minimizes, -1 where it maximizes.
        """
        scores = self.scores if self.record is None else self.record.scores
        by_epoch = {} if self.parent is None else _last_score(self.parent)
        by_epoch |= dict(enumerate(scores, start=self.birth + 1))
        return {epoch: sign * score for epoch, score in by_epoch.items()}

    def survives(self, age: int) -> bool:
        """Whether it is still in the running after ``age`` epochs."""
        if self.record is None:
            return self.error is None
        if self.record.state == TrialState.PRUNED:
            # It was alive at the rung where it was cut, and counts there.
            return len(self.record.scores) >= age
        return self.record.state == TrialState.COMPLETE


class Ledger:
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
    ) -> Entry:
        """The entry for one place of a phase.

        Args:
            phase: The phase.
            branch: The place.
            offline: What was suggested for it.
            mutation: What that changes.
            brief: Whether it is over so soon that nobody could watch it.
        """
        attrs = offline.user_attrs | self._birth_attrs(phase, branch)
        entry = Entry(
            self._study,
            self._running,
            params=offline.params,
            distributions=offline.distributions,
            user_attrs=attrs | {attributes.MUTATION: mutation},
            intermediate_values={} if phase.parent is None else _last_score(phase.parent),
        )
        if not brief:
            entry.publish()
        return entry

    def start_undecided(self, phase: Phase, branch: int) -> optuna.Trial:
        """A trial for one place of a phase, whose parameters are up to the study's sampler."""
        reports = {} if phase.parent is None else _last_score(phase.parent)
        entry = Entry(
            self._study,
            self._running,
            user_attrs=self._birth_attrs(phase, branch),
            intermediate_values=reports,
        )
        return entry.publish()

    def entry(self, trial: optuna.Trial) -> Entry:
        """The entry of a trial that was started already."""
        return Entry(self._study, self._running, trial)

    def admit_guests(self, phase: Phase, first: int, n_most: int) -> dict[int, optuna.Trial]:
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
            trial.set_user_attr(attributes.GUEST, True)
            self._warn_of_unknown(trial)
            for key, value in self._birth_attrs(phase, branch).items():
                trial.set_user_attr(key, value)
            if phase.parent is not None:
                for step, value in _last_score(phase.parent).items():
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
        return self._record(sibling, TrialState.COMPLETE, attrs, value=value)

    def prune(self, sibling: Sibling, member: dict[str, Any] | None) -> Segment:
        """Record a sibling that was cut; see :meth:`complete`."""
        return self._record(sibling, TrialState.PRUNED, {attributes.MEMBER: member})

    def fail(self, sibling: Sibling, unfinished: int) -> None:
        """Record a sibling that failed.

        Args:
            sibling: With its ``error``.
            unfinished: Epochs that were begun and not finished; they count as trained.
        """
        attrs = {attributes.ERROR: sibling.error}
        self._record(sibling, TrialState.FAIL, attrs, unfinished=unfinished)

    def fail_interrupted(self) -> None:
        """Fail the trials that nobody trains any more; guests among them are enqueued again."""
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            attrs = trial.user_attrs
            if attributes.ROLE in attrs or attributes.GUEST in attrs:
                tell(self._study, trial.number, state=TrialState.FAIL)
            if attributes.GUEST in attrs:
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

    def _record(
        self,
        sibling: Sibling,
        state: TrialState,
        attrs: dict[str, Any],
        *,
        value: float | None = None,
        unfinished: int = 0,
    ) -> Segment:
        """Write what a trial has to say while it still accepts it, then finish it."""
        entry = sibling.entry
        assert entry is not None
        losses = [loss if math.isfinite(loss) else None for loss in sibling.train_losses]
        entry.set_user_attr(attributes.TRAIN_LOSS, losses)
        entry.set_user_attr(attributes.TRAINED, len(sibling.scores) + unfinished)
        if sibling.metrics:
            entry.set_user_attr(attributes.METRICS, sibling.metrics)
        if not math.isnan(sibling.fitness):
            entry.set_user_attr(attributes.FITNESS, sibling.fitness)
        for key, attr in attrs.items():
            if attr is not None:
                entry.set_user_attr(key, attr)
        frozen = entry.finish(state, value)
        segment = segment_of(frozen)
        assert segment is not None
        self.lineage.add(segment)
        sibling.record, sibling.entry, sibling.state = segment, None, None
        for callback in self._callbacks:
            callback(self._study, frozen)
        return segment


def _last_score(parent: Segment) -> dict[int, float]:
    """What a curve starts from: the parent's last score, at the epoch of birth."""
    return {parent.end: parent.last_score}
