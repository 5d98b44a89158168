"""A study as the record of a run: which format it has, and which of its trials count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna
from optuna.distributions import json_to_distribution

from optuna_miha import _lineage
from optuna_miha._attributes import Attributes
from optuna_miha._lineage import Lineage
from optuna_miha._plan import Plan
from optuna_miha.exceptions import FormatError

FORMAT = 1
"""Of what is written into a study. It grows when an older version would misread a newer record;
a study without a number is of format 1."""


def read_lineage(study: optuna.Study) -> Lineage:
    """The record of a study, without the trials that were set aside as lost.

    Raises:
        FormatError: If a later version wrote it.
        RecordError: If an attribute is not what a run writes there.
    """
    check_study(study)
    trials = study.get_trials(deepcopy=False)
    return Lineage.from_trials(study.direction, trials, read_lost(study))


def read_lost(study: optuna.Study) -> tuple[int, ...]:
    """Numbers of the trials that were set aside."""
    return _attributes(study).integers(_lineage.LOST)


def check_study(study: optuna.Study) -> None:
    """Refuse a study whose own attributes cannot be read.

    Raises:
        FormatError: If a later version wrote it.
        RecordError: If an attribute is not what a run writes there.
    """
    attrs, read = study.user_attrs, _attributes(study)
    if _lineage.FORMAT in attrs and read.integer(_lineage.FORMAT, least=1) > FORMAT:
        raise FormatError(
            f"The study {study.study_name!r} is of format {attrs[_lineage.FORMAT]}; this version "
            f"of optuna_miha reads up to {FORMAT}. Update the package: "
            "`pip install -U optuna-miha`."
        )
    if _lineage.RUN_SEED in attrs:
        read.integer(_lineage.RUN_SEED, most=2**64)
    read.mapping(_lineage.INITIAL)
    read.mapping(_lineage.VERSIONS)
    _check(read, _lineage.PLAN, "a plan", read.mapping(_lineage.PLAN), lambda v: Plan(**v))
    _check(read, _lineage.SPACE, "a search space", read.mapping(_lineage.SPACE), _parse_space)
    stretches = attrs.get(_lineage.STRETCHES)
    _check(read, _lineage.STRETCHES, "a list of stretches", stretches, _parse_stretches)


def _check(
    read: Attributes, key: str, what: str, value: Any, parse: Callable[[Any], object]
) -> None:
    try:
        if value is not None:
            parse(value)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise read.error(key, f"{what} ({error})", value) from None


def _parse_space(space: dict[str, str]) -> None:
    for distribution in space.values():
        json_to_distribution(distribution)


def _parse_stretches(stretches: list[dict[str, int]]) -> None:
    for stretch in stretches:
        read = Attributes("the stretch", stretch)
        for key in ("first_cycle", "start", "end"):
            read.integer(key)


def _attributes(study: optuna.Study) -> Attributes:
    return Attributes(f"the study {study.study_name!r}", study.user_attrs)
