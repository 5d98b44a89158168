"""The ``suggest_*`` functions: hyperparameters of a network and its training.

Each declares an initial value, the setting that the user would choose without this package, and
calls one or more ``suggest_*`` methods of the trial. They work with any Optuna trial.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna
from torch import nn

from optuna_miha._model.losses import interchangeable_losses
from optuna_miha._model.recipe import DEFAULT_BATCH_SIZE, LossFn
from optuna_miha._model.suggestions import note_losses, note_suggestion
from optuna_miha._search.space import declare_initial

_DROPOUTS = (
    nn.AlphaDropout,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.FeatureAlphaDropout,
)


def suggest_batch_size(
    trial: optuna.trial.BaseTrial,
    *,
    initial: int = DEFAULT_BATCH_SIZE,
    low: int = 16,
    high: int = 256,
) -> int:
    """Suggest the batch size, an integer on a log scale.

    Args:
        trial: The trial.
        initial: The initial value.
        low: The lower bound, widened to include ``initial``.
        high: The upper bound, widened to include ``initial``.

    Returns:
        The batch size.

    Raises:
        ValueError: If a size is not positive, or ``low`` exceeds ``high``.
    """
    if not 1 <= low <= high or initial < 1:
        raise ValueError(
            f"Batch sizes must be positive and `low` at most `high`, got {low=}, {high=}, "
            f"{initial=}."
        )
    note_suggestion("batch_size")
    with declare_initial("batch_size", initial):
        return trial.suggest_int("batch_size", min(low, initial), max(high, initial), log=True)


def suggest_loss(
    trial: optuna.trial.BaseTrial,
    *,
    initial: LossFn | str | None = None,
    choices: Mapping[str, LossFn] | None = None,
) -> LossFn:
    """Suggest the training loss, the parameter ``loss``.

    The validation loss remains that of the initial configuration, so that branches are compared
    on one scale.

    Args:
        trial: The trial.
        initial:
            The initial loss, or its name in ``choices``. :obj:`None`: the first choice.
        choices:
            Losses by name. :obj:`None`: the losses of torch that take the same targets as
            ``initial``: cross-entropy or multi-margin; MSE, L1, smooth L1 or Huber; binary
            cross-entropy with logits or multi-label soft margin.

    Returns:
        The loss function.

    Raises:
        TypeError: If neither an initial loss nor choices are given.
        ValueError: If ``initial`` is not the name of a choice, or, without ``choices``, a loss
            that no loss of torch can replace.
    """
    if choices is None:
        if initial is None or isinstance(initial, str):
            raise TypeError(
                f"suggest_loss needs an initial loss or `choices`, got initial={initial!r}: "
                "pass, for example, `initial=nn.MSELoss()`, or "
                '`choices={"mse": nn.MSELoss(), "l1": nn.L1Loss()}`.'
            )
        choices = interchangeable_losses(initial)
        initial = next(iter(choices))
    if not choices:
        raise ValueError("`choices` must hold at least one loss, got none.")
    if initial is None:
        initial = next(iter(choices))
    if not isinstance(initial, str):
        name = next((n for n, loss in choices.items() if loss is initial), None)
        if name is None:
            name, choices = "initial", {"initial": initial, **choices}
        initial = name
    if initial not in choices:
        raise ValueError(f"`initial` must be one of {sorted(choices)}, got {initial!r}.")
    note_suggestion("loss")
    note_losses(dict(choices))
    with declare_initial("loss", initial):
        return choices[trial.suggest_categorical("loss", list(choices))]


def suggest_dropout(
    trial: optuna.trial.BaseTrial, model: nn.Module, *, low: float = 0.0, high: float = 0.6
) -> None:
    """Suggest the rate of every dropout module of the network, and set it.

    Each becomes a float parameter ``dropout.<qualified name>`` with the current rate as the
    initial value.

    Args:
        trial: The trial.
        model: The network, changed in place.
        low: The lower bound, widened to include a module's current rate.
        high: The upper bound, widened to include a module's current rate.

    Raises:
        ValueError: If the bounds are not in [0, 1), or not ascending.
    """
    if not 0 <= low <= high < 1:
        raise ValueError(
            f"Dropout rates must lie in [0, 1) and be ascending, got low={low}, high={high}."
        )
    suggest_dropout_at(trial, find_dropouts(model), low=low, high=high)


def find_dropouts(model: nn.Module) -> dict[str, nn.Module]:
    """Find the dropout modules of ``model``, by their qualified names."""
    return {path: part for path, part in model.named_modules() if isinstance(part, _DROPOUTS)}


def suggest_dropout_at(
    trial: optuna.trial.BaseTrial,
    modules: Mapping[str, Any],
    *,
    low: float = 0.0,
    high: float = 0.6,
) -> None:
    """Suggest dropout rates as :func:`suggest_dropout`, of given modules.

    Args:
        trial: As in :func:`suggest_dropout`.
        modules: The dropout modules by their qualified names.
        low: As in :func:`suggest_dropout`.
        high: As in :func:`suggest_dropout`.
    """
    for path, module in modules.items():
        name = f"dropout.{path}"
        with declare_initial(name, module.p):
            module.p = trial.suggest_float(name, min(low, module.p), max(high, module.p))
        note_suggestion(name, module)


def suggest_label_smoothing(
    trial: optuna.trial.BaseTrial, *, initial: float = 0.0, high: float = 0.3
) -> float:
    """Suggest the label smoothing of :class:`torch.nn.CrossEntropyLoss`.

    Args:
        trial: The trial.
        initial: The initial value.
        high: The upper bound, widened to include ``initial``.

    Returns:
        The label smoothing, the parameter ``label_smoothing``.

    Raises:
        ValueError: If a value is not in [0, 1].
    """
    if not (0 <= initial <= 1 and 0 <= high <= 1):
        raise ValueError(f"Label smoothing must lie in [0, 1], got {initial=}, {high=}.")
    note_suggestion("label_smoothing")
    with declare_initial("label_smoothing", initial):
        return trial.suggest_float("label_smoothing", 0.0, max(high, initial))
