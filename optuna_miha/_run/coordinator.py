"""The coordinator: it alone decides what is trained and who wins."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any

import optuna
from optuna.trial import TrialState

from optuna_miha._history import attributes
from optuna_miha._history.curve import EpochResult
from optuna_miha._history.lineage import ranking
from optuna_miha._history.scalars import as_float
from optuna_miha._history.segment import make_curve
from optuna_miha._model.model_fn import build_recipe, offline_trial
from optuna_miha._run.averaging import average_fittest
from optuna_miha._run.progress import Progress
from optuna_miha._search.crossover import AverageWeights, Crossover
from optuna_miha._search.mutation import Params, describe
from optuna_miha._search.phases import Phase, Stretch, next_phase
from optuna_miha._search.plan import Plan, race_cost, race_rungs
from optuna_miha._search.proposals import Proposals
from optuna_miha._search.pruner import SlopePruner
from optuna_miha._search.sampler import Run
from optuna_miha._study.buffered_trial import Entry
from optuna_miha._study.lease import Lease
from optuna_miha._study.optuna_internals import is_stopped
from optuna_miha._study.retention import Keeper
from optuna_miha._study.trial_log import Ledger, Sibling
from optuna_miha._training.job import Context, Job, Outcome
from optuna_miha._training.out_of_memory import is_out_of_memory
from optuna_miha._training.pools import Workers
from optuna_miha.fitness import Fitness, last_value, power_law

_logger = optuna.logging.get_logger("optuna.miha")

_NOTHING: Mapping[str, Any] = MappingProxyType({})

_BRIEF = 30.0
"""Seconds. The trials of a phase that takes less are written when they are over."""


class Coordinator:
    """Runs the phases of a stretch, one after the other, until the budget is spent.

    Args:
        study: The study.
        ledger: Its record.
        keeper: Its checkpoints.
        plan: The plan.
        run: What proposals depend on, the initial configuration among it.
        context: What all jobs have in common.
        workers: Where jobs run.
        progress: Told of every epoch.
        fitness: Scores branches.
        crossover: What becomes of the two fittest branches together.
        catch: Exceptions of the user's code that fail one trial instead of the run.
        deadline: When to stop, on the clock of :func:`time.monotonic`.
        lease: The right to run the study; without it the run ends before its next phase.
        after_cycle: Called when the branches of a cycle are over.
    """

    def __init__(
        self,
        study: optuna.Study,
        *,
        ledger: Ledger,
        keeper: Keeper,
        plan: Plan,
        run: Run,
        context: Context,
        workers: Workers,
        progress: Progress,
        fitness: Fitness,
        crossover: Crossover | AverageWeights | None,
        catch: tuple[type[Exception], ...],
        deadline: float,
        lease: Lease,
        after_cycle: Callable[[], None],
    ) -> None:
        self._study = study
        self._ledger = ledger
        self._lineage = ledger.lineage
        self._keeper = keeper
        self._plan = plan
        self._proposals = Proposals(
            study, lineage=ledger.lineage, plan=plan, run=run, crossover=crossover
        )
        self._context = context
        self._workers = workers
        self._progress = progress
        self._fitness = fitness
        self._crossover = crossover
        self._catch = catch
        self._deadline = deadline
        self._lease = lease
        self._after_cycle = after_cycle
        self._epoch_seconds: float | None = None

    def run(self, stretch: Stretch) -> None:
        """Train until the stretch is over, a callback stops the study, or time is up."""
        try:
            while (phase := next_phase(self._plan, stretch, self._lineage)) is not None:
                if is_stopped(self._study) or time.monotonic() >= self._deadline:
                    break
                self._lease.check()
                self._progress.phase(f"cycle {phase.cycle} {phase.role}")
                self._see_through(phase, stretch)
                self._study.set_user_attr(attributes.SPENT, self._lineage.spent)
                if phase.role == "branch":
                    self._after_cycle()
            else:
                self._keeper.clean(self._lineage.best())
                self._tell_of_unspent(stretch)
        finally:
            with suppress(Exception):  # It is tried again when the study is resumed.
                if self._lease.is_mine():  # Who took over trains by now.
                    self._ledger.fail_interrupted()

    def _tell_of_unspent(self, stretch: Stretch) -> None:
        """Warn if the final phase failed and left epochs over."""
        unspent = stretch.end - self._lineage.spent
        present = [s for s in self._lineage if s.cycle >= stretch.first_cycle]
        finals = [s for s in present if s.role == "final"]
        if unspent <= 0 or not finals or finals[-1].state != TrialState.FAIL:
            return
        if self._lineage.best() is None:
            return  # There is no result, which says more.
        last = self._study.get_trials(deepcopy=False)[finals[-1].number]
        _logger.warning(
            f"The final phase failed (trial {last.number}: {last.user_attrs[attributes.ERROR]}), "
            f"and {unspent} of {stretch.end} epochs are unspent: a larger `n_epochs` goes on from "
            "the best network."
        )

    def _see_through(self, phase: Phase, stretch: Stretch) -> None:
        """One phase: the siblings train rung by rung, and between rungs some are cut."""
        siblings = self._gather(phase, stretch)
        rungs = self._rungs(phase)
        alive, age = siblings, 0
        for rung, n_epochs in enumerate(rungs, start=1):
            self._train(phase, alive, n_epochs)
            age += n_epochs
            alive = [s for s in alive if s.survives(age)]
            if rung < len(rungs):
                for sibling in self._hopeless(phase, siblings, alive, age, rung):
                    self._prune(phase, sibling)
                alive = [s for s in alive if s.survives(age + 1)]
        self._select(phase, alive)

    def _rungs(self, phase: Phase) -> tuple[int, ...]:
        """Epochs of each rung."""
        if phase.role == "startup":
            return tuple(n_epochs for _, n_epochs in race_rungs(phase.size))
        return self._plan.branch_rungs if phase.role == "branch" else (phase.n_epochs,)

    def _gather(self, phase: Phase, stretch: Stretch) -> list[Sibling]:
        """One sibling for each place, and one for each trial that the user enqueued."""
        records = self._lineage.group(phase.role, phase.cycle)
        siblings = [
            Sibling(branch, phase.parent, record=record) for branch, record in records.items()
        ]
        siblings += [
            self._born(phase, branch) for branch in range(phase.size) if branch not in records
        ]
        if phase.role == "branch":
            spare = stretch.end - self._lineage.spent - self._plan.population_epochs - 1
            first = max(phase.size, *(s.branch + 1 for s in siblings))
            n_most = max(0, spare // self._plan.branch_epochs)
            for branch, trial in self._ledger.admit_guests(phase, first, n_most).items():
                siblings.append(self._admitted(phase, branch, trial))
        return sorted(siblings, key=lambda s: s.branch)

    def _born(self, phase: Phase, branch: int) -> Sibling:
        """A new sibling: let ``model_fn`` make its suggestions, and start the trial."""
        sibling = Sibling(branch, phase.parent)
        child = self._proposals.child(phase, branch)
        proposed = self._proposals.of(phase, branch) if child is None else child.params
        if proposed is None:
            return self._admitted(phase, branch, self._ledger.start_undecided(phase, branch))
        offline = offline_trial(proposed)
        failure: BaseException | None = None
        try:
            build_recipe(self._context.model_fn, offline, self._context.seed)
        except BaseException as error:
            failure = error
        mutation = describe(self._proposals.before(phase), offline.params)
        if child is not None:
            mutation = f"{mutation} by crossover"
            offline.set_user_attr(attributes.CROSSOVER, list(child.parents))
        # An error that ends the run leaves its trace.
        brief = failure is None and self._is_brief(phase)
        sibling.entry = self._ledger.start(phase, branch, offline, mutation, brief=brief)
        if failure is not None:
            if not self._fails_alone(failure, phase):
                raise failure
            sibling.error = f"{type(failure).__name__}: {failure}"
        return self._inheriting(sibling)

    def _admitted(self, phase: Phase, branch: int, trial: optuna.Trial) -> Sibling:
        """A sibling whose trial is there already: ``model_fn`` makes its suggestions on it."""
        sibling = Sibling(branch, phase.parent, self._ledger.entry(trial))
        try:
            build_recipe(self._context.model_fn, trial, self._context.seed)
        except Exception as error:
            if not self._fails_alone(error, phase, trial.user_attrs):
                raise
            sibling.error = f"{type(error).__name__}: {error}"
        trial.set_user_attr(
            attributes.MUTATION, describe(self._proposals.before(phase), trial.params)
        )
        return self._inheriting(sibling)

    def _is_brief(self, phase: Phase) -> bool:
        """Whether a phase will be over, going by the last one, before anybody could watch it."""
        if self._epoch_seconds is None:
            return False
        n_epochs = phase.size * phase.n_epochs
        if phase.role == "startup":
            n_epochs = race_cost(phase.size)
        return n_epochs * self._epoch_seconds < _BRIEF

    def _inheriting(self, sibling: Sibling) -> Sibling:
        """The same with the state of its parent."""
        if sibling.parent is not None:
            state = self._keeper.state(sibling.parent)
            sibling.state = {k: v for k, v in state.items() if k != "best"}
        return sibling

    def _train(self, phase: Phase, siblings: list[Sibling], n_epochs: int) -> None:
        """Train those that are not recorded yet, then report what they reached."""
        for sibling in siblings:
            if sibling.entry is not None and sibling.error is not None:
                self._fail(sibling, unfinished=0)
        pending = [(s, s.entry) for s in siblings if s.entry is not None]
        jobs = [
            self._job(phase, place, sibling, entry.params, n_epochs)
            for place, (sibling, entry) in enumerate(pending)
        ]
        start = time.monotonic()

        def on_epoch(place: int, result: EpochResult) -> None:
            self._progress.epoch(result)
            self._report(*pending[place], result)

        outcomes = self._workers.run(jobs, on_epoch)
        n_trained = sum(len(outcome.results) for outcome in outcomes)
        if n_trained:
            self._epoch_seconds = (time.monotonic() - start) / n_trained
        for (sibling, _), outcome in zip(pending, outcomes, strict=True):
            sibling.state, sibling.error = outcome.state, outcome.error
        for (sibling, entry), outcome in zip(pending, outcomes, strict=True):
            error = outcome.exception
            if error is not None and not self._fails_alone(error, phase, entry.user_attrs):
                entry.publish()  # An error that ends the run leaves its trace.
                raise error
            if outcome.error is not None:
                self._fail(sibling, unfinished=outcome.begun - len(outcome.results))

    def _fails_alone(
        self, error: BaseException, phase: Phase, user_attrs: Mapping[str, Any] = _NOTHING
    ) -> bool:
        """Whether an exception fails a trial alone, instead of ending the run.

        A guest that cannot be is the user's slip, and must not end every attempt to resume. A
        change may ask for too much memory, a larger batch above all; where nothing was changed,
        something else takes up the room, and the run had better be resumed without it.
        """
        if isinstance(error, self._catch):
            return True
        if is_out_of_memory(error):
            return phase.role not in ("trunk", "final")
        return isinstance(error, Exception) and attributes.GUEST in user_attrs

    def _job(
        self, phase: Phase, place: int, sibling: Sibling, params: Params, n_epochs: int
    ) -> Job:
        parent = sibling.parent
        return Job(
            params=params,
            state=sibling.state,
            n_epochs=n_epochs,
            anneal=phase.role in ("restart", "final") and self._plan.anneal is not None,
            patience=self._plan.patience if phase.role == "trunk" else None,
            birth_cost=math.inf if parent is None else self._lineage.sign * parent.last_score,
            place=place,
        )

    def _report(self, sibling: Sibling, entry: Entry, result: EpochResult) -> None:
        sibling.scores.append(result.score)
        sibling.train_losses.append(result.train_loss)
        sibling.metrics = {k: v for k, v in result.metrics.items() if math.isfinite(v)}
        entry.report(result.score, step=sibling.birth + len(sibling.scores))

    def _fail(self, sibling: Sibling, *, unfinished: int) -> None:
        self._ledger.fail(sibling, unfinished)
        assert sibling.record is not None
        _logger.warning(f"Trial {sibling.record.number} failed. {sibling.error}")

    def _prune(self, phase: Phase, sibling: Sibling) -> None:
        """Record a sibling that is cut; one that is recorded already stays as it is."""
        if sibling.entry is not None:
            assert sibling.state is not None
            member = self._keeper.write_member(sibling.state, _label(phase, sibling))
            self._keeper.add_member(self._ledger.prune(sibling, member))

    def _hopeless(
        self, phase: Phase, siblings: list[Sibling], alive: list[Sibling], age: int, rung: int
    ) -> list[Sibling]:
        """Those to be cut after a rung, judged when all of them have finished it."""
        if phase.role != "startup":
            # Decided for all before any is told, so that no decision hangs on the order. The
            # control stays: without it, a branch that falls off later would win by default.
            first = 1 if self._plan.control else 0
            judged = [s for s in alive if s.entry is not None and s.branch >= first]
            return [s for s in judged if self._is_hopeless(s, siblings)]

        def rank(sibling: Sibling) -> tuple[float, int]:
            scores = sibling.record.scores if sibling.record else sibling.scores
            curve = make_curve(scores[:age], self._lineage.sign, 0, None)
            return -power_law(curve), sibling.branch

        n_left, _ = race_rungs(phase.size)[rung]
        return sorted(alive, key=rank)[n_left:]

    def _is_hopeless(self, sibling: Sibling, siblings: list[Sibling]) -> bool:
        """What the study's pruner says; ours is asked without a detour by the storage."""
        pruner = self._study.pruner
        if not isinstance(pruner, SlopePruner):
            assert sibling.entry is not None
            return sibling.entry.publish().should_prune()
        sign = self._lineage.sign
        return pruner.is_hopeless(
            sibling.costs(sign),
            [s.costs(sign) for s in siblings if s is not sibling and not s.is_failed],
            birth=sibling.birth,
            end=sibling.birth + self._plan.branch_epochs,
        )

    def _select(self, phase: Phase, alive: list[Sibling]) -> None:
        """Choose the fittest, record all that trained to the end, and tidy up."""
        by_role = {"startup": power_law, "branch": self._fitness}
        fitness = by_role.get(phase.role, last_value)  # Those without rivals win anyway.
        for sibling in alive:
            if sibling.record is not None:
                sibling.fitness = sibling.record.fitness
                continue
            curve = make_curve(sibling.scores, self._lineage.sign, sibling.birth, sibling.parent)
            sibling.fitness = as_float(fitness(curve), "What `fitness` returns")
        by_branch = {s.branch: s for s in alive}
        ranked = [by_branch[b] for b in ranking({b: s.fitness for b, s in by_branch.items()})]
        winner = ranked[0] if ranked else None
        if phase.role == "branch" and isinstance(self._crossover, AverageWeights):
            average_fittest(ranked, self._validate, sign=self._lineage.sign, catch=self._catch)
        pending = [s for s in alive if s.entry is not None and s.state is not None]
        # The winner first, then those of the lowest cost: were the run killed in between, what is
        # on record alone would decide, and all that it could choose has a checkpoint. Two are
        # written at most.
        for sibling in sorted(pending, key=lambda s: (s is not winner, self._cost(s), s.branch)):
            state = sibling.state
            assert state is not None
            leads = self._lineage.would_lead(
                self._cost(sibling), phase.role, phase.cycle, sibling.branch
            )
            checkpoint = None
            if self._keeper.is_wanted(winner=sibling is winner, new_best=leads):
                checkpoint = self._keeper.write(state, _label(phase, sibling))
            member = self._keeper.write_member(state, _label(phase, sibling))
            segment = self._ledger.complete(sibling, checkpoint, member)
            self._keeper.add_member(segment)
            if checkpoint is not None:
                self._keeper.add(segment.number, checkpoint, state)
        chosen = self._lineage.winner(phase.role, phase.cycle)
        self._keeper.clean(chosen or phase.parent)
        if phase.role == "branch" and chosen is not None:
            _logger.info(f"Cycle {phase.cycle}: {chosen.mutation} (trial {chosen.number}).")

    def _cost(self, sibling: Sibling) -> float:
        """The best value of one that trained to its end, oriented so that lower is better."""
        assert sibling.state is not None
        return float(self._lineage.sign * sibling.state["best"]["value"])

    def _validate(self, job: Job) -> Outcome:
        """Run a job of no epochs."""
        [outcome] = self._workers.run([job], lambda place, result: None)
        return outcome


def _label(phase: Phase, sibling: Sibling) -> str:
    """The place of a sibling in the run, for the names of its files."""
    return f"{phase.role}-{phase.cycle:03d}-{sibling.branch}"
