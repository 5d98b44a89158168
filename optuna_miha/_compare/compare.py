"""Several methods on the same network, at an equal number of trained epochs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import optuna
import torch
from optuna.storages import BaseStorage, get_storage
from optuna.trial import FixedTrial
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from optuna_miha._compare.baselines import BASELINES
from optuna_miha._compare.runner import Contest
from optuna_miha._model.model_fn import ModelFn, build_initial, build_recipe
from optuna_miha._results.comparison import Comparison
from optuna_miha._search.plan import Plan
from optuna_miha._training.compute import resolve_device
from optuna_miha._training.preflight import (
    check_fresh,
    check_training,
    check_valid_loss,
    resolve_direction,
)

_logger = optuna.logging.get_logger("optuna.miha")

METHODS = (
    "miha",
    "miha-classic",
    "tpe-median",
    "hyperband",
    "random",
    "tpe-retrain",
    "no-search",
    "no-search-cosine",
)

_CLASSIC_ENDS = 0.25
"""Share of the budget for run-up and final training, as nearly as it can be."""


def compare(
    model_fn: ModelFn,
    *,
    n_epochs: int = 200,
    methods: Sequence[str] | None = None,
    seeds: int | Sequence[int] = 5,
    storage: str | BaseStorage | None = None,
    name: str = "compare",
    direction: str | None = None,
    device: torch.device | str | None = None,
    show_progress_bar: bool = True,
) -> Comparison:
    """Train the same ``model_fn`` by several methods, each for the same number of epochs.

    Every epoch counts, those of pruned trials and losing branches included. Every method and
    seed is one Optuna study, ``"{name}-{method}-{seed}"``, so that optuna-dashboard shows them
    side by side. Calling it again with the same storage trains only what is missing; a run that
    was interrupted ends as if it had not been. The methods:

    - ``"miha"``: :func:`optimize` with ``Plan(n_epochs)``.
    - ``"miha-classic"``: the published loop, :meth:`Plan.classic` with populations of 4
      branches of 2 epochs, and fixing of 3. Run-up ``m`` and cycles ``c`` are chosen so that
      ``2 m + 11 c`` is ``n_epochs``, or one epoch less where that is not possible, and ``2 m``
      is about a quarter of it: 23 and 14 at 200 epochs. It is logged.
    - ``"tpe-median"``: :class:`~optuna.samplers.TPESampler` from the sixth trial on, with
      :class:`~optuna.pruners.MedianPruner`, from the sixth trial on as well and after a quarter
      of a trial.
    - ``"hyperband"``: TPE with :class:`~optuna.pruners.HyperbandPruner`, reduction factor 3.
    - ``"random"``: :class:`~optuna.samplers.RandomSampler`, no pruning.
    - ``"tpe-retrain"``: ``tpe-median`` on half of the budget, then the best configuration from
      scratch for the other half, its learning rate falling to zero along half a cosine; the
      better of the two.
    - ``"no-search"``: the initial configuration for the whole budget.
    - ``"no-search-cosine"``: the same with the learning rate falling to zero along half a
      cosine.

    A full trial of a search has ``round(sqrt(2 * n_epochs))`` epochs: 10 at 50, 20 at 200, 35
    at 600. Its first trial is the initial configuration, its last is cut to what is left of the
    budget. All methods start from the same initial weights for a seed, validate by the loss of
    the initial configuration, and return the weights of the epoch that validated best, be it of
    a pruned trial.

    Args:
        model_fn:
            As for :func:`optimize`. Give its recipe ``test_data``: the selected weights of each
            run are evaluated on it once, in the end.
        n_epochs: The budget of every run, in epochs.
        methods: Which methods, in the order of the table; :obj:`None`: all.
        seeds: How many seeds, from 0 on, or the seeds themselves.
        storage:
            Where the studies are kept: a URL or a storage of Optuna's. :obj:`None`: in memory,
            and nothing can be resumed.
        name: Beginning of the studies' names.
        direction:
            ``"minimize"`` or ``"maximize"``, for a monitored metric of your own; that of the
            loss and of the accuracy is known.
        device: Where to train; default as in :func:`optimize`.
        show_progress_bar: Whether to show one, over the epochs of all runs.

    Returns:
        The runs, with a table and a figure.

    Raises:
        TypeError: If an argument, or what ``model_fn`` returns, is of the wrong type.
        ValueError: If an argument is out of range, or the storage holds a run of another budget.
        SearchSpaceChangedError: If the storage holds a run of another search space.
    """
    if not callable(model_fn):
        raise TypeError(f"`model_fn` must be callable, got {type(model_fn).__qualname__}.")
    if storage is not None and not isinstance(storage, (str, BaseStorage)):
        raise TypeError(
            f"`storage` must be a URL or an Optuna storage, got {type(storage).__qualname__}: "
            "write for instance `sqlite:///compare.db`."
        )
    if isinstance(n_epochs, bool) or not isinstance(n_epochs, int) or n_epochs < 1:
        raise ValueError(f"`n_epochs` must be a positive number of epochs, got {n_epochs!r}.")
    chosen, numbers = _checked_methods(methods), _checked_seeds(seeds)
    plans = {m: _plan_of(m, n_epochs) for m in chosen if m not in BASELINES}
    initial = build_initial(model_fn, numbers[0])
    contest = Contest(
        model_fn=model_fn,
        n_epochs=n_epochs,
        plans=plans,
        storage=get_storage(storage),
        name=name,
        direction=resolve_direction(initial.recipe, direction),
        device=resolve_device(device),
        monitor=initial.recipe.monitor,
        is_tested=initial.recipe.test_data is not None,
    )
    tasks = [(method, seed) for seed in numbers for method in chosen]
    if not contest.check(tasks, initial):
        # Nothing was written until here.
        recipe = build_recipe(model_fn, FixedTrial(initial.params), numbers[0])
        check_fresh(initial.recipe, recipe)
        context = contest.context(initial, numbers[0])
        check_valid_loss(initial.recipe, recipe, context)
        check_training(recipe, context)

    runs = {}
    with ExitStack() as stack:
        if show_progress_bar:  # The log goes above the bar instead of through it.
            stack.enter_context(logging_redirect_tqdm([optuna.logging.get_logger("optuna")]))
        total = n_epochs * len(tasks)
        bar = tqdm(total=total, disable=not show_progress_bar, unit="epoch", dynamic_ncols=True)
        stack.enter_context(bar)
        if "miha-classic" in plans:
            _announce(plans["miha-classic"], n_epochs)
        for index, (method, seed) in enumerate(tasks):
            bar.set_description(f"{method} {seed}")
            try:
                runs[method, seed] = contest.see_through(method, seed, bar)
            except BaseException as error:
                run = contest.study_name(method, seed)
                advice = "call it again with the same arguments to resume."
                if storage is None:
                    advice = "pass a `storage` to be able to resume; these were in memory."
                _logger.warning(
                    f"The comparison was stopped by {type(error).__name__} in the run {run!r}, "
                    f"when {index} of {len(tasks)} runs were over: {advice}"
                )
                raise
            bar.update((index + 1) * n_epochs - bar.n)  # Those that a run left unspent.
    return Comparison(
        runs=tuple(runs[method, seed] for method in chosen for seed in numbers),
        monitor=initial.recipe.monitor,
        direction=contest.direction,
    )


def _checked_methods(methods: Sequence[str] | None) -> list[str]:
    if isinstance(methods, str):
        raise TypeError(f"`methods` must be a sequence of names, got {methods!r}: write it in [].")
    chosen = list(METHODS if methods is None else methods)
    unknown = [method for method in chosen if method not in METHODS]
    if unknown or not chosen or len(set(chosen)) < len(chosen):
        got = f"{unknown[0]!r}" if unknown else f"{chosen}"
        raise ValueError(
            f"`methods` must be one or more of {', '.join(METHODS)}, each once, got {got}."
        )
    return chosen


def _checked_seeds(seeds: int | Sequence[int]) -> list[int]:
    numbers = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    is_wrong = any(isinstance(s, bool) or not isinstance(s, int) or s < 0 for s in numbers)
    if not numbers or is_wrong or len(set(numbers)) < len(numbers) or isinstance(seeds, bool):
        raise ValueError(
            "`seeds` must be a positive number of seeds, or different integers from 0 on, got "
            f"{seeds!r}: write for instance seeds=5, or seeds=[0, 1, 2, 3, 4]."
        )
    return numbers


def _plan_of(method: str, n_epochs: int) -> Plan:
    """The plan of a method that is a run of ``optimize``.

    Raises:
        ValueError: If the budget is too small for it.
    """
    return Plan(n_epochs) if method == "miha" else _classic_plan(n_epochs)


def _classic_plan(n_epochs: int) -> Plan:
    """The published loop, with run-up and number of cycles that fit the budget."""
    cycle = _classic(0, 1).n_epochs
    if n_epochs < cycle + 2:
        raise ValueError(
            f"n_epochs={n_epochs} is too small for one cycle of 'miha-classic': it needs at "
            f"least {cycle + 2} epochs. Raise `n_epochs`, or leave it out of `methods`."
        )
    fits = [(c, (n_epochs - c * cycle) // 2) for c in range(1, (n_epochs - 2) // cycle + 1)]

    def unlike(fit: tuple[int, int]) -> tuple[int, float]:
        n_cycles, runup = fit
        unspent = n_epochs - n_cycles * cycle - 2 * runup
        return unspent, abs(2 * runup / n_epochs - _CLASSIC_ENDS)

    n_cycles, runup = min(fits, key=unlike)
    return _classic(runup, n_cycles)


def _classic(runup_epochs: int, n_cycles: int) -> Plan:
    return Plan.classic(
        runup_epochs=runup_epochs,
        n_cycles=n_cycles,
        population_size=4,
        branch_epochs=2,
        fixing_epochs=3,
    )


def _announce(plan: Plan, n_epochs: int) -> None:
    _logger.info(
        f"miha-classic: run-up and final training of {plan.runup_epochs} epochs each, "
        f"{plan.n_cycles} cycles; {plan.n_epochs} of {n_epochs} epochs."
    )
