"""Artificial segments and search spaces, for tests that do not train."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import strategies as st
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState

from optuna_miha._history.lineage import Lineage
from optuna_miha._history.segment import Segment
from optuna_miha._search.phases import Phase


def segment(number: int = 0, **changes: Any) -> Segment:
    """A complete root segment of two epochs, with ``changes``."""
    values: dict[str, Any] = {
        "number": number,
        "role": "trunk",
        "cycle": 0,
        "branch": 0,
        "parent": None,
        "birth": 0,
        "trained": 2,
        "params": {},
        "distributions": {},
        "mutation": "",
        "scores": (1.0, 0.5),
        "train_losses": (),
        "value": 0.5,
        "fitness": -0.5,
        "state": TrialState.COMPLETE,
        "checkpoint": None,
    }
    return Segment(**(values | changes))


def add_segment(
    lineage: Lineage,
    phase: Phase,
    branch: int,
    n_epochs: int,
    *,
    cost: float = 1.0,
    state: TrialState = TrialState.COMPLETE,
    age: int | None = None,
) -> Segment:
    """Add a segment for one branch index of ``phase`` to ``lineage``.

    With ``age`` it has a checkpoint, whose best weights are those of this epoch of the lineage.
    """
    complete = state == TrialState.COMPLETE
    new = segment(
        len(lineage),
        role=phase.role,
        cycle=phase.cycle,
        branch=branch,
        parent=None if phase.parent is None else phase.parent.number,
        birth=0 if phase.parent is None else phase.parent.end,
        trained=n_epochs,
        scores=(cost,) * n_epochs,
        value=lineage.sign * cost if complete else None,
        fitness=-cost if complete else math.nan,
        state=state,
        checkpoint=None if age is None else {"id": "", "sha256": "", "best_epoch": age},
    )
    lineage.add(new)
    return new


FULL_SPACE: dict[str, BaseDistribution] = {
    "activation.1": CategoricalDistribution(("relu", "gelu", "tanh", "silu")),
    "activation.3": CategoricalDistribution(("relu", "gelu", "tanh", "silu")),
    "activation.5": CategoricalDistribution(("relu", "elu")),
    "batch_size": IntDistribution(16, 256, log=True),
    "dropout.2": FloatDistribution(0.0, 0.6),
    "label_smoothing": FloatDistribution(0.0, 0.3),
    "lr": FloatDistribution(1e-5, 3.0, log=True),
    "momentum": FloatDistribution(0.0, 0.99),
    "optimizer": CategoricalDistribution(("adam", "adamw", "sgd", "adadelta")),
    "weight_decay": CategoricalDistribution((0.0, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)),
    "width": IntDistribution(2, 20, step=3),
}
"""Parameters of every kind that has its own mutation rule, and ``width``, which has none."""

START: dict[str, Any] = {
    "activation.1": "relu",
    "activation.3": "relu",
    "activation.5": "relu",
    "batch_size": 32,
    "dropout.2": 0.1,
    "label_smoothing": 0.1,
    "lr": 1e-3,
    "momentum": 0.9,
    "optimizer": "adam",
    "weight_decay": 0.0,
    "width": 8,
}
"""A point of ``FULL_SPACE``, mostly away from its bounds."""


def distributions() -> st.SearchStrategy[BaseDistribution]:
    """Distributions of every class, with and without a step or a log scale."""
    letters = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=5, unique=True)
    return st.one_of(
        st.builds(_float, st.floats(-1e3, 1e3), st.floats(0.01, 1e3)),
        st.builds(_log_float, st.floats(1e-6, 10), st.floats(1.1, 1e4)),
        st.builds(_stepped_float, st.integers(-50, 50), st.sampled_from([0.1, 0.25, 2.0]), _SPAN),
        st.builds(_int, st.integers(-50, 50), _SPAN, st.integers(1, 7)),
        st.builds(_log_int, st.integers(1, 50), st.integers(0, 500)),
        letters.map(CategoricalDistribution),
    )


_SPAN = st.integers(0, 20)


def _float(low: float, span: float) -> BaseDistribution:
    return FloatDistribution(low, low + span)


def _log_float(low: float, factor: float) -> BaseDistribution:
    return FloatDistribution(low, low * factor, log=True)


def _stepped_float(low: int, step: float, n_steps: int) -> BaseDistribution:
    bounds = [round(k * step, 9) for k in (low, low + n_steps)]  # Decimals, as a user types them.
    return FloatDistribution(*bounds, step=step)


def _int(low: int, n_steps: int, step: int) -> BaseDistribution:
    return IntDistribution(low, low + n_steps * step, step=step)


def _log_int(low: int, span: int) -> BaseDistribution:
    return IntDistribution(low, low + span, log=True)


def is_valid(distribution: BaseDistribution, value: Any) -> bool:
    """Whether ``value`` is a value of ``distribution``, with the right type and on its grid.

    This check is independent of the one in the package, and stricter.
    """
    if isinstance(distribution, CategoricalDistribution):
        return any(value is c or value == c for c in distribution.choices)
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    if type(value) is not (int if isinstance(distribution, IntDistribution) else float):
        return False
    if not distribution.low <= value <= distribution.high:
        return False
    if distribution.step is None:
        return True
    steps = (value - distribution.low) / distribution.step
    return abs(steps - round(steps)) < 1e-6


def values_of(distribution: BaseDistribution) -> st.SearchStrategy[Any]:
    """Values of ``distribution``, which often include its bounds."""
    if isinstance(distribution, CategoricalDistribution):
        return st.sampled_from(distribution.choices)
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    low, high, step = distribution.low, distribution.high, distribution.step
    if isinstance(distribution, IntDistribution):
        n_steps = (high - low) // distribution.step
        return st.integers(0, int(n_steps)).map(lambda k: int(low + k * distribution.step))
    if step is not None:
        n_steps = round((high - low) / step)
        return st.integers(0, n_steps).map(lambda k: min(low + k * step, high))
    return st.floats(low, high)
