"""The notes of a run and of its trials in optuna-dashboard, as Markdown."""

from __future__ import annotations

import math
import re

from optuna.trial import TrialState

from optuna_miha._history.lineage import Lineage
from optuna_miha._history.segment import Segment, place_of
from optuna_miha._results.summary import as_sentence, cycles_of, restart_line, sentences
from optuna_miha._search.control import control_of, is_without_effect
from optuna_miha.visualization._run_view import describe_change
from optuna_miha.visualization._style import number

HEADING = "## Run of optuna_miha"
"""The part of the study's note below this heading is generated; text above it is kept."""

_READING = """### How to read this page

The trials of this study are segments of one training run. They differ in age and start from
different parents, so that Optuna's plots of independent trials mislead here: **importances**,
**contour**, **slice**, **rank** and **parallel coordinates** mistake the age of a segment for an
effect of its hyperparameters. Look at these figures instead:

- *Gains of mutations*: each branch against the control of its population at the same age, and
  candidates of the race against the initial configuration, by kind of change, with counts and
  errors;
- *Lineage*: all segments over the epochs of the network;
- *Schedule*: the hyperparameters of the best network over its training.

*History*, *timeline* and *intermediate values* are correct: the first value of a segment is that
of the weights it starts from."""

_MARKDOWN_CHARACTERS = re.compile(r"([\\`*_{}\[\]<>()#+.!|~$&-])")


def study_note(lineage: Lineage, address: str) -> str:
    """Describe a run in Markdown.

    Args:
        lineage: The history of the run; at least one segment must be complete.
        address: The address of a trial, without its number.
    """
    best = lineage.best()
    assert best is not None
    lines = [HEADING, ""]
    for line in sentences(lineage, best):
        lines += [_escape(line), ""]
    cycles = cycles_of(lineage)
    if cycles:
        header = f"| {cycles[0].kind} | best change | value | control | trial |"
        lines += [header, "|---|---|---|---|---|"]
    for cycle in cycles:
        change = cycle.change if cycle.is_continued else f"{cycle.change} (not continued)"
        trial = "" if cycle.winner is None else _link(cycle.winner, address)
        change, course = _escape(change), _escape(cycle.course)
        cells = (str(cycle.number), change, course, cycle.comparison, trial)
        lines.append(f"| {' | '.join(cells)} |")
    restarts = [s for s in lineage if s.role == "restart"]
    lines += ["", *(f"- {_escape(as_sentence(restart_line(lineage, s)))}" for s in restarts)]
    lines += ["", "| parameter of the best network | value |", "|---|---|"]
    lines += [f"| {_escape(name)} | {_escape(number(v))} |" for name, v in best.params.items()]
    lines += ["", _READING]
    lines += ["", "*This part is generated and will be overwritten; write above its heading.*"]
    return "\n".join(lines)


def trial_note(lineage: Lineage, segment: Segment, address: str, error: str | None) -> str:
    """Describe one trial in Markdown: role, parent, change, outcome and curve.

    Args:
        lineage: The history of the run.
        segment: The segment of the trial.
        address: The address of a trial, without its number.
        error: Why the trial failed, if it did.
    """
    parent = lineage.parent(segment)
    start = "starts from the initial weights"
    if parent is not None:
        weights = "the best weights of " if segment.by_step else ""
        start = f"continues {weights}{_link(parent, address)} at epoch {segment.birth}"
    lines = [f"**{place_of(segment).capitalize()}**, {start}."]
    if segment.role in ("startup", "branch", "restart"):
        lines.append(f"**Change:** {_escape(describe_change(segment))}")
    lines.append(f"**Outcome:** {_outcome(lineage, segment, address, error)}")
    lines.append(f"**Curve:** {_curve(lineage, segment)}")
    return "\n\n".join(lines)


def _outcome(lineage: Lineage, segment: Segment, address: str, error: str | None) -> str:
    if segment.state == TrialState.FAIL:
        return f"failed after {segment.trained} epochs: {_escape(error or 'unknown reason')}"
    if segment.role == "restart" and segment.state != TrialState.PRUNED:
        return f"trained for {segment.trained} epochs"
    if segment.state == TrialState.PRUNED:
        outcome = f"pruned after {segment.trained} epochs"
    elif lineage.continued(segment.role, segment.cycle) is segment:
        outcome = "won its comparison" if segment.role in ("startup", "branch") else "complete"
    else:
        outcome = "lost its comparison"
    if is_without_effect(lineage, segment):
        outcome += ", without effect: equal to the control"
    control = control_of(lineage, segment.cycle) if segment.role == "branch" else None
    if control is None or control is segment:
        return outcome
    age = min(len(control.scores), len(segment.scores))
    if age == 0:
        return outcome
    if segment.state == TrialState.PRUNED and age == segment.trained:
        outcome = "pruned"
    return (
        f"{outcome}; after {age} epochs {segment.scores[age - 1]:.4g}, the control "
        f"({_link(control, address)}) {control.scores[age - 1]:.4g}"
    )


def _curve(lineage: Lineage, segment: Segment) -> str:
    finite = [
        (epoch, score)
        for epoch, score in enumerate(segment.scores, start=segment.birth + 1)
        if math.isfinite(score)
    ]
    if not finite:
        return "no finite value"
    best_epoch, best = min(finite, key=lambda point: lineage.sign * point[1])
    parent = lineage.parent(segment)
    start = finite[0][1] if parent is None else parent.last_score
    return (
        f"from {start:.4g} to {finite[-1][1]:.4g} at epoch {finite[-1][0]}; the best value is "
        f"{best:.4g} at epoch {best_epoch}"
    )


def _link(segment: Segment, address: str) -> str:
    return f"[trial {segment.number}]({address}{segment.number})"


def _escape(text: str) -> str:
    """Escape text for Markdown, and join its lines."""
    return _MARKDOWN_CHARACTERS.sub(r"\\\1", " ".join(text.replace("->", "→").split()))
