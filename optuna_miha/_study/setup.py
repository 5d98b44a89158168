"""What a run keeps in its study: plan, seed, search space, and where its checkpoints lie."""

from __future__ import annotations

import atexit
import platform
import secrets
import shutil
import tempfile
from dataclasses import asdict, replace
from os import PathLike
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.artifacts import FileSystemArtifactStore
from optuna.distributions import distribution_to_json
from optuna.pruners import HyperbandPruner

from optuna_miha._history import attributes
from optuna_miha._history.lineage import Lineage
from optuna_miha._model.model_fn import Initial
from optuna_miha._search.phases import Phase, Stretch, next_phase
from optuna_miha._search.plan import Plan
from optuna_miha._search.pruner import SlopePruner
from optuna_miha._search.sampler import MihaSampler
from optuna_miha._study.checkpoint_store import CheckpointStore
from optuna_miha._study.optuna_internals import (
    is_default_pruner,
    is_default_sampler,
    is_in_memory,
    sqlite_file,
)
from optuna_miha._study.retention import Keep
from optuna_miha._study.schema import FORMAT
from optuna_miha._training.compute import Engine
from optuna_miha.exceptions import PlanMismatchError, SearchSpaceChangedError

_logger = optuna.logging.get_logger("optuna.miha")


def resolve_components(study: optuna.Study) -> None:
    """Give a study that has Optuna's defaults our sampler and pruner.

    Raises:
        ValueError: If the study's pruner cannot work here.
    """
    if is_default_sampler(study.sampler):
        study.sampler = MihaSampler()
        _logger.info("The study has Optuna's default sampler; MihaSampler takes its place.")
    if is_default_pruner(study.pruner):
        study.pruner = SlopePruner()
        _logger.info("The study has Optuna's default pruner; SlopePruner takes its place.")
    if isinstance(study.pruner, HyperbandPruner):
        raise ValueError(
            "The study's pruner must not be a HyperbandPruner, got one: it shows the sampler "
            "only a part of the trials, and a branch's parent may not be among them. Use "
            "SlopePruner, MedianPruner or SuccessiveHalvingPruner."
        )


def resolve_plan(study: optuna.Study, n_epochs: int | None, plan: Plan | None) -> Plan:
    """The plan of the run: the stored one, or else the one asked for.

    The budget is not compared: that of a run may grow, and is :func:`resolve_stretches`'s concern.

    Raises:
        PlanMismatchError: If both exist and differ in anything but the budget.
        ValueError: If ``n_epochs`` contradicts ``plan``.
    """
    if plan is not None and n_epochs is not None and n_epochs != plan.n_epochs:
        raise ValueError(
            f"`n_epochs` must be given once, got n_epochs={n_epochs} besides a plan of "
            f"{plan.n_epochs}: leave one of them out."
        )
    known = study.user_attrs.get(attributes.PLAN)
    if known is None:
        if plan is not None:
            return plan
        return Plan() if n_epochs is None else Plan(n_epochs)
    stored = Plan(**known)
    theirs, ours = (plan or stored).asdict(), stored.asdict()
    names = [k for k in ours if k != "n_epochs" and ours[k] != theirs[k]]
    if names:
        differences = ", ".join(f"{k}={theirs[k]!r} (stored: {ours[k]!r})" for k in names)
        raise PlanMismatchError(
            f"The plan must be the one that the study {study.study_name!r} was started with, "
            f"got {differences}. Leave `plan` out to resume with the stored one (`n_epochs` may "
            "grow), or start a study of another name."
        )
    return stored


def resolve_stretches(
    study: optuna.Study, plan: Plan, n_epochs: int | None, lineage: Lineage
) -> list[Stretch] | None:
    """The run's stretches, the last of which is to be trained; :obj:`None` if nothing is missing.

    Args:
        study: Holds the stretches so far.
        plan: The run's plan.
        n_epochs: The whole budget asked for; :obj:`None`: as before.
        lineage: The record.
    """
    known = study.user_attrs.get(attributes.STRETCHES)
    stretches = [Stretch(**s) for s in known] if known else []
    if not stretches:
        stretches.append(Stretch(first_cycle=0, start=0, end=n_epochs or plan.n_epochs))
    last = stretches[-1]
    end = last.end if n_epochs is None else n_epochs
    over = next_phase(plan, last, lineage) is None
    if end <= lineage.spent or (over and end <= last.end):
        return None
    if over:
        cycle = max(segment.cycle for segment in lineage) + 1
        return [*stretches, Stretch(first_cycle=cycle, start=lineage.spent, end=end)]
    return [*stretches[:-1], replace(last, end=end)]


def phase_ahead(
    study: optuna.Study, plan: Plan, n_epochs: int | None, lineage: Lineage
) -> Phase | None:
    """What the run would go on with; :obj:`None` if nothing is missing.

    The arguments are those of :func:`resolve_stretches`.
    """
    stretches = resolve_stretches(study, plan, n_epochs, lineage)
    return None if stretches is None else next_phase(plan, stretches[-1], lineage)


def record_stretches(study: optuna.Study, stretches: list[Stretch]) -> None:
    """Write down the stretches, so that a resumed run goes on with the last of them."""
    study.set_user_attr(attributes.STRETCHES, [asdict(s) for s in stretches])


def resolve_seed(study: optuna.Study) -> int:
    """The run's seed: the stored one, the sampler's, or a new one."""
    seed = study.sampler.seed if isinstance(study.sampler, MihaSampler) else None
    known = study.user_attrs.get(attributes.RUN_SEED)
    if known is None:
        return secrets.randbits(31) if seed is None else seed
    if seed not in (None, known):
        _logger.warning(
            f"The study {study.study_name!r} goes on with the seed {known} that it was started "
            f"with, not with {seed}: for another seed, start a study of another name."
        )
    return int(known)


