"""The budget of a run and how it is divided into phases."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any, Literal

from optuna_miha._history.scalars import as_int

_RACE_EPOCHS = 3
"""Epochs of the first rung of the start-up race. Each later rung doubles the survivors' age."""


@dataclass(frozen=True)
class Plan:
    """The division of a budget of epochs into phases.

    Every epoch of every network counts, including those of losing, pruned and failed branches.
    The defaults were selected in experiments at equal budgets on small supervised tasks; see the
    page on the algorithm in the documentation.

    Args:
        n_epochs:
            The whole budget, in epochs.
        population_size:
            Branches per cycle, including the control.
        branch_epochs:
            Epochs of each branch. The pruner is called once, half-way. :class:`SlopePruner` needs
            two values by then and therefore prunes nothing below 4.
        fixing_epochs:
            Maximum number of epochs that the trunk trains alone in a cycle (*fixing* in MIHA).
            ``0``: populations follow each other directly.
        startup:
            Maximum number of configurations in the start-up race. The race has fewer if
            ``startup_share`` does not suffice for them. ``1``: there is no race, and the initial
            configuration is the trunk.
        startup_share:
            Maximum cost of the race, as a share of ``n_epochs``.
        final_share:
            Share of ``n_epochs`` reserved for the final phase.
        anneal:
            ``"cosine"``: the final phase continues the best segment so far. Over its first tenth
            the learning rate rises to three times its value, if it is a float parameter named
            ``lr``, because a rate that wins over a few epochs at a constant rate is too small for
            annealing. Then it falls to zero along half a cosine.
            :obj:`None`: the final phase continues the present trunk at a constant learning rate.
        ema_decay:
            Decay per epoch of the moving average of the weights:
            ``average = decay * average + (1 - decay) * weights``. Branches are judged by the
            validation value of the average. The running statistics of batch norm layers are
            estimated for the average after every epoch, from the first 512 training samples of
            the epoch. ``0``: there is no average, and branches are judged by the value of their
            weights.
        control:
            Whether the first branch of every population keeps the parameters of the trunk. It
            shows whether a mutation is better than continued training, and is never pruned.
        patience:
            Early stopping: when the trunk trains alone, it stops after this many epochs without
            improvement. :obj:`None`: it does not stop early.
        prune:
            Whether the study's pruner is called half-way through a population.
        runup_epochs:
            Epochs of the trunk before the first cycle; :obj:`None`: ``fixing_epochs``.
        n_cycles:
            Maximum number of cycles; :obj:`None`: as many as fit into the budget.
        mutations:
            The kinds of parameters that may mutate, such as ``("lr", "optimizer")``. A kind is
            the part of a parameter's name before its first dot. :obj:`None`: all parameters that
            ``model_fn`` suggests.
        restarts:
            Whether to spend the rest of the budget on restarts from the initial weights, instead
            of the final phase, if the network overfits early. Continuing an overfitted trunk does
            not help. Each restart takes one and a half times as many epochs as the best network
            had trained. It uses the best parameters so far, from the second restart on with two
            mutations. The learning rate rises to twice that of the best parameters and then falls
            to zero. Without ``anneal`` there are no restarts.

    Raises:
        TypeError: If a value has the wrong type.
        ValueError: If a value is out of range, or the budget is too small for one cycle.
    """

    n_epochs: int = 200
    _: KW_ONLY
    population_size: int = 3
    branch_epochs: int = 4
    fixing_epochs: int = 40
    startup: int = 8
    startup_share: float = 0.26
    final_share: float = 0.4
    anneal: Literal["cosine"] | None = "cosine"
    ema_decay: float = 0.6
    control: bool = True
    patience: int | None = 2
    prune: bool = True
    runup_epochs: int | None = None
    n_cycles: int | None = None
    mutations: tuple[str, ...] | None = None
    restarts: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.mutations, str):
            raise TypeError(
                f"`mutations` must be a tuple of kinds, got {self.mutations!r}: write "
                f"({self.mutations!r},)."
            )
        if isinstance(self.mutations, list):  # After reading the plan from JSON.
            object.__setattr__(self, "mutations", tuple(self.mutations))
        for name, minimum in _MINIMUMS.items():
            value = as_int(getattr(self, name))
            if value is None and name in _OPTIONAL:
                continue
            object.__setattr__(self, name, value)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"`{name}` must be an integer, got {value!r}.")
            if value < minimum:
                raise ValueError(f"`{name}` must be at least {minimum}, got {value}.")
            if value > _MAX_VALUE:
                n_bits = value.bit_length()  # Python limits the digits of `repr`.
                shown = value if n_bits < 100 else f"a number of {n_bits} bits"
                raise ValueError(f"`{name}` must be at most {_MAX_VALUE}, got {shown}.")
        for name in ("startup_share", "final_share", "ema_decay"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 <= value < 1:
                raise ValueError(f"`{name}` must lie in [0, 1), got {value!r}.")
        if self.anneal not in ("cosine", None):
            raise ValueError(f'`anneal` must be "cosine" or None, got {self.anneal!r}.')
        if self.n_cycles != 0 and not self._has_room_for_a_cycle(self.n_epochs):
            raise ValueError(
                f"n_epochs={self.n_epochs} is too small for one cycle: this plan needs at least "
                f"{self.least_n_epochs()} epochs. Raise `n_epochs`, or lower `population_size` "
                f"({self.population_size}) or `branch_epochs` ({self.branch_epochs})."
            )

    def __repr__(self) -> str:
        """The call that makes the plan: ``n_epochs``, and what differs from the defaults."""
        changed = [
            f"{f.name}={getattr(self, f.name)!r}"
            for f in fields(self)
            if f.kw_only and getattr(self, f.name) != f.default
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

    def race_size(self, n_epochs: int) -> int:
        """Configurations in the race if the budget is ``n_epochs``; 1: there is no race."""
        spare = n_epochs - self.reserve(n_epochs) - self.population_epochs - 1
        affordable = min(math.floor(self.startup_share * n_epochs), spare)
        # The cost increases with the size. Bisection is fast even if `startup` is very large.
        return 1 + bisect_right(range(2, self.startup + 1), affordable, key=race_cost)

    def least_n_epochs(self) -> int:
        """The smallest budget that suffices for one cycle, in epochs."""
        return bisect_left(range(_MAX_VALUE), True, key=self._has_room_for_a_cycle)

    def _has_room_for_a_cycle(self, n_epochs: int) -> bool:
        runup = 1 if self.fixing_epochs or self.runup_epochs else 0
        return n_epochs - self.reserve(n_epochs) >= runup + self.population_epochs

    def asdict(self) -> dict[str, Any]:
        """The plan as a JSON-serializable dictionary; ``Plan(**plan.asdict()) == plan``."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        if self.mutations is not None:
            values["mutations"] = list(self.mutations)
        return values


_MAX_VALUE = 10**9
"""Upper bound of all integers in a plan: far above any real budget, and exact as a float."""

_MINIMUMS = {
    "n_epochs": 1,
    "population_size": 1,
    "branch_epochs": 1,
    "fixing_epochs": 0,
    "startup": 1,
    "patience": 1,
    "runup_epochs": 0,
    "n_cycles": 0,
}
_OPTIONAL = {"patience", "runup_epochs", "n_cycles"}


def race_rungs(size: int) -> list[tuple[int, int]]:
    """The rungs of a race between ``size`` configurations, halved until one is left.

    Returns:
        One pair per rung: number of configurations, and epochs of each of them. For eight
        configurations it is ``[(8, 3), (4, 3), (2, 6)]``, 48 epochs in total.
    """
    rungs = []
    age = 0
    while size > 1:
        epochs = max(age, _RACE_EPOCHS)
        rungs.append((size, epochs))
        age += epochs
        size = math.ceil(size / 2)
    return rungs


def race_cost(size: int) -> int:
    """Epochs of a race between ``size`` configurations."""
    return sum(n * epochs for n, epochs in race_rungs(size))
