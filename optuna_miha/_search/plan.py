"""The budget of a run and how it is divided into phases."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any, Literal

from optuna_miha._search.plan_fields import (
    COUNTS,
    MAX_COUNT,
    checked_count,
    checked_mutations,
)
from optuna_miha._search.startup_race import race_cost


@dataclass(frozen=True)
class Plan:
    """The division of a budget of epochs into phases.

    Every epoch of every network counts, including those of losing, pruned and failed branches.

    By default, every training is annealed: a race between a few configurations takes half of the
    budget; in the rounds that follow, heirs continue from the best weights so far, one of them
    unchanged and the others with one mutation each; the last round replaces a final phase. See
    the page on the algorithm in the documentation, also for the plan of cycles at a constant
    learning rate, which ``anneal`` selects.

    Args:
        n_epochs:
            The whole budget, in epochs.
        anneal:
            ``"rounds"``: a race and rounds of heirs. In each segment the learning rate rises and
            falls to zero. The average of the weights is updated at each step and alone validated.
            ``"cosine"``: cycles of a trunk and branches at a constant learning rate. The final
            phase continues the best segment so far: over its first tenth the learning rate rises
            to three times its value, if it is a float parameter of the kind ``lr``, then it
            falls to zero along half a cosine.
            :obj:`None`: cycles; the final phase continues the present trunk at a constant rate.
        n_workers:
            Only in rounds: number of workers that the plan keeps busy. The race and each round
            have a multiple of this number of networks, so that ``n_epochs`` epochs take as long
            as ``n_epochs / n_workers`` epochs of one worker. The result depends on this number,
            not on the number of processes that train. :obj:`None`: the number of workers when
            the study begins, ``n_jobs`` or that of the executor; the study stores it.
        population_size:
            Branches per round or cycle, including the control. Default 2 in rounds, 3 in cycles.
            In rounds, the next multiple of ``n_workers``.
        startup:
            Maximum number of configurations in the start-up race. The race has fewer if
            ``startup_share`` does not suffice for them. ``1``: there is no race, and the initial
            configuration is the trunk. Default 3 before rounds, 8 before cycles. Before rounds,
            the next multiple of ``n_workers``.
        startup_share:
            Maximum cost of the race, as a share of ``n_epochs``. Default 0.5 before rounds, 0.26
            before cycles. With several workers, each network of the race takes at most 24 % of the
            epochs that one worker trains.
        ema_decay:
            Decay per epoch of the moving average of the weights:
            ``average = decay * average + (1 - decay) * weights``. Branches are judged by the
            validation value of the average. The running statistics of batch norm layers are
            estimated for the average after every epoch, from the first 512 training samples of
            the epoch. ``0``: there is no average, and branches are judged by the value of their
            weights. Default 0.72 in rounds, as wide as three epochs, and 0.6 in cycles.
        branch_epochs:
            Only in cycles: epochs of each branch. The pruner is called once, half-way.
            :class:`SlopePruner` needs two values by then and therefore prunes nothing below 4.
        fixing_epochs:
            Only in cycles: maximum number of epochs that the trunk trains alone in a cycle
            (*fixing* in MIHA). ``0``: populations follow each other directly.
        final_share:
            Only in cycles: share of ``n_epochs`` reserved for the final phase.
        control:
            Whether the first branch of every population keeps the parameters of the trunk. It
            shows whether a mutation is better than continued training. The pruner does not stop
            it; in a round, it ends if another branch is ahead when only one can continue.
        patience:
            Only in cycles, early stopping: when the trunk trains alone, it stops after this many
            epochs without improvement. :obj:`None`: it does not stop early.
        prune:
            Whether branches are cut: in a round after a seventh, in an annealed race half-way, in
            a cycle half-way through its branches.
        runup_epochs:
            Only in cycles: epochs of the trunk before the first cycle; :obj:`None`:
            ``fixing_epochs``.
        n_cycles:
            Number of rounds; :obj:`None`: one, or two from 120 epochs on. In cycles, their
            maximum number; :obj:`None`: as many as fit.
        mutations:
            The kinds of parameters that may mutate, such as ``("lr", "optimizer")``. A kind is
            the part of a parameter's name before its first dot. :obj:`None`: all parameters that
            ``model_fn`` suggests.
        restarts:
            Whether to spend the rest of the budget on restarts from the initial weights if the
            network overfits early. Continuing an overfitted network does not help. Each restart
            takes one and a half times as many epochs as the best network had trained. It uses the
            best parameters so far, from the second restart on with one mutation (in cycles: with
            two), of a kind that regularizes if possible. Without ``anneal`` there are no restarts.

    Raises:
        TypeError: If a value has the wrong type.
        ValueError: If a value is out of range, or the budget is too small for one cycle.
    """

    n_epochs: int = 200
    _: KW_ONLY
    anneal: Literal["rounds", "cosine"] | None = "rounds"
    n_workers: int | None = None
    population_size: int = None  # type: ignore[assignment]
    startup: int = None  # type: ignore[assignment]
    startup_share: float = None  # type: ignore[assignment]
    ema_decay: float = None  # type: ignore[assignment]
    branch_epochs: int = 4
    fixing_epochs: int = 40
    final_share: float = 0.4
    control: bool = True
    patience: int | None = 2
    prune: bool = True
    runup_epochs: int | None = None
    n_cycles: int | None = None
    mutations: tuple[str, ...] | None = None
    restarts: bool = True

    def __post_init__(self) -> None:
        if self.anneal not in _DEFAULTS:
            raise ValueError(f'`anneal` must be "rounds", "cosine" or None, got {self.anneal!r}.')
        for name, value in _DEFAULTS[self.anneal].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        object.__setattr__(self, "mutations", checked_mutations(self.mutations))
        for name in COUNTS:
            object.__setattr__(self, name, checked_count(name, getattr(self, name)))
        for name in ("startup_share", "final_share", "ema_decay"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 <= value < 1:
                raise ValueError(f"`{name}` must lie in [0, 1), got {value!r}.")
        if self.is_annealed and self.n_cycles == 0:
            raise ValueError(
                "`n_cycles` must be at least 1 in a plan of rounds, got 0: pass also "
                '`anneal="cosine"`, or use `Plan.no_search`.'
            )
        self._check_workers()
        if self.n_cycles != 0 and not self._has_room_for_a_cycle(self.n_epochs):
            raise ValueError(
                f"n_epochs={self.n_epochs} is too small for one cycle: this plan needs at least "
                f"{self.least_n_epochs()} epochs. Raise `n_epochs`, or lower `population_size` "
                f"({self.population_size}) or `branch_epochs` ({self.branch_epochs})."
            )

    def _check_workers(self) -> None:
        if self.width > 1 and not self.is_annealed:
            raise ValueError(
                f"`n_workers` must be 1 in a plan of cycles, whose trunk trains alone, got "
                f'{self.n_workers}: use `anneal="rounds"`.'
            )
        least = self.width * MIN_EPOCHS_PER_WORKER
        if self.width > 1 and self.n_epochs < least:
            raise ValueError(
                f"n_epochs={self.n_epochs} is too small for {self.n_workers} workers, which need "
                f"{least} for a race and a round: raise `n_epochs`, or lower `n_workers` to "
                f"{max(1, self.n_epochs // MIN_EPOCHS_PER_WORKER)}."
            )

    def __repr__(self) -> str:
        """The call that makes the plan: ``n_epochs``, and what differs from the defaults."""
        defaults = _DEFAULTS[self.anneal]
        changed = [
            f"{f.name}={getattr(self, f.name)!r}"
            for f in fields(self)
            if f.kw_only and getattr(self, f.name) != defaults.get(f.name, f.default)
        ]
        return f"Plan({', '.join([str(self.n_epochs), *changed])})"

    @classmethod
    def classic(
        cls,
        *,
        runup_epochs: int,
        n_cycles: int,
        population_size: int,
        branch_epochs: int,
        fixing_epochs: int,
        control: bool = False,
    ) -> Plan:
        """MIHA as published: run-up, cycles of population and fixing, final training.

        There is one initial configuration, a constant learning rate, no averaging and no pruning.
        The optimizer, the activations and the batch size mutate, as far as ``model_fn`` suggests
        them. Errors of the published code are corrected: fitness is measured on validation data,
        as a mean over samples.

        Args:
            runup_epochs: Epochs of the initial training, and of the final training (MIHA's ``m``).
            n_cycles: Number of cycles (``c``).
            population_size: Branches per cycle (``pop_size``).
            branch_epochs: Epochs of each branch (``n``).
            fixing_epochs: Epochs that the selected network then trains alone (``k``).
            control: Whether one branch does not mutate (``check_mode``).

        Returns:
            A plan of ``2 * m + c * (pop_size * n + k)`` epochs.

        Reference:
            Sarafanov and Kovalchuk, *One more approach to optimize neural networks*.
        """
        n_epochs = 2 * runup_epochs + n_cycles * (population_size * branch_epochs + fixing_epochs)
        return cls(
            n_epochs,
            population_size=population_size,
            branch_epochs=branch_epochs,
            fixing_epochs=fixing_epochs,
            startup=1,
            final_share=runup_epochs / max(n_epochs, 1),
            anneal=None,
            ema_decay=0.0,
            control=control,
            patience=None,
            prune=False,
            runup_epochs=runup_epochs,
            n_cycles=n_cycles,
            mutations=("activation", "batch_size", "optimizer"),
            restarts=False,
        )

    @classmethod
    def no_search(cls, n_epochs: int) -> Plan:
        """Plain training with the initial configuration, as a baseline.

        There is no race, there are no cycles, the learning rate is constant, and weights are not
        averaged. The result is the epoch with the best validation value.

        Args:
            n_epochs: Epochs to train.
        """
        return cls(
            n_epochs,
            startup=1,
            final_share=0.0,
            anneal=None,
            ema_decay=0.0,
            patience=None,
            runup_epochs=n_epochs,
            n_cycles=0,
            restarts=False,
        )

    @property
    def is_annealed(self) -> bool:
        """Whether every training is annealed: the plan is a race and rounds."""
        return self.anneal == "rounds"

    @property
    def width(self) -> int:
        """Number of networks that train at the same time, each in a worker of its own."""
        return self.n_workers or 1

    @property
    def n_heirs(self) -> int:
        """Heirs of a round that has the epochs for them."""
        return self.whole_waves(self.population_size, MAX_COUNT)

    def whole_waves(self, size: int, affordable: int) -> int:
        """Siblings that occupy all workers: at least ``size``, if so many are affordable."""
        if affordable < self.width:
            return max(1, affordable)
        return self.width * min(math.ceil(size / self.width), affordable // self.width)

    @property
    def population_epochs(self) -> int:
        """Epochs of a population without pruning."""
        return self.population_size * self.branch_epochs

    @property
    def branch_rungs(self) -> tuple[int, ...]:
        """Epochs of each rung of a population. The pruner is called between rungs."""
        first = self.branch_epochs // 2
        if not self.prune or first == 0:
            return (self.branch_epochs,)
        return (first, self.branch_epochs - first)

    def reserve(self, n_epochs: int) -> int:
        """Epochs reserved for the final phase if the budget is ``n_epochs``."""
        return round(self.final_share * n_epochs)

    def n_rounds(self, n_epochs: int) -> int:
        """Rounds of heirs if the budget is ``n_epochs``."""
        if self.n_cycles is not None:
            return self.n_cycles
        return 2 if n_epochs >= _TWO_ROUNDS and n_epochs >= _TWO_WIDE_ROUNDS * self.width else 1

    def race_size(self, n_epochs: int) -> int:
        """Configurations in the race if the budget is ``n_epochs``; 1: there is no race."""
        if self.is_annealed:
            if self.startup == 1:
                return 1
            affordable = int(self.startup_share * n_epochs) // MIN_EPOCHS
            return self.whole_waves(self.startup, affordable)
        spare = n_epochs - self.reserve(n_epochs) - self.population_epochs - 1
        affordable = min(math.floor(self.startup_share * n_epochs), spare)
        # The cost increases with the size. Bisection is fast even if `startup` is very large.
        return 1 + bisect_right(range(2, self.startup + 1), affordable, key=race_cost)

    def least_n_epochs(self) -> int:
        """The smallest budget that suffices for one cycle, in epochs."""
        return bisect_left(range(MAX_COUNT), True, key=self._has_room_for_a_cycle)

    def _has_room_for_a_cycle(self, n_epochs: int) -> bool:
        if self.is_annealed:
            return n_epochs >= 1
        runup = 1 if self.fixing_epochs or self.runup_epochs else 0
        return n_epochs - self.reserve(n_epochs) >= runup + self.population_epochs

    def asdict(self) -> dict[str, Any]:
        """The plan as a JSON-serializable dictionary; ``Plan(**plan.asdict()) == plan``."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        if self.mutations is not None:
            values["mutations"] = list(self.mutations)
        return values


_TWO_ROUNDS = 120
"""Budget from which there are two rounds of heirs."""

_TWO_WIDE_ROUNDS = 24
"""Epochs of each of several workers from which there are two rounds of heirs."""

MIN_EPOCHS = 4
"""Epochs of the shortest annealed training in a race or a round."""

MIN_EPOCHS_PER_WORKER = 2 * MIN_EPOCHS
"""Epochs that a worker needs for a race and a round."""

_DEFAULTS: dict[str | None, dict[str, Any]] = {
    "rounds": {
        "population_size": 2,
        "startup": 3,
        "startup_share": 0.5,
        "ema_decay": 0.72,
    },
    "cosine": {
        "population_size": 3,
        "startup": 8,
        "startup_share": 0.26,
        "ema_decay": 0.6,
    },
}
_DEFAULTS[None] = _DEFAULTS["cosine"]
