"""Crossover: what becomes of the two fittest branches of a population together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from optuna_miha._history import attributes
from optuna_miha._history.lineage import Lineage
from optuna_miha._history.segment import Segment
from optuna_miha._search.learning_rate import rescaled_lr
from optuna_miha._search.mutation import Distributions, Params
from optuna_miha._search.phases import Phase
from optuna_miha._search.plan import Plan
from optuna_miha._search.proposals import Proposal, Proposer
from optuna_miha._search.sampler import SearchContext
from optuna_miha._search.space import DEFAULT_LR, contains, scalable_rate

_STREAM = 3
"""Of random numbers; the sampler has 0 to 2."""


class Crossover(Protocol):
    """Gives the parameters of the child of the two fittest branches of a population.

    Any function will do. All arguments are copies, and the random generator is the same whenever
    the same place of a run is filled.
    """

    def __call__(
        self,
        fitter: Params,
        other: Params,
        parent: Params,
        distributions: Distributions,
        rng: np.random.Generator,
    ) -> Params:
        """Cross two branches.

        Args:
            fitter: Parameters of the fittest branch; the child gets the weights of its heir.
            other: Parameters of the second fittest.
            parent: Parameters of the trunk that both came from.
            distributions: The distribution of every parameter of the three, by name.
            rng: Source of every draw.

        Returns:
            The child's parameters; those that are left out stay as in ``fitter``.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class UniformCrossover:
    """The child carries the changes of both branches against the trunk they came from.

    Where both changed the same parameter, chance decides. The learning rate is read, and taken
    over, as a multiple of the default of its optimizer class: a branch that changed the class
    did not change the rate, although its figure is another.

    Args:
        prob: The probability with which a parameter that both changed is taken from the less fit.

    Raises:
        ValueError: If ``prob`` is not a probability.

    Reference:
        G. Syswerda, *Uniform crossover in genetic algorithms*, 1989; there all parameters are
        exchanged, here those that changed.
    """

    prob: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.prob <= 1:
            raise ValueError(f"`prob` must lie in [0, 1], got {self.prob!r}.")

    def __call__(
        self,
        fitter: Params,
        other: Params,
        parent: Params,
        distributions: Distributions,
        rng: np.random.Generator,
    ) -> Params:
        """Cross two branches; see :class:`Crossover`."""
        child, taken = dict(fitter), set()
        for name in sorted(other):
            if not _is_changed(name, other, parent, distributions):
                continue
            is_contested = all(
                _is_changed(name, fitter, params, distributions) for params in (parent, other)
            )
            if not is_contested or rng.random() < self.prob:
                child[name] = other[name]
                taken.add(name)
        if taken & {"lr", "optimizer"}:
            lr_owner = other if "lr" in taken else fitter
            child |= rescaled_lr(lr_owner, child.get("optimizer"), distributions)
        return child


@dataclass(frozen=True)
class AverageWeights:
    """The weights of the two fittest branches are averaged, in place of their parameters.

    If the average validates better than the fitter, it takes the place of the fitter's weights,
    and the run goes on from there with the fitter's parameters and the state of its optimizer.
    It costs one evaluation for each population, and no epochs.

    The moving averages that branches are judged by are averaged along, and so are buffers of
    floating-point numbers, such as the statistics of batch norm. Those of integers stay the
    fitter's.

    Reference:
        M. Wortsman et al., *Model soups: averaging weights of multiple fine-tuned models improves
        accuracy without increasing inference time*, 2022: the greedy soup, of two.
    """


@dataclass(frozen=True, kw_only=True)
class Child:
    """What a crossover gave.

    Args:
        params: The child's parameters.
        parents: Numbers of the trials that were crossed, the fitter first.
    """

    params: Params
    parents: tuple[int, int]


def cross_fittest(
    crossover: Crossover,
    lineage: Lineage,
    trunk: Segment,
    *,
    context: SearchContext,
    cycle: int,
    branch: int,
) -> Child | None:
    """The child of the two fittest branches of the cycle before.

    A function of its arguments alone, so that a resumed run gets the same child.

    Args:
        crossover: Gives the child's parameters.
        lineage: The record.
        trunk: What the child starts from: the fitter's heir.
        context: What proposals depend on.
        cycle: The cycle of the child.
        branch: Its place among its siblings.

    Returns:
        The child; :obj:`None` where fewer than two branches trained to their end, or where the
        child would be what the trunk is already.

    Raises:
        TypeError: If the crossover does not return a dictionary.
        ValueError: If it returns what nobody suggests.
    """
    survivors = lineage.ranking("branch", cycle - 1)
    if len(survivors) < 2:
        return None
    fitter, other = survivors[:2]
    parent = lineage.parent(fitter) or context  # A population may start from scratch.
    before = parent.params if isinstance(parent, Segment) else parent.initial_params
    # The fitter's last, because its ranges are those of the trunk.
    distributions = {**parent.distributions, **other.distributions, **fitter.distributions}
    rng = np.random.default_rng([context.seed, _STREAM, cycle, branch])
    made = crossover(
        dict(fitter.params), dict(other.params), dict(before), dict(distributions), rng
    )
    _check(made, distributions, crossover)
    child = {**fitter.params, **made}
    # As long as all agree that the trunk has, `model_fn` asks for no other: what the child has
    # besides is of no use to it, as a momentum is without SGD.
    if not any(_is_changed(name, child, trunk.params, distributions) for name in trunk.params):
        return None
    return Child(params=child, parents=(fitter.number, other.number))


