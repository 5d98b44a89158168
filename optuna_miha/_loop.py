"""The coordinator: it alone decides, and writes to the study."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState

from optuna_miha import _lineage
from optuna_miha._checkpoint import CheckpointStore, State
from optuna_miha._curve import EpochResult
from optuna_miha._lineage import Lineage, Segment, fittest, make_curve
from optuna_miha._model_fn import build_recipe
from optuna_miha._mutation import Params, describe
from optuna_miha._optuna import enqueued_params, is_stopped
from optuna_miha._phases import Phase, Stretch, next_phase
from optuna_miha._plan import Plan, race_rungs
from optuna_miha._progress import Progress
from optuna_miha._segment import Context, Job, Outcome
from optuna_miha._workers import Workers
from optuna_miha.fitness import Fitness, power_law

_logger = optuna.logging.get_logger(__name__)

Keep = Literal["final", "trunk", "all"]
Callback = Callable[[optuna.Study, FrozenTrial], None]


@dataclass(eq=False)
class _Sibling:
    """A network in training, or one that an earlier process saw through to its end."""

    branch: int
    trial: optuna.Trial | None = None
    record: Segment | None = None
    parent: Segment | None = None
    state: State | None = None
    scores: list[float] = field(default_factory=list)
    train_losses: list[float] = field(default_factory=list)
    error: str | None = None
    fitness: float = math.nan

    @property
    def birth(self) -> int:
        return 0 if self.parent is None else self.parent.end


class Coordinator:
    """Runs the phases of a stretch, one after the other, until the budget is spent.

    Args:
        study: The study; everything that happens is written to its trials.
        plan: The plan.
        initial_params: The initial configuration.
        context: What all jobs have in common.
        store: Where checkpoints lie.
        fitness: Scores branches.
        keep: Which checkpoints outlive their use.
        catch: Exceptions of the user's code that fail one trial instead of the run.
        callbacks: Called after every trial.
        deadline: When to stop, on the clock of :func:`time.monotonic`.
    """

    def __init__(
        self,
        study: optuna.Study,
        *,
        plan: Plan,
        initial_params: Params,
        context: Context,
        store: CheckpointStore,
        fitness: Fitness,
        keep: Keep,
        catch: tuple[type[Exception], ...],
        callbacks: Sequence[Callback],
        deadline: float,
    ) -> None:
        self._study = study
        self._plan = plan
        self._initial_params = initial_params
        self._context = context
        self._store = store
        self._fitness = fitness
        self._keep = keep
        self._catch = catch
        self._callbacks = callbacks
        self._deadline = deadline
        self._states: dict[int, State] = {}
        self._guests: list[optuna.Trial] = []
        fail_interrupted(study)
        self.lineage = Lineage.from_trials(study.direction, study.get_trials(deepcopy=False))
        self._stored = {s.number: s.checkpoint for s in self.lineage if s.checkpoint}

    def run(self, stretch: Stretch, workers: Workers, progress: Progress) -> bool:
        """Train until the stretch is over.

        Args:
            stretch: The part of the run to see through.
            workers: Where jobs run.
            progress: Told of every epoch.

        Returns:
            Whether the stretch is over; :obj:`False` if a callback or the deadline ended it.
        """
        try:
            while (phase := next_phase(self._plan, stretch, self.lineage)) is not None:
                if is_stopped(self._study) or time.monotonic() >= self._deadline:
                    return False
                progress.phase(f"cycle {phase.cycle} {phase.role}")
                self._train(phase, stretch, workers, progress)
            return True
        finally:
            with suppress(Exception):  # It is tried again when the study is resumed.
                fail_interrupted(self._study)

    def _train(self, phase: Phase, stretch: Stretch, workers: Workers, progress: Progress) -> None:
        """See one phase through, rung by rung."""
        siblings = self._ask_all(phase, stretch)
        if phase.role == "startup":
            rungs = race_rungs(phase.size)
        else:
            lengths = self._plan.branch_rungs if phase.role == "branch" else (phase.n_epochs,)
            rungs = [(len(siblings), n) for n in lengths]
        alive, age = siblings, 0
        for rung, (_, n_epochs) in enumerate(rungs):
            self._train_rung(phase, alive, n_epochs, workers, progress)
            age += n_epochs
            alive = [s for s in alive if self._survives(s, age)]
            if phase.role == "startup" and rung + 1 < len(rungs):
                alive = self._cut_race(phase, alive, age, rungs[rung + 1][0])
            elif phase.role == "branch" and rung + 1 < len(rungs):
                alive = self._cut_branches(phase, alive)
        self._finish(phase, siblings, alive)

    # --- Asking ---------------------------------------------------------------------------

    def _ask_all(self, phase: Phase, stretch: Stretch) -> list[_Sibling]:
        """One sibling for each place, and one for each trial that the user enqueued."""
        records = self.lineage.group(phase.role, phase.cycle)
        siblings = [
            _Sibling(branch, record=records[branch], parent=phase.parent)
            if branch in records
            else self._ask(phase, branch)
            for branch in range(phase.size)
        ]
        if phase.role == "branch":
            siblings += [
                _Sibling(branch, record=record, parent=phase.parent)
                for branch, record in records.items()
                if branch >= phase.size
            ]
            siblings += self._admit_guests(phase, stretch, first=len(siblings))
        return siblings

    def _ask(self, phase: Phase, branch: int) -> _Sibling:
        """A trial for one place among the siblings."""
        parent = phase.parent
        attrs = self._birth_attrs(phase, branch)
        params: Params = {}
        if phase.role != "startup" and (
            phase.role != "branch" or (self._plan.control and branch == 0)
        ):
            params = self._initial_params if parent is None else parent.params
        elif phase.role == "startup" and branch == 0:
            params = self._initial_params
        self._study.enqueue_trial(params, user_attrs=attrs)
        while True:
            trial = self._study.ask()
            known = trial.user_attrs
            if all(known.get(key) == value for key, value in attrs.items()):
                return self._born(phase, branch, trial)
            if _lineage.ROLE in known:
                # Enqueued by a process that died before it could ask.
                self._tell(trial, state=TrialState.FAIL)
            else:
                trial.set_user_attr(_lineage.GUEST, True)
                self._guests.append(trial)

    def _birth_attrs(self, phase: Phase, branch: int) -> dict[str, Any]:
        parent = phase.parent
        birth = 0 if parent is None else parent.end
        n_epochs = phase.n_epochs
        if phase.role == "startup":
            n_epochs = sum(n for _, n in race_rungs(phase.size))
        return {
            _lineage.ROLE: phase.role,
            _lineage.CYCLE: phase.cycle,
            _lineage.BRANCH: branch,
            _lineage.PARENT: None if parent is None else parent.number,
            _lineage.BIRTH: birth,
            _lineage.END: birth + n_epochs,
            _lineage.SEED: self._context.seed,
        }

    def _admit_guests(self, phase: Phase, stretch: Stretch, first: int) -> list[_Sibling]:
        """Trials that the user enqueued, as far as the budget has room for them."""
        spare = stretch.end - self.lineage.spent - self._plan.population_epochs - 1
        n_admitted = max(0, min(len(self._guests), spare // self._plan.branch_epochs))
        admitted, self._guests = self._guests[:n_admitted], self._guests[n_admitted:]
        siblings = []
        for branch, trial in enumerate(admitted, start=first):
            for key, value in self._birth_attrs(phase, branch).items():
                trial.set_user_attr(key, value)
            siblings.append(self._born(phase, branch, trial))
        return siblings

    def _born(self, phase: Phase, branch: int, trial: optuna.Trial) -> _Sibling:
        """Let ``model_fn`` make its suggestions, and note what they change."""
        parent = phase.parent
        sibling = _Sibling(branch, trial=trial, parent=parent)
        try:
            build_recipe(self._context.model_fn, trial, self._context.seed)
        except self._catch as error:
            sibling.error = f"{type(error).__name__}: {error}"
        old = self._initial_params if parent is None else parent.params
        mutation = describe(old, trial.params)
        if phase.role == "startup" and branch == 0:
            mutation = "initial configuration"
        trial.set_user_attr(_lineage.MUTATION, mutation)
        if parent is not None:
            sibling.state = {k: v for k, v in self._state(parent).items() if k != "best"}
            trial.report(parent.scores[-1], step=parent.end)
        return sibling

    def _state(self, segment: Segment) -> State:
        if segment.number not in self._states:
            assert segment.checkpoint is not None
            self._states[segment.number] = self._store.load(segment.checkpoint)
        return self._states[segment.number]

    # --- Training -------------------------------------------------------------------------

    def _train_rung(
        self,
        phase: Phase,
        siblings: list[_Sibling],
        n_epochs: int,
        workers: Workers,
        progress: Progress,
    ) -> None:
        """Train all siblings that are not recorded yet, then report what they reached."""
        pending = [s for s in siblings if s.trial is not None and s.error is None]
        single = phase.role in ("trunk", "final")
        jobs = [
            Job(
                params=sibling.trial.params,
                state=sibling.state,
                n_epochs=n_epochs,
                anneal=phase.role == "final" and self._plan.anneal is not None,
                patience=self._plan.patience if phase.role == "trunk" else None,
                birth_cost=math.inf
                if sibling.parent is None or not single
                else self.lineage.sign * sibling.parent.scores[-1],
            )
            for sibling in pending
            if sibling.trial is not None
        ]
        outcomes = workers.run(jobs, progress.epoch)
        for sibling, outcome in zip(pending, outcomes, strict=True):
            self._report(sibling, outcome.results)
        for sibling in siblings:
            if sibling.trial is not None and sibling.error is not None:
                self._fail(phase, sibling, begun=0)
        for sibling, outcome in zip(pending, outcomes, strict=True):
            sibling.state = outcome.state
            if outcome.error is not None:
                self._reraise(outcome)
                sibling.error = outcome.error
                self._fail(phase, sibling, begun=outcome.begun - len(outcome.results))

    def _report(self, sibling: _Sibling, results: Sequence[EpochResult]) -> None:
        assert sibling.trial is not None
        for result in results:
            sibling.scores.append(result.score)
            sibling.train_losses.append(result.train_loss)
            sibling.trial.report(result.score, step=sibling.birth + len(sibling.scores))

    def _reraise(self, outcome: Outcome) -> None:
        if outcome.exception is not None and not isinstance(outcome.exception, self._catch):
            raise outcome.exception

    # --- Selecting ------------------------------------------------------------------------

    def _survives(self, sibling: _Sibling, age: int) -> bool:
        """Whether a sibling is still in the race after ``age`` epochs."""
        if sibling.record is None:
            return sibling.error is None
        if sibling.record.state == TrialState.PRUNED:
            # It was alive at the rung where it was cut, and counts there.
            return len(sibling.record.scores) >= age
        return sibling.record.state == TrialState.COMPLETE

    def _cut_race(
        self, phase: Phase, siblings: list[_Sibling], age: int, n_left: int
    ) -> list[_Sibling]:
        """Keep the best by the power law, the lower branch index where they tie."""

        def cost(sibling: _Sibling) -> tuple[float, int]:
            scores = sibling.record.scores if sibling.record else sibling.scores
            curve = make_curve(scores[:age], self.lineage.sign, 0, None)
            return -power_law(curve), sibling.branch

        ranked = sorted(siblings, key=cost)
        for sibling in ranked[n_left:]:
            self._prune(phase, sibling)
        return sorted(ranked[:n_left], key=lambda s: s.branch)

    def _cut_branches(self, phase: Phase, siblings: list[_Sibling]) -> list[_Sibling]:
        """Ask the study's pruner about each, with all values of the rung on record."""
        pruned = [s for s in siblings if s.trial is not None and s.trial.should_prune()]
        for sibling in pruned:
            self._prune(phase, sibling)
        return [s for s in siblings if s.record is None or s.record.state == TrialState.COMPLETE]

    def _finish(self, phase: Phase, siblings: list[_Sibling], alive: list[_Sibling]) -> None:
        """Record those that trained to the end, and keep the checkpoints that are needed."""
        fitness = power_law if phase.role == "startup" else self._fitness
        live = [s for s in alive if s.trial is not None]
        for sibling in live:
            curve = make_curve(sibling.scores, self.lineage.sign, sibling.birth, sibling.parent)
            sibling.fitness = fitness(curve)
        winner = fittest({s.branch: s.record.fitness if s.record else s.fitness for s in alive})
        best = self.lineage.best()
        least = math.inf if best is None else self.lineage.cost(best)
        for sibling in live:
            assert sibling.state is not None
            cost = self.lineage.sign * sibling.state["best"]["value"]
            needed = self._keep == "all" or sibling.branch == winner or cost < least
            least = min(least, cost)
            self._complete(phase, sibling, with_checkpoint=needed)
        chosen = self.lineage.winner(phase.role, phase.cycle)
        self._clean(chosen or phase.parent)
        if phase.role == "branch" and chosen is not None:
            _logger.info(
                f"Cycle {phase.cycle}: {chosen.mutation} (trial {chosen.number}, value "
                f"{chosen.value:.4g})."
            )

    # --- Telling --------------------------------------------------------------------------

    def _complete(self, phase: Phase, sibling: _Sibling, *, with_checkpoint: bool) -> None:
        assert sibling.trial is not None and sibling.state is not None
        best = sibling.state["best"]
        reference: dict[str, Any] | None = None
        if with_checkpoint:
            label = f"trial-{sibling.trial.number:05d}-{phase.role}"
            reference = {**self._store.save(sibling.state, label), "best_epoch": best["epoch"]}
            self._stored[sibling.trial.number] = reference
            self._states[sibling.trial.number] = sibling.state
        self._record(
            phase, sibling, TrialState.COMPLETE, value=best["value"], checkpoint=reference
        )

    def _prune(self, phase: Phase, sibling: _Sibling) -> None:
        if sibling.trial is not None:
            self._record(phase, sibling, TrialState.PRUNED)

    def _fail(self, phase: Phase, sibling: _Sibling, *, begun: int) -> None:
        assert sibling.trial is not None
        _logger.warning(f"Trial {sibling.trial.number} failed. {sibling.error}")
        self._record(phase, sibling, TrialState.FAIL, begun=begun)

    def _record(
        self,
        phase: Phase,
        sibling: _Sibling,
        state: TrialState,
        *,
        value: float | None = None,
        checkpoint: dict[str, Any] | None = None,
        begun: int = 0,
    ) -> None:
        """Write what a finished trial has to say, then finish it."""
        trial = sibling.trial
        assert trial is not None
        attrs: dict[str, Any] = {
            _lineage.TRAINED: len(sibling.scores) + begun,
            _lineage.TRAIN_LOSS: [x if math.isfinite(x) else None for x in sibling.train_losses],
        }
        if not math.isnan(sibling.fitness):
            attrs[_lineage.FITNESS] = sibling.fitness
        if checkpoint is not None:
            attrs[_lineage.CHECKPOINT] = checkpoint
        if state == TrialState.FAIL:
            attrs[_lineage.ERROR] = sibling.error
        for key, attr in attrs.items():
            trial.set_user_attr(key, attr)
        segment = _lineage.segment_of(self._tell(trial, value=value, state=state))
        assert segment is not None
        self.lineage.add(segment)
        sibling.record, sibling.trial, sibling.state = segment, None, None

    def _tell(
        self, trial: optuna.Trial, *, state: TrialState, value: float | None = None
    ) -> FrozenTrial:
        frozen = self._study.tell(trial, value, state)
        for callback in self._callbacks:
            callback(self._study, frozen)
        return frozen

    # --- Checkpoints ----------------------------------------------------------------------

    def _clean(self, head: Segment | None) -> None:
        """Remove the checkpoints that nothing needs any more."""
        best = self.lineage.best()
        needed = {s.number for s in (head, best) if s is not None}
        self._states = {n: state for n, state in self._states.items() if n in needed}
        if self._keep == "all":
            return
        if self._keep == "trunk":
            for segment in (head, best):
                if segment is not None:
                    needed |= {s.number for s in self.lineage.ancestry(segment)}
        for number in [n for n in self._stored if n not in needed]:
            self._store.remove(self._stored.pop(number))


def fail_interrupted(study: optuna.Study) -> None:
    """Fail the trials that nobody trains any more; what the user enqueued is enqueued again."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        attrs = trial.user_attrs
        if _lineage.ROLE in attrs or _lineage.GUEST in attrs:
            study.tell(trial.number, state=TrialState.FAIL)
        if _lineage.GUEST in attrs:
            own = {k: v for k, v in attrs.items() if not k.startswith(_lineage.PREFIX)}
            study.enqueue_trial(enqueued_params(trial), user_attrs=own)