def resolve_initial(study: optuna.Study, initial: Initial) -> dict[str, Any]:
    """The initial configuration that the run was started with, or ``initial`` if it is new.

    Raises:
        SearchSpaceChangedError: If ``model_fn`` suggests other parameters than it did then.
    """
    known = study.user_attrs.get(attributes.SPACE)
    if known is None:
        return initial.params
    now = _space_of(initial)
    names = sorted(n for n in {*known, *now} if known.get(n) != now.get(n))
    if names:
        name = names[0]
        raise SearchSpaceChangedError(
            f"`model_fn` must suggest what it did when the study {study.study_name!r} was "
            f"started, but differs in {', '.join(names)}: {name!r} is "
            f"{now.get(name, 'not suggested')} now and was {known.get(name, 'not suggested')}. "
            "Put the old search space back to resume, or start a study of another name."
        )
    params: dict[str, Any] = study.user_attrs[attributes.INITIAL]
    return params


def record_run(
    study: optuna.Study, plan: Plan, seed: int, initial: Initial, engine: Engine
) -> None:
    """Write down what the run is, unless it is written already."""
    computed: dict[str, Any] = {
        "intra_op_threads": engine.n_threads,
        "precision": engine.precision,
        "channels_last": engine.channels_last,
    }
    if attributes.PLAN in study.user_attrs:
        if attributes.RUN not in study.user_attrs:  # It was started before runs had names.
            study.set_user_attr(attributes.RUN, _new_run())
        known = study.user_attrs[attributes.VERSIONS]
        for name, value in computed.items():
            if known.get(name, value) != value:
                _logger.warning(
                    f"The run goes on with {name}={value!r}; it was started with "
                    f"{known[name]!r}, so that its result may differ in the last digits."
                )
        return
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    attrs = {
        attributes.FORMAT: FORMAT,
        attributes.RUN: _new_run(),
        attributes.RUN_SEED: seed,
        attributes.INITIAL: initial.params,
        attributes.SPACE: _space_of(initial),
        attributes.VERSIONS: {**versions, "optuna": optuna.__version__, **computed},
        attributes.PLAN: plan.asdict(),  # Last, because it says that the others are there.
    }
    for key, value in attrs.items():
        study.set_user_attr(key, value)


def _new_run() -> str:
    return secrets.token_hex(4)


def settings_of(study: optuna.Study) -> tuple[Keep, Engine]:
    """What a run was told to keep, and how it was computed, as the study has it on record."""
    known = study.user_attrs.get(attributes.VERSIONS, {})
    engine = Engine(
        precision=known.get("precision"),
        channels_last=known.get("channels_last", False),
        n_threads=known.get("intra_op_threads", 1),
    )
    return study.user_attrs.get(attributes.KEEP, "trunk"), engine


def record_keep(study: optuna.Study, keep: Keep) -> None:
    """Write down what to keep, for whoever tidies up afterwards."""
    if study.user_attrs.get(attributes.KEEP) != keep:
        study.set_user_attr(attributes.KEEP, keep)


def open_store(
    study: optuna.Study,
    artifact_store: Any,
    checkpoint_dir: str | PathLike[str] | None,
    *,
    read_only: bool = False,
) -> CheckpointStore:
    """Where the run's checkpoints lie.

    By default a folder beside the SQLite file, a temporary one for a study in memory, or
    ``miha-checkpoints/`` in the working directory for any other storage. The study remembers
    the folder; where study and checkpoints were moved or copied together, it is the one beside
    the study.

    Raises:
        ValueError: If both a store and a folder are given.
    """
    if artifact_store is not None:
        if checkpoint_dir is not None:
            raise ValueError(
                "Give an `artifact_store` or a `checkpoint_dir`, not both: got "
                f"{artifact_store!r} and {checkpoint_dir!r}."
            )
        return CheckpointStore(artifact_store)
    known = study.user_attrs.get(attributes.CHECKPOINT_DIR)
    if checkpoint_dir is not None:
        folder = Path(checkpoint_dir).absolute()
    else:
        folder = checkpoint_folder(study)
    if not read_only:
        folder.mkdir(parents=True, exist_ok=True)
        if str(folder) != known:
            study.set_user_attr(attributes.CHECKPOINT_DIR, str(folder))
    return CheckpointStore(FileSystemArtifactStore(folder))


def checkpoint_folder(study: optuna.Study) -> Path:
    """The folder that the study remembers; the default one where that is gone, or was copied."""
    known = study.user_attrs.get(attributes.CHECKPOINT_DIR)
    if known is None or not Path(known).is_dir():
        return _default_folder(study)
    if sqlite_file(study) is not None:
        beside = _default_folder(study)
        # Of a copy, the remembered one is the original's.
        if beside.parts[-2:] == Path(known).parts[-2:] and beside.is_dir():
            return beside
    return Path(known)


def _default_folder(study: optuna.Study) -> Path:
    file = sqlite_file(study)
    safe_name = "".join(c if c.isalnum() or c in "-_." else "_" for c in study.study_name)
    if not safe_name.strip("."):  # It would lead to another folder.
        safe_name = safe_name.replace(".", "_")
    if file is not None:
        return file.with_name(f"{file.stem}-checkpoints") / safe_name
    if is_in_memory(study):
        folder = tempfile.mkdtemp(prefix="optuna-miha-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return Path(folder)
    return Path("miha-checkpoints").absolute() / safe_name


def _space_of(initial: Initial) -> dict[str, str]:
    return {k: distribution_to_json(v) for k, v in sorted(initial.distributions.items())}
