"""Check that what a trial stores is in force when the network is trained.

Only parameters of the ``suggest_*`` functions and of the default search space are checked, whose
meaning is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from optuna_miha._model.optimizers import optimizer_name, optimizer_parts
from optuna_miha._model.recipe import Recipe, takes_batch_size
from optuna_miha._model.trace import watch_rate
from optuna_miha._training.batch_length import batch_length
from optuna_miha.exceptions import NotInForceError

_REPAIRS = {
    "lr": (
        "leave the learning rate as it was suggested, set those of single groups before the "
        "suggestion, and change it in training by a scheduler of torch, which multiplies it"
    ),
    "weight_decay": "leave the weight decay of at least one group as it was suggested",
    "momentum": (
        "leave the momentum of at least one group as it was suggested, for example by "
        "`cycle_momentum=False` of a scheduler"
    ),
}
"""Parameters that are values of the optimizer's groups, and how to put them in force."""

_TOLERANCE = 1e-5
"""Relative difference of equal values: a learning rate may be a tensor of single precision."""


def check_in_force(recipe: Recipe, params: Mapping[str, Any], *, custom_trainer: bool) -> None:
    """Refuse a recipe that does not take a suggested value.

    Args:
        recipe: The recipe, as ``model_fn`` returned it.
        params: The parameters of its trial.
        custom_trainer: Whether a user-defined trainer trains it. It may use an optimizer, a loss
            and batches of its own, so that less is known.

    Raises:
        NotInForceError: If a value is not in force.
    """
    for name, module in recipe.suggestions.modules.items():
        _check_module(recipe.model, module, name, params[name])
    assert recipe.optimizer is not None
    if not (custom_trainer and recipe.has_default_optimizer):
        _check_class(recipe, params)
        check_settings(recipe, params)
    _check_size(recipe, params, custom_trainer=custom_trainer)
    if not custom_trainer and recipe.train_step is None:
        _check_loss(recipe, params)


def check_settings(recipe: Recipe, params: Mapping[str, Any], *, with_lr: bool = True) -> None:
    """Refuse an optimizer none of whose groups has the stored value of a setting.

    The user's code may give other values to single groups, and a learning rate scheduler
    multiplies the learning rate, so that it is not checked if there is one.

    Args:
        recipe: The recipe. Its optimizer has the learning rates of the user, without annealing.
        params: The parameters of its trial.
        with_lr: Whether to check the learning rate, which a trainer may change without a
            scheduler.

    Raises:
        NotInForceError: If there is another value in all groups.
    """
    assert recipe.optimizer is not None
    groups = _groups_of(recipe.optimizer)
    is_scheduled = any("initial_lr" in group for group in groups)
    for name in _REPAIRS:
        if name == "lr" and (is_scheduled or not with_lr):
            continue
        values = [float(group[name]) for group in groups if _is_number(group.get(name))]
        if name not in recipe.suggestions.names or not values:
            continue
        if not any(math.isclose(v, params[name], rel_tol=_TOLERANCE) for v in values):
            raise _not_in_force(
                name,
                params[name],
                f"{_listed(values)} in the groups of {type(recipe.optimizer).__name__}",
                f"{_REPAIRS[name]}, or suggest a value of your own by `trial.suggest_float` under "
                "another name",
            )


def _check_class(recipe: Recipe, params: Mapping[str, Any]) -> None:
    """Refuse an optimizer of torch of another class than the suggested one."""
    suggested = params.get("optimizer")
    if "optimizer" not in recipe.suggestions.names:
        return
    assert recipe.optimizer is not None
    names = [optimizer_name(part) for part in optimizer_parts(recipe.optimizer)]
    # A class without a name may be built from the suggested settings.
    if suggested not in names and None not in names:
        raise _not_in_force(
            "optimizer",
            suggested,
            f"an optimizer of class {type(recipe.optimizer).__name__}",
            "pass the optimizer that `suggest_optimizer` returns as `Recipe(optimizer=...)`, or "
            "do not suggest one",
        )


def _check_module(model: nn.Module, module: nn.Module, name: str, value: Any) -> None:
    """Refuse a network without the module that has a suggested activation or dropout rate."""
    kind, _, path = name.partition(".")
    candidates = [module] if any(part is module for part in model.modules()) else []
    if not candidates:  # The network may be a copy, also a compiled one.
        paths = [path, path.rpartition(".")[0]] if kind == "activation" else [path]
        candidates = [
            part
            for own, part in model.named_modules(remove_duplicate=False)
            if any(p and (own == p or own.endswith(f".{p}")) for p in paths)
            and getattr(part, "original_name", type(part).__name__) == type(module).__name__
        ]
    if not candidates:
        raise _not_in_force(
            name,
            value,
            f"a network, {type(model).__name__}, without this module",
            "make suggestions for the network that is passed as `Recipe(model=...)`",
        )
    found: list[Any] = [getattr(part, "p", None) for part in candidates]
    rates = [float(rate) for rate in found if _is_number(rate)]
    if kind == "dropout" and rates and not any(math.isclose(rate, value) for rate in rates):
        raise _not_in_force(
            name,
            value,
            f"a rate of {_listed(rates)}",
            "do not change the rate after the suggestion, or do not suggest it",
        )


