"""The settings of a run in its study: plan, seed, search space and engine."""

from __future__ import annotations

import os
import platform
import secrets
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import optuna
import torch
from optuna.distributions import distribution_to_json
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import HyperbandPruner

from optuna_miha._history import attributes
from optuna_miha._history.lineage import Lineage
from optuna_miha._model.model_fn import Initial
from optuna_miha._model.recipe_checks import NO_DATA
from optuna_miha._model.verbosity import ignored
from optuna_miha._search.phases import Phase, Stretch, next_phase
from optuna_miha._search.plan import MIN_EPOCHS_PER_WORKER, Plan
from optuna_miha._search.pruner import SlopePruner
from optuna_miha._search.sampler import MihaSampler
from optuna_miha._study.lease import Lease
from optuna_miha._study.optuna_internals import (
    is_default_pruner,
    is_default_sampler,
)
from optuna_miha._study.retention import Keep
from optuna_miha._study.schema import (
    FORMAT,
    read_keep,
    read_late,
    read_reported,
    read_stretches,
)
from optuna_miha._training.compute import Engine
from optuna_miha._training.trainer import batches_of, steps_of_epoch
from optuna_miha._version import __version__
from optuna_miha.exceptions import PlanMismatchError, SearchSpaceChangedError

_logger = optuna.logging.get_logger("optuna.miha")


def resolve_components(study: optuna.Study) -> None:
    """Replace Optuna's default sampler and pruner by those of this package.

    Raises:
        ValueError: If the study's pruner is not supported.
    """
    if is_default_sampler(study.sampler):
        study.sampler = MihaSampler()
        _logger.info("The study has Optuna's default sampler. It is replaced by MihaSampler.")
    if is_default_pruner(study.pruner):
        study.pruner = SlopePruner()
        _logger.info("The study has Optuna's default pruner. It is replaced by SlopePruner.")
    if isinstance(study.pruner, HyperbandPruner):
        raise ValueError(
            "The study's pruner must not be a HyperbandPruner, got one: it hides a part of the "
            "trials from the sampler, possibly the parent of a branch. Use SlopePruner, "
            "MedianPruner or SuccessiveHalvingPruner."
        )


def resolve_plan(
    study: optuna.Study, n_epochs: int | None, plan: Plan | None, n_workers: int | None
) -> Plan:
    """The plan of the run: the stored one, or the requested one for a new run.

    The budget may grow and is not compared; see :func:`resolve_stretches`.

    Args:
        study: The study.
        n_epochs: The requested budget.
        plan: The requested plan.
        n_workers: The number of workers, which a new plan takes that names no number;
            :obj:`None` if it is unknown.

    Raises:
        PlanMismatchError: If the stored and the requested plan differ in more than the budget.
        ValueError: If ``n_epochs`` contradicts ``plan``.
    """
    if plan is not None and n_epochs is not None and n_epochs != plan.n_epochs:
        raise ValueError(
            f"`n_epochs` must be given once, got n_epochs={n_epochs} and a plan with "
            f"{plan.n_epochs} epochs: omit one of them."
        )
    attr = study.user_attrs.get(attributes.PLAN)
    if attr is None:
        if plan is None:
            plan = Plan() if n_epochs is None else Plan(n_epochs)
        return _widened(plan, n_workers)
    stored_plan = Plan(**attr)
    requested, stored = (plan or stored_plan).asdict(), stored_plan.asdict()
    # A plan without a number of workers continues with that of the study.
    stored["n_workers"] = stored_plan.width
    requested["n_workers"] = requested["n_workers"] or stored_plan.width
    names = [k for k in stored if k != "n_epochs" and stored[k] != requested[k]]
    if names:
        differences = ", ".join(f"{k}={requested[k]!r} (stored: {stored[k]!r})" for k in names)
        raise PlanMismatchError(
            f"The plan must be the one that the study {study.study_name!r} was started with, "
            f"got {differences}. Omit `plan` to resume with the stored one (`n_epochs` may grow), "
            "or start a study with another name."
        )
    return stored_plan


