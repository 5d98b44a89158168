"""Training along a schedule that a run found, without the search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from optuna.study import StudyDirection
from optuna.trial import FixedTrial

from optuna_miha._history.curve import EpochResult
from optuna_miha._history.schedule import ANNEAL_TO, Schedule, params_of
from optuna_miha._model.model_fn import ModelFn, build_initial, build_recipe
from optuna_miha._results.trained_model import Trained
from optuna_miha._search.plan import Plan
from optuna_miha._training.compute import Engine, Precision, resolve_device
from optuna_miha._training.job import Context, Job, run_job
from optuna_miha._training.preflight import resolve_direction
from optuna_miha._training.state import State
from optuna_miha._training.trainer import Trainer
from optuna_miha.exceptions import MihaError


@dataclass(frozen=True, kw_only=True)
class Replay(Trained):
    """A network that was trained along a schedule.

    Args:
        model: The network with the weights that validated best in the last row, in evaluation
            mode.
        params: The hyperparameters of the last row.
        value: Its validation value.
        schedule: The schedule.
        best_epoch: The epoch whose weights the model has.
        results: What came of each epoch.
    """

    best_epoch: int
    results: tuple[EpochResult, ...]


def replay(
    schedule: Schedule | Sequence[Mapping[str, Any]],
    model_fn: ModelFn,
    *,
    seed: int = 0,
    direction: str | None = None,
    ema_decay: float = Plan.ema_decay,
    trainer: Trainer | None = None,
    device: torch.device | str | None = None,
    precision: Precision | None = None,
    channels_last: bool = False,
    n_threads: int = 1,
) -> Replay:
    """Train a network from scratch along a discovered schedule.

    It costs the epochs of the schedule, not those of the run that found it. Every row continues
    from the weights, their average, the optimizer's state and the random state that the one
    before left, as the segments of a run do, and changes the hyperparameters. In a row with
    ``anneal_to`` the learning rate is annealed to zero at that epoch; it is trained to its end,
    also where the run's best weights came before, and the best of it are returned.

    With the run's seed, ``model_fn``, data and the same arguments here as there, the result is
    the run's own model, bit by bit on a CPU. What a row cannot hold is not repeated: weights
    that were averaged with those of a sibling (:class:`AverageWeights`), and an annealing that a
    trainer of your own ended early. With another seed, or other data, nothing promises that the
    same changes are good at the same epochs.

    Args:
        schedule:
            ``result.schedule``, one read by :meth:`Schedule.from_json` or
            :meth:`Schedule.from_csv`, or rows like theirs.
        model_fn: As given to :func:`optimize`, or the same for other data.
        seed:
            Of the initial weights and of the order of the data: that of ``MihaSampler``, which is
            in ``study.user_attrs["miha:seed"]``, or another.
        direction:
            ``"minimize"`` or ``"maximize"``, for a metric of your own; that of the loss and of
            the accuracy is known.
        ema_decay: As in :class:`Plan`. It decides which weights are returned, and changes
            nothing in training.
        trainer: As given to :func:`optimize`; the weights are then not averaged.
        device: Where to train; default the accelerator, if there is one, else the CPU.
        precision: As given to :func:`optimize`.
        channels_last: As given to :func:`optimize`.
        n_threads: As given to :func:`optimize`.

    Returns:
        The trained model.

    Raises:
        TypeError: If ``model_fn`` does not return a recipe.
        ValueError: If the schedule has a gap, or ``direction`` contradicts what is monitored.
        MihaError: If a row could not be trained.
    """
    if not isinstance(schedule, Schedule):
        schedule = Schedule(schedule)
    initial = build_initial(model_fn, seed).recipe
    context = Context.of(
        initial,
        model_fn,
        direction=StudyDirection[resolve_direction(initial, direction).upper()],
        seed=seed,
        devices=(resolve_device(device),),
        trainer=trainer,
        ema_decay=ema_decay,
        engine=Engine(precision=precision, channels_last=channels_last, n_threads=n_threads),
    )
    state: State | None = None
    results: list[EpochResult] = []
    for number, row in enumerate(schedule):
        end = row.get(ANNEAL_TO, row["to_epoch"])
        job = Job(
            params=params_of(row),
            # The best weights are those of the row: the last one's are returned.
            state=state and {k: v for k, v in state.items() if k != "best"},
            n_epochs=end - row["from_epoch"],
            anneal=ANNEAL_TO in row,
        )
        outcome = run_job(context, job)
        if outcome.state is None:
            epoch = row["from_epoch"] + len(outcome.results)
            raise MihaError(
                f"Row {number} of the schedule (epochs {row['from_epoch']} to {end}) failed after "
                f"epoch {epoch}: {outcome.error} Check that `model_fn` suggests what the rows "
                "hold."
            ) from outcome.exception
        state = outcome.state
        results += outcome.results
    assert state is not None
    params, best = params_of(schedule[-1]), state["best"]
    recipe = build_recipe(model_fn, FixedTrial(params), seed)
    recipe.model.load_state_dict(best["weights"])
    return Replay(
        model=recipe.model.to(context.devices[0]).eval(),
        params=params,
        value=best["value"],
        schedule=schedule,
        best_epoch=best["epoch"],
        results=tuple(results),
    )
