"""Training a stretch of a run, with retries after failures of the storage."""

from __future__ import annotations

import math
import time

import optuna
from optuna.exceptions import OptunaError

from optuna_miha._history.lineage import Lineage
from optuna_miha._run.averaging import make_averaging
from optuna_miha._run.coordinator import Coordinator
from optuna_miha._run.population import Population
from optuna_miha._run.progress import Progress
from optuna_miha._run.selection import Selection
from optuna_miha._run.session import Session
from optuna_miha._search.context import read_search_context
from optuna_miha._search.crossover import AverageWeights, CrossedProposals
from optuna_miha._search.phases import Stretch
from optuna_miha._search.plan import MIN_EPOCHS_PER_WORKER, Plan
from optuna_miha._search.proposals import Proposals, Proposer
from optuna_miha._study.optuna_internals import is_in_memory
from optuna_miha._study.retention import Retention
from optuna_miha._study.retry import Retry
from optuna_miha._study.setup import record_progress
from optuna_miha._study.trial_log import TrialLog
from optuna_miha._training.out_of_memory import is_out_of_memory

_logger = optuna.logging.get_logger("optuna.miha")


def train_stretch(session: Session, stretch: Stretch) -> None:
    """Train until the end of a stretch, and retry after failures of the storage.

    Args:
        session: The session. Its history is up to date on return, even after an error.
        stretch: The stretch to train.
    """
    _log_start(session.plan, stretch, session.lineage)
    deadline = time.monotonic() + session.arguments.timeout
    retry = Retry(session.study, session.held_lease, session.record_lost_trials)
    try:
        retry.run(lambda: _attempt(session, stretch, deadline), lambda: session.lineage.spent)
    except BaseException as error:
        advice = (
            f"The finished segments have {session.lineage.spent} of {stretch.end} epochs. "
            f"{_how_to_resume(session.study)}"
        )
        _logger.warning(f"Stopped by {type(error).__name__}: {advice}{_advice(error)}")
        if hasattr(error, "add_note"):  # Otherwise the traceback hides the line above.
            error.add_note(f"optuna_miha: {advice}")
        raise


def _how_to_resume(study: optuna.Study) -> str:
    if is_in_memory(study):
        return (
            "The study is in memory: to resume, call `optimize` again with the same study before "
            'this process ends. With `create_study(storage="sqlite:///run.db", ...)`, the script '
            "could be run again."
        )
    return (
        f"Run the same script again to resume: the study {study.study_name!r} and its "
        "checkpoints contain these segments."
    )


def _attempt(session: Session, stretch: Stretch, deadline: float) -> None:
    """Train from the stored history on, as if a new process resumed the run."""
    arguments = session.arguments
    trial_log, retention = _open(session)
    lineage = trial_log.lineage
    n_workers, show = session.plan.width, arguments.show_progress_bar
    with Progress(stretch.end, lineage, n_workers=n_workers, show=show) as progress:
        population = Population(
            session,
            trial_log=trial_log,
            retention=retention,
            proposer=_make_proposer(session, lineage),
            progress=progress,
        )
        selection = Selection(
            session,
            trial_log=trial_log,
            retention=retention,
            refine=make_averaging(session) if _averages_weights(session) else None,
        )
        Coordinator(
            session, lineage=lineage, population=population, selection=selection, progress=progress
        ).run(stretch, deadline)


def tidy(session: Session) -> None:
    """Complete a finished run whose coordinator was killed after the last segment."""
    _, retention = _open(session)
    retention.clean(session.lineage.best())
    record_progress(session.study, session.held_lease, session.lineage)


def _open(session: Session) -> tuple[TrialLog, Retention]:
    """Read the history, and remove what a killed process left."""
    lease, arguments = session.held_lease, session.arguments
    session.running.clear()
    trial_log = TrialLog(
        session.study,
        lease=lease,
        seed=session.seed,
        callbacks=arguments.callbacks,
        running=session.running,
    )
    session.lineage = trial_log.lineage
    retention = Retention(session.store, arguments.keep, trial_log.lineage, lease.verify)
    retention.remove_orphans()
    return trial_log, retention


def _averages_weights(session: Session) -> bool:
    return isinstance(session.arguments.crossover, AverageWeights)


def _make_proposer(session: Session, lineage: Lineage) -> Proposer:
    context, crossover = read_search_context(session.study), session.arguments.crossover
    proposals = Proposals(session.study, lineage=lineage, plan=session.plan, context=context)
    if crossover is None or isinstance(crossover, AverageWeights):
        return proposals
    return CrossedProposals(proposals, crossover, lineage=lineage, context=context)


def _advice(error: BaseException) -> str:
    """How to avoid an error that would occur again on resuming; empty if unknown."""
    if is_out_of_memory(error):
        return (
            " Training ran out of memory without a mutation: free memory, or use fewer `n_jobs` "
            "or a smaller batch size."
        )
    if not isinstance(error, Exception) or isinstance(error, OptunaError):
        return ""
    return (
        " If the hyperparameters of one branch cause the error, "
        f"`catch=({type(error).__name__},)` fails only that branch."
    )


def _log_start(plan: Plan, stretch: Stretch, lineage: Lineage) -> None:
    if lineage.spent:
        _logger.info(f"Resuming after {lineage.spent} of {stretch.end} epochs.")
        return
    if plan.is_annealed:
        _logger.info(f"{stretch.end} epochs will be trained, {_rounds_text(plan, stretch.end)}.")
        return
    if plan.n_cycles is None:
        size = plan.race_size(stretch.end)
        race = f"a start-up race of {size} configurations" if size > 1 else "no start-up race"
        _logger.info(f"{stretch.end} epochs will be trained, including all branches; {race}.")
        return
    if plan.n_cycles == 0:
        _logger.info(f"{stretch.end} epochs will be trained without a search.")
        return
    branches = f"{plan.population_size} branches x {plan.branch_epochs}"
    _logger.info(
        f"{stretch.end} epochs will be trained: run-up {plan.runup_epochs}, {plan.n_cycles} "
        f"cycles of {branches} and fixing {plan.fixing_epochs}, final "
        f"{plan.reserve(plan.n_epochs)}."
    )


def _rounds_text(plan: Plan, n_epochs: int) -> str:
    """What a plan of rounds does with a budget."""
    if n_epochs < MIN_EPOCHS_PER_WORKER:
        return (
            "all by the initial configuration: the budget is too small for heirs, which need "
            f"{MIN_EPOCHS_PER_WORKER} epochs (`Recipe(steps_per_epoch=...)` divides a pass into "
            "several)"
        )
    size = plan.race_size(n_epochs)
    race = f"a start-up race of {size} configurations" if size > 1 else "no start-up race"
    n_rounds = plan.n_rounds(n_epochs)
    rounds = "a round" if n_rounds == 1 else f"{n_rounds} rounds"
    heirs = "one heir" if plan.n_heirs == 1 else f"{plan.n_heirs} heirs"
    width = ""
    if plan.width > 1:
        width = f", about {math.ceil(n_epochs / plan.width)} in each of {plan.width} workers"
    return f"including all branches{width}; {race}, then {rounds} of {heirs}"
