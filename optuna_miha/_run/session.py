"""A session: the study of a run, opened, verified, recovered, and leased to this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import optuna
from optuna.trial import FixedTrial

from optuna_miha._history import attributes
from optuna_miha._history.lineage import Lineage
from optuna_miha._model.model_fn import Initial, build_initial, build_recipe
from optuna_miha._model.recipe import Recipe
from optuna_miha._report.dashboard import Dashboard
from optuna_miha._results.result import Result, make_result
from optuna_miha._run.arguments import Arguments
from optuna_miha._run.sigterm import exit_on_sigterm
from optuna_miha._search.crossover import check_crossover
from optuna_miha._search.phases import Stretch
from optuna_miha._search.plan import Plan
from optuna_miha._study.checkpoint_store import CheckpointStore
from optuna_miha._study.lease import Lease, hold_lease
from optuna_miha._study.optuna_internals import busy_timeout, heartbeats, stoppable
from optuna_miha._study.recovery import Recovery, record_lost, recover
from optuna_miha._study.schema import check_study, read_lineage
from optuna_miha._study.setup import (
    open_store,
    record_keep,
    record_run,
    record_stretches,
    resolve_components,
    resolve_initial,
    resolve_plan,
    resolve_seed,
    resolve_stretches,
)
from optuna_miha._training.job import Context
from optuna_miha._training.pools import Workers, make_workers
from optuna_miha._training.preflight import (
    check_direction,
    check_distributions,
    check_fresh,
    check_training,
    check_valid_loss,
)
from optuna_miha.exceptions import StudyLockedError

_BUSY_TIMEOUT = 60.0
"""Seconds to wait for another process that writes to the same SQLite file."""


@dataclass(kw_only=True)
class Session:
    """A run that this process may train.

    Args:
        arguments: Of the call.
        study: The study.
        plan: The plan of the run.
        seed: The seed of the run.
        context: What all jobs have in common.
        lineage: The history; the coordinator replaces it when it reads the study again.
        stretches: The stretches of the run, the last of which is to be trained; :obj:`None` if
            nothing is missing. Then the session holds no workers and no lease.
        store: The checkpoints.
        workers: Where jobs run.
        lease: The right to run the study.
        running: The running trials by number, for Optuna's heartbeats.
        dashboard: The run's pages in optuna-dashboard.
    """

    arguments: Arguments
    study: optuna.Study
    plan: Plan
    seed: int
    context: Context
    lineage: Lineage
    stretches: list[Stretch] | None
    store: CheckpointStore = field(init=False)
    workers: Workers = field(init=False)
    lease: Lease = field(init=False)
    running: dict[int, optuna.Trial] = field(init=False)
    dashboard: Dashboard = field(init=False)

    @property
    def stretch(self) -> Stretch | None:
        """The stretch to be trained; :obj:`None` if nothing is missing."""
        return None if self.stretches is None else self.stretches[-1]

    def result(self) -> Result:
        """Load the result; a run that just ended is shown in optuna-dashboard."""
        model_fn, device = self.arguments.model_fn, self.arguments.devices[0]
        result = make_result(self.study, self.lineage, model_fn, self.store, device)
        if self.stretches is not None and self.missing(None) is None:
            keeps_model = self.arguments.keep != "final"
            self.dashboard.finish(result, self.store.artifact_store, model=keeps_model)
        return result

    def missing(self, budget: int | None) -> list[Stretch] | None:
        """The stretches of the run, given the history; :obj:`None` if nothing is missing."""
        return resolve_stretches(self.study, self.plan, budget, self.lineage)

    def recover(self, store: CheckpointStore) -> Recovery:
        """Find the newest history that the run can continue. Nothing is written."""
        return recover(self.study, self.plan, self.arguments.budget, store)

    def set_lost_aside(self) -> None:
        """Set aside the trials whose checkpoints are lost, and their descendants."""
        record_lost(self.study, self.recover(self.store))


@contextmanager
def open_session(arguments: Arguments) -> Iterator[Session]:
    """Open the study of a run: verify everything, then take the lease, then write.

    Args:
        arguments: Of the call.

    Raises:
        MihaError: As listed for :func:`optimize`.
        TypeError: If what ``model_fn`` returns is of the wrong type.
        ValueError: If an argument contradicts another or the study.
    """
    study = arguments.study
    check_study(study)
    plan = resolve_plan(study, arguments.n_epochs, arguments.plan)
    check_crossover(arguments.crossover, plan, custom_trainer=arguments.trainer is not None)
    resolve_components(study)
    seed = resolve_seed(study)
    initial = build_initial(arguments.model_fn, seed, arguments.initial_params)
    params = resolve_initial(study, initial)
    recipe = build_recipe(arguments.model_fn, FixedTrial(params), seed)
    session = Session(
        arguments=arguments,
        study=study,
        plan=plan,
        seed=seed,
        context=_context(arguments, plan, seed, recipe),
        lineage=read_lineage(study),
        stretches=None,
    )
    has_lost = _recover_offline(session)
    session.stretches = session.missing(arguments.budget)
    is_new = attributes.PLAN not in study.user_attrs
    with ExitStack() as stack:
        stack.enter_context(busy_timeout(study, _BUSY_TIMEOUT))
        if session.stretches is not None:
            workers = make_workers(session.context, arguments.n_jobs, arguments.executor)
            session.workers = stack.enter_context(workers)
        _check(session, initial, recipe, is_new=is_new)
        del recipe  # It would occupy the device as long as the run lasts.
        if session.stretches is not None:
            session.workers.check()
            _lease(session, stack, is_new=is_new)
        # Nothing was written before this line.
        _write(session, initial, has_lost=has_lost)
        if session.stretches is not None:
            record_stretches(study, session.stretches)
            stack.enter_context(stoppable(study))
            session.running = stack.enter_context(heartbeats(study))
            session.dashboard = Dashboard(study)
        yield session


def _context(arguments: Arguments, plan: Plan, seed: int, recipe: Recipe) -> Context:
    return Context.of(
        recipe,
        arguments.model_fn,
        direction=arguments.study.direction,
        seed=seed,
        devices=arguments.devices,
        trainer=arguments.trainer,
        ema_decay=plan.ema_decay,
        engine=arguments.engine,
    )


def _open_store(arguments: Arguments, *, read_only: bool) -> CheckpointStore:
    return open_store(
        arguments.study, arguments.artifact_store, arguments.checkpoint_dir, read_only=read_only
    )


def _recover_offline(session: Session) -> bool:
    """Leave out of the history what depends on lost checkpoints; returns whether any was."""
    if len(session.lineage) == 0:
        return False
    recovery = session.recover(_open_store(session.arguments, read_only=True))
    session.lineage = recovery.lineage
    return bool(recovery.lost)


def _check(session: Session, initial: Initial, recipe: Recipe, *, is_new: bool) -> None:
    """Refuse what would fail later."""
    check_direction(session.study, recipe)
    check_distributions(session.study, initial.distributions)
    check_fresh(initial.recipe, recipe)
    if is_new:  # Later the two recipes may start from different values.
        check_valid_loss(initial.recipe, recipe, session.context)
    check_training(recipe, session.context)


def _lease(session: Session, stack: ExitStack, *, is_new: bool) -> None:
    stack.enter_context(exit_on_sigterm())
    session.lease = stack.enter_context(hold_lease(session.study))
    if is_new and attributes.PLAN in session.study.user_attrs:
        raise StudyLockedError(
            f"The study {session.study.study_name!r} was started by another process at the same "
            "time: run the same script again to go on with it."
        )


def _write(session: Session, initial: Initial, *, has_lost: bool) -> None:
    """Store what the run is, and read the history again.

    Between the first look and the lease, another process may have gone on.
    """
    study, arguments = session.study, session.arguments
    if has_lost:
        record_lost(study, session.recover(_open_store(arguments, read_only=True)))
    session.store = _open_store(arguments, read_only=False)
    record_run(study, session.plan, session.seed, initial, arguments.engine)
    record_keep(study, arguments.keep)
    if session.stretches is not None:
        session.lineage = read_lineage(study)
        session.stretches = session.missing(arguments.budget)
