"""Crossover of the two fittest branches of a population."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from optuna_miha._history import attributes
from optuna_miha._history.lineage import Lineage
from optuna_miha._history.segment import Segment
from optuna_miha._search.context import SearchContext
from optuna_miha._search.learning_rate import rescaled_lr
from optuna_miha._search.mutation import has_effect
from optuna_miha._search.mutation_rules import Distributions, Params
from optuna_miha._search.phases import Phase
from optuna_miha._search.plan import Plan
from optuna_miha._search.proposals import Proposal, Proposer
from optuna_miha._search.space import DEFAULT_LR, contains, lr_distribution

_CROSSOVER_STREAM = 3
"""Stream of random numbers. The sampler uses the streams 0 to 2."""


class Crossover(Protocol):
    """A function that combines the parameters of the two fittest branches of a population.

    All arguments are copies. The random generator depends only on the seed of the run, the cycle
    and the branch index.
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
            fitter: Parameters of the fittest branch, which became the trunk. The child starts
                from the trunk's weights.
            other: Parameters of the second fittest branch.
            parent: Parameters of the trunk from which both branches started.
            distributions: The distributions of all these parameters, by name.
            rng: The random generator to draw from.

        Returns:
            The child's parameters. Missing parameters are taken from ``fitter``.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class UniformCrossover:
    """A child with the changes of both branches against the trunk from which they started.

    If both branches changed the same parameter, one of the two values is drawn. The learning rate
    is compared, and passed to the child, as a multiple of the default of its optimizer class: a
    branch that changed only the class has another learning rate but the same multiple. As in a
    mutation of the optimizer, a multiple outside of [0.1, 10] is not passed to another class,
    which starts at its default.

    Args:
        prob: The probability with which a parameter that both branches changed is taken from the
            less fit one.

    Raises:
        ValueError: If ``prob`` is not in [0, 1].

    Reference:
        G. Syswerda, *Uniform crossover in genetic algorithms*, 1989. There all parameters are
        exchanged, here only those that changed.
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
        child, from_other = dict(fitter), set()
        for name in sorted(other):
            if not _is_changed(name, other, parent, distributions):
                continue
            is_contested = all(
                _is_changed(name, fitter, params, distributions) for params in (parent, other)
            )
            if not is_contested or rng.random() < self.prob:
                child[name] = other[name]
                from_other.add(name)
        if from_other & {"lr", "optimizer"}:
            lr_source = other if "lr" in from_other else fitter
            child |= rescaled_lr(lr_source, child.get("optimizer"), distributions)
        return child


@dataclass(frozen=True)
class AverageWeights:
    """Averages the weights of the two fittest branches instead of crossing their parameters.

    If the average has a better validation value than the fitter branch, it replaces the weights
    of that branch, and the run continues with them, the branch's parameters and the state of its
    optimizer. The cost is one evaluation per population and no epochs.

    The moving averages of the weights are averaged too, and so are floating-point buffers, such
    as the statistics of batch norm. Integer buffers are those of the fitter branch.

    Reference:
        M. Wortsman et al., *Model soups: averaging weights of multiple fine-tuned models improves
        accuracy without increasing inference time*, 2022: the greedy soup, of two.
    """


@dataclass(frozen=True, kw_only=True)
class Child:
    """The result of a crossover.

    Args:
        params: The child's parameters.
        parents: Numbers of the trials that were crossed, the fitter one first.
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
    """Cross the two fittest branches of the previous cycle.

    The result depends only on the arguments, so that a resumed run gets the same child.

    Args:
        crossover: Combines the parameters.
        lineage: The history.
        trunk: The segment from which the child starts, which continues the fitter branch.
        context: The data that proposals depend on.
        cycle: The cycle of the child.
        branch: Its branch index.

    Returns:
        The child; :obj:`None` if fewer than two branches trained to their end, or if the child
        would have the parameters of the trunk.

    Raises:
        TypeError: If the crossover does not return a dictionary.
        ValueError: If it returns an unknown parameter or an invalid value.
    """
    survivors = lineage.ranking("branch", cycle - 1)
    if len(survivors) < 2:
        return None
    fitter, other = survivors[:2]
    # A population may start from the initial weights, without a parent.
    parent = lineage.parent(fitter) or context
    parent_params = parent.params if isinstance(parent, Segment) else parent.initial_params
    # The fitter branch has precedence, because its distributions are those of the trunk.
    distributions = {**parent.distributions, **other.distributions, **fitter.distributions}
    rng = np.random.default_rng([context.seed, _CROSSOVER_STREAM, cycle, branch])
    returned = crossover(
        dict(fitter.params), dict(other.params), dict(parent_params), dict(distributions), rng
    )
    _check_params(returned, distributions, crossover)
    child = {**fitter.params, **returned}
    # With equal values for all parameters of the trunk, `model_fn` suggests no others. Additional
    # parameters of the child then have no effect, like a momentum without SGD.
    if not any(_is_changed(name, child, trunk.params, distributions) for name in trunk.params):
        return None
    if not has_effect(trunk.params, {n: child[n] for n in trunk.params if n in child}):
        return None
    return Child(params=child, parents=(fitter.number, other.number))


