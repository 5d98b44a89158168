"""What a job results in."""

from __future__ import annotations

from dataclasses import dataclass, replace

from optuna_miha._history.curve import EpochResult
from optuna_miha._training.state import State


@dataclass(frozen=True)
class Outcome:
    """The outcome of a job.

    Args:
        results: The results of the finished epochs.
        begun: Number of epochs that were started.
        state: The state after the last epoch, including ``best``. :obj:`None` on failure.
        error: The error message. :obj:`None` on success.
        exception: The exception that caused the failure, if any.
    """

    results: tuple[EpochResult, ...]
    begun: int
    state: State | None
    error: str | None = None
    exception: BaseException | None = None

    def joined(self, second: Outcome) -> Outcome:
        """Combine the outcomes of the two halves of a job; this is the first one."""
        results, begun = self.results + second.results, self.begun + second.begun
        return replace(second, results=results, begun=begun)
