"""The log of a run: one line for each turn, with its reason and its values."""

from __future__ import annotations

from collections.abc import Iterator

import optuna

from optuna_miha._history.lineage import Lineage
from optuna_miha._history.segment import cycle_name, role_name
from optuna_miha._results.summary import (
    as_sentence,
    best_line,
    cycles_of,
    final_line,
    overfitting_line,
    race_line,
    restart_line,
    start_of_final,
)
from optuna_miha._search.context import SearchContext
from optuna_miha._search.mutation import describe_rules
from optuna_miha._search.phases import Phase, Stretch
from optuna_miha._search.space import kinds
from optuna_miha._search.visits import USUAL

_logger = optuna.logging.get_logger("optuna.miha")


def phase_label(phase: Phase, lineage: Lineage, n_networks: int) -> str:
    """What trains, in the progress bar, such as ``"round 1, 4 heirs"``.

    Args:
        phase: The phase.
        lineage: The history.
        n_networks: The number of siblings that are still in training.
    """
    name = role_name(phase.role)
    if phase.role == "restart":
        first = 1 + sum(s.role == phase.role and s.cycle < phase.cycle for s in lineage)
        last = first + phase.size - 1
        return f"{name} {first}" if first == last else f"{name}s {first} to {last}"
    if phase.role == "startup":
        left = "" if n_networks == phase.size else f", {n_networks} left"
        return f"{name} of {phase.size}{left}"
    if phase.role == "branch":
        name, plural = ("heir", "heirs") if phase.by_step else ("branch", "branches")
        name = f"1 {name}" if n_networks == 1 else f"{n_networks} {plural}"
    is_in_cycle = phase.role in ("branch", "trunk") and phase.cycle > 0
    cycle = cycle_name(phase.cycle, by_step=phase.by_step)
    return f"{cycle}, {name}" if is_in_cycle else name


def log_start_of(phase: Phase, lineage: Lineage, stretch: Stretch) -> None:
    """Log why restarts begin, or what the final phase, the longest one, continues."""
    if phase.role == "final":
        start = start_of_final(lineage, phase.parent)
        _logger.info(f"Final phase: the last {phase.n_epochs} epochs; {start}.")
    elif phase.role == "restart":
        restarts = [s for s in lineage if s.role == "restart" and s.cycle >= stretch.first_cycle]
        reason = overfitting_line(lineage, phase.cycle)
        if all(s.cycle == phase.cycle for s in restarts) and reason is not None:
            _logger.info(as_sentence(reason))


def log_mutations(context: SearchContext) -> None:
    """Log each parameter with the rule that mutates it, and warn of kinds that do not exist."""
    allowed = context.allowed_kinds(context.distributions)
    upward_lr = not context.plan.is_annealed
    rules = describe_rules(context.distributions, allowed, upward_lr=upward_lr)
    _logger.info(f"Mutations: {rules or 'none'}.")
    existing = kinds(context.distributions).keys()
    unknown = set(context.plan.mutations or ()) - existing - USUAL
    if unknown:
        _logger.warning(
            f"`mutations` names {', '.join(sorted(unknown))}, but the kinds of the initial "
            f"configuration are {', '.join(existing) or 'none'}."
        )


def log_end_of(phase: Phase, lineage: Lineage) -> None:
    """Log the outcome of a phase."""
    for line in _lines(phase, lineage):
        _logger.info(as_sentence(line))


def _lines(phase: Phase, lineage: Lineage) -> Iterator[str]:
    if phase.role == "startup":
        line = race_line(lineage)
        if line is not None:
            yield line
    elif phase.role == "branch":
        yield from (cycle.line for cycle in cycles_of(lineage) if cycle.number == phase.cycle)
    elif phase.role == "restart":
        for _, restart in sorted(lineage.group("restart", phase.cycle).items()):
            yield restart_line(lineage, restart)
    elif phase.role == "final":
        line = final_line(lineage)
        if line is not None:
            yield line


def log_result(lineage: Lineage, n_classified: int | None) -> None:
    """Log which segment is the result of a finished run, and why.

    Even if all of ``n`` samples are classified correctly, the rule of succession expects one error
    among the next ``n + 1``. A cross-entropy below ``1 / (n + 1)`` shows confidence only.

    Args:
        lineage: The history.
        n_classified: The validation samples whose cross-entropy is monitored, if known.
    """
    best = lineage.best()
    if best is None:
        return
    _logger.info(f"Result: the {best_line(lineage, best)}.")
    assert best.value is not None
    if n_classified is not None and best.value < 1 / (n_classified + 1):
        n = n_classified
        _logger.warning(
            f"The validation loss is {best.value:.4g}. Below 1 / {n + 1}, {n} validation samples "
            "no longer tell a better network from a more confident one: validate on more samples, "
            f"or with `valid_loss_fn=nn.CrossEntropyLoss(label_smoothing=1 / {n + 1})`."
        )


def log_stop(lineage: Lineage, stretch: Stretch) -> None:
    """Log that a callback or the timeout stopped the run."""
    _logger.info(
        f"Stopped after {lineage.spent} of {stretch.end} epochs by `timeout` or `study.stop()`: "
        "another call of `optimize` continues the run."
    )
