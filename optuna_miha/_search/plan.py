"""The budget of a run and how it is divided into phases."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any, Literal

from optuna_miha._history.scalars import as_int

_RACE_EPOCHS = 3
"""Epochs of the first rung of the start-up race; every later rung doubles a survivor's age."""


@dataclass(frozen=True)
class Plan:
    """How a budget of epochs is spent.

    Every epoch that any network trains counts: those of branches that lose, are pruned or fail
    as much as those of the trunk. The defaults were found by equal-budget experiments on small
    supervised tasks; see the documentation's page on the algorithm.

    Args:
        n_epochs:
            The whole budget, in epochs.
        population_size:
            Branches per cycle, the control included.
        branch_epochs:
            Epochs that each branch trains. The pruner is asked once, half-way; a slope needs
            two values by then, so that below 4 :class:`SlopePruner` cuts nothing.
        fixing_epochs:
            The most epochs that the trunk trains alone in a cycle (*fixing* in MIHA). ``0``:
            cycles follow each other directly.
        startup:
            The most configurations that enter the start-up race; fewer do where
            ``startup_share`` does not suffice. ``1``: no race, the initial configuration is the
            trunk.
        startup_share:
            The most that the race may cost, as a share of ``n_epochs``.
        final_share:
            Share of ``n_epochs`` kept for the final phase.
        anneal:
            ``"cosine"``: the final phase continues the best trunk. Over its first tenth the
            learning rate rises to three times what it was, if it is a float parameter named
            ``lr``, since what wins over a few epochs at a constant rate has too small a one; then
            it goes to zero along half a cosine.
            :obj:`None`: it continues the present trunk at a constant learning rate.
        ema_decay:
            Decay, per epoch, of the moving average of the weights by whose validation value
            branches are judged: ``average = decay * average + (1 - decay) * weights``. ``0``
            switches it off; branches are then judged by the weights themselves.
        control:
            Whether the first branch of every population keeps the trunk's parameters. It shows
            whether a change was worth more than training on, and is never pruned.
        patience:
            The trunk, training alone, ends after this many epochs without improvement.
            :obj:`None`: never.
        prune:
            Whether the study's pruner is asked half-way through a population.
        runup_epochs:
            Epochs of the trunk before the first cycle; :obj:`None`: as ``fixing_epochs``.
        n_cycles:
            The most cycles; :obj:`None`: as many as the budget has room for.
        mutations:
            The kinds of mutation allowed, for instance ``("lr", "optimizer")``; :obj:`None`:
            whatever ``model_fn`` suggests. A kind is the part of a parameter's name before its
            first dot.
        restarts:
            Whether, where the network overfits within a fraction of the budget, what is left
            goes to new trainings from the initial weights instead of the final phase: each
            takes one and a half times the epochs that the best had behind it, with the best
            parameters so far, from the second one on with two changes of them, and twice their
            learning rate, which is annealed. A trunk past its best has nothing to hand on. Not
            without ``anneal``.

    Raises:
        TypeError: If a value is of the wrong type.
        ValueError: If a value is out of its range, or the budget is too small for one cycle.
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
        if isinstance(self.mutations, list):  # As it comes back from JSON.
            object.__setattr__(self, "mutations", tuple(self.mutations))
        for name, least in _LEAST.items():
            value = as_int(getattr(self, name))
            if value is None and name in _OPTIONAL:
                continue
            object.__setattr__(self, name, value)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"`{name}` must be an integer, got {value!r}.")
            if value < least:
                raise ValueError(f"`{name}` must be at least {least}, got {value}.")
            if value > _MOST:
                n_bits = value.bit_length()  # Python refuses to print some.
                shown = value if n_bits < 100 else f"a number of {n_bits} bits"
                raise ValueError(f"`{name}` must be at most {_MOST}, got {shown}.")
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

        One initial configuration, a constant learning rate, no averaging, no pruning, and
        MIHA's three kinds of mutation (optimizer, activation of a layer, batch size), as far as
        ``model_fn`` offers them. What was an error in the published code is not repeated:
        fitness is measured on validation data as a mean over objects.

        Args:
            runup_epochs: Epochs of the initial and, again, of the final training (MIHA's ``m``).
            n_cycles: Number of cycles (``c``).
            population_size: Branches per cycle (``pop_size``).
            branch_epochs: Epochs of each branch (``n``).
            fixing_epochs: Epochs that the chosen one trains alone afterwards (``k``).
            control: Whether one branch stays unchanged (``check_mode``).

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
        """Plain training, to compare with: the initial configuration and nothing else.

        No race, no cycles, a constant learning rate, no averaging; the epoch that validates
        best is returned.

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
        """Epochs that a population costs if nothing is pruned."""
        return self.population_size * self.branch_epochs

    @property
    def branch_rungs(self) -> tuple[int, ...]:
        """Epochs of each rung of a population; the pruner is asked between rungs."""
        first = self.branch_epochs // 2
        if not self.prune or first == 0:
            return (self.branch_epochs,)
        return (first, self.branch_epochs - first)

    def reserve(self, n_epochs: int) -> int:
        """Epochs kept for the final phase out of ``n_epochs``."""
        return round(self.final_share * n_epochs)

    def race_size(self, n_epochs: int) -> int:
        """Configurations that a race can afford out of ``n_epochs``; 1: there is no race."""
        spare = n_epochs - self.reserve(n_epochs) - self.population_epochs - 1
        affordable = min(math.floor(self.startup_share * n_epochs), spare)
        # Each configuration more costs more. Not counted down, lest a large number take forever.
        return 1 + bisect_right(range(2, self.startup + 1), affordable, key=race_cost)

    def least_n_epochs(self) -> int:
        """The smallest ``n_epochs`` that has room for one cycle."""
        return bisect_left(range(_MOST), True, key=self._has_room_for_a_cycle)

    def _has_room_for_a_cycle(self, n_epochs: int) -> bool:
        runup = 1 if self.fixing_epochs or self.runup_epochs else 0
        return n_epochs - self.reserve(n_epochs) >= runup + self.population_epochs

    def asdict(self) -> dict[str, Any]:
        """The plan as a JSON-serializable dictionary; ``Plan(**plan.asdict()) == plan``."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        if self.mutations is not None:
            values["mutations"] = list(self.mutations)
        return values


_MOST = 10**9
"""Of any number in a plan. Nobody trains for so long, and floats still count to it."""

_LEAST = {
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
    """The rungs of a race between ``size`` configurations: halve until one is left.

    Returns:
        Pairs of how many configurations train and for how many epochs. Eight configurations:
        ``[(8, 3), (4, 3), (2, 6)]``, 48 epochs.
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
