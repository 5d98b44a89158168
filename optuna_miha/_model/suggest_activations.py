"""``suggest_activations``: the activation of each layer, or of groups of its neurons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from optuna_miha._model.suggestions import note_suggestion
from optuna_miha._search.space import OFFERED_ACTIVATIONS, check_names, declare_initial

_logger = optuna.logging.get_logger("optuna.miha")

_AUTO_GROUPS = 4
"""Small enough for a run to try mutations of a good part of the groups."""


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
    """Suggest the activation of each layer, or of groups of neurons, and replace the modules.

    Each activation module of ``model``, including nested ones, becomes a categorical parameter
    ``activation.<qualified name>``, for example ``activation.encoder.1``. Only activations
    without parameters are offered, so that any choice can inherit the weights. Activations that
    the network calls as functions (``torch.relu``) are not found.

    With ``per="neuron"``, the neurons at each activation module are divided into contiguous
    groups of equal size, and each group becomes a categorical parameter
    ``activation.<qualified name>.<group>``, for example ``activation.encoder.1.0``. The nearest
    layer before the module, in the order in which the network registers its modules, determines
    the dimension of the neurons: dimension 1 (channels) after a convolution or a batch, instance
    or group norm, and the last dimension (features) after a linear or recurrent layer, or if
    there is no such layer. Each layer should therefore have its own activation module.

    Args:
        trial: The trial.
        model: The network, changed in place.
        initial:
            Name of the activation to start from. :obj:`None`: the activation that each layer
            has, with its settings.
        choices: Names of the activations to choose from.
        include_output:
            Whether an activation after the last layer may change as well. It is recognized in
            chains of :class:`torch.nn.Sequential`. The softmax family never changes.
        per: ``"layer"``: one activation per layer. ``"neuron"``: one per group of neurons.
        n_groups:
            With ``per="neuron"``, the number of groups per layer, at most one per neuron.
            ``"auto"``: 4. :obj:`None`: one group per neuron. Each group is a hyperparameter that
            the study stores, so that :obj:`None` suits narrow layers only.

    Raises:
        ValueError: If a choice is not the name of an activation, ``per`` is neither ``"layer"``
            nor ``"neuron"``, or ``n_groups`` is not positive, is given without
            ``per="neuron"``, or is :obj:`None` and the number of neurons of a layer is unknown.
    """
    check_names("activation", [*choices, *([initial] if initial else [])], ACTIVATIONS)
    _check_groups(per, n_groups)
    found = find_activations(model, include_output=include_output)
    if not found and not isinstance(trial, FixedTrial):  # A fixed trial repeats another one.
        _warn_no_activations(type(model).__name__)
    suggest_activations_at(
        trial, model, found, initial=initial, choices=choices, per=per, n_groups=n_groups
    )


def suggest_activations_at(
    trial: optuna.trial.BaseTrial,
    model: nn.Module,
    found: Mapping[str, str],
    *,
    initial: str | None = None,
    choices: Sequence[str] = OFFERED_ACTIVATIONS,
    per: Literal["layer", "neuron"] = "layer",
    n_groups: int | Literal["auto"] | None = "auto",
) -> None:
    """Suggest activations as :func:`suggest_activations`, at given modules.

    Args:
        trial: As in :func:`suggest_activations`.
        model: As in :func:`suggest_activations`.
        found: The names of the activations by the qualified names of their modules.
        initial: As in :func:`suggest_activations`.
        choices: As in :func:`suggest_activations`.
        per: As in :func:`suggest_activations`.
        n_groups: As in :func:`suggest_activations`.
    """
    neurons = neurons_before(model)
    for path, current in found.items():
        start = initial or current
        options = choices if start in choices else [start, *choices]
        names, dim = [f"activation.{path}"], -1
        if per == "neuron":
            width, dim = neurons[path]
            names = [
                f"activation.{path}.{g}" for g in range(_resolve_n_groups(n_groups, width, path))
            ]
        chosen = []
        for name in names:
            with declare_initial(name, start):
                chosen.append(trial.suggest_categorical(name, options))
        if len(set(chosen)) > 1:
            group_activation(model, path, chosen, dim)
        elif chosen[0] != current:
            replace_activation(model, path, chosen[0])
        for name in names:
            note_suggestion(name, model.get_submodule(path))


@cache
def _warn_no_activations(name: str) -> None:
    """Log a hint, once per process although ``model_fn`` is called for every trial."""
    _logger.warning(
        f"suggest_activations found no activation module in {name}: define activations as "
        "modules, `self.act = nn.ReLU()` instead of `torch.relu`."
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
            f'`n_groups` needs per="neuron", got {n_groups!r} with per="layer": '
            'pass per="neuron" as well, or leave `n_groups` out.'
        )


def _resolve_n_groups(n_groups: int | Literal["auto"] | None, width: int | None, path: str) -> int:
    """Return the number of groups of a layer with ``width`` neurons, if that is known."""
    if n_groups is None:
        if width is None:
            raise ValueError(
                "n_groups=None needs the number of neurons, but there is no layer before the "
                f"activation {path!r} that has one: pass a number of groups, for example "
                f"`n_groups={_AUTO_GROUPS}`."
            )
        return width
    requested = _AUTO_GROUPS if n_groups == "auto" else n_groups
    return requested if width is None else min(requested, width)
