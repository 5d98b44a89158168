"""Averaging the weights of the two fittest branches at the end of their population."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import optuna

from optuna_miha._history import attributes
from optuna_miha._run.session import Session
from optuna_miha._study.sibling import Sibling
from optuna_miha._training.job import Job
from optuna_miha._training.out_of_memory import is_out_of_memory
from optuna_miha._training.outcome import Outcome
from optuna_miha._training.state import averaged_state, with_best

_logger = optuna.logging.get_logger("optuna.miha")


def make_averaging(session: Session) -> Callable[[Sequence[Sibling]], None]:
    """Bind :func:`average_fittest` to the workers and settings of a session."""
    sign, catch = session.context.sign, session.arguments.catch

    def run(job: Job) -> Outcome:
        [outcome] = session.workers.run([job], lambda index, result: None)
        return outcome

    def average(ranked: Sequence[Sibling]) -> None:
        pair = ranked[:2]
        given = [sibling.state for sibling in pair]
        loaded = [session.spool.load(state) for state in given]
        for sibling, state in zip(pair, loaded, strict=True):
            sibling.state = state
        try:
            average_fittest(ranked, run, sign=sign, catch=catch)
        finally:
            for sibling, reference, state in zip(pair, given, loaded, strict=True):
                if sibling.state is state:
                    sibling.state = reference
                else:
                    session.spool.remove(reference)

    return average


def average_fittest(
    ranked: Sequence[Sibling],
    run: Callable[[Job], Outcome],
    *,
    sign: int,
    catch: tuple[type[Exception], ...],
) -> None:
    """Replace the weights of the fittest by their mean with the second's, if that is better.

    Nothing happens if the fittest was finished before an interruption of the run.

    Args:
        ranked: The siblings that trained to their end, the fittest first. The state of the first
            and the attributes of its trial are changed.
        run: Runs the job that validates the average.
        sign: 1 if the study minimizes, -1 if it maximizes.
        catch: Exceptions of the user's code after which the average is discarded.
    """
    if len(ranked) < 2:
        return
    fittest, second = ranked[:2]
    if fittest.trial is None or fittest.state is None or second.state is None:
        return
    state = averaged_state(fittest.state, second.state)
    job = Job(params=fittest.trial.params, state=state, n_epochs=0)
    outcome = run(job)
    if outcome.state is None:
        error = outcome.exception
        if error is not None and not isinstance(error, catch) and not is_out_of_memory(error):
            fittest.trial.publish()  # A trial whose error ends the run stays in the study.
            raise error
        _logger.warning(f"The average of two branches could not be validated. {outcome.error}")
        return
    average, best = outcome.state["best"], fittest.state["best"]
    cost = sign * average["value"]
    if not math.isfinite(cost) or cost >= sign * fittest.scores[-1]:
        return
    if cost < sign * best["value"]:
        fittest.state = with_best(state, average, "model" if state["ema"] is None else "ema")
    else:
        fittest.state = with_best(state, best)
    fittest.trial.set_user_attr(
        attributes.AVERAGED, {"branch": second.branch, "value": average["value"]}
    )
