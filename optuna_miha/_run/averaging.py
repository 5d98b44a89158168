"""Averaging the weights of the two fittest branches, when their population is over."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import optuna

from optuna_miha._history import attributes
from optuna_miha._run.session import Session
from optuna_miha._study.sibling import Sibling
from optuna_miha._training.job import Job, Outcome
from optuna_miha._training.out_of_memory import is_out_of_memory
from optuna_miha._training.state import averaged_state

_logger = optuna.logging.get_logger("optuna.miha")


def averaging(session: Session) -> Callable[[Sequence[Sibling]], None]:
    """:func:`average_fittest` for the populations of a session."""
    sign, catch = session.context.sign, session.arguments.catch

    def run(job: Job) -> Outcome:
        [outcome] = session.workers.run([job], lambda index, result: None)
        return outcome

    return lambda ranked: average_fittest(ranked, run, sign=sign, catch=catch)


def average_fittest(
    ranked: Sequence[Sibling],
    run: Callable[[Job], Outcome],
    *,
    sign: int,
    catch: tuple[type[Exception], ...],
) -> None:
    """Give the fittest the mean of its weights and the runner-up's, if that validates better.

    A fittest that is on record already had its chance before the run was interrupted.

    Args:
        ranked: The siblings that trained to their end, the fittest first; its state and its
            trial's attributes are changed.
        run: Runs a job, by which the average is validated.
        sign: 1 where the study minimizes, -1 where it maximizes.
        catch: Exceptions of the user's code after which the average is left alone.
    """
    if len(ranked) < 2:
        return
    fitter, other = ranked[:2]
    if fitter.trial is None or fitter.state is None or other.state is None:
        return
    state = averaged_state(fitter.state, other.state)
    job = Job(params=fitter.trial.params, state=state, n_epochs=0)
    outcome = run(job)
    if outcome.state is None:
        error = outcome.exception
        if error is not None and not isinstance(error, catch) and not is_out_of_memory(error):
            fitter.trial.publish()  # An error that ends the run leaves its trial in the study.
            raise error
        _logger.warning(f"The average of two branches could not be validated. {outcome.error}")
        return
    average, best = outcome.state["best"], fitter.state["best"]
    cost = sign * average["value"]
    if not math.isfinite(cost) or cost >= sign * fitter.scores[-1]:
        return
    fitter.state = {**state, "best": average if cost < sign * best["value"] else best}
    fitter.trial.set_user_attr(
        attributes.AVERAGED, {"branch": other.branch, "value": average["value"]}
    )
