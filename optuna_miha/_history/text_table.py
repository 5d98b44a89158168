"""Tables as aligned text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal


def text_table(
    rows: Sequence[Sequence[str]], *, align: Literal["left", "right"] = "left"
) -> list[str]:
    """Format rows of equal length as lines, with two spaces between columns.

    Args:
        rows: The cells of each row.
        align: The side on which the cells of a column are aligned. Left-aligned lines do not end
            in spaces.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if align == "right":
        return ["  ".join(map(str.rjust, row, widths)) for row in rows]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
