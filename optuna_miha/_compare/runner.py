"""Training one method with one seed, and storing the outcome in its study."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import optuna
import torch
from optuna.distributions import distribution_to_json
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FixedTrial, FrozenTrial

from optuna_miha._compare.baselines import BASELINES, BEST, BaselineRun, trial_epochs_of, trials_of
from optuna_miha._compare.curves import curve_of, improvements
from optuna_miha._history import attributes
from optuna_miha._model.model_fn import Initial, ModelFn, build_initial, build_recipe
from optuna_miha._model.verbosity import warnings_only
from optuna_miha._results.comparison import Comparison, Run
from optuna_miha._run.optimize import optimize
from optuna_miha._search.plan import Plan
from optuna_miha._search.pruner import SlopePruner
from optuna_miha._search.sampler import MihaSampler
from optuna_miha._study.schema import read_lineage, read_segments
from optuna_miha._study.setup import resolve_initial, upcoming_phase
from optuna_miha._study.stores import open_store
from optuna_miha._training.compute import intra_op_threads
from optuna_miha._training.context import Context
from optuna_miha._training.trainer import evaluate
from optuna_miha.exceptions import MihaError

# Attributes of a study.
SETTINGS = "compare:settings"
RUN = "compare:run"
SECONDS = "compare:seconds"  # Total of all attempts so far.


@dataclass(frozen=True, kw_only=True)
class _Selected:
    """The weights that a method selected by validation, and how it found them."""

    value: float
    params: dict[str, Any]
    weights: dict[str, Any] | None
    epochs: int
    curve: list[tuple[int, float]]


@dataclass(frozen=True, kw_only=True)
class Runner:
    """Trains the runs of a comparison.

    Args:
        model_fn: The user's function.
        n_epochs: The budget of each run, in epochs.
        n_workers: Number of workers that share it.
        plans: The plans of the methods that call ``optimize``.
        storage: The storage of the studies.
        name: Prefix of the study names.
        direction: ``"minimize"`` or ``"maximize"``.
        device: Where to train.
        monitor: Name of the monitored value.
        has_test_data: Whether the selected weights are evaluated on test data.
    """

    model_fn: ModelFn
    n_epochs: int
    n_workers: int
    plans: Mapping[str, Plan]
    storage: BaseStorage
    name: str
    direction: str
    device: torch.device
    monitor: str
    has_test_data: bool

    def study_name(self, method: str, seed: int) -> str:
        """The name of the study of a run."""
        return f"{self.name}-{method}-{seed}"

    def context(self, initial: Initial, seed: int) -> Context:
        """The context that all segments and trials of a run share."""
        return Context.of(
            initial.recipe,
            self.model_fn,
            direction=StudyDirection[self.direction.upper()],
            seed=seed,
            devices=(self.device,),
        )

    def check(self, tasks: Sequence[tuple[str, int]], initial: Initial) -> bool:
        """Check that existing studies match this comparison.

        Args:
            tasks: Method and seed of each run.
            initial: The initial configuration.

        Returns:
            Whether all runs are finished.

        Raises:
            ValueError: If a study contains something else, or has another budget, number of
                workers or direction.
            SearchSpaceChangedError: If a study has another search space.
        """
        known = set(optuna.get_all_study_names(self.storage))
        are_finished = []
        for method, seed in tasks:
            name = self.study_name(method, seed)
            if name not in known:
                are_finished.append(False)
                continue
            study = optuna.load_study(study_name=name, storage=self.storage)
            settings = study.user_attrs.get(SETTINGS)
            if settings is None and (study.user_attrs or study.get_trials(deepcopy=False)):
                raise ValueError(
                    f"The study {name!r} must be one that `compare` created, but it contains "
                    "something else: pass another `name`."
                )
            if settings is not None and settings["n_epochs"] != self.n_epochs:
                raise ValueError(
                    f"All runs must have the same budget, got n_epochs={self.n_epochs}, but the "
                    f"study {name!r} was run with {settings['n_epochs']}: pass that budget, or "
                    "another `name`."
                )
            stored = 1 if settings is None else settings.get("n_workers", 1)
            if settings is not None and stored != self.n_workers:
                raise ValueError(
                    f"All runs must have the same number of workers, got n_workers="
                    f"{self.n_workers}, but the study {name!r} was run with {stored}: pass that "
                    "number, or another `name`."
                )
            if study.direction.name.lower() != self.direction:
                raise ValueError(
                    f"The study {name!r} must {self.direction} the monitored value, but it was "
                    f"created to {study.direction.name.lower()}: pass another `name`."
                )
            resolve_initial(study, initial)
            are_finished.append(self._finished_run(study) is not None)
        return all(are_finished)

    def run(self, method: str, seed: int, bar: Any) -> Run:
        """Train a run, or resume it.

        Args:
            method: The method.
            seed: The seed.
            bar: A progress bar, updated by the number of trained epochs.

        Returns:
            The outcome; that of a finished run is read from its study.
        """
        study = self._open(method, seed)
        finished = self._finished_run(study)
        if finished is not None:
            return finished
        initial = build_initial(self.model_fn, seed)
        context = self.context(initial, seed)
        earlier = study.user_attrs.get(SECONDS, 0.0)
        started = time.perf_counter()
        try:
            if method in BASELINES:
                selected = self._run_baseline(study, method, context, initial, bar)
            else:
                selected = self._run_miha(study, method, bar)
        finally:
            seconds = earlier + time.perf_counter() - started
            if RUN not in study.user_attrs:  # A run that is only evaluated keeps its time.
                with suppress(Exception):  # An error in training must not be hidden.
                    study.set_user_attr(SECONDS, seconds)
        run = Run(
            method=method,
            seed=seed,
            n_epochs=self.n_epochs,
            n_workers=self.n_workers,
            epochs=selected.epochs,
            seconds=study.user_attrs.get(SECONDS, seconds),
            value=selected.value,
            test=_test_metrics(context, selected) if self.has_test_data else None,
            curve=tuple(improvements(selected.curve, context.sign)),
            trial_epochs=self._trial_epochs(method),
        )
        study.set_user_attr(RUN, run.asdict())
        return run

    def _trial_epochs(self, method: str) -> int | None:
        """Epochs of a full trial of a method that trains several trials from scratch."""
        is_search = method in BASELINES and BASELINES[method].search_fraction > 0
        return trial_epochs_of(self.n_epochs, self.n_workers) if is_search else None

    def _finished_run(self, study: optuna.Study) -> Run | None:
        """The outcome of a finished run; :obj:`None` if training or testing is incomplete."""
        stored = study.user_attrs.get(RUN)
        if stored is None or (self.has_test_data and stored["test"] is None):
            return None
        return Run.from_dict(stored)

    def _open(self, method: str, seed: int) -> optuna.Study:
        with warnings_only():  # A line for each study would hide those for the runs.
            study = optuna.create_study(
                storage=self.storage,
                study_name=self.study_name(method, seed),
                direction=StudyDirection[self.direction.upper()],
                load_if_exists=True,
                sampler=MihaSampler(seed=seed),  # Baselines use a separate study for proposals.
                pruner=SlopePruner(),
            )
        if SETTINGS not in study.user_attrs:
            settings = {"method": method, "seed": seed, "n_epochs": self.n_epochs}
            settings |= {"n_workers": self.n_workers, "monitor": self.monitor}
            study.set_user_attr(SETTINGS, settings)
        return study

    def _run_miha(self, study: optuna.Study, method: str, bar: Any) -> _Selected:
        bar.update(read_segments(study).spent)

        def count(study: optuna.Study, trial: FrozenTrial) -> None:
            bar.update(trial.user_attrs.get(attributes.TRAINED, 0))

        plan = self.plans[method]
        try:
            result = optimize(
                study,
                self.model_fn,
                plan=plan,
                keep="final",
                device=self.device,
                callbacks=[count],
                show_progress_bar=False,
            )
        except MihaError:
            lineage = read_lineage(study)
            if (
                lineage.best() is not None
                or upcoming_phase(study, plan, None, lineage) is not None
            ):
                raise
            # The run is finished, and every segment diverged.
            return _Selected(
                value=math.nan, params={}, weights=None, epochs=lineage.spent, curve=[]
            )
        return _Selected(
            value=result.value,
            params=result.params,
            weights=dict(result.model.state_dict()),
            epochs=result.n_epochs_trained,
            curve=curve_of(result.segments, self.n_workers),
        )

    def _run_baseline(
        self, study: optuna.Study, method: str, context: Context, initial: Initial, bar: Any
    ) -> _Selected:
        if attributes.SPACE not in study.user_attrs:
            space = {k: distribution_to_json(v) for k, v in sorted(initial.distributions.items())}
            study.set_user_attr(attributes.INITIAL, initial.params)
            study.set_user_attr(attributes.SPACE, space)
        bar.update(sum(len(trial.intermediate_values) for trial in trials_of(study)))
        run = BaselineRun(
            study,
            BASELINES[method],
            context=context,
            initial_params=study.user_attrs[attributes.INITIAL],
            distributions=initial.distributions,
            n_epochs=self.n_epochs,
            n_workers=self.n_workers,
            store=open_store(study, None, None),
        )
        run.train(bar.update)
        best = run.best()
        return _Selected(
            value=math.nan if best is None else best.user_attrs[BEST]["value"],
            params={} if best is None else best.params,
            weights=run.best_weights(),
            epochs=len(run.values),
            curve=list(enumerate(run.values, start=1)),
        )


def find_comparison(study: optuna.Study, storage: BaseStorage) -> Comparison | None:
    """Load the comparison that a study belongs to.

    Args:
        study: The study.
        storage: The storage of the study and the other runs.

    Returns:
        All finished runs of the comparison; :obj:`None` if the study does not belong to one, or
        no run is finished.
    """
    settings = study.user_attrs.get(SETTINGS)
    if settings is None:
        return None
    name = study.study_name.removesuffix(f"-{settings['method']}-{settings['seed']}")
    runs = []
    for summary in optuna.get_all_study_summaries(storage, include_best_trial=False):
        other, stored = summary.user_attrs.get(SETTINGS), summary.user_attrs.get(RUN)
        if other is None or stored is None:
            continue
        if summary.study_name == f"{name}-{other['method']}-{other['seed']}":
            runs.append(Run.from_dict(stored))
    if not runs:
        return None
    order = {run.method: index for index, run in reversed(list(enumerate(runs)))}
    return Comparison(
        runs=tuple(sorted(runs, key=lambda run: (order[run.method], run.seed))),
        monitor=settings.get("monitor", "loss"),
        direction=study.direction.name.lower(),
    )


def _test_metrics(context: Context, selected: _Selected) -> dict[str, float] | None:
    """Evaluate the selected weights on the test data, which are used nowhere else."""
    if selected.weights is None:
        return None
    trial = FixedTrial(selected.params)
    recipe = context.on_device(build_recipe(context.model_fn, trial, context.seed))
    if recipe.test_data is None:
        return None
    recipe.model.load_state_dict(selected.weights)
    recipe.valid_data = recipe.test_data
    with intra_op_threads(context.engine.n_threads):
        return evaluate(recipe, recipe.model, context.engine)
