"""Validated reading of a study: its format, its attributes and the history in its trials."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, get_args

import optuna
from optuna.distributions import json_to_distribution
from optuna.exceptions import OptunaError
from optuna.trial import FrozenTrial

from optuna_miha._history import attributes
from optuna_miha._history.attribute_reader import AttributeReader
from optuna_miha._history.error_text import describe_error
from optuna_miha._history.lineage import Lineage
from optuna_miha._history.segment import Segment, segment_of
from optuna_miha._search.phases import Stretch
from optuna_miha._search.plan import Plan
from optuna_miha._search.space import contains
from optuna_miha._study.claims import fenced_trials, read_claims, read_settings
from optuna_miha._study.optuna_internals import unreadable_trial
from optuna_miha._study.retention import Keep
from optuna_miha.exceptions import FormatError, RecordError

FORMAT = 3
"""Version of the format in which a run is stored. It is incremented when older versions of the
package would misread new studies. A study without a version has format 1."""

_REQUIRED = (
    attributes.PLAN,
    attributes.RUN_SEED,
    attributes.INITIAL,
    attributes.SPACE,
    attributes.VERSIONS,
)
"""Attributes that every study of a run has."""

_RUN_ID = re.compile(r"[0-9a-f]{8}")

_DEFAULT_RUN_ID = "0" * 8

_HOME = re.compile(r"[0-9a-f]{16}")

_MAX_PATH_LENGTH = 4096

_MAX_REASON_LENGTH = 300
"""Characters of a parser's message to show, because it may contain the whole value."""


def read_lineage(study: optuna.Study) -> Lineage:
    """Read the history of a run from its study, without the trials that were set aside as lost.

    Raises:
        FormatError: If a later version of the package wrote the study.
        RecordError: If an attribute does not have the form that a run writes.
    """
    lineage = read_segments(study)
    if len(lineage) and attributes.PLAN not in study.user_attrs:
        raise _attributes(study).error(
            attributes.PLAN, "present, because the study has trials", None
        )
    return lineage


def read_segments(study: optuna.Study) -> Lineage:
    """Read the history like :func:`read_lineage`, also from a study without a plan.

    Raises:
        FormatError: If a later version of the package wrote the study.
        RecordError: If an attribute does not have the form that a run writes.
    """
    check_study(study)
    # A run has one objective. For several, `study.direction` would raise an error.
    trials = read_trials(study) if len(study.directions) == 1 else []
    lineage = Lineage.from_trials(study.directions[0], trials, read_omitted(study, trials))
    for segment in lineage:
        _check_params(segment)
    return lineage


