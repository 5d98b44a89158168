"""Imports of packages that only some features need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def try_import(
    *packages: str, needed_by: str, install: str | None = None, alternative: str = ""
) -> Iterator[None]:
    """Explain an import that fails, as ``optuna._imports.try_import`` does.

    Example::

        with try_import("pandas", needed_by="to_dataframe()"):
            import pandas

    Args:
        packages: Names of the packages that the block imports.
        needed_by: The feature that needs them, as the subject of a sentence.
        install: What ``pip install`` takes; default the names of the packages.
        alternative: What the user can do instead, appended to the message.

    Raises:
        ImportError: If the block raises one. The message says what needs the packages and how to
            install them.
    """
    try:
        yield
    except ImportError as error:
        pronoun = "it" if len(packages) == 1 else "them"
        raise ImportError(
            f"{needed_by} needs {' and '.join(packages)}: install {pronoun} with "
            f"`pip install {install or ' '.join(packages)}`{alternative}."
        ) from error