def _widened(plan: Plan, n_workers: int | None) -> Plan:
    """A new plan for a number of workers, or for as many as its budget suffices for."""
    if not plan.is_annealed or plan.n_workers is not None:
        return plan
    if n_workers is None:
        _logger.warning(
            "The `executor` does not say how many workers it has: the plan is that of one "
            f"worker. For more, pass `plan=Plan({plan.n_epochs}, n_workers=...)`."
        )
        return plan
    if n_workers == 0:
        _logger.warning(
            "No worker of the `executor` is connected yet: the plan is that of one worker. Wait "
            "for all of them before (with Dask: `client.wait_for_workers(n)`), or pass "
            f"`plan=Plan({plan.n_epochs}, n_workers=...)`."
        )
        return plan
    affordable = max(1, plan.n_epochs // MIN_EPOCHS_PER_WORKER)
    if n_workers > affordable:
        _logger.warning(
            f"{plan.n_epochs} epochs suffice for {affordable} of {n_workers} workers, each of "
            f"which trains at least {MIN_EPOCHS_PER_WORKER}: the others idle. Raise `n_epochs` to "
            f"{n_workers * MIN_EPOCHS_PER_WORKER}."
        )
    width = min(n_workers, affordable)
    return plan if width == 1 else replace(plan, n_workers=width)


def resolve_stretches(
    study: optuna.Study, plan: Plan, n_epochs: int | None, lineage: Lineage
) -> list[Stretch] | None:
    """The run's stretches, of which the last is to be trained; :obj:`None` if the run is finished.

    Args:
        study: The study, which stores the stretches so far.
        plan: The run's plan.
        n_epochs: The requested budget, in epochs; default the stored one.
        lineage: The history.
    """
    stretches = read_stretches(study)
    if not stretches:
        stretches.append(Stretch(first_cycle=0, start=0, end=n_epochs or plan.n_epochs))
    last = stretches[-1]
    end = last.end if n_epochs is None else n_epochs
    is_finished = next_phase(plan, last, lineage) is None
    if end <= lineage.spent or (is_finished and end <= last.end):
        return None
    if is_finished:
        cycle = max(segment.cycle for segment in lineage) + 1
        return [*stretches, Stretch(first_cycle=cycle, start=lineage.spent, end=end)]
    return [*stretches[:-1], replace(last, end=end)]


def upcoming_phase(
    study: optuna.Study, plan: Plan, n_epochs: int | None, lineage: Lineage
) -> Phase | None:
    """The phase that the run continues with; :obj:`None` if it is finished.

    The arguments are those of :func:`resolve_stretches`.
    """
    stretches = resolve_stretches(study, plan, n_epochs, lineage)
    return None if stretches is None else next_phase(plan, stretches[-1], lineage)


def is_tidy(study: optuna.Study, lineage: Lineage) -> bool:
    """Whether the last coordinator of a finished run got to its end.

    A coordinator that is killed after the last segment leaves files that are no longer needed, and
    a lease. Earlier versions left only the latter.
    """
    if attributes.FINISHED not in study.user_attrs:
        return study.user_attrs.get(attributes.LEASE) is None
    return bool(study.user_attrs[attributes.FINISHED] == lineage.spent)


def record_progress(study: optuna.Study, lease: Lease, lineage: Lineage) -> None:
    """Store the number of trained epochs, for display."""
    lease.verify()
    study.set_user_attr(attributes.SPENT, lineage.spent)


def record_finished(study: optuna.Study, lease: Lease, n_epochs: int | None) -> None:
    """Store that the run was tidied up after so many epochs, or that it was not yet."""
    if study.user_attrs.get(attributes.FINISHED, "") != n_epochs:
        lease.verify()
        study.set_user_attr(attributes.FINISHED, n_epochs)


def record_late(study: optuna.Study, lease: Lease) -> None:
    """Log a warning that names the trials of earlier coordinators which came too late, once."""
    late = read_late(study)
    new = sorted(set(late) - set(read_reported(study)))
    if not new:
        return
    lease.verify()
    lease.update({attributes.LATE: late})
    _logger.warning(
        f"Trials {', '.join(map(str, new))} were finished by a coordinator that had been "
        "suspended, after another one had taken over. They are not part of the run, and their "
        "epochs are not charged."
    )


def record_settings(lease: Lease, *, keep: Keep, stretches: list[Stretch] | None) -> None:
    """Store the settings of this call.

    Args:
        lease: The lease of the study.
        keep: Which checkpoints to keep, for a later :func:`~optuna_miha._study.cleaning.clean`.
        stretches: The stretches, the last of which is to be trained, if one is.
    """
    settings: dict[str, Any] = {attributes.KEEP: keep}
    if stretches is not None:
        settings[attributes.STRETCHES] = [asdict(s) for s in stretches]
    lease.verify()
    lease.update(settings)


def resolve_seed(study: optuna.Study) -> int:
    """The run's seed: the stored one, the sampler's, or a new one."""
    seed = study.sampler.seed if isinstance(study.sampler, MihaSampler) else None
    stored = study.user_attrs.get(attributes.RUN_SEED)
    if stored is None:
        return secrets.randbits(31) if seed is None else seed
    if seed not in (None, stored):
        _logger.warning(
            f"The study {study.study_name!r} continues with the seed {stored} that it was started "
            f"with, not with {seed}. For another seed, start a study with another name."
        )
    return int(stored)


def resolve_initial(study: optuna.Study, initial: Initial) -> dict[str, Any]:
    """The stored initial configuration, or that of ``initial`` for a new run.

    Raises:
        SearchSpaceChangedError: If the search space of ``model_fn`` differs from the stored one.
    """
    stored = study.user_attrs.get(attributes.SPACE)
    if stored is None:
        return initial.params
    current = _space_of(initial)
    names = sorted(n for n in {*stored, *current} if stored.get(n) != current.get(n))
    if names:
        name = names[0]
        raise SearchSpaceChangedError(
            "The search space of `model_fn` must be the one that the study "
            f"{study.study_name!r} was started with, but differs in {', '.join(names)}: {name!r} "
            f"is {current.get(name, 'not suggested')} now and was "
            f"{stored.get(name, 'not suggested')}. Restore the old search space to resume, or "
            "start a study with another name."
        )
    params: dict[str, Any] = study.user_attrs[attributes.INITIAL]
    return params


def record_run(
    study: optuna.Study,
    lease: Lease,
    plan: Plan,
    seed: int,
    initial: Initial,
    engine: Engine,
    monitor: Mapping[str, Any] | None,
) -> None:
    """Store the settings of a new run; for a stored run, warn if the engine has changed."""
    engine_attrs: dict[str, Any] = {
        "intra_op_threads": engine.n_threads,
        "precision": engine.precision,
        "channels_last": engine.channels_last,
    }
    if attributes.PLAN in study.user_attrs:
        stored = study.user_attrs[attributes.VERSIONS]
        for name, value in engine_attrs.items():
            if stored.get(name, value) != value:
                _logger.warning(
                    f"The run continues with {name}={value!r}, but was started with "
                    f"{stored[name]!r}. Its result may differ in the last digits."
                )
        return
    versions = {
        "optuna_miha": __version__,
        "optuna": optuna.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }
    attrs = {
        attributes.FORMAT: FORMAT,
        attributes.RUN_SEED: seed,
        attributes.INITIAL: initial.params,
        attributes.SPACE: _space_of(initial),
        **({} if (steps := _steps_of(initial)) is None else {attributes.EPOCH_STEPS: steps}),
        attributes.VERSIONS: versions | engine_attrs,
        **({} if monitor is None else {attributes.MONITOR: dict(monitor)}),
        attributes.PLAN: plan.asdict(),  # Last: it marks the others as complete.
    }
    lease.verify()
    if monitor is not None and study.metric_names is None:
        with ignored(ExperimentalWarning):
            study.set_metric_names([monitor["name"]])
    for key, value in attrs.items():
        lease.verify()
        study.set_user_attr(key, value)


def stored_settings(study: optuna.Study) -> tuple[Keep, Engine]:
    """The stored ``keep`` of the last call, and the engine settings that the run started with."""
    stored = study.user_attrs.get(attributes.VERSIONS, {})
    engine = Engine(
        precision=stored.get("precision"),
        channels_last=stored.get("channels_last", False),
        n_threads=stored.get("intra_op_threads", 1),
    )
    return read_keep(study), engine


def _steps_of(initial: Initial) -> int | None:
    """Steps of an epoch with the initial batch size, if known."""
    recipe = initial.recipe
    if recipe.train_data is NO_DATA:
        return None
    return steps_of_epoch(recipe, batches_of(recipe))


def _space_of(initial: Initial) -> dict[str, str]:
    return {k: distribution_to_json(v) for k, v in sorted(initial.distributions.items())}
