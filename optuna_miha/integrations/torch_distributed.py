"""Several processes of ``torchrun`` that train one branch, with DDP or FSDP2."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from functools import partial
from typing import Any

import optuna
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from optuna_miha._model.model_fn import ModelFn
from optuna_miha._model.optimizers import optimizer_parts
from optuna_miha._model.recipe import Recipe
from optuna_miha._model.tensors import map_tensors
from optuna_miha._results.result import Result
from optuna_miha._run.optimize import optimize
from optuna_miha._training.trainer_context import AnyTrainer, check_trainer
from optuna_miha.integrations.ranks import RankExecutor, Ranks


def optimize_on_ranks(
    study: optuna.Study | None,
    model_fn: ModelFn,
    *,
    trainer: AnyTrainer,
    timeout: float = 1800.0,
    **arguments: Any,
) -> Result | None:
    """Call :func:`~optuna_miha.optimize` so that all ranks train each branch together.

    Call it on every rank of the default process group, with the same ``model_fn`` and ``trainer``.
    Rank 0 is the coordinator: it alone has the study, decides and writes. For every segment, it
    sends hyperparameters and state to the other ranks, and all of them run the trainer, which
    wraps ``recipe.model`` in ``DistributedDataParallel`` or calls :func:`shard`. The value of an
    epoch is that of rank 0, and rank 0 makes the checkpoints. After every epoch, the weights of
    all ranks are compared, except for sharded ones.

    A segment begins with the same weights on all ranks. Each rank has a random stream of its own,
    which follows from the state of the segment, so that a resumed run equals an uninterrupted one.

    Example::

        dist.init_process_group()
        study = create_study() if dist.get_rank() == 0 else None
        result = optimize_on_ranks(study, model_fn, trainer=trainer, n_epochs=200)

    Args:
        study: The study on rank 0; :obj:`None` on the others.
        model_fn:
            As in :func:`~optuna_miha.optimize`. Rank 0 also calls it alone, so it must not
            communicate with other ranks.
        trainer: The training loop. It runs on all ranks, and must yield after the same epochs.
        timeout: Seconds that a rank waits for the others before it fails.
        **arguments: Those of :func:`~optuna_miha.optimize` but ``n_jobs`` and ``executor``. They
            are used on rank 0.

    Returns:
        The result on rank 0, :obj:`None` on the others.

    Raises:
        RuntimeError: If there is no process group.
        TypeError: If ``n_jobs`` or ``executor`` is given.
        ValueError: If ``timeout`` is not positive.
        WorkerError: If a rank fails, dies, or is in another phase. Finished segments are stored,
            and the same script resumes the run.
    """
    if not dist.is_initialized():
        raise RuntimeError(
            "`optimize_on_ranks` needs a process group, got none: start the script by `torchrun`, "
            "and call `torch.distributed.init_process_group()` before."
        )
    for name in {"n_jobs", "executor"} & arguments.keys():
        raise TypeError(
            f"`optimize_on_ranks` does not take `{name}`, because all ranks train one branch: "
            "leave it out, or call `optimize` without `torchrun` to train branches in parallel."
        )
    if not timeout > 0:
        raise ValueError(f"`timeout` must be a positive number of seconds, got {timeout!r}.")
    check_trainer(trainer)
    ranks = Ranks(model_fn, trainer, timeout)
    if ranks.rank > 0:
        ranks.follow()
        return None
    try:
        if study is None:
            raise TypeError("`study` must be an optuna.Study on rank 0, got None.")
        executor = RankExecutor(ranks)
        return optimize(
            study, ranks.model_fn, trainer=ranks.trainer, executor=executor, **arguments
        )
    finally:
        ranks.stop(sys.exc_info()[1])


def shard(recipe: Recipe, modules: Iterable[nn.Module] = (), **options: Any) -> None:
    """Shard the network of a recipe over all ranks by FSDP2, and its optimizer with it.

    Call it in a trainer, before the first epoch. Parameters become DTensors, of which each rank
    holds a part, as does the state of ``recipe.optimizer``. Checkpoints contain whole tensors,
    which every rank collects at the end of a segment and at every new best value.

    Args:
        recipe: The recipe that the trainer got.
        modules: The parts of ``recipe.model`` that are collected one at a time, such as the blocks
            of a transformer.
        **options: Those of :func:`torch.distributed.fsdp.fully_shard`, such as ``mp_policy``.

    Raises:
        ValueError: If the optimizer has a parameter that is not one of the network.
    """
    assert recipe.optimizer is not None
    names = {id(parameter): name for name, parameter in recipe.model.named_parameters()}
    parts = list(optimizer_parts(recipe.optimizer))
    # A wrapper may share the groups and the state of the wrapped optimizer.
    groups = list({id(g): g for part in parts for g in part.param_groups}.values())
    if any(id(parameter) not in names for group in groups for parameter in group["params"]):
        raise ValueError(
            "All parameters of `recipe.optimizer` must be those of `recipe.model`, got another "
            "one: put it into the network, or use DistributedDataParallel instead of `shard`."
        )
    for module in (*modules, recipe.model):
        fully_shard(module, **options)
    sharded = dict(recipe.model.named_parameters())
    for group in groups:
        group["params"] = [sharded[names[id(parameter)]] for parameter in group["params"]]
    for state in {id(part.state): part.state for part in parts}.values():
        for parameter in [key for key in state if id(key) in names]:
            new = sharded[names[id(parameter)]]
            state[new] = map_tensors(state.pop(parameter), partial(_like, new))
    recipe.model.register_state_dict_post_hook(_collect)  # type: ignore[no-untyped-call]
    for part in parts:
        part.register_state_dict_post_hook(lambda _, state: map_tensors(state, _whole))


def _like(parameter: Any, value: Tensor) -> Tensor:
    """Shard a tensor of the shape of a parameter as that is sharded."""
    if value.shape != parameter.shape:
        return value
    mesh, placements = parameter.device_mesh, parameter.placements
    return distribute_tensor(value, mesh, placements, src_data_rank=None)


def _collect(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Replace shards by whole tensors."""
    for name, value in state.items():
        if isinstance(value, DTensor):
            state[name] = value.full_tensor()


def _whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value
