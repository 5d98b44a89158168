"""One run of one method: what is trained, what it selected, and its record in the study."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import optuna
import torch
from optuna.distributions import distribution_to_json
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FixedTrial, FrozenTrial

from optuna_miha._compare.baselines import BASELINES, BEST, BaselineRun, trial_epochs_of, trials_of
from optuna_miha._history import attributes
from optuna_miha._history.lineage import Lineage
from optuna_miha._model.model_fn import Initial, ModelFn, build_initial, build_recipe
from optuna_miha._results.comparison import Comparison, Run
from optuna_miha._run.optimize import optimize
from optuna_miha._search.plan import Plan
from optuna_miha._search.pruner import SlopePruner
from optuna_miha._search.sampler import MihaSampler
from optuna_miha._study.schema import read_lineage
from optuna_miha._study.setup import open_store, upcoming_phase, resolve_initial
from optuna_miha._training.compute import intra_op_threads
from optuna_miha._training.job import Context
from optuna_miha._training.trainer import evaluate
from optuna_miha.exceptions import MihaError

# Attributes of a study.
SETTINGS = "compare:settings"
RUN = "compare:run"
SECONDS = "compare:seconds"  # Of all attempts so far.


@dataclass(frozen=True, kw_only=True)
class _Selected:
    """What a method chose by validation."""

    value: float
    params: dict[str, Any]
    weights: dict[str, Any] | None
    epochs: int
    curve: list[tuple[int, float]]


@dataclass(frozen=True, kw_only=True)
class Contest:
    """What all runs have in common.

    Args:
        model_fn: The user's function.
        n_epochs: The budget of a run.
        plans: The plans of those methods that are runs of ``optimize``.
        storage: Where the studies are kept.
        name: Beginning of the studies' names.
        direction: ``"minimize"`` or ``"maximize"``.
        device: Where to train.
        monitor: What decides on validation data.
        is_tested: Whether there are test data.
    """

    model_fn: ModelFn
    n_epochs: int
    plans: Mapping[str, Plan]
    storage: BaseStorage
    name: str
    direction: str
    device: torch.device
    monitor: str
    is_tested: bool

    def study_name(self, method: str, seed: int) -> str:
        """The name of a run's study."""
        return f"{self.name}-{method}-{seed}"

    def context(self, initial: Initial, seed: int) -> Context:
        """What all segments and trials of a run have in common."""
        return Context.of(
            initial.recipe,
            self.model_fn,
            direction=StudyDirection[self.direction.upper()],
            seed=seed,
            devices=(self.device,),
        )

    def check(self, tasks: Sequence[tuple[str, int]], initial: Initial) -> bool:
        """Refuse studies that are not what is compared; returns whether all runs are over."""
        known = set(optuna.get_all_study_names(self.storage))
        are_over = []
        for method, seed in tasks:
            name = self.study_name(method, seed)
            if name not in known:
                are_over.append(False)
                continue
            study = optuna.load_study(study_name=name, storage=self.storage)
            settings = study.user_attrs.get(SETTINGS)
            if settings is None and (study.user_attrs or study.get_trials(deepcopy=False)):
                raise ValueError(
                    f"The study {name!r} must be one of `compare`, but it holds something else: "
                    "pass another `name`."
                )
            if settings is not None and settings["n_epochs"] != self.n_epochs:
                raise ValueError(
                    f"All runs must have one budget, got n_epochs={self.n_epochs}, but the study "
                    f"{name!r} was run with {settings['n_epochs']}: pass that, or another `name`."
                )
            if study.direction.name.lower() != self.direction:
                raise ValueError(
                    f"The study {name!r} must {self.direction} what is monitored, but was made "
                    f"to {study.direction.name.lower()}: pass another `name`."
                )
            resolve_initial(study, initial)
            are_over.append(self._record(study) is not None)
        return all(are_over)

    def see_through(self, method: str, seed: int, bar: Any) -> Run:
        """Do what is missing of a run, and return its record."""
        study = self._open(method, seed)
        record = self._record(study)
        if record is not None:
            return record
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
            if RUN not in study.user_attrs:  # A record without test figures keeps its time.
                with suppress(Exception):  # No reason to hide what happened.
                    study.set_user_attr(SECONDS, seconds)
        run = Run(
            method=method,
            seed=seed,
            n_epochs=self.n_epochs,
            epochs=selected.epochs,
            seconds=study.user_attrs.get(SECONDS, seconds),
            value=selected.value,
            test=_tested(context, selected) if self.is_tested else None,
            curve=tuple(_improvements(selected.curve, context.sign)),
            trial_epochs=trial_epochs_of(self.n_epochs) if _searches(method) else None,
        )
        study.set_user_attr(RUN, run.asdict())
        return run

    def _record(self, study: optuna.Study) -> Run | None:
        """The record of a run that is over, and tested if there are test data now."""
        record = study.user_attrs.get(RUN)
        if record is None or (self.is_tested and record["test"] is None):
            return None
        return Run.from_dict(record)

    def _open(self, method: str, seed: int) -> optuna.Study:
        study = optuna.create_study(
            storage=self.storage,
            study_name=self.study_name(method, seed),
            direction=StudyDirection[self.direction.upper()],
            load_if_exists=True,
            sampler=MihaSampler(seed=seed),  # Baselines propose in a study of their own.
            pruner=SlopePruner(),
        )
        if SETTINGS not in study.user_attrs:
            settings = {"method": method, "seed": seed, "n_epochs": self.n_epochs}
            settings["monitor"] = self.monitor
            study.set_user_attr(SETTINGS, settings)
        return study

    def _run_miha(self, study: optuna.Study, method: str, bar: Any) -> _Selected:
        trials = study.get_trials(deepcopy=False)
        bar.update(Lineage.from_trials(study.direction, trials).spent)

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
            if lineage.best() is not None or upcoming_phase(study, plan, None, lineage) is not None:
                raise
            # It is over, and whatever it trained diverged.
            return _Selected(
                value=math.nan, params={}, weights=None, epochs=lineage.spent, curve=[]
            )
        curve, spent = [], 0
        # Not in the order of trials, which another attempt may have begun.
        for segment in sorted(result.segments, key=lambda s: s.position):
            if segment.value is not None:
                scores = [*enumerate(segment.scores, start=1), (segment.trained, segment.value)]
                curve += [(spent + epoch, score) for epoch, score in scores]
            spent += segment.trained
        return _Selected(
            value=result.value,
            params=result.params,
            weights=dict(result.model.state_dict()),
            epochs=result.n_epochs_trained,
            curve=curve,
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
            n_epochs=self.n_epochs,
            store=open_store(study, None, None),
        )
        run.train(bar.update)
        values = [v for t in run.trials for _, v in sorted(t.intermediate_values.items())]
        best = run.best()
        return _Selected(
            value=math.nan if best is None else best.user_attrs[BEST]["value"],
            params={} if best is None else best.params,
            weights=run.best_weights(),
            epochs=len(values),
            curve=list(enumerate(values, start=1)),
        )