class CrossedProposals:
    """Fills the last branch index of each population with a child of the two fittest.

    Args:
        proposer: Proposes for all other siblings.
        crossover: Gives the child's parameters.
        lineage: The history.
        context: What proposals depend on.
    """

    def __init__(
        self, proposer: Proposer, crossover: Crossover, *, lineage: Lineage, context: SearchContext
    ) -> None:
        self._proposer = proposer
        self._crossover = crossover
        self._lineage = lineage
        self._context = context

    def propose(self, phase: Phase, branch: int) -> Proposal | None:
        """See :class:`~optuna_miha._search.proposals.Proposer`."""
        child, trunk = None, phase.parent
        if phase.role == "branch" and trunk is not None and branch == phase.size - 1:
            child = cross_fittest(
                self._crossover,
                self._lineage,
                trunk,
                context=self._context,
                cycle=phase.cycle,
                branch=branch,
            )
        if child is None:
            return self._proposer.propose(phase, branch)
        attrs = {attributes.CROSSOVER: list(child.parents)}
        return Proposal(child.params, origin=" by crossover", attrs=attrs)

    def before(self, phase: Phase) -> Params:
        """See :class:`~optuna_miha._search.proposals.Proposer`."""
        return self._proposer.before(phase)


def check_crossover(crossover: object, plan: Plan, *, own_trainer: bool) -> None:
    """Refuse what cannot be used as ``crossover``.

    Args:
        crossover: The argument of ``optimize``.
        plan: The run's plan.
        own_trainer: Whether the user brought a training loop.

    Raises:
        TypeError: If it is no crossover.
        ValueError: If the plan or the trainer do not allow for it.
    """
    if crossover is None:
        return
    if isinstance(crossover, type):
        raise TypeError(
            f"`crossover` must be an object, got the class {crossover.__qualname__}: write "
            f"{crossover.__qualname__}()."
        )
    averages = isinstance(crossover, AverageWeights)
    if not averages and not callable(crossover):
        raise TypeError(
            "`crossover` must be UniformCrossover(), AverageWeights() or a function of your own, "
            f"got {crossover!r}."
        )
    if averages and own_trainer:
        raise ValueError(
            "AverageWeights() needs the built-in trainer, got one of your own: it alone knows how "
            "to validate, and weights that it did not train cannot be passed to it. Use "
            "UniformCrossover()."
        )
    least = 3 if plan.control and not averages else 2
    if plan.population_size < least:
        control = " with a control" if least == 3 else ""
        raise ValueError(
            f"With `crossover`, `population_size` must be at least {least}{control}, got "
            f"{plan.population_size}: pass `plan=Plan(..., population_size={least + 1})`. The "
            "more branches, the more often two of them survive the pruner."
        )


def _check(made: object, distributions: Distributions, crossover: Crossover) -> None:
    name = getattr(crossover, "__name__", type(crossover).__name__)
    if not isinstance(made, Mapping):
        raise TypeError(
            f"A crossover must return a dictionary of parameters, got {made!r} from {name}: "
            'write for instance `return {**fitter, "lr": other["lr"]}`.'
        )
    for key, value in made.items():
        if key not in distributions:
            raise ValueError(
                f"A crossover must return parameters that `model_fn` suggests, got {key!r} from "
                f"{name}; the two branches have {', '.join(sorted(distributions))}."
            )
        if not contains(distributions[key], value):
            raise ValueError(
                f"A crossover must return a value of {distributions[key]} for {key!r}, got "
                f"{value!r} from {name}: `distributions` in its arguments holds the bounds."
            )


def _is_changed(name: str, one: Params, two: Params, distributions: Distributions) -> bool:
    """Whether a parameter differs; learning rates of two classes are compared as multiples."""
    if name not in one or name not in two:
        return (name in one) != (name in two)
    optimizers: list[Any] = [params.get("optimizer") for params in (one, two)]
    if (
        name == "lr"
        and optimizers[0] != optimizers[1]
        and scalable_rate(distributions) is not None
    ):
        defaults = [DEFAULT_LR.get(optimizer) for optimizer in optimizers]
        if defaults[0] is not None and defaults[1] is not None:
            multiples = one["lr"] / defaults[0], two["lr"] / defaults[1]
            return not math.isclose(*multiples, rel_tol=1e-6)
    return type(one[name]) is not type(two[name]) or bool(one[name] != two[name])
