"""Schedules: validation, printing, writing and reading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optuna_miha import Schedule

ROWS: list[dict[str, Any]] = [
    {"from_epoch": 0, "to_epoch": 6, "role": "startup", "lr": 1e-3, "optimizer": "adam"},
    {
        "from_epoch": 6,
        "to_epoch": 9,
        "role": "final",
        "anneal_to": 12,
        "lr": 0.03,
        "optimizer": "adam",
        "momentum": 0.9,
    },
]


def test_a_schedule_is_a_sequence_of_its_rows() -> None:
    schedule = Schedule(ROWS)
    assert list(schedule) == ROWS
    assert len(schedule) == 2
    assert schedule[-1]["lr"] == 0.03
    assert schedule[:1] == ROWS[:1]
    assert schedule == Schedule(ROWS) != Schedule(ROWS[:1])


def test_a_schedule_copies_its_rows() -> None:
    rows = [dict(row) for row in ROWS]
    schedule = Schedule(rows)
    rows[0]["lr"] = 1.0
    assert schedule[0]["lr"] == 1e-3


@pytest.mark.parametrize("name", ["json", "csv"])
def test_a_schedule_is_equal_after_writing_and_reading(name: str, tmp_path: Path) -> None:
    path = tmp_path / "schedule"
    schedule = Schedule(ROWS)
    getattr(schedule, f"to_{name}")(path)
    again = getattr(Schedule, f"from_{name}")(path)
    assert again == schedule
    assert "momentum" not in again[0]


_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(codec="utf-8", exclude_characters="\0")),
    st.sampled_from(["", "1", "1e-3", "None", "True", "'", '"a"', " 2", "(1, 2)", "a,b", "\n"]),
)


@given(values=st.lists(_VALUES, min_size=1, max_size=4))
@pytest.mark.parametrize("name", ["json", "csv"])
def test_values_keep_their_types_in_a_file(
    name: str, values: list[Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / f"schedule-{name}"
    row = {"from_epoch": 0, "to_epoch": 1} | {f"p{i}": v for i, v in enumerate(values)}
    getattr(Schedule([row]), f"to_{name}")(path)
    [again] = getattr(Schedule, f"from_{name}")(path)
    assert again == row
    assert [type(value) for value in again.values()] == [type(value) for value in row.values()]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "at least one row"),
        ([{"to_epoch": 3}], "must be integers, got None, 3"),
        ([{"from_epoch": 0, "to_epoch": 3.0}], "must be integers"),
        ([{"from_epoch": 0, "to_epoch": True}], "must be integers"),
        ([{"from_epoch": 1, "to_epoch": 3}], "Row 0 must begin at epoch 0"),
        ([{"from_epoch": 0, "to_epoch": 0}], "end later"),
        ([{"from_epoch": 0, "to_epoch": 3, "anneal_to": 2}], "not after `anneal_to`"),
        ([ROWS[0], {"from_epoch": 7, "to_epoch": 9}], "Row 1 must begin at epoch 6"),
        ([ROWS[0] | {"anneal_to": 8}, ROWS[1]], "Row 1 must begin at epoch 8"),
    ],
)
def test_invalid_epochs_are_rejected(rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule(rows)


@pytest.mark.parametrize("name", ["json", "csv"])
def test_the_seed_of_the_run_is_written_and_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / "schedule"
    schedule = Schedule([row | {"run_seed": 7} for row in ROWS])
    getattr(schedule, f"to_{name}")(path)
    again = getattr(Schedule, f"from_{name}")(path)
    assert again == schedule
    assert again.seed == 7
    assert Schedule(ROWS).seed is None
    assert str(again).endswith("seed of the run: 7")


@pytest.mark.parametrize(
    "seeds", [(1, 2), (1, None), (None, 1), (True, True), (-1, -1), ("1",) * 2]
)
def test_a_seed_must_be_the_same_non_negative_integer_in_every_row(seeds: tuple[Any, Any]) -> None:
    rows = [row | {"run_seed": seed} for row, seed in zip(ROWS, seeds, strict=True)]
    with pytest.raises(ValueError, match="`run_seed` must be the same non-negative integer"):
        Schedule(rows)


def test_a_printed_schedule_is_a_table_of_changing_parameters() -> None:
    assert str(Schedule(ROWS)).splitlines() == [
        "epochs     role     lr  momentum",
        "   0-6  startup  0.001          ",
        "   6-9    final   0.03       0.9",
        "throughout: optimizer adam",
        "lr rises to its value, then falls to zero: over epochs 6-12",
    ]


def test_a_printed_schedule_of_one_row_lists_all_parameters() -> None:
    text = str(Schedule([{"from_epoch": 0, "to_epoch": 2, "lr": 0.1, "batch_size": 8}]))
    assert text.endswith("throughout: lr 0.1, batch_size 8")
