"""Precision, memory layout, threads and devices, by what they do to a run on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import optuna
import pytest
import torch
from helpers.equality import same
from helpers.problems import TINY, classifier, new_study, run, weights
from torch import nn

import optuna_miha as miha
from optuna_miha._training.compute import Engine, intra_op_threads

SHORT = miha.Plan(30, startup=2, fixing_epochs=2)


def images(trial: Any) -> miha.Recipe:
    """A small convolutional network on 8x8 images."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(48, 1, 8, 8, generator=generator), torch.arange(48) % 3
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 3),
    )
    return miha.Recipe(
        model=model,
        loss_fn=nn.CrossEntropyLoss(),
        train_data=(x[:32], y[:32]),
        valid_data=(x[32:], y[32:]),
        monitor="loss",
        metrics={"dtype is float32": lambda output, _: float(output.dtype == torch.float32)},
    )


class Spied(nn.Module):
    """A network that notes the types of its outputs, and the strides of its weights."""

    seen: ClassVar[set[Any]] = set()

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.inner(x)
        is_last = self.inner[0].weight.is_contiguous(memory_format=torch.channels_last)
        Spied.seen.add((output.dtype, is_last, torch.get_num_threads()))
        return output


def spied(trial: Any) -> miha.Recipe:
    recipe = images(trial)
    recipe.model = Spied()
    recipe.optimizer = torch.optim.Adam(recipe.model.parameters())
    return recipe


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, torch.float32),
        ({"precision": "bf16"}, torch.bfloat16),
        ({"precision": "bf16", "channels_last": True, "n_threads": 2}, torch.bfloat16),
    ],
)
def test_a_network_computes_as_it_was_asked_to(
    settings: dict[str, Any], expected: torch.dtype
) -> None:
    Spied.seen.clear()
    result = run(new_study(), spied, plan=SHORT, **settings)
    # A kernel of one input channel counts as laid out both ways.
    assert {dtype for dtype, _, _ in Spied.seen} == {expected}
    n_threads = settings.get("n_threads", 1)
    assert {n for _, _, n in Spied.seen} <= {n_threads, torch.get_num_threads()}
    assert {p.dtype for p in result.model.parameters()} == {torch.float32}


def test_figures_are_computed_in_single_precision() -> None:
    result = run(new_study(), images, plan=SHORT, precision="bf16")
    assert result.trial.user_attrs["miha:metrics"] == {"dtype is float32": 1.0}


def test_bf16_changes_the_result_but_not_much() -> None:
    exact, rough = (run(new_study(), images, plan=SHORT, precision=p) for p in (None, "bf16"))
    assert not same(weights(exact), weights(rough))
    assert abs(exact.value - rough.value) < 0.1


def test_bf16_is_reproducible() -> None:
    one, two = (run(new_study(), images, plan=SHORT, precision="bf16") for _ in range(2))
    assert same(weights(one), weights(two))


def test_the_layout_of_weights_passes_from_trunk_to_branch() -> None:
    class Watched(Spied):
        def __init__(self) -> None:
            super().__init__()
            self.inner[0] = nn.Conv2d(2, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.expand(-1, 2, -1, -1))

    def watched(trial: Any) -> miha.Recipe:
        recipe = images(trial)
        recipe.model = Watched()
        return recipe

    Spied.seen.clear()
    run(new_study(), watched, plan=SHORT, channels_last=True)
    assert {is_last for _, is_last, _ in Spied.seen} == {True}


def test_the_layout_does_not_depend_on_processes() -> None:
    settings = {"plan": SHORT, "channels_last": True, "precision": "bf16"}
    one = run(new_study(), images, n_jobs=1, **settings)
    two = run(new_study(), images, n_jobs=2, **settings)
    assert same(weights(one), weights(two))


@pytest.mark.filterwarnings("ignore:for .*meta parameter:UserWarning")
def test_siblings_take_turns_on_devices() -> None:
    """No data can lie on ``meta``, so that it shows who was sent there."""
    devices: list[str] = []

    def trainer(recipe: miha.Recipe, n_epochs: int) -> Iterator[miha.EpochResult]:
        devices.append(next(recipe.model.parameters()).device.type)
        for _ in range(n_epochs):
            yield miha.EpochResult(value=float(len(devices)))

    study = new_study()
    run(study, trainer=trainer, device=["cpu", "meta"], plan=TINY)
    assert devices[:4] == ["cpu", "meta", "cpu", "meta"]


def test_another_number_of_threads_on_resume_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    study = new_study()
    run(study, plan=TINY)
    optuna.logging.enable_propagation()
    run(study, plan=None, n_epochs=TINY.n_epochs + 10, n_threads=2)
    assert "n_threads" in caplog.text or "intra_op_threads=2" in caplog.text
    assert study.user_attrs["miha:versions"]["intra_op_threads"] == 1


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"precision": "fp16"}, ValueError, "`precision` must be .* got 'fp16'"),
        ({"channels_last": "yes"}, TypeError, "`channels_last` .* got 'yes'"),
        ({"n_threads": 0}, ValueError, "`n_threads` must be positive, got 0"),
        ({"n_threads": 1.5}, TypeError, "`n_threads` must be an integer, got 1.5"),
        ({"n_threads": True}, TypeError, "`n_threads` must be an integer, got True"),
        ({"device": []}, ValueError, "`device` must name at least one device"),
        ({"device": "nowhere"}, RuntimeError, "nowhere"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(
    settings: dict[str, Any], error: type[Exception], words: str
) -> None:
    study = new_study()
    with pytest.raises(error, match=words):
        run(study, classifier, **settings)
    assert not study.trials
    assert not study.user_attrs


def test_precision_is_not_for_a_trainer_of_ones_own() -> None:
    def trainer(recipe: miha.Recipe, n_epochs: int) -> Iterator[miha.EpochResult]:
        yield miha.EpochResult(value=0.0)

    with pytest.raises(ValueError, match=r"`precision` is for the built-in trainer.*autocast"):
        run(new_study(), trainer=trainer, precision="bf16")


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="out"), intra_op_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise RuntimeError("out")
    assert torch.get_num_threads() == before


def test_the_default_engine_casts_nothing() -> None:
    with Engine().autocast(torch.device("cpu")):
        assert not torch.is_autocast_enabled("cpu")
    with Engine(precision="bf16").autocast(torch.device("cpu")):
        assert torch.is_autocast_enabled("cpu")
