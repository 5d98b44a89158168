"""Run a loop that cannot be interrupted between two epochs as a generator of results."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import TypeAlias

import torch

from optuna_miha._history.curve import EpochResult

Report: TypeAlias = Callable[[EpochResult], None]
"""Hands over the result of an epoch, and returns when the next epoch shall begin."""


class _Abandoned(BaseException):
    """Nobody wants further epochs. Handlers of ``Exception`` do not catch it."""


def epochs_of(run: Callable[[Report], None], device: torch.device) -> Iterator[EpochResult]:
    """Call ``run`` in a thread that works only while the caller waits for the next result.

    The two threads never run at the same time. If the caller wants no further epoch, the pending
    call of ``report`` raises an exception, which ends ``run``.

    Args:
        run: Trains, and calls its argument with the result of each epoch but the last when the
            next epoch begins, and with that of the last one when the loop has ended.
        device: The device of the network, which becomes the thread's own.

    Yields:
        The results.

    Raises:
        Exception: What ``run`` raises.
    """
    wanted: SimpleQueue[bool] = SimpleQueue()
    results: SimpleQueue[EpochResult | BaseException | None] = SimpleQueue()

    def report(result: EpochResult) -> None:
        results.put(result)
        if not wanted.get():
            raise _Abandoned

    def target() -> None:
        try:
            if wanted.get():
                if device.index is not None:
                    torch.accelerator.set_device_index(device.index)
                run(report)
        except BaseException as error:
            results.put(error)
        else:
            results.put(None)

    thread = threading.Thread(target=target, name="optuna-miha-trainer", daemon=True)
    thread.start()
    try:
        while True:
            wanted.put(True)
            result = results.get()
            if isinstance(result, BaseException):
                raise result
            if result is None:
                return
            yield result
    finally:
        wanted.put(False)
        thread.join()
