"""What a batch without a ``train_step`` consists of: inputs of the network, and targets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

TARGETS = ("labels", "label", "targets", "target", "y")
"""The names of the targets in a batch that is a dictionary or an object."""


class Parts(NamedTuple):
    """The parts of a batch.

    Args:
        args: The inputs by position.
        kwargs: The inputs by name.
        target: The targets.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    target: Any

    def outputs(self, model: nn.Module) -> Any:
        """Compute the outputs of a network for the inputs."""
        return model(*self.args, **self.kwargs)


def split_batch(batch: Any) -> Parts:
    """Split a batch into inputs and targets.

    The targets are the last part of a tuple or list, the part with one of the names ``TARGETS`` of
    a dictionary, whose other parts are inputs by name, or the attribute with one of these names of
    an object, such as a batch of graphs, which is the input itself.

    Raises:
        TypeError: If there are no targets.
    """
    if isinstance(batch, (tuple, list)):
        *inputs, target = batch
        return Parts(tuple(inputs), {}, target)
    is_mapping = isinstance(batch, Mapping)
    for name in TARGETS:
        if is_mapping and name in batch:
            kwargs = {key: value for key, value in batch.items() if key != name}
            return Parts((), kwargs, batch[name])
        if not is_mapping and getattr(batch, name, None) is not None:
            return Parts((batch,), {}, getattr(batch, name))
    found = f" with {', '.join(map(repr, batch))}" if is_mapping else ""
    raise TypeError(
        "A batch must be `(*inputs, target)`, or name its targets "
        f"{', '.join(map(repr, TARGETS))} in a dictionary or an object, got a "
        f"{type(batch).__qualname__}{found}: rename them in the data or the `collate_fn`, or pass "
        "a `train_step`, which computes the loss of a batch of any form."
    )
