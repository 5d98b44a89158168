"""Comparing several methods on the same network, for the same number of epochs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack

import optuna
import torch
from optuna.storages import BaseStorage, get_storage
from optuna.trial import FixedTrial

from optuna_miha._compare.baselines import BASELINES
from optuna_miha._compare.runner import Runner
from optuna_miha._model.model_fn import Initial, ModelFn, build_initial, build_recipe
from optuna_miha._model.verbosity import without_turns
from optuna_miha._results.comparison import Comparison, Run
from optuna_miha._run.progress import is_file, open_bar
from optuna_miha._search.plan import Plan
from optuna_miha._training.compute import resolve_device
from optuna_miha._training.data_checks import check_data, check_split
from optuna_miha._training.loss_checks import check_valid_loss
from optuna_miha._training.preflight import check_fresh, resolve_direction
from optuna_miha._training.trial_steps import check_copyable, check_mutations, check_training

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
    "rates-cosine",
)

_CLASSIC_POPULATION = 4
_CLASSIC_BRANCH_EPOCHS = 2
_CLASSIC_FIXING_EPOCHS = 3

_CLASSIC_ENDS = 0.25
"""Desired fraction of the budget for run-up and final training."""


def compare(
    model_fn: ModelFn,
    *,
    n_epochs: int = 200,
    n_workers: int = 1,
    methods: Sequence[str] | None = None,
    seeds: int | Sequence[int] = 5,
    storage: str | BaseStorage | None = None,
    name: str = "compare",
    direction: str | None = None,
    device: torch.device | str | None = None,
    show_progress_bar: bool = True,
) -> Comparison:
    """Train the same ``model_fn`` by several methods, each for the same number of epochs.

    All epochs count, including those of pruned trials and losing branches. Each method and seed
    is one Optuna study, ``"{name}-{method}-{seed}"``, so that optuna-dashboard shows them side by
    side. A second call with the same storage trains only missing runs; an interrupted run is
    resumed, and gives the same result as an uninterrupted one. The methods:

    - ``"miha"``: :func:`optimize` with ``Plan(n_epochs, n_workers=n_workers)``.
    - ``"miha-classic"``: the published loop, :meth:`Plan.classic` with populations of 4
      branches, 2 epochs per branch and 3 fixing epochs. The ``m`` run-up epochs and ``c`` cycles
      are chosen so that ``2 m + 11 c`` equals ``n_epochs``, or one epoch less if that is not
      possible, and ``2 m`` is about a quarter of it: 23 and 14 for 200 epochs. They are logged.
    - ``"tpe-median"``: :class:`~optuna.samplers.TPESampler` from the sixth trial on, with
      :class:`~optuna.pruners.MedianPruner`, also from the sixth trial on, and after a quarter of
      a trial.
    - ``"hyperband"``: TPE with :class:`~optuna.pruners.HyperbandPruner`, reduction factor 3.
    - ``"random"``: :class:`~optuna.samplers.RandomSampler`, no pruning.
    - ``"tpe-retrain"``: ``tpe-median`` with half of the budget, then the best configuration from
      scratch with the other half, annealing the learning rate to zero along half a cosine; the
      better of the two is the result.
    - ``"no-search"``: the initial configuration with the whole budget.
    - ``"no-search-cosine"``: the same, annealing the learning rate to zero along half a cosine.
    - ``"rates-cosine"``: the same at a third of the initial learning rate, at the initial one and
      at three times it, each with a third of the budget; the best of the three is the result.
      Without a learning rate in the search space it is ``no-search-cosine``.

    A full trial of a search has ``round(sqrt(2 * n_epochs))`` epochs: 10 for a budget of 50, 20
    for 200, 35 for 600. The first trial is the initial configuration, and the last is shortened
    to the rest of the budget. For a given seed, all methods start from the same initial weights,
    validate with the loss of the initial configuration, and return the weights of the epoch with
    the best validation value, even if its trial was pruned.

    With ``n_workers`` above 1, the budget remains the number of all epochs, and each worker trains
    ``n_epochs / n_workers`` of them. The workers are simulated in this process: all are equally
    fast, so that the runs are reproducible. A search proposes a trial as soon as a worker is free,
    and knows only what the other workers have reported by then; TPE treats their running trials
    as bad ones (``constant_liar``), so that it does not propose the same again. Methods with one
    final training have one for each worker: ``tpe-retrain`` of the best configurations, one each;
    ``no-search`` and ``no-search-cosine`` of the initial configuration, each with its own order of
    the data; ``rates-cosine`` at three learning rates or the next multiple of ``n_workers``, at
    equal ratios. The populations of ``miha-classic`` have a branch for each worker. Its trunk
    trains alone meanwhile, so that it spends fewer epochs in the same time.

    Args:
        model_fn:
            As for :func:`optimize`. If its recipe has ``test_data``, the selected weights of each
            run are evaluated on it once, at the end.
        n_epochs: The budget of each run, in epochs.
        n_workers:
            Number of workers that each method has, at most ``n_epochs / 8`` with ``"miha"``. The
            networks of all workers are in memory at the same time.
        methods: The methods, in the order of the table; :obj:`None`: all.
        seeds: The number of seeds, starting at 0, or the seeds themselves.
        storage:
            A URL or an Optuna storage, in which the studies are created. :obj:`None`: the studies
            are kept in memory, and interrupted runs cannot be resumed.
        name: Prefix of the study names.
        direction:
            ``"minimize"`` or ``"maximize"``, needed if a custom metric is monitored. For the loss
            and the accuracy it is known.
        device: Where to train; default as in :func:`optimize`.
        show_progress_bar: Whether to show a progress bar over the epochs of all runs.

    Returns:
        The runs, with a table and a figure.

    Raises:
        TypeError: If an argument, or the return value of ``model_fn``, has the wrong type.
        ValueError: If an argument is out of range, or the storage contains a run with another
            budget or number of workers.
        SearchSpaceChangedError: If the storage contains a run with another search space.
    """
    _check_arguments(model_fn, storage, n_epochs, n_workers)
    chosen, numbers = _checked_methods(methods), _checked_seeds(seeds)
    plans = {m: _plan_of(m, n_epochs, n_workers) for m in chosen if m not in BASELINES}
    initial = build_initial(model_fn, numbers[0])
    direction = resolve_direction(initial.recipe, direction)
    resolved_device = resolve_device(device)
    # Opening a file creates it: what can be refused without it is refused before.
    runner = Runner(
        model_fn=model_fn,
        n_epochs=n_epochs,
        n_workers=n_workers,
        plans=plans,
        storage=get_storage(storage),
        name=name,
        direction=direction,
        device=resolved_device,
        monitor=initial.recipe.monitor,
        has_test_data=initial.recipe.test_data is not None,
    )
    tasks = [(method, seed) for seed in numbers for method in chosen]
    if not runner.check(tasks, initial):
        _preflight(runner, initial, numbers[0])
    # Nothing was written before this line.
    if "miha-classic" in plans:
        _log_classic(plans["miha-classic"], n_epochs)
    can_resume = storage is not None
    runs = _train(runner, tasks, can_resume=can_resume, show_progress_bar=show_progress_bar)
    return Comparison(
        runs=tuple(runs[method, seed] for method in chosen for seed in numbers),
        monitor=initial.recipe.monitor,
        direction=runner.direction,
    )


def _check_arguments(
    model_fn: object, storage: object, n_epochs: object, n_workers: object
) -> None:
    if not callable(model_fn):
        raise TypeError(f"`model_fn` must be callable, got {type(model_fn).__qualname__}.")
    if storage is not None and not isinstance(storage, (str, BaseStorage)):
        raise TypeError(
            f"`storage` must be a URL or an Optuna storage, got {type(storage).__qualname__}: "
            "write for example `sqlite:///compare.db`."
        )
    if isinstance(n_epochs, bool) or not isinstance(n_epochs, int) or n_epochs < 1:
        raise ValueError(f"`n_epochs` must be a positive number of epochs, got {n_epochs!r}.")
    if isinstance(n_workers, bool) or not isinstance(n_workers, int) or n_workers < 1:
        raise ValueError(f"`n_workers` must be a positive number of workers, got {n_workers!r}.")
    if n_workers > n_epochs:
        raise ValueError(
            f"n_epochs={n_epochs} is too small for {n_workers} workers, which need at least one "
            f"epoch each: raise `n_epochs`, or lower `n_workers` to {n_epochs} or less."
        )


def _preflight(runner: Runner, initial: Initial, seed: int) -> None:
    """Check that the network can be trained and validated."""
    recipe = build_recipe(runner.model_fn, FixedTrial(initial.params), seed)
    check_fresh(initial.recipe, recipe)
    context = runner.context(initial, seed)
    check_copyable(recipe, context)
    check_data(recipe, context)
    check_split(initial.recipe, recipe)
    check_valid_loss(initial.recipe, recipe, context)
    state, _ = check_training(recipe, context, initial.params)
    for plan in runner.plans.values():  # The baselines train every trial from scratch.
        check_mutations(context, state, initial, plan)


def _train(
    runner: Runner,
    tasks: Sequence[tuple[str, int]],
    *,
    can_resume: bool,
    show_progress_bar: bool,
) -> dict[tuple[str, int], Run]:
    """Train all runs, one after the other.

    Args:
        runner: Trains a run.
        tasks: Method and seed of each run.
        can_resume: Whether the studies outlive this process.
        show_progress_bar: Whether to show a progress bar over the epochs of all runs.
    """
    runs = {}
    with ExitStack() as stack:
        total = runner.n_epochs * len(tasks)
        bar = stack.enter_context(open_bar(total, show=show_progress_bar))
        for index, (method, seed) in enumerate(tasks):
            bar.set_description(f"{method} {seed}", refresh=not is_file())
            try:
                with without_turns():
                    run = runs[method, seed] = runner.run(method, seed, bar)
                _log_run(run, index + 1, len(tasks), runner.monitor)
            except BaseException as error:
                advice = "pass a `storage` to be able to resume; these runs were in memory."
                if can_resume:
                    advice = "call `compare` again with the same arguments to resume."
                _logger.warning(
                    f"The comparison was stopped by {type(error).__name__} in the run "
                    f"{runner.study_name(method, seed)!r}, after {index} of {len(tasks)} runs: "
                    f"{advice}"
                )
                raise
            bar.update((index + 1) * runner.n_epochs - bar.n)  # Epochs that a run left unspent.
    return runs


def _log_run(run: Run, number: int, n_runs: int, monitor: str) -> None:
    _logger.info(
        f"Run {number} of {n_runs}, {run.method} with seed {run.seed}: validation {monitor} "
        f"{run.value:.4g} after {run.epochs} epochs and {run.seconds:.0f} s."
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
            "`seeds` must be a positive number of seeds, or different non-negative integers, got "
            f"{seeds!r}: write for example seeds=5, or seeds=[0, 1, 2, 3, 4]."
        )
    return numbers


def _plan_of(method: str, n_epochs: int, n_workers: int) -> Plan:
    """The plan of a method that calls ``optimize``.

    Raises:
        ValueError: If the budget is too small for the plan.
    """
    if method == "miha":
        return Plan(n_epochs, n_workers=n_workers)
    return _classic_plan(n_epochs, n_workers)


def _classic_plan(n_epochs: int, n_workers: int = 1) -> Plan:
    """The published loop, with run-up and number of cycles chosen to spend the budget.

    With several workers, it takes as long as the other methods, and spends fewer epochs.
    """
    waves = math.ceil(_CLASSIC_POPULATION / n_workers)
    path = n_epochs // n_workers
    cycle = waves * _CLASSIC_BRANCH_EPOCHS + _CLASSIC_FIXING_EPOCHS
    if path < cycle + 2:
        workers = "" if n_workers == 1 else f" and {n_workers} workers"
        raise ValueError(
            f"n_epochs={n_epochs} is too small for one cycle of 'miha-classic'{workers}: it needs "
            f"at least {n_workers * (cycle + 2)} epochs. Raise `n_epochs`, or omit the method "
            "from `methods`."
        )
    candidates = [(c, (path - c * cycle) // 2) for c in range(1, (path - 2) // cycle + 1)]

    def badness(candidate: tuple[int, int]) -> tuple[int, float]:
        n_cycles, runup = candidate
        unspent = path - n_cycles * cycle - 2 * runup
        return unspent, abs(2 * runup / path - _CLASSIC_ENDS)

    n_cycles, runup = min(candidates, key=badness)
    return Plan.classic(
        runup_epochs=runup,
        n_cycles=n_cycles,
        population_size=waves * n_workers,
        branch_epochs=_CLASSIC_BRANCH_EPOCHS,
        fixing_epochs=_CLASSIC_FIXING_EPOCHS,
    )


def _log_classic(plan: Plan, n_epochs: int) -> None:
    _logger.info(
        f"miha-classic: run-up and final training of {plan.runup_epochs} epochs each, "
        f"{plan.n_cycles} cycles; {plan.n_epochs} of {n_epochs} epochs."
    )
