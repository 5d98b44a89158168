"""Check that what a trial records is in force when the network is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from optuna_miha._model.recipe import Recipe, takes_batch_size
from optuna_miha._training.batch_length import batch_length


class NotInForceError(ValueError):
    """A suggested value is not in force."""


@contextmanager
def activations_in_force(model: nn.Module, params: Mapping[str, Any]) -> Iterator[None]:
    """Refuse suggested activations that nothing within the context calls.

    Args:
        model: The network, not to be used afterwards.
        params: The parameters that were suggested for it.

    Raises:
        NotInForceError: If an activation was not called.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    suggested: dict[str, nn.Module] = {}
    for name in params:
        path = name.removeprefix("activation.")
        if path != name:
            module = modules.get(path) or modules.get(path.rpartition(".")[0])
            if module is not None:
                suggested[name] = module
    called: set[nn.Module] = set()
    for module in set(suggested.values()):
        module.forward = _recorded(module, called)
    yield
    for name, module in suggested.items():
        if module not in called:
            raise NotInForceError(
                f"A suggested activation must be called by the network, got {name!r}, which "
                "neither training nor validation reaches, for example because the network keeps "
                "another reference to the module in a list: use the attribute or an "
                "`nn.ModuleList` in `forward`, or do not suggest it."
            )


def _recorded(module: nn.Module, called: set[nn.Module]) -> Callable[..., Any]:
    forward = module.forward

    def recorded(*args: Any, **kwargs: Any) -> Any:
        called.add(module)
        return forward(*args, **kwargs)

    return recorded


def check_batch_size(recipe: Recipe, params: Mapping[str, Any], batch: Any) -> None:
    """Refuse a suggested batch size that a loader of other batches does not have.

    Args:
        recipe: The recipe.
        params: The parameters that were suggested for it.
        batch: Its first training batch.

    Raises:
        NotInForceError: If the batch has another size.
    """
    suggested = params.get("batch_size")
    if suggested is None or takes_batch_size(recipe.train_data):
        return
    if batch_length(batch) != suggested:
        raise NotInForceError(
            "A suggested `batch_size` must be in force, got a loader that forms batches of "
            f"{batch_length(batch)} samples where {suggested} are suggested: use the suggested "
            "value in the `batch_sampler`, or do not suggest one."
        )
