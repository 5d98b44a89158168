"""Training along the schedule of a run, without the search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
import torch
from optuna.study import StudyDirection
from optuna.trial import FixedTrial

from optuna_miha._history.curve import EpochResult
from optuna_miha._history.schedule import ANNEAL_TO, BY_STEP, Schedule, params_of
from optuna_miha._model.model_fn import ModelFn, build_initial, build_recipe
from optuna_miha._results.trained_model import Trained
from optuna_miha._search.learning_rate import Course
from optuna_miha._search.plan import Plan
from optuna_miha._training.compute import Engine, Precision, resolve_device
from optuna_miha._training.context import Context
from optuna_miha._training.job import Job, run_job
from optuna_miha._training.preflight import resolve_direction
from optuna_miha._training.state import State, from_best
from optuna_miha._training.trainer_context import AnyTrainer
from optuna_miha.exceptions import MihaError

_logger = optuna.logging.get_logger("optuna.miha")


@dataclass(frozen=True, kw_only=True)
class Replay(Trained):
    """A network that was trained along a schedule.

    Args:
        model: The network with the weights of the best validation value in the last row, in
            evaluation mode.
        params: The hyperparameters of the last row.
        value: The validation value of the model.
        schedule: The schedule.
        best_epoch: The epoch of the model's weights.
        results: The results of all epochs.
    """

    best_epoch: int
    results: tuple[EpochResult, ...]

    def __repr__(self) -> str:
        """The value, the epoch and the schedule in a few lines."""
        schedule = repr(self.schedule).replace("\n", "\n  ")
        return f"Replay: value {self.value:.6g} at epoch {self.best_epoch}\n  {schedule}"


def replay(
    schedule: Schedule | Sequence[Mapping[str, Any]],
    model_fn: ModelFn,
    *,
    seed: int | None = None,
    direction: str | None = None,
    ema_decay: float | None = None,
    trainer: AnyTrainer | None = None,
    device: torch.device | str | None = None,
    precision: Precision | None = None,
    channels_last: bool = False,
    n_threads: int = 1,
) -> Replay:
    """Train a network from scratch along a discovered schedule.

    Only the epochs of the schedule are trained. Like the segments of a run, each row continues
    from the weights, their moving average, the optimizer's state and the random state at the end
    of the row before, and changes the hyperparameters. In a row with ``anneal_to``, the learning
    rate is annealed to zero until that epoch. Such a row is trained to its end, even if the best
    weights of the run came earlier, and its best weights are returned.

    A schedule of a run contains its seed. With the same ``model_fn``, data and arguments as in the
    run, the result is the model of the run, bit by bit on a CPU. Two things are not part of a
    schedule and are not repeated: averaging of weights with those of a sibling
    (:class:`AverageWeights`), and an annealing that a custom trainer ended early. With another
    seed or other data, the same changes at the same epochs may not be good ones.

    Args:
        schedule:
            ``result.schedule``, a schedule read by :meth:`Schedule.from_json` or
            :meth:`Schedule.from_csv`, or a sequence of rows in the same form.
        model_fn: As in :func:`optimize`, possibly with other data.
        seed:
            The seed of the initial weights and of the data order. :obj:`None`: the seed of the
            run, ``schedule.seed``, or 0 if the schedule contains none. If it differs from that of
            the run, one line is logged.
        direction:
            ``"minimize"`` or ``"maximize"``; required for a custom metric. The directions of the
            loss and the accuracy are known.
        ema_decay:
            As in :class:`Plan`; :obj:`None`: its default. It affects which weights are returned
            and which weights a row with ``by_step`` passes on.
        trainer: As in :func:`optimize`. With a trainer, weights are not averaged.
        device: The device to train on; default the accelerator if available, else the CPU.
        precision: As in :func:`optimize`.
        channels_last: As in :func:`optimize`.
        n_threads: As in :func:`optimize`.

    Returns:
        The trained model.

    Raises:
        TypeError: If ``model_fn`` does not return a recipe.
        ValueError: If the schedule has a gap, ``direction`` contradicts the monitored value, or
            the recipe has an ``lr_schedule``.
        MihaError: If training of a row failed.
    """
    if not isinstance(schedule, Schedule):
        schedule = Schedule(schedule)
    if seed is None:
        seed = 0 if schedule.seed is None else schedule.seed
    elif schedule.seed not in (None, seed):
        _logger.info(
            f"This replay has seed {seed}. Its model differs from that of the run, which had seed "
            f"{schedule.seed}."
        )
    if ema_decay is None:
        is_by_step = any(row.get(BY_STEP) for row in schedule)
        ema_decay = Plan(anneal="rounds" if is_by_step else "cosine").ema_decay
    initial = build_initial(model_fn, seed).recipe
    if initial.lr_schedule is not None:
        raise ValueError(
            "A replay needs a recipe without `lr_schedule`, a function of the fraction of a run's "
            "budget, because a schedule does not hold the fractions of its rows: use "
            "`Recipe(scheduler=...)`."
        )
    context = Context.of(
        initial,
        model_fn,
        direction=StudyDirection[
            resolve_direction(initial, direction, custom_trainer=trainer is not None).upper()
        ],
        seed=seed,
        devices=(resolve_device(device),),
        trainer=trainer,
        ema_decay=ema_decay,
        engine=Engine(precision=precision, channels_last=channels_last, n_threads=n_threads),
    )
    state, results = _train(context, schedule)
    params, best = params_of(schedule[-1]), state["best"]
    recipe = build_recipe(model_fn, FixedTrial(params), seed)
    recipe.model.load_state_dict(best["weights"])
    recipe.model.to(context.devices[0])
    recipe.model.eval()
    return Replay(
        model=recipe.model,
        params=params,
        value=best["value"],
        schedule=schedule,
        best_epoch=best["epoch"],
        results=results,
    )


def _train(context: Context, schedule: Schedule) -> tuple[State, tuple[EpochResult, ...]]:
    """Train the rows of a schedule, one after the other.

    Returns:
        The state at the end and the results of all epochs.

    Raises:
        MihaError: If training of a row failed.
    """
    state: State | None = None
    results: list[EpochResult] = []
    for number, row in enumerate(schedule):
        end = row.get(ANNEAL_TO, row["to_epoch"])
        job = Job(
            params=params_of(row),
            state=state and _passed_on(state, row),
            n_epochs=end - row["from_epoch"],
            anneal=ANNEAL_TO in row and not row.get(BY_STEP),
            course=_course_of(row) if row.get(BY_STEP) else None,
            role=row.get("role", "trunk"),
        )
        outcome = run_job(context, job)
        if outcome.state is None:
            epoch = row["from_epoch"] + len(outcome.results)
            raise MihaError(
                f"Row {number} of the schedule (epochs {row['from_epoch']} to {end}) failed after "
                f"epoch {epoch}: {outcome.error} Check that `model_fn` suggests the parameters of "
                "the schedule."
            ) from outcome.exception
        state = outcome.state
        results += outcome.results
    assert state is not None
    return state, tuple(results)


def _passed_on(state: State, row: Mapping[str, Any]) -> State:
    """The state from which a row continues, given that at the end of the row before."""
    if row.get(BY_STEP):
        return from_best(state)
    # Without "best", because the best weights of the last row alone are returned.
    return {k: v for k, v in state.items() if k != "best"}


def _course_of(row: Mapping[str, Any]) -> Course:
    start: int = row["from_epoch"]
    return Course(n_epochs=row[ANNEAL_TO] - start, is_fresh=start == 0)
