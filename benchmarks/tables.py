"""Write the speed results of the newest runs into the documentation, or check them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import _overhead_table
import parallel
import storage
from _rows import RESULTS, Row, newest, read_rows, with_block

_PAGE = Path(__file__).parents[1] / "docs" / "overhead.md"
_REPORTS: dict[str, Callable[[list[Row]], list[str]]] = {
    "overhead": _overhead_table.report,
    "parallel": parallel.report,
    "storage": storage.summary,
}


def speed(results: Path) -> str:
    """Generate the table and the list from the newest results of each script.

    Args:
        results: The folder that contains the result folders.

    Raises:
        LookupError: If results are missing.
    """
    lines: list[str] = []
    sources = []
    for name, report in _REPORTS.items():
        folder = newest(results, name)
        lines += report(read_rows(folder))
        sources.append(f"`benchmarks/results/{folder.name}`")
    lines += ["", f"Medians of repeats (lowest..highest): {', '.join(sources)}."]
    return "\n".join(lines)


def main() -> None:
    """Write the tables, or check them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder that contains the result folders"
    )
    parser.add_argument("--page", type=Path, default=_PAGE, help="page to update")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 if the file is out of date"
    )
    args = parser.parse_args()
    old = args.page.read_text(encoding="utf-8")
    try:
        new = with_block(old, "speed", speed(args.results))
    except LookupError as error:
        sys.exit(str(error))
    if not args.check:
        args.page.write_text(new, encoding="utf-8")
    elif new != old:
        sys.exit(f"{args.page} is out of date: run python benchmarks/tables.py.")


if __name__ == "__main__":
    main()