def read_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The trials of a study, which are not to be changed.

    Raises:
        RecordError: If the database has an invalid row, or lacks a trial.
    """
    try:
        trials = study.get_trials(deepcopy=False)
    except OptunaError:
        raise
    except Exception as error:  # Of many types, such as those of JSON.
        number, reason = unreadable_trial(study) or ("?", error)
        raise RecordError(
            f"Trial {number} of the study {study.study_name!r} must be as Optuna wrote it, got a "
            f"row that it cannot read ({type(reason).__name__}: "
            f"{str(reason)[:_MAX_REASON_LENGTH]}). Restore the row, or start a study with another "
            "name."
        ) from error
    for number, trial in enumerate(trials):
        if trial.number != number:
            raise RecordError(
                f"The trials of the study {study.study_name!r} must be numbered without gaps, got "
                f"trial {trial.number} where trial {number} is missing: a row of the database was "
                "deleted. Restore it, or start a study with another name."
            )
    return trials


def _check_readable(study: optuna.Study) -> None:
    try:
        _ = study.user_attrs
    except OptunaError:
        raise
    except Exception as error:  # Of many types, such as those of JSON.
        raise RecordError(
            f"The study {study.study_name!r} must be as Optuna wrote it, got attributes that it "
            f"cannot read ({describe_error(error)[:_MAX_REASON_LENGTH]}). Restore "
            "the row, or start a study with another name."
        ) from error


def _check_params(segment: Segment) -> None:
    """Check that the hyperparameters of a segment are in the ranges stored with them.

    Raises:
        RecordError: If one is not.
    """
    for name, distribution in segment.distributions.items():
        if not contains(distribution, segment.params[name]):
            raise RecordError(
                f"The parameter {name!r} of trial {segment.number} must be in its range "
                f"{str(distribution)[:_MAX_REASON_LENGTH]}, got {str(segment.params[name])[:60]}: "
                "it was not written by a run. Restore the original value, or start a study with "
                "another name."
            )


def read_lost(study: optuna.Study) -> tuple[int, ...]:
    """Numbers of the trials that were set aside."""
    return _settings(study).integers(attributes.LOST)


def read_omitted(study: optuna.Study, trials: Sequence[FrozenTrial]) -> frozenset[int]:
    """Numbers of the trials that are not part of the run.

    These are the trials that were set aside, and those that a coordinator added or finished after
    another one had taken over.
    """
    return fenced_trials(study, trials).union(read_lost(study))


def read_late(study: optuna.Study) -> list[int]:
    """Numbers of the segments that were finished after another coordinator had taken over."""
    trials = study.get_trials(deepcopy=False)
    fenced = fenced_trials(study, trials)
    return [n for n in sorted(fenced) if segment_of(trials[n]) is not None]


def read_reported(study: optuna.Study) -> tuple[int, ...]:
    """Those of them that a warning named before."""
    return _settings(study).integers(attributes.LATE)


def read_stretches(study: optuna.Study) -> list[Stretch]:
    """The stretches so far; empty for a new run."""
    return [Stretch(**s) for s in read_settings(study.user_attrs).get(attributes.STRETCHES) or ()]


def read_keep(study: optuna.Study) -> Keep:
    """Which checkpoints the last call kept."""
    keep: Keep = read_settings(study.user_attrs).get(attributes.KEEP, "trunk")
    return keep


def check_study(study: optuna.Study) -> None:
    """Validate the attributes of a study.

    Raises:
        FormatError: If a later version of the package wrote the study.
        RecordError: If an attribute does not have the form that a run writes.
    """
    _check_readable(study)
    attrs, read = study.user_attrs, _attributes(study)
    if attributes.FORMAT in attrs and read.integer(attributes.FORMAT, minimum=1) > FORMAT:
        raise FormatError(
            f"The format of the study {study.study_name!r} must be at most {FORMAT} for this "
            f"version of optuna_miha, got {attrs[attributes.FORMAT]}. Update the package: "
            "`pip install -U optuna-miha`."
        )
    if attributes.RUN_SEED in attrs:
        read.integer(attributes.RUN_SEED, maximum=2**64)
    read.mapping(attributes.VERSIONS)
    if not _RUN_ID.fullmatch(read.text(attributes.RUN, _DEFAULT_RUN_ID)):
        raise read.error(attributes.RUN, "eight hexadecimal digits", attrs[attributes.RUN])
    if attributes.HOME in attrs and not _HOME.fullmatch(read.text(attributes.HOME, "")):
        raise read.error(attributes.HOME, "16 hexadecimal digits", attrs[attributes.HOME])
    for claim in read_claims(attrs):
        claim.check()
    settings, read_setting = read_settings(attrs), _settings(study)
    if read_setting.text(attributes.KEEP, "trunk") not in get_args(Keep):
        keep = settings[attributes.KEEP]
        raise read_setting.error(attributes.KEEP, f"one of {get_args(Keep)}", keep)
    folder = read.text(attributes.CHECKPOINT_DIR, "")
    if len(folder) > _MAX_PATH_LENGTH or "\0" in folder:
        raise read.error(attributes.CHECKPOINT_DIR, "the path of a folder", folder)
    _check(read, attributes.PLAN, "a plan", read.mapping(attributes.PLAN), lambda v: Plan(**v))
    space, initial = read.mapping(attributes.SPACE), read.mapping(attributes.INITIAL)
    _check(read, attributes.SPACE, "a search space", space, _parse_space)
    values = "values of all parameters in the search space"
    _check(read, attributes.INITIAL, values, initial, partial(_parse_initial, space))
    _check(read, attributes.MONITOR, "a monitor", read.mapping(attributes.MONITOR), _parse_monitor)
    if attrs.get(attributes.EPOCH_STEPS) is not None:
        read.integer(attributes.EPOCH_STEPS)
    stretches = settings.get(attributes.STRETCHES)
    _check(read, attributes.STRETCHES, "a list of stretches", stretches, _parse_stretches)
    if attributes.PLAN in attrs:  # It is written last.
        for key in _REQUIRED:
            if attrs.get(key) is None:
                raise read.error(key, "present, as in every study of a run", None)


def check_run(study: optuna.Study) -> None:
    """Check that a study has a run.

    Raises:
        ValueError: If it has none.
    """
    if attributes.PLAN not in study.user_attrs:
        raise ValueError(
            f"The study must hold a run of `optimize`, got {study.study_name!r} without a run: "
            "check its name, or call `optuna_miha.optimize` on it."
        )


def _check(
    read: AttributeReader, key: str, requirement: str, value: Any, parse: Callable[[Any], object]
) -> None:
    try:
        if value is not None:
            parse(value)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise read.error(
            key, f"{requirement} ({str(error)[:_MAX_REASON_LENGTH]})", value
        ) from None


def _parse_space(space: dict[str, str]) -> None:
    for distribution in space.values():
        json_to_distribution(distribution)


def _parse_initial(space: dict[str, str] | None, values: dict[str, Any]) -> None:
    for name, distribution in (space or {}).items():
        if not contains(json_to_distribution(distribution), values[name]):
            raise ValueError(f"{name!r} is {str(values[name])[:60]!r}")


def _parse_monitor(monitor: dict[str, Any]) -> None:
    loss = monitor["loss"]
    is_loss = loss is None or (isinstance(loss["class"], str) and loss["settings"].keys())
    if not (isinstance(monitor["name"], str) and is_loss):
        raise ValueError("its name, or the loss")
    float(monitor["value"])


def _parse_stretches(stretches: list[dict[str, int]]) -> None:
    for stretch in stretches:
        read = AttributeReader("the stretch", asdict(Stretch(**stretch)))
        for key in ("first_cycle", "start", "end"):
            read.integer(key)


def _settings(study: optuna.Study) -> AttributeReader:
    return AttributeReader(f"the study {study.study_name!r}", read_settings(study.user_attrs))


def _attributes(study: optuna.Study) -> AttributeReader:
    return AttributeReader(f"the study {study.study_name!r}", study.user_attrs)
