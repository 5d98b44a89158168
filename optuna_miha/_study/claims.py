"""The claims of coordinators on a study, and which trials count after a take-over.

Every coordinator writes a claim under a key of its own. The highest claim holds the study. When it
takes over, it stores a fence: the number of trials, and which of them are unfinished. What an
earlier coordinator adds or finishes afterwards is not part of the run. The claim also stores those
settings that change from call to call, so that an earlier coordinator cannot overwrite them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from optuna_miha._history import attributes
from optuna_miha._history.attribute_reader import AttributeReader

ClaimKey = tuple[int, str]
"""Number and nonce of a claim, by which claims are ordered."""

FIRST_KEY: ClaimKey = (0, "")
"""The claim of trials without one, which an earlier version wrote."""

_KEY = re.compile(r"(?P<number>[0-9]{1,15}):(?P<nonce>[0-9a-f]{8})")

_UNFINISHED = (TrialState.RUNNING, TrialState.WAITING)

_SETTINGS = (attributes.STRETCHES, attributes.LOST, attributes.LATE, attributes.KEEP)
"""The settings in a claim. An earlier version stored them in attributes of the study."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The claim of one coordinator.

    Args:
        key: Number and nonce.
        content: The value of the attribute.
    """

    key: ClaimKey
    content: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The key as text."""
        return name_of(self.key)

    @property
    def is_released(self) -> bool:
        """Whether the coordinator has ended orderly."""
        return self.content.get("released") is True

    @property
    def is_fenced(self) -> bool:
        """Whether the coordinator has taken over."""
        return self.content.get("fence") is not None

    @cached_property
    def _fence(self) -> tuple[int, frozenset[int]]:
        fence = self.content["fence"]
        read = AttributeReader(f"the claim {self.name}", fence if isinstance(fence, dict) else {})
        return read.integer("n_trials"), frozenset(read.integers("unfinished"))

    def check(self) -> None:
        """Check the fence.

        Raises:
            RecordError: If it is not what a run writes.
        """
        if self.is_fenced:
            _ = self._fence

    def admits(self, number: int) -> bool:
        """Whether a trial of an earlier claim was finished at the take-over."""
        n_trials, unfinished = self._fence
        return number < n_trials and number not in unfinished


def name_of(key: ClaimKey) -> str:
    """The text of a key: ``3:0123abcd``."""
    return f"{key[0]}:{key[1]}"


def read_claims(attrs: Mapping[str, Any]) -> list[Claim]:
    """The claims among the attributes of a study, the highest last."""
    claims = []
    for name, content in attrs.items():
        match = _KEY.fullmatch(name.removeprefix(attributes.CLAIM_PREFIX))
        if name.startswith(attributes.CLAIM_PREFIX) and match is not None:
            key = int(match["number"]), match["nonce"]
            claims.append(Claim(key=key, content=content if isinstance(content, dict) else {}))
    return sorted(claims, key=lambda claim: claim.key)


def fence_of(trials: Iterable[FrozenTrial]) -> dict[str, Any]:
    """The fence of a claim that takes over now."""
    states = {trial.number: trial.state for trial in trials}
    unfinished = [number for number, state in states.items() if state in _UNFINISHED]
    return {"n_trials": len(states), "unfinished": unfinished}


def read_settings(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the last claim that took over, by name; missing ones are left out."""
    fenced = [claim.content for claim in read_claims(attrs) if claim.is_fenced]
    source = fenced[-1] if fenced else attrs
    return {name: source[name] for name in _SETTINGS if name in source}


def fenced_trials(study: optuna.Study, trials: Iterable[FrozenTrial]) -> frozenset[int]:
    """Numbers of the trials that an earlier coordinator added or finished after a take-over.

    Raises:
        RecordError: If a claim or a trial's reference to one is not what a run writes.
    """
    fenced = [claim for claim in read_claims(study.user_attrs) if claim.is_fenced]
    if not fenced:
        return frozenset()
    return frozenset(
        trial.number
        for trial in trials
        if not all(c.admits(trial.number) for c in fenced if c.key > _claim_key(trial))
    )


def _claim_key(trial: FrozenTrial) -> ClaimKey:
    if attributes.CLAIM not in trial.user_attrs:
        return FIRST_KEY
    read = AttributeReader(f"trial {trial.number}", trial.user_attrs)
    match = _KEY.fullmatch(read.text(attributes.CLAIM, ""))
    if match is None:
        value = trial.user_attrs[attributes.CLAIM]
        raise read.error(attributes.CLAIM, "the name of a claim", value)
    return int(match["number"]), match["nonce"]