def _check_size(recipe: Recipe, params: Mapping[str, Any], *, custom_trainer: bool) -> None:
    """Refuse a recipe with another batch size than the suggested one."""
    if "batch_size" not in recipe.suggestions.names or not takes_batch_size(recipe.train_data):
        return
    # A trainer may accumulate the gradients of a loader's batches.
    is_unknown = custom_trainer and hasattr(recipe.train_data, "batch_size")
    if recipe.batch_size != params["batch_size"] and not is_unknown:
        raise _not_in_force(
            "batch_size",
            params["batch_size"],
            f"a recipe with `batch_size={recipe.batch_size}`",
            "pass the suggested value as `Recipe(batch_size=...)`, or suggest one of your own by "
            "`trial.suggest_int` under another name",
        )


def _check_loss(recipe: Recipe, params: Mapping[str, Any]) -> None:
    """Refuse a loss of torch that is not the suggested one, or has another label smoothing."""
    loss_fn, suggestions = recipe.loss_fn, recipe.suggestions
    if "label_smoothing" in suggestions.names and type(loss_fn) is nn.CrossEntropyLoss:
        smoothing = params["label_smoothing"]
        if not math.isclose(loss_fn.label_smoothing, smoothing):
            raise _not_in_force(
                "label_smoothing",
                smoothing,
                f"a loss with `label_smoothing={loss_fn.label_smoothing}`",
                "pass the suggested value as `nn.CrossEntropyLoss(label_smoothing=...)`, or do "
                "not suggest one",
            )
    if "loss" in suggestions.names and isinstance(loss_fn, nn.Module):
        chosen = suggestions.losses[params["loss"]]
        is_of_torch = type(loss_fn).__module__ == nn.MSELoss.__module__
        is_choice = any(loss_fn is loss for loss in suggestions.losses.values())
        is_other = loss_fn is not chosen if is_choice else type(loss_fn) is not type(chosen)
        if (is_choice or is_of_torch) and is_other:
            raise _not_in_force(
                "loss",
                params["loss"],
                f"a {type(loss_fn).__name__}",
                "pass the loss that `suggest_loss` returns as `Recipe(loss_fn=...)`, or do not "
                "suggest one",
            )


class BatchSizeCheck:
    """Refuses the first batch of a loader that forms other batches than suggested.

    Args:
        recipe: The recipe.
        params: The parameters of its trial.
    """

    def __init__(self, recipe: Recipe, params: Mapping[str, Any]) -> None:
        self._expected: int | None = None
        if "batch_size" in recipe.suggestions.names and not takes_batch_size(recipe.train_data):
            self._expected = params["batch_size"]
        self._data: Any = recipe.train_data

    def add(self, batch: Any) -> None:
        """Check a batch, if it is the first one.

        Raises:
            NotInForceError: If the batch has another size.
        """
        expected, self._expected = self._expected, None
        if expected is None:
            return
        length = batch_length(batch)
        if length != expected and not (length < expected and self._is_single()):
            raise _not_in_force(
                "batch_size",
                expected,
                f"a loader that forms batches of {length} samples where {expected} are suggested",
                "use the suggested value in the `batch_sampler`, or do not suggest one",
            )

    def _is_single(self) -> bool:
        """Whether all samples are in one batch, which may be smaller."""
        try:
            return len(self._data) == 1
        except (TypeError, NotImplementedError):  # A stream.
            return False


class ReachCheck:
    """Finds suggested modules whose values neither training nor validation uses.

    Args:
        recipe: The recipe, not to be used afterwards: its modules note their use.
    """

    def __init__(self, recipe: Recipe) -> None:
        own = set(recipe.model.modules())
        modules = recipe.suggestions.modules.items()
        self._modules = {name: module for name, module in modules if module in own}
        self._used: set[int] = set()
        for name, module in self._modules.items():
            if name.startswith("dropout."):
                watch_rate(module, partial(self._used.add, id(module)))
        activations = [m for n, m in self._modules.items() if n.startswith("activation.")]
        for module in {id(m): m for m in activations}.values():
            module.forward = _noted(module, self._used)

    def check(self) -> None:
        """Refuse modules that were not used so far.

        Raises:
            NotInForceError: If there is one.
        """
        for name, module in self._modules.items():
            if id(module) not in self._used:
                kind = "activation" if name.startswith("activation.") else "dropout rate"
                raise NotInForceError(
                    f"A suggested {kind} must be used by the network, got {name!r}, which "
                    "neither training nor validation reaches, for example because the network "
                    "keeps another reference to the module in a list, or computes it by a "
                    "function: call the module in `forward`, remove it from the network, or do "
                    "not suggest it."
                )


def _noted(module: nn.Module, used: set[int]) -> Callable[..., Any]:
    forward, key = module.forward, id(module)

    def noted(*args: Any, **kwargs: Any) -> Any:
        used.add(key)
        return forward(*args, **kwargs)

    return noted


def _groups_of(optimizer: Optimizer) -> list[dict[str, Any]]:
    return [group for part in optimizer_parts(optimizer) for group in part.param_groups]


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _listed(values: Any) -> str:
    return ", ".join(map(str, dict.fromkeys(values)))


def _not_in_force(name: str, stored: Any, in_force: Any, repair: str) -> NotInForceError:
    return NotInForceError(
        f"A suggested value must be in force, because the study stores it, got {name!r} = "
        f"{stored!r} where training has {in_force}: {repair}."
    )
