"""What the ``suggest_*`` functions suggest in a call of ``model_fn``, and for which objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass
class Suggestions:
    """The parameters that the ``suggest_*`` functions suggested, whose meaning is known.

    Those that ``model_fn`` suggests by ``trial.suggest_*`` are not among them.

    Attributes:
        names: The names of the parameters.
        modules: The module that has the value of a parameter, by its name.
        losses: The losses that ``suggest_loss`` offers, by name.
    """

    names: set[str] = field(default_factory=set)
    modules: dict[str, nn.Module] = field(default_factory=dict)
    losses: dict[str, Any] = field(default_factory=dict)

    def keep(self, names: Iterable[str]) -> None:
        """Forget all parameters but these."""
        self.names &= set(names)
        self.modules = {n: module for n, module in self.modules.items() if n in self.names}


_current: ContextVar[Suggestions | None] = ContextVar("suggestions", default=None)


@contextmanager
def collected_suggestions() -> Iterator[Suggestions]:
    """Collect what is suggested within the context."""
    suggestions = Suggestions()
    token = _current.set(suggestions)
    try:
        yield suggestions
    finally:
        _current.reset(token)


def note_suggestion(name: str, module: nn.Module | None = None) -> None:
    """Note that a ``suggest_*`` function has suggested a parameter.

    Args:
        name: The name of the parameter.
        module: The module that has its value.
    """
    suggestions = _current.get()
    if suggestions is not None:
        suggestions.names.add(name)
        if module is not None:
            suggestions.modules[name] = module


def note_losses(losses: dict[str, Any]) -> None:
    """Note the losses among which ``suggest_loss`` chooses."""
    suggestions = _current.get()
    if suggestions is not None:
        suggestions.losses = losses
