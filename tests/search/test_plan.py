"""Plans: validation and the division of the budget."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optuna_miha import Plan
from optuna_miha._search.startup_race import race_cost, race_rungs


@pytest.mark.parametrize(
    ("name", "minimum"),
    [
        ("n_epochs", 1),
        ("population_size", 1),
        ("branch_epochs", 1),
        ("fixing_epochs", 0),
        ("startup", 1),
        ("patience", 1),
        ("runup_epochs", 0),
        ("n_cycles", 0),
    ],
)
def test_a_number_below_its_minimum_is_rejected(name: str, minimum: int) -> None:
    message = f"`{name}` must be at least {minimum}, got {minimum - 1}"
    with pytest.raises(ValueError, match=message):
        Plan(**{name: minimum - 1}, anneal="cosine")
    if name != "n_epochs":
        assert getattr(Plan(400, **{name: minimum}, anneal="cosine"), name) == minimum


@pytest.mark.parametrize("name", ["n_epochs", "population_size", "branch_epochs", "startup"])
@pytest.mark.parametrize("value", [3.0, True, "3"])
def test_a_value_that_is_not_an_integer_is_rejected(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"`{name}` must be an integer, got {value!r}"):
        Plan(**{name: value}, anneal="cosine")


def test_integers_of_other_types_are_stored_as_int() -> None:
    plan = Plan(
        np.int64(400), population_size=torch.tensor(4), patience=np.uint8(3), anneal="cosine"
    )
    assert plan == Plan(400, population_size=4, patience=3, anneal="cosine")
    assert json.loads(json.dumps(plan.asdict())) == plan.asdict()


@pytest.mark.parametrize("name", ["n_epochs", "population_size", "startup", "n_cycles"])
@pytest.mark.parametrize(("power", "shown"), [(30, "1073741824"), (20_000, "20001 bits")])
def test_a_number_above_the_maximum_is_rejected(name: str, power: int, shown: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be at most 1000000000, got .*{shown}"):
        Plan(**{name: 2**power}, anneal="cosine")


def test_the_largest_numbers_are_checked_quickly() -> None:
    maximum = 10**9
    with pytest.raises(ValueError, match="too small for one cycle"):
        Plan(
            maximum,
            population_size=maximum,
            branch_epochs=maximum,
            final_share=1 - 2**-53,
            anneal="cosine",
        )
    assert Plan(maximum, startup=maximum, anneal="cosine").race_size(maximum) > 1_000_000


@pytest.mark.parametrize("name", ["startup_share", "final_share", "ema_decay"])
@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan"), "0.5"])
def test_a_share_outside_its_range_is_rejected(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"`{name}` must lie in \[0, 1\), got {value!r}"):
        Plan(**{name: value}, anneal="cosine")


def test_defaults_that_depend_on_the_annealing_are_those_of_its_kind() -> None:
    assert (Plan().population_size, Plan().startup, Plan().ema_decay) == (2, 3, 0.72)
    for anneal in ("cosine", None):
        plan = Plan(anneal=anneal)  # type: ignore[arg-type]
        assert (plan.population_size, plan.startup, plan.ema_decay) == (3, 8, 0.6)
    assert Plan(population_size=5).population_size == 5


def test_a_plan_of_rounds_has_a_round() -> None:
    assert Plan(n_cycles=1).n_rounds(500) == 1
    with pytest.raises(ValueError, match="`n_cycles` must be at least 1 in a plan of rounds"):
        Plan(n_cycles=0)


def test_an_unknown_annealing_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"`anneal` must be .* got 'linear'"):
        Plan(anneal="linear")  # type: ignore[arg-type]


def test_a_budget_that_is_too_small_is_rejected_with_the_smallest_one() -> None:
    with pytest.raises(ValueError) as caught:
        Plan(10, anneal="cosine")
    message = str(caught.value)
    assert "n_epochs=10" in message
    assert "Raise `n_epochs`, or lower `population_size` (3) or `branch_epochs` (4)" in message
    least = int(message.split("at least ")[1].split(" ")[0])
    assert Plan(least, anneal="cosine").n_epochs == least
    with pytest.raises(ValueError, match="too small"):
        Plan(least - 1, anneal="cosine")


@given(
    population_size=st.integers(1, 6),
    branch_epochs=st.integers(1, 6),
    fixing_epochs=st.integers(0, 5),
    final_share=st.floats(0, 0.9),
)
def test_least_n_epochs_is_the_smallest_valid_budget(**settings: Any) -> None:
    least = Plan(10_000, **settings, anneal="cosine").least_n_epochs()
    assert Plan(least, **settings, anneal="cosine").least_n_epochs() == least
    if least > 1:
        with pytest.raises(ValueError, match=f"at least {least} epochs"):
            Plan(least - 1, **settings, anneal="cosine")


def test_a_plan_without_cycles_needs_no_room_for_one() -> None:
    assert Plan(1, n_cycles=0, anneal="cosine").n_epochs == 1


def test_a_plan_is_immutable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Plan(anneal="cosine").n_epochs = 5  # type: ignore[misc]


def test_only_the_budget_is_a_positional_argument() -> None:
    assert Plan(150, anneal="cosine").n_epochs == 150
    with pytest.raises(TypeError):
        Plan(150, 3, anneal="cosine")  # type: ignore[misc]


@pytest.mark.parametrize(
    "plan",
    [
        Plan(anneal="cosine"),
        Plan(77, anneal=None, patience=None, n_cycles=2, control=False),
        Plan(mutations=("lr", "optimizer"), anneal="cosine"),
        Plan.classic(
            runup_epochs=5, n_cycles=2, population_size=3, branch_epochs=2, fixing_epochs=4
        ),
    ],
)
def test_a_plan_can_be_restored_from_json(plan: Plan) -> None:
    assert Plan(**json.loads(json.dumps(plan.asdict()))) == plan


def test_a_plan_from_json_is_hashable() -> None:
    plan = Plan(**json.loads(json.dumps(Plan(mutations=("lr",), anneal="cosine").asdict())))
    assert hash(plan) == hash(Plan(mutations=("lr",), anneal="cosine"))


@given(
    m=st.integers(0, 10),
    c=st.integers(0, 5),
    pop=st.integers(1, 5),
    n=st.integers(1, 5),
    k=st.integers(0, 8),
)
def test_the_classic_budget_is_the_published_sum(m: int, c: int, pop: int, n: int, k: int) -> None:
    if m == c == 0:
        with pytest.raises(ValueError, match="`n_epochs` must be at least 1, got 0"):
            _classic(m, c, pop, n, k)
        return
    plan = _classic(m, c, pop, n, k)
    assert plan.n_epochs == 2 * m + c * (pop * n + k)
    assert plan.reserve(plan.n_epochs) == m


def test_the_classic_plan_switches_off_later_additions() -> None:
    plan = _classic(5, 2, 3, 4, 6)
    assert plan.race_size(plan.n_epochs) == 1
    assert plan.anneal is None
    assert plan.ema_decay == 0
    assert plan.patience is None
    assert plan.branch_rungs == (4,)
    assert not plan.control
    assert plan.mutations == ("activation", "batch_size", "optimizer")


def test_no_search_trains_for_the_whole_budget() -> None:
    plan = Plan.no_search(50)
    assert (plan.n_epochs, plan.runup_epochs, plan.n_cycles) == (50, 50, 0)
    assert plan.race_size(plan.n_epochs) == 1
    assert plan.reserve(50) == 0
    assert (plan.anneal, plan.ema_decay, plan.patience) == (None, 0, None)


def _classic(m: int, c: int, pop: int, n: int, k: int) -> Plan:
    return Plan.classic(
        runup_epochs=m, n_cycles=c, population_size=pop, branch_epochs=n, fixing_epochs=k
    )


@pytest.mark.parametrize(
    ("size", "rungs"),
    [
        (1, []),
        (2, [(2, 3)]),
        (3, [(3, 3), (2, 3)]),
        (4, [(4, 3), (2, 3)]),
        (5, [(5, 3), (3, 3), (2, 6)]),
        (8, [(8, 3), (4, 3), (2, 6)]),
    ],
)
def test_a_race_is_halved_until_one_configuration_is_left(
    size: int, rungs: list[tuple[int, int]]
) -> None:
    assert race_rungs(size) == rungs


@pytest.mark.parametrize(
    ("n_epochs", "startup", "share", "size"),
    [
        (200, 8, 0.26, 8),  # It costs 48 of 52 epochs.
        (100, 8, 0.26, 4),  # It costs 18 of 26 epochs. A race of five would cost 36.
        (200, 8, 0.0, 1),
        (200, 1, 0.9, 1),
        (200, 3, 0.26, 3),
        (23, 8, 0.26, 1),  # 5 epochs are available. A race of two would cost 6.
        (24, 8, 0.9, 1),  # Reserve, population and one epoch of the trunk leave one epoch.
    ],
)
def test_the_race_size_depends_on_the_budget(
    n_epochs: int, startup: int, share: float, size: int
) -> None:
    plan = Plan(n_epochs, startup=startup, startup_share=share, anneal="cosine")
    assert plan.race_size(n_epochs) == size


@given(
    n_epochs=st.integers(30, 500),
    startup=st.integers(1, 16),
    startup_share=st.floats(0, 0.99),
    final_share=st.floats(0, 0.5),
)
def test_a_race_respects_its_share_and_leaves_epochs_for_a_cycle(
    n_epochs: int, startup: int, startup_share: float, final_share: float
) -> None:
    plan = Plan(
        n_epochs,
        startup=startup,
        startup_share=startup_share,
        final_share=final_share,
        anneal="cosine",
    )
    cost = race_cost(plan.race_size(plan.n_epochs))
    assert plan.race_size(plan.n_epochs) <= startup
    assert cost <= startup_share * n_epochs
    if cost:
        assert cost + plan.reserve(n_epochs) + plan.population_epochs + 1 <= n_epochs


@given(share=st.floats(0, 0.06), startup=st.integers(1, 40))
def test_a_race_is_the_largest_within_its_share(share: float, startup: int) -> None:
    affordable = math.floor(share * 10_000)
    sizes = [size for size in range(1, startup + 1) if race_cost(size) <= affordable]
    plan = Plan(10_000, startup=startup, startup_share=share, anneal="cosine")
    assert plan.race_size(10_000) == max(sizes)


@pytest.mark.parametrize(
    ("branch_epochs", "prune", "rungs"),
    [(4, True, (2, 2)), (5, True, (2, 3)), (1, True, (1,)), (4, False, (4,))],
)
def test_the_pruner_is_called_half_way(
    branch_epochs: int, prune: bool, rungs: tuple[int, ...]
) -> None:
    assert Plan(branch_epochs=branch_epochs, prune=prune, anneal="cosine").branch_rungs == rungs


def test_a_string_of_mutations_is_not_split_into_letters() -> None:
    try:
        plan = Plan(mutations="lr", anneal="cosine")  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return
    assert Plan(**json.loads(json.dumps(plan.asdict()))).mutations == ("lr",)
