"""Texts of errors for messages, logs and attributes, without passwords."""

from __future__ import annotations

import re

_URL_CREDENTIALS = re.compile(r"(?<![\w.+-])(\w[\w.+-]+:/*)[^\s/][^\s]*@")
"""User and password in a URL, complete or misspelled: ``postgresql:/user:password@host``."""

_REFERENCE_CREDENTIALS = re.compile(r"^([^:@]*:/*).*@", re.DOTALL)

_PARAMETERS = re.compile(r"(?i)((?:password|passwd|pwd|passphrase|secret|token)\w*=)[^&\s'\"]+")
"""Parameters of a URL, or of a connection string of PostgreSQL."""

_HIDDEN = r"\1***"


def describe_error(error: BaseException) -> str:
    """The type and the message of an error, without credentials."""
    return f"{type(error).__name__}: {without_credentials(str(error))}"


def without_credentials(text: str) -> str:
    """Replace users and passwords of URLs in a text by ``***``."""
    return _PARAMETERS.sub(_HIDDEN, _URL_CREDENTIALS.sub(r"\1***@", text))


def quoted(reference: str) -> str:
    """A URL or path that a user passed, in quotation marks and without credentials.

    All of it is taken for one URL, even if it is misspelled or its password contains spaces.
    """
    return repr(_PARAMETERS.sub(_HIDDEN, _REFERENCE_CREDENTIALS.sub(r"\1***@", reference)))
