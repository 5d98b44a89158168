"""Networks that are compiled by torch."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.equality import same
from helpers.problems import After, blobs, new_study, run, weights
from torch import Tensor, nn
from torch._dynamo.utils import counters

import optuna_miha as miha


class Network(nn.Module):
    """A class of its own: torch does not compile an ``nn.Sequential`` in place."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Dropout(0.1), nn.Linear(12, 3))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layers(x)
        return output


def model_fn_of(change: Callable[[nn.Module], nn.Module]) -> Any:
    def model_fn(trial: Any) -> miha.Recipe:
        model = Network()
        miha.suggest_activations(trial, model)
        optimizer = miha.suggest_optimizer(trial, model.parameters())
        batch_size = miha.suggest_batch_size(trial, initial=15)
        return miha.Recipe(
            model=change(model),
            loss_fn=nn.CrossEntropyLoss(),
            optimizer=optimizer,
            train_data=blobs(60, seed=0),
            valid_data=blobs(30, seed=1),
            batch_size=batch_size,
        )

    return model_fn


def in_place(**options: Any) -> Callable[[nn.Module], nn.Module]:
    def change(model: nn.Module) -> nn.Module:
        model.compile(dynamic=False, **options)
        return model

    return change


@pytest.fixture(autouse=True)
def _compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(recompile_limit=100, fail_on_recompile_limit_hit=True):
        yield
    torch._dynamo.reset()


def n_compiled() -> int:
    return counters["frames"]["ok"]


def check_resumed(model_fn: Any, whole: miha.Result, folder: Path) -> None:
    for stop_after in (1, None):
        torch._dynamo.reset()  # As in a new process.
        study = new_study(f"sqlite:///{folder}/study.db")
        callbacks = [] if stop_after is None else [After(stop_after, study.stop)]
        parts = run(study, model_fn, plan=None, n_epochs=8, callbacks=callbacks)
    assert same(weights(parts), weights(whole))
    loaded = miha.load_result(study, model_fn)
    assert same(weights(loaded), weights(whole))


@pytest.mark.slow
def test_a_compiled_network_trains_like_another_one(tmp_path: Path) -> None:
    expected = run(new_study(), model_fn_of(lambda model: model), plan=None, n_epochs=8)
    assert n_compiled() == 0
    model_fn = model_fn_of(in_place(backend="eager"))
    result = run(new_study(), model_fn, plan=None, n_epochs=8)
    assert n_compiled() > 0
    assert same(weights(result), weights(expected))
    assert result.schedule == expected.schedule
    check_resumed(model_fn, result, tmp_path)


@pytest.mark.slow
def test_nothing_is_compiled_before_the_run_begins() -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("compiled")

    study = new_study()
    with pytest.raises(Exception, match="compiled"):
        run(study, model_fn_of(in_place(backend=refuse)), plan=None, n_epochs=8)
    assert len(study.trials) == 1


@pytest.mark.slow
def test_a_network_that_is_wrapped_by_compile_can_be_exported(tmp_path: Path) -> None:
    model_fn = model_fn_of(lambda model: torch.compile(model, backend="eager"))
    result = run(new_study(), model_fn, plan=None, n_epochs=8)
    assert n_compiled() > 0
    example = torch.randn(5, 4)
    result.export(tmp_path / "model.pt2", example)
    exported = torch.export.load(tmp_path / "model.pt2").module()
    assert torch.allclose(exported(example), result.model(example))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # Those of the compiler.
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_reduced_overhead_resumes_bit_for_bit(tmp_path: Path) -> None:
    expected = run(new_study(), model_fn_of(lambda model: model), plan=None, n_epochs=8)
    model_fn = model_fn_of(in_place(mode="reduce-overhead"))
    result = run(new_study(), model_fn, plan=None, n_epochs=8)
    assert n_compiled() > 0
    assert result.value == pytest.approx(expected.value, rel=1e-3)
    check_resumed(model_fn, result, tmp_path)