def find_comparison(study: optuna.Study, storage: BaseStorage) -> Comparison | None:
    """The comparison that a study is a run of; :obj:`None` if it is not, or no run is over.

    Args:
        study: The study.
        storage: Where it and the other runs are.
    """
    settings = study.user_attrs.get(SETTINGS)
    if settings is None:
        return None
    name = study.study_name.removesuffix(f"-{settings['method']}-{settings['seed']}")
    runs = []
    for summary in optuna.get_all_study_summaries(storage, include_best_trial=False):
        theirs, record = summary.user_attrs.get(SETTINGS), summary.user_attrs.get(RUN)
        if theirs is None or record is None:
            continue
        if summary.study_name == f"{name}-{theirs['method']}-{theirs['seed']}":
            runs.append(Run.from_dict(record))
    if not runs:
        return None
    order = {run.method: place for place, run in reversed(list(enumerate(runs)))}
    return Comparison(
        runs=tuple(sorted(runs, key=lambda run: (order[run.method], run.seed))),
        monitor=settings.get("monitor", "loss"),
        direction=study.direction.name.lower(),
    )


def _searches(method: str) -> bool:
    """Whether a method trains trials from scratch to compare them."""
    return method in BASELINES and BASELINES[method].searched > 0


def _tested(context: Context, selected: _Selected) -> dict[str, float] | None:
    """The figures of the selected weights on the test data, which nothing has seen before."""
    if selected.weights is None:
        return None
    trial = FixedTrial(selected.params)
    recipe = context.on_device(build_recipe(context.model_fn, trial, context.seed))
    if recipe.test_data is None:
        return None
    recipe.model.load_state_dict(selected.weights)
    tested = replace(recipe, valid_data=recipe.test_data, test_data=None)
    with intra_op_threads(context.engine.n_threads):
        return evaluate(tested, tested.model, context.engine)


def _improvements(curve: Iterable[tuple[int, float]], sign: int) -> Iterator[tuple[int, float]]:
    """The points that are better than all before."""
    least = math.inf
    for epoch, value in curve:
        if sign * value < least and math.isfinite(value):
            least = sign * value
            yield epoch, value
