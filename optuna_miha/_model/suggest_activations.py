"""``suggest_activations``: the activation of every layer, or of groups of its neurons."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Literal

import optuna
from optuna.trial import FixedTrial
from torch import nn

from optuna_miha._model.activations import (
    ACTIVATIONS,
    find_activations,
    group_activation,
    neurons_before,
    replace_activation,
)
from optuna_miha._search.space import OFFERED_ACTIVATIONS, check_names, declare_initial

_logger = optuna.logging.get_logger("optuna.miha")

_AUTO_GROUPS = 4
"""Few enough that a population tries a good part of them within a run."""


def suggest_activations(
    trial: optuna.trial.BaseTrial,
    model: nn.Module,
    *,
    initial: str | None = None,
    choices: Sequence[str] = OFFERED_ACTIVATIONS,
    include_output: bool = False,
    per: Literal["layer", "neuron"] = "layer",
    n_groups: int | Literal["auto"] | None = "auto",
) -> None:
    """Suggest the activation of every layer, or of groups of neurons, and put it in place.

    Each activation module of ``model``, nested ones too, becomes a categorical
    ``activation.<its qualified name>``, for instance ``activation.encoder.1``. Only activations
    without parameters are offered, so that weights pass between any two choices. Activations
    that the network calls as functions (``torch.relu``) cannot be seen.

    With ``per="neuron"`` the neurons that an activation module sees are divided into contiguous
    groups of equal size, and each group becomes a categorical of its own,
    ``activation.<qualified name>.<group>``, for instance ``activation.encoder.1.0``. What
    counts as a neuron, the nearest layer before the module says, in the order in which the
    network registers its modules: a channel (dimension 1) after a convolution, batch, instance
    or group norm, a feature (the last dimension) after a linear or recurrent layer and where no
    layer is known. So give each layer an activation module of its own.

    Args:
        trial: The trial.
        model: The network, changed in place.
        initial:
            Name of the activation to start from; :obj:`None`: each layer's own, exactly as the
            user configured it.
        choices: Names of the activations to choose from.
        include_output:
            Whether an activation after the last layer may change as well. Which one that is
            can be told for chains of :class:`torch.nn.Sequential`; the softmax family is never
            touched.
        per: Whether ``"layer"`` or (group of) ``"neuron"`` has an activation of its own.
        n_groups:
            With ``per="neuron"``, the number of groups per layer, at most one per neuron.
            ``"auto"``: 4. :obj:`None`: one group per neuron; each is a hyperparameter that the
            study stores, so this is for narrow layers.

    Raises:
        ValueError: If a choice is not the name of an activation, ``per`` is neither of the two,
            ``n_groups`` is not positive or comes without ``per="neuron"``, or is :obj:`None`
            where no layer tells the number of neurons.
    """
    check_names("activation", [*choices, *([initial] if initial else [])], ACTIVATIONS)
    _check_groups(per, n_groups)
    found = find_activations(model, include_output=include_output)
    if not found and not isinstance(trial, FixedTrial):  # Which is asked only after others.
        _warn_of_none(type(model).__name__)
    neurons = neurons_before(model)
    for path, present in found.items():
        start = initial or present
        options = choices if start in choices else [start, *choices]
        names, dim = [f"activation.{path}"], -1
        if per == "neuron":
            width, dim = neurons[path]
            names = [f"activation.{path}.{g}" for g in range(_count(n_groups, width, path))]
        chosen = []
        for name in names:
            with declare_initial(name, start):
                chosen.append(trial.suggest_categorical(name, options))
        if len(set(chosen)) > 1:
            group_activation(model, path, chosen, dim)
        elif chosen[0] != present:
            replace_activation(model, path, chosen[0])


@cache
def _warn_of_none(name: str) -> None:
    """Said once in a process: a run asks again for every trial."""
    _logger.warning(
        f"suggest_activations found no activation module in {name}: write activations as "
        "modules, `self.act = nn.ReLU()` in place of `torch.relu`."
    )


def _check_groups(per: str, n_groups: object) -> None:
    if per not in ("layer", "neuron"):
        raise ValueError(f'`per` must be "layer" or "neuron", got {per!r}.')
    positive = isinstance(n_groups, int) and not isinstance(n_groups, bool) and n_groups >= 1
    if not positive and n_groups is not None and n_groups != "auto":
        raise ValueError(
            '`n_groups` must be a positive integer, None (one group per neuron) or "auto" '
            f"({_AUTO_GROUPS}), got {n_groups!r}."
        )
    if per == "layer" and n_groups != "auto":
        raise ValueError(
            f'`n_groups` divides the neurons of a layer, got {n_groups!r} with per="layer": '
            'pass per="neuron" as well, or leave `n_groups` out.'
        )


def _count(n_groups: int | Literal["auto"] | None, width: int | None, path: str) -> int:
    """The number of groups of one layer."""
    if n_groups is None:
        if width is None:
            raise ValueError(
                "n_groups=None makes one group per neuron, but no layer before the activation "
                f"{path!r} tells how many there are: pass a number of groups, for instance "
                f"`n_groups={_AUTO_GROUPS}`."
            )
        return width
    wanted = _AUTO_GROUPS if n_groups == "auto" else n_groups
    return wanted if width is None else min(wanted, width)
