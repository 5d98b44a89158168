"""The workers of Ray as an executor of :func:`optuna_miha.optimize`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from typing import Any

from optuna_miha._history.optional_imports import try_import


class RayExecutor(Executor):
    """Runs every branch as a task of Ray.

    Call ``ray.init`` before. A worker that dies costs its branch only: Ray runs it again
    (``max_retries``, by default three times).

    Example::

        ray.init("auto")
        executor = RayExecutor(num_gpus=0.5)  # Two branches share a GPU.
        result = optuna_miha.optimize(study, model_fn, n_epochs=200, executor=executor)

    Args:
        **options: What a branch needs, as for ``ray.remote``, such as ``num_cpus``, ``num_gpus``
            or ``resources={"fast": 1}``. Default ``num_cpus=1``.

    Raises:
        RuntimeError: If Ray is not running.
        ValueError: If no node of the cluster has what a branch needs.
    """

    def __init__(self, **options: Any) -> None:
        with try_import("ray", needed_by="RayExecutor"):
            import ray
        if not ray.is_initialized():
            raise RuntimeError("Ray must be running: call `ray.init()` before.")
        self._options = {"num_cpus": 1} | options
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        needed = _needed(self._options)
        # Read by `optimize`, whose plan is as wide as the workers.
        self._max_workers = sum(_n_fitting(needed, node) for node in nodes)
        if self._max_workers == 0:
            present = {k: v for node in nodes for k, v in node.items() if k in needed}
            raise ValueError(
                f"A node must have what a branch needs, {needed}, but the largest of these in the "
                f"cluster are {present or 'absent'}: ask for less, or start such a node."
            )
        self._is_shut_down = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a call as a task."""
        import ray

        if self._is_shut_down:
            raise RuntimeError("cannot schedule new futures after shutdown")
        future: Future[Any] = (
            ray.remote(fn).options(**self._options).remote(*args, **kwargs).future()
        )
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more calls. Ray goes on."""
        self._is_shut_down = True


def _needed(options: Mapping[str, Any]) -> dict[str, float]:
    """The resources of a task by Ray's names."""
    needed = {"CPU": options["num_cpus"], "GPU": options.get("num_gpus", 0)}
    needed |= options.get("resources") or {}
    return {name: float(amount) for name, amount in needed.items() if amount}


def _n_fitting(needed: Mapping[str, float], node: Mapping[str, float]) -> int:
    """The number of tasks that fit into a node."""
    if not needed:  # Nothing limits them: as many as the node has cores.
        return int(node.get("CPU", 0))
    return int(min(node.get(name, 0.0) // amount for name, amount in needed.items()))
