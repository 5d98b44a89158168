"""Studies like those of a run, created without training."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState, create_trial

from helpers.segments import FULL_SPACE, START
from optuna_miha import Plan
from optuna_miha._history import attributes
from optuna_miha._search.mutation import describe, mutate
from optuna_miha._search.space import kinds


class Simulation:
    """Adds finished trials to a study, phase by phase.

    Args:
        study: The study.
        seed: Seed of all random numbers.
    """

    def __init__(self, study: optuna.Study, seed: int = 0) -> None:
        self.study = study
        self._rng = np.random.default_rng(seed)
        for key in (attributes.INITIAL, attributes.SPACE, attributes.VERSIONS):
            study.set_user_attr(key, {})
        study.set_user_attr(attributes.RUN_SEED, seed)
        study.set_user_attr(attributes.PLAN, Plan(anneal="cosine").asdict())

    def run(self, n_cycles: int, *, size: int = 3, fixing: int = 6, n_final: int = 40) -> None:
        """Add a race of eight candidates, cycles and a final phase."""
        head = self._best_of([self._race(branch) for branch in range(8)])
        head = self._train("trunk", 0, 0, head, fixing, START)
        for cycle in range(1, n_cycles + 1):
            siblings = [self._branch(cycle, branch, head) for branch in range(size)]
            head = self._best_of(siblings)
            head = self._train("trunk", cycle, 0, head, fixing, head["params"])
        self._train("final", n_cycles, 0, head, n_final, head["params"])

    def _race(self, branch: int) -> dict[str, Any]:
        state = TrialState.COMPLETE if branch < 2 else TrialState.PRUNED
        n_epochs = 12 if branch < 2 else 6 if branch < 4 else 3
        return self._train("startup", 0, branch, None, n_epochs, START, state=state)

    def _branch(self, cycle: int, branch: int, head: dict[str, Any]) -> dict[str, Any]:
        params, state, n_epochs = head["params"], TrialState.COMPLETE, 4
        if branch:
            names = list(kinds(FULL_SPACE))
            kind = names[self._rng.integers(len(names))]
            params = mutate(params, FULL_SPACE, kind, self._rng)
            chance = self._rng.random()
            if chance < 0.25:
                state, n_epochs = TrialState.PRUNED, 2
            elif chance < 0.3:
                state, n_epochs = TrialState.FAIL, int(self._rng.integers(3))
        return self._train("branch", cycle, branch, head, n_epochs, params, state=state)

    def _train(
        self,
        role: str,
        cycle: int,
        branch: int,
        parent: dict[str, Any] | None,
        n_epochs: int,
        params: dict[str, Any],
        *,
        state: TrialState = TrialState.COMPLETE,
    ) -> dict[str, Any]:
        """Add a trial. Its loss is a power of the age, with a random factor."""
        birth = 0 if parent is None else parent["end"]
        level = 1.0 if parent is None else parent["level"]
        level *= math.exp(self._rng.normal(0.0, 0.02 if parent else 0.3))
        if state == TrialState.PRUNED:
            level *= math.exp(abs(self._rng.normal(0.2, 0.5)))
        if role == "final":
            level *= 0.9
        ages = np.arange(birth + 1, birth + n_epochs + 1)
        losses = level * 2.3 * ages**-0.4 * np.exp(self._rng.normal(0, 0.02, n_epochs))
        minimize = self.study.direction == optuna.study.StudyDirection.MINIMIZE
        scores = [float(loss if minimize else math.exp(-loss)) for loss in losses]
        reports = dict(enumerate(scores, start=birth + 1))
        if parent is not None:
            reports[birth] = parent["last"]
        best = (min if minimize else max)(scores) if scores else None
        parent_params = START if parent is None else parent["params"]
        attrs = {
            attributes.ROLE: role,
            attributes.CYCLE: cycle,
            attributes.BRANCH: branch,
            attributes.PARENT: None if parent is None else parent["number"],
            attributes.BIRTH: birth,
            attributes.END: birth + n_epochs,
            attributes.MUTATION: describe(parent_params, params),
            attributes.TRAINED: n_epochs,
        }
        complete = state == TrialState.COMPLETE
        if complete:
            attrs[attributes.FITNESS] = scores[-1] * (-1 if minimize else 1)
        if state == TrialState.FAIL:
            attrs[attributes.ERROR] = "RuntimeError: simulated failure"
        self.study.add_trial(
            create_trial(
                state=state,
                value=best if complete else scores[-1] if state == TrialState.PRUNED else None,
                params=params,
                distributions={name: FULL_SPACE[name] for name in params},
                intermediate_values=reports,
                user_attrs=attrs,
                system_attrs={attributes.TRAIN_LOSS: [float(loss) * 0.8 for loss in losses]},
            )
        )
        return {
            "number": self.study.get_trials(deepcopy=False)[-1].number,
            "end": birth + n_epochs,
            "level": level,
            "last": scores[-1] if scores else math.nan,
            "params": params,
            "fitness": attrs.get(attributes.FITNESS, -math.inf),
        }

    @staticmethod
    def _best_of(siblings: list[dict[str, Any]]) -> dict[str, Any]:
        return max(siblings, key=lambda sibling: sibling["fitness"])


def simulated(
    n_cycles: int, *, direction: str = "minimize", seed: int = 0, **settings: int
) -> optuna.Study:
    """A study of ``n_cycles`` cycles of a simulated run."""
    study = optuna.create_study(direction=direction)
    Simulation(study, seed).run(n_cycles, **settings)
    return study
