"""A session: the study of a run, verified, recovered, and leased to this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FixedTrial

from optuna_miha._history import attributes
from optuna_miha._history.lineage import Lineage
from optuna_miha._model.model_fn import Initial, build_initial, build_recipe
from optuna_miha._model.recipe import Recipe
from optuna_miha._model.recipe_options import check_no_options
from optuna_miha._model.tensors import n_bytes_of
from optuna_miha._report.dashboard import Dashboard
from optuna_miha._report.picture import lineage_picture
from optuna_miha._results.result import Result, make_result
from optuna_miha._run.arguments import Arguments
from optuna_miha._run.sigterm import exit_on_sigterm
from optuna_miha._run.story import log_mutations
from optuna_miha._search.context import read_search_context
from optuna_miha._search.crossover import check_crossover
from optuna_miha._search.phases import Stretch
from optuna_miha._search.plan import Plan
from optuna_miha._study.checkpoint_store import CheckpointStore
from optuna_miha._study.lease import Lease, hold_lease
from optuna_miha._study.monitor import check_monitor, describe_monitor
from optuna_miha._study.optuna_internals import busy_timeout, heartbeats, stoppable
from optuna_miha._study.recovery import Recovery, record_lost, recover
from optuna_miha._study.schema import check_study, read_keep, read_lineage
from optuna_miha._study.setup import (
    is_tidy,
    record_finished,
    record_late,
    record_run,
    record_settings,
    resolve_components,
    resolve_initial,
    resolve_plan,
    resolve_seed,
    resolve_stretches,
)
from optuna_miha._study.stores import open_store
from optuna_miha._training.compute import uncompiled
from optuna_miha._training.context import Context
from optuna_miha._training.data_checks import check_data, check_split
from optuna_miha._training.loss_checks import check_valid_loss, n_classified
from optuna_miha._training.pools import make_workers
from optuna_miha._training.preflight import (
    check_accumulate,
    check_direction,
    check_distributions,
    check_fresh,
)
from optuna_miha._training.scheduler_checks import check_scheduler
from optuna_miha._training.spool import Spool, may_be_large
from optuna_miha._training.trainer_context import check_recipe
from optuna_miha._training.trial_steps import check_copyable, check_mutations, check_training
from optuna_miha._training.workers import Workers
from optuna_miha.exceptions import StudyLockedError

_logger = optuna.logging.get_logger("optuna.miha")

_BUSY_TIMEOUT = 60.0
"""Seconds to wait for a lock on the SQLite file."""


@dataclass(kw_only=True)
class Session:
    """The state of one call of :func:`optimize`.

    Args:
        arguments: The arguments of the call.
        study: The study.
        plan: The plan of the run.
        seed: The seed of the run.
        context: The context that all jobs share.
        lineage: The history; replaced when the study is read again.
        stretches: The stretches of the run, the last of which is to be trained; :obj:`None` if
            the run is finished. In this case there are no workers.
        lease: The exclusive right to run the study; :obj:`None` if nothing is to be written.
        store: The checkpoint store.
        spool: Reads and writes large states.
        workers: The workers that run jobs.
        open_workers: Closes the workers.
        running: The running trials by number, for Optuna's heartbeats.
        dashboard: The page of the study in optuna-dashboard.
        n_classified: The validation samples whose cross-entropy is monitored, if known.
    """

    arguments: Arguments
    study: optuna.Study
    plan: Plan
    seed: int
    context: Context
    lineage: Lineage
    stretches: list[Stretch] | None
    lease: Lease | None = None
    store: CheckpointStore = field(init=False)
    spool: Spool = field(init=False)
    workers: Workers = field(init=False)
    open_workers: ExitStack = field(init=False, default_factory=ExitStack)
    running: dict[int, optuna.Trial] = field(init=False)
    dashboard: Dashboard = field(init=False)
    n_classified: int | None = None

    @property
    def stretch(self) -> Stretch | None:
        """The stretch to train; :obj:`None` if the run is finished."""
        return None if self.stretches is None else self.stretches[-1]

    def result(self) -> Result:
        """Load the result, and show it in optuna-dashboard if this call finished the run."""
        self.open_workers.close()  # They occupy device memory.
        model_fn, device = self.arguments.model_fn, self.arguments.devices[0]
        draw = partial(lineage_picture, self.study)
        result = make_result(self.study, self.lineage, model_fn, self.store, device, draw)
        if self.lease is not None and self.is_untidy:
            keeps_model = self.arguments.keep != "final"
            self.lease.verify()
            self.dashboard.finish(result, self.store.artifact_store, model=keeps_model)
            record_finished(self.study, self.lease, self.lineage.spent)
        return result

    @property
    def held_lease(self) -> Lease:
        """The lease of a session that writes."""
        assert self.lease is not None
        return self.lease

    @property
    def is_untidy(self) -> bool:
        """Whether the run is finished, but no coordinator has recorded that it tidied up."""
        is_finished = len(self.lineage) > 0 and self.unfinished_stretches(None) is None
        return is_finished and not is_tidy(self.study, self.lineage)

    def unfinished_stretches(self, budget: int | None) -> list[Stretch] | None:
        """The stretches of the run, given the history; :obj:`None` if the run is finished."""
        return resolve_stretches(self.study, self.plan, budget, self.lineage)

    def recover(self, store: CheckpointStore) -> Recovery:
        """Find the newest history that the run can continue, without writing anything."""
        return recover(self.study, self.plan, self.arguments.budget, store)

    def record_lost_trials(self) -> None:
        """Exclude the trials whose checkpoints are lost, and their descendants, from the run."""
        record_lost(self.study, self.held_lease, self.recover(self.store))


@contextmanager
def open_session(arguments: Arguments) -> Iterator[Session]:
    """Open the study of a run: verify everything, then acquire the lease, then write.

    Args:
        arguments: The arguments of the call.

    Raises:
        MihaError: As documented for :func:`optimize`.
        TypeError: If the return value of ``model_fn`` has the wrong type.
        ValueError: If an argument contradicts another or the study.
    """
    study = arguments.study
    check_study(study)
    plan = resolve_plan(study, arguments.n_epochs, arguments.plan, n_workers=arguments.n_workers)
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
    has_lost = _recover_history(session)
    session.stretches = session.unfinished_stretches(arguments.budget)
    is_new = attributes.PLAN not in study.user_attrs
    with ExitStack() as stack:
        stack.enter_context(busy_timeout(study, _BUSY_TIMEOUT))
        if session.stretches is not None:
            context = replace(session.context, devices=arguments.worker_devices)
            workers = make_workers(context, arguments.n_jobs, arguments.executor)
            stack.enter_context(session.open_workers)
            session.workers = session.open_workers.enter_context(workers)
        monitor, n_bytes = _preflight(session, initial, recipe, params, is_new=is_new)
        del recipe  # Otherwise it would occupy device memory during the whole run.
        if session.stretches is not None:
            session.workers.check()
            session.lease = _acquire_lease(session, stack, is_new=is_new)
        elif _has_to_write(session):
            with suppress(StudyLockedError):  # Another process runs it, and tidies up later.
                session.lease = _acquire_lease(session, stack, is_new=is_new)
        # Nothing was written before this line.
        if session.lease is None:
            session.store = _open_store(arguments, read_only=True)
        else:
            _record(session, session.lease, initial, monitor, has_lost=has_lost)
            session.dashboard = Dashboard(study)
            session.running = stack.enter_context(heartbeats(study))
        if session.stretches is not None:
            session.spool = Spool(session.store, keeps_members=arguments.keep != "final")
            session.workers.share(session.spool, expects_large=may_be_large(n_bytes))
            stack.enter_context(stoppable(study))
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


def _recover_history(session: Session) -> bool:
    """Omit segments without checkpoints from the history; returns whether any were omitted."""
    if len(session.lineage) == 0:
        return False
    recovery = session.recover(_open_store(session.arguments, read_only=True))
    session.lineage = recovery.lineage
    return bool(recovery.lost)


@uncompiled()
def _preflight(
    session: Session, initial: Initial, recipe: Recipe, params: dict[str, Any], *, is_new: bool
) -> tuple[dict[str, Any] | None, int]:
    """Check whatever would fail during training.

    Returns:
        What is monitored, if it is known, and the bytes of the state after a step.
    """
    if session.context.trainer is None:  # The values of a trainer may have any direction.
        check_direction(session.study, recipe)
    else:
        check_no_options(recipe)
        check_recipe(session.context.trainer, recipe)
    check_distributions(session.study, initial.distributions)
    check_scheduler(session.arguments.model_fn, initial, params, session.seed)
    check_accumulate(recipe, initial.distributions)
    check_fresh(initial.recipe, recipe)
    check_copyable(recipe, session.context)
    check_data(recipe, session.context)
    session.n_classified = n_classified(recipe, session.context)
    if is_new:  # In a resumed run, the two recipes may have different initial values.
        check_split(initial.recipe, recipe)
        check_valid_loss(initial.recipe, recipe, session.context)
    state, value = check_training(recipe, session.context, params)
    monitor = None  # The user's trainer alone knows it.
    if value is not None:
        monitor = describe_monitor(recipe, session.context.valid_loss_fn, value)
        check_monitor(session.study, monitor)
    if is_new:
        catch = session.arguments.catch
        check_mutations(session.context, state, initial, session.plan, catch)
    return monitor, n_bytes_of(state)


def _has_to_write(session: Session) -> bool:
    """Whether a call that trains nothing has something to write."""
    study, arguments = session.study, session.arguments
    folder, stored = arguments.checkpoint_dir, study.user_attrs.get(attributes.CHECKPOINT_DIR)
    has_new_folder = folder is not None and str(Path(folder).absolute()) != stored
    return session.is_untidy or arguments.keep != read_keep(study) or has_new_folder


def _acquire_lease(session: Session, stack: ExitStack, *, is_new: bool) -> Lease:
    stack.enter_context(exit_on_sigterm())
    lease = stack.enter_context(hold_lease(session.study))
    if is_new and attributes.PLAN in session.study.user_attrs:
        raise StudyLockedError(
            f"The study {session.study.study_name!r} was started by another process at the same "
            "time: run the same script again to resume it."
        )
    return lease


def _record(
    session: Session,
    lease: Lease,
    initial: Initial,
    monitor: dict[str, Any] | None,
    *,
    has_lost: bool,
) -> None:
    """Write the settings of the run to the study, and read the history again.

    Before the lease was acquired, another process may have continued the run.
    """
    study, arguments = session.study, session.arguments
    if has_lost:
        record_lost(study, lease, session.recover(_open_store(arguments, read_only=True)))
    lease.verify()
    session.store = _open_store(arguments, read_only=False)
    record_run(study, lease, session.plan, session.seed, initial, arguments.engine, monitor)
    if session.stretches is not None and session.plan.n_cycles != 0:
        log_mutations(read_search_context(study))
    record_late(study, lease)
    session.lineage = read_lineage(study)
    if session.stretches is not None:
        session.stretches = session.unfinished_stretches(arguments.budget)
    if session.stretches is not None:
        record_finished(study, lease, None)
    record_settings(lease, keep=arguments.keep, stretches=session.stretches)