class CrossedProposals:
    """Proposes a child of the two fittest branches for the last branch of each population.

    Args:
        proposer: Proposes for all other siblings.
        crossover: Combines the parameters.
        lineage: The history.
        context: The data that proposals depend on.
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

    def reference_params(self, phase: Phase) -> Params:
        """See :class:`~optuna_miha._search.proposals.Proposer`."""
        return self._proposer.reference_params(phase)


def check_crossover(crossover: object, plan: Plan, *, custom_trainer: bool) -> None:
    """Check the argument ``crossover`` of :func:`~optuna_miha.optimize`.

    Args:
        crossover: The argument.
        plan: The run's plan.
        custom_trainer: Whether the run has a custom trainer.

    Raises:
        TypeError: If it is not a crossover.
        ValueError: If it cannot be used with the plan or the trainer.
    """
    if crossover is None:
        return
    if isinstance(crossover, type):
        raise TypeError(
            f"`crossover` must be an instance, got the class {crossover.__qualname__}: write "
            f"{crossover.__qualname__}()."
        )
    averages = isinstance(crossover, AverageWeights)
    if not averages and not callable(crossover):
        raise TypeError(
            "`crossover` must be UniformCrossover(), AverageWeights() or a function, got "
            f"{crossover!r}."
        )
    if averages and custom_trainer:
        raise ValueError(
            "AverageWeights() requires the built-in trainer, got a custom one, which cannot "
            "evaluate the averaged weights. Use UniformCrossover()."
        )
    if plan.is_annealed:
        raise ValueError(
            "With `crossover`, two branches of a population must train to their end, got a plan "
            'of rounds, in which one does: pass `plan=Plan(..., anneal="cosine")`.'
        )
    minimum = 3 if plan.control and not averages else 2
    if plan.population_size < minimum:
        control = " with a control" if minimum == 3 else ""
        raise ValueError(
            f"With `crossover`, `population_size` must be at least {minimum}{control}, got "
            f"{plan.population_size}: pass `plan=Plan(..., population_size={minimum + 1})`. In a "
            "larger population, two branches more often survive the pruner."
        )


def _check_params(returned: object, distributions: Distributions, crossover: Crossover) -> None:
    """Check the return value of a crossover, which may be the user's function."""
    name = getattr(crossover, "__name__", type(crossover).__name__)
    if not isinstance(returned, Mapping):
        raise TypeError(
            f"A crossover must return a dictionary of parameters, got {returned!r} from {name}: "
            'write for example `return {**fitter, "lr": other["lr"]}`.'
        )
    for key, value in returned.items():
        if key not in distributions:
            raise ValueError(
                f"A crossover must return parameters that `model_fn` suggests, got {key!r} from "
                f"{name}; the two branches have {', '.join(sorted(distributions))}."
            )
        if not contains(distributions[key], value):
            raise ValueError(
                f"A crossover must return a value of {distributions[key]} for {key!r}, got "
                f"{value!r} from {name}: its argument `distributions` contains the bounds."
            )


def _is_changed(name: str, one: Params, two: Params, distributions: Distributions) -> bool:
    """Whether a parameter differs; learning rates of two classes are compared as multiples."""
    if name not in one or name not in two:
        return (name in one) != (name in two)
    optimizers: list[Any] = [params.get("optimizer") for params in (one, two)]
    if (
        name == "lr"
        and optimizers[0] != optimizers[1]
        and lr_distribution(distributions) is not None
    ):
        defaults = [DEFAULT_LR.get(optimizer) for optimizer in optimizers]
        if defaults[0] is not None and defaults[1] is not None:
            multiples = one["lr"] / defaults[0], two["lr"] / defaults[1]
            return not math.isclose(*multiples, rel_tol=1e-6)
    return type(one[name]) is not type(two[name]) or bool(one[name] != two[name])
