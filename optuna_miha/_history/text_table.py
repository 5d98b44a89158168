"""Tables as aligned text and as HTML."""

from __future__ import annotations

import html
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


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format rows of plain text as an HTML table, for a notebook.

    Args:
        header: The names of the columns.
        rows: The cells of each row.
    """

    def cells(row: Sequence[str], tag: str) -> str:
        return "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    head = f"<thead><tr>{cells(header, 'th')}</tr></thead>"
    return f"<table>{head}<tbody>{body}</tbody></table>"
