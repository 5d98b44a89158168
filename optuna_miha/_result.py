"""What a run leaves in the user's hands."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, overload

import optuna
import torch
from optuna.trial import FixedTrial, FrozenTrial
from torch import nn

from optuna_miha import _lineage
from optuna_miha._checkpoint import CheckpointStore
from optuna_miha._lineage import Lineage, Segment
from optuna_miha._model_fn import ModelFn, build_recipe
from optuna_miha._mutation import NO_CHANGE, describe
from optuna_miha.exceptions import MihaError


class Schedule(Sequence[dict[str, Any]]):
    """The hyperparameters over the epochs of the returned model's own lineage.

    A sequence of rows, so that ``pandas.DataFrame(schedule)`` works. Each row is a dictionary
    of ``from_epoch`` and ``to_epoch`` (the row holds after the first and up to the last),
    ``role``, and every hyperparameter. In the row of role ``final`` the learning rate falls
    from ``lr`` to zero, unless the plan says otherwise.

    Args:
        rows: The rows, in the order of their epochs.
    """

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self._rows = list(rows)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._rows)

    def __repr__(self) -> str:
        return f"Schedule({self._rows!r})"

    def to_csv(self, path: str | PathLike[str]) -> None:
        """Write the rows as CSV; a parameter that a row lacks is left empty."""
        names = list(dict.fromkeys(name for row in self for name in row))
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self)

    def to_json(self, path: str | PathLike[str]) -> None:
        """Write the rows as a JSON array of objects."""
        Path(path).write_text(json.dumps(self._rows, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class Result:
    """A trained model and how it came about.

    Args:
        model: The network with the weights that validated best, in evaluation mode.
        params: Its hyperparameters at that epoch.
        value: Its validation value.
        trial: The trial that it comes from; ``study.best_trial`` of an undisturbed study.
        schedule: The hyperparameters over the epochs of its lineage.
        lineage: The segments that it descends from, the oldest first, its own last.
        segments: All segments of the run.
        n_epochs_trained: Epochs trained in the whole run, losers' and failures' included.
    """

    model: nn.Module
    params: dict[str, Any]
    value: float
    trial: FrozenTrial
    schedule: Schedule
    lineage: tuple[Segment, ...]
    segments: tuple[Segment, ...]
    n_epochs_trained: int

    def save(self, path: str | PathLike[str]) -> None:
        """Write weights, hyperparameters, value and schedule into one file.

        ``torch.load(path, weights_only=True)`` reads it; its ``"state_dict"`` goes into
        ``model.load_state_dict`` of a network with the same hyperparameters.
        """
        content = {
            "state_dict": {k: v.cpu() for k, v in self.model.state_dict().items()},
            "params": self.params,
            "value": self.value,
            "schedule": list(self.schedule),
        }
        torch.save(content, path)

    def export(self, path: str | PathLike[str], example_input: Any) -> None:
        """Write the model as a :func:`torch.export.export` program.

        ``torch.export.load(path).module()`` runs it without the code that defined it.

        Args:
            path: Where to write, customarily ending in ``.pt2``.
            example_input: An input of the model, or a tuple of them. The exported program
                takes batches of any length.
        """
        inputs = example_input if isinstance(example_input, tuple) else (example_input,)
        # A length of one would be taken for a constant.
        inputs = tuple(
            torch.cat([x, x]) if isinstance(x, torch.Tensor) and len(x) == 1 else x for x in inputs
        )
        batch = torch.export.Dim("batch")
        dynamic = tuple({0: batch} if isinstance(x, torch.Tensor) else None for x in inputs)
        program = torch.export.export(self.model, inputs, dynamic_shapes=dynamic)
        torch.export.save(program, path)

    def describe(self) -> str:
        """The run in words: the race, the best change of every cycle, the final phase."""
        lines = []
        winner = self._winner("startup", 0)
        if winner is not None:
            size = sum(s.role == "startup" for s in self.segments)
            lines.append(f"start-up race of {size}: {winner.mutation}")
        last = max((s.cycle for s in self.segments), default=0)
        by_number = {s.number: s for s in self.segments}
        for cycle in range(1, last + 1):
            if not any(s.role == "branch" and s.cycle == cycle for s in self.segments):
                continue
            winner = self._winner("branch", cycle)
            if winner is None:
                lines.append(f"cycle {cycle}: every branch was pruned or failed")
                continue
            change = "the control" if winner.mutation == NO_CHANGE else winner.mutation
            scores = [winner.scores[-1]]
            if winner.parent is not None:
                scores.insert(0, by_number[winner.parent].scores[-1])
            course = " -> ".join(f"{score:.4g}" for score in scores)
            lines.append(f"cycle {cycle}: {change} ({course}, trial {winner.number})")
        own = self.lineage[-1]
        lines.append(
            f"best value {self.value:.6g} in trial {own.number} ({own.role}) after "
            f"{self.schedule[-1]['to_epoch']} epochs of its lineage; "
            f"{self.n_epochs_trained} epochs trained in all"
        )
        params = describe({}, self.params)
        lines.append(f"its parameters: {params}")
        return "\n".join(lines)

    def _winner(self, role: _lineage.Role, cycle: int) -> Segment | None:
        return Lineage(optuna.study.StudyDirection.MINIMIZE, self.segments).winner(role, cycle)


def make_result(
    study: optuna.Study,
    lineage: Lineage,
    model_fn: ModelFn,
    store: CheckpointStore,
    device: torch.device,
) -> Result:
    """Rebuild the best network of a run from its checkpoint.

    Raises:
        MihaError: If no segment was completed.
        CheckpointError: If the checkpoint is missing or damaged.
    """
    best = lineage.best()
    if best is None or best.checkpoint is None:
        raise MihaError(
            f"No segment of the study {study.study_name!r} was completed, so there is no model "
            "yet: call `optuna_miha.optimize` on it."
        )
    recipe = build_recipe(model_fn, FixedTrial(best.params), study.user_attrs[_lineage.RUN_SEED])
    recipe.model.load_state_dict(store.load(best.checkpoint)["best"]["weights"])
    path = lineage.ancestry(best)
    rows = [{"from_epoch": s.birth, "to_epoch": s.end, "role": s.role, **s.params} for s in path]
    rows[-1]["to_epoch"] = best.checkpoint["best_epoch"]
    trials = study.get_trials(deepcopy=False)
    return Result(
        model=recipe.model.to(device).eval(),
        params=best.params,
        value=best.value if best.value is not None else float("nan"),
        trial=trials[best.number],
        schedule=Schedule(rows),
        lineage=tuple(path),
        segments=tuple(lineage),
        n_epochs_trained=lineage.spent,
    )
