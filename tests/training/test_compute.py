"""Precision, memory layout, threads and devices of a run on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch
from helpers.equality import same
from helpers.problems import TINY, classifier, new_study, run, weights
from torch import nn

import optuna_miha as miha
from optuna_miha._training.compute import Engine, intra_op_threads

SHORT = miha.Plan(30, startup=2, fixing_epochs=2, anneal="cosine")


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


class RecordingNetwork(nn.Module):
    """Records output types, the memory layout of the weights, and the number of threads."""

    records: ClassVar[set[Any]] = set()

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.inner(x)
        is_channels_last = self.inner[0].weight.is_contiguous(memory_format=torch.channels_last)
        if len(x) > 2:  # The default search space looks for output activations with two samples.
            RecordingNetwork.records.add((output.dtype, is_channels_last, torch.get_num_threads()))
        return output


def recording(trial: Any) -> miha.Recipe:
    recipe = images(trial)
    recipe.model = RecordingNetwork()
    recipe.optimizer = torch.optim.Adam(recipe.model.parameters())
    return recipe


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, torch.float32),
        ({"precision": "bf16"}, torch.bfloat16),
        ({"precision": "bf16", "channels_last": True, "n_threads": 2}, torch.bfloat16),
    ],
)
def test_settings_apply_in_training_and_validation(
    settings: dict[str, Any], expected: torch.dtype
) -> None:
    RecordingNetwork.records.clear()
    result = run(new_study(), recording, plan=SHORT, **settings)
    # The layout is ambiguous here: a kernel with one input channel is contiguous in both.
    assert {dtype for dtype, _, _ in RecordingNetwork.records} == {expected}
    n_threads = settings.get("n_threads", 1)
    assert {n for _, _, n in RecordingNetwork.records} <= {n_threads, torch.get_num_threads()}
    assert {p.dtype for p in result.model.parameters()} == {torch.float32}


def test_metrics_are_computed_in_single_precision() -> None:
    result = run(new_study(), images, plan=SHORT, precision="bf16")
    assert result.trial.user_attrs["miha:metrics"] == {"dtype is float32": 1.0}


def test_bf16_changes_the_result_slightly() -> None:
    full, bf16 = (run(new_study(), images, plan=SHORT, precision=p) for p in (None, "bf16"))
    assert not same(weights(full), weights(bf16))
    assert abs(full.value - bf16.value) < 0.1


def test_bf16_is_reproducible() -> None:
    one, two = (run(new_study(), images, plan=SHORT, precision="bf16") for _ in range(2))
    assert same(weights(one), weights(two))


def test_branches_inherit_the_memory_layout_of_the_weights() -> None:
    class WithTwoChannels(RecordingNetwork):
        def __init__(self) -> None:
            super().__init__()
            self.inner[0] = nn.Conv2d(2, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.expand(-1, 2, -1, -1))

    def model_fn(trial: Any) -> miha.Recipe:
        recipe = images(trial)
        recipe.model = WithTwoChannels()
        return recipe

    RecordingNetwork.records.clear()
    run(new_study(), model_fn, plan=SHORT, channels_last=True)
    assert {is_channels_last for _, is_channels_last, _ in RecordingNetwork.records} == {True}


@pytest.mark.long
@pytest.mark.slow
def test_memory_layout_does_not_depend_on_the_number_of_jobs() -> None:
    settings = {"plan": SHORT, "channels_last": True, "precision": "bf16"}
    one = run(new_study(), images, n_jobs=1, **settings)
    two = run(new_study(), images, n_jobs=2, **settings)
    assert same(weights(one), weights(two))


@pytest.mark.filterwarnings("ignore:for .*meta parameter:UserWarning")
def test_siblings_are_distributed_over_the_devices() -> None:
    # The second device is "meta", which is always available, but whose states cannot be captured.
    devices: list[str] = []

    def trainer(recipe: miha.Recipe, n_epochs: int) -> Iterator[miha.EpochResult]:
        devices.append(next(recipe.model.parameters()).device.type)
        for _ in range(n_epochs):
            yield miha.EpochResult(value=float(len(devices)))

    study = new_study()
    settings = {"device": ["cpu", "meta"], "catch": (NotImplementedError,)}
    run(study, trainer=trainer, plan=TINY, **settings)
    assert devices[:4] == ["cpu", "meta", "cpu", "meta"]


@pytest.mark.slow
def test_different_number_of_threads_on_resume_logs_a_warning(
    log: pytest.LogCaptureFixture,
) -> None:
    study = new_study()
    run(study, plan=TINY)
    run(study, plan=None, n_epochs=TINY.n_epochs + 10, n_threads=2)
    assert "n_threads" in log.text or "intra_op_threads=2" in log.text
    assert study.user_attrs["miha:versions"]["intra_op_threads"] == 1


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"precision": "fp8"}, ValueError, "`precision` must be .* got 'fp8'"),
        ({"channels_last": "yes"}, TypeError, "`channels_last` .* got 'yes'"),
        ({"n_threads": 0}, ValueError, "`n_threads` must be positive, got 0"),
        ({"n_threads": 1.5}, TypeError, "`n_threads` must be an integer, got 1.5"),
        ({"n_threads": True}, TypeError, "`n_threads` must be an integer, got True"),
        ({"device": []}, ValueError, "`device` must name at least one device"),
        ({"device": "nowhere"}, ValueError, 'such as "cpu" or "cuda:0", got \'nowhere\''),
    ],
)
def test_invalid_settings_are_refused_before_anything_is_written(
    settings: dict[str, Any], error: type[Exception], words: str
) -> None:
    study = new_study()
    with pytest.raises(error, match=words):
        run(study, classifier, **settings)
    assert not study.trials
    assert not study.user_attrs


def test_precision_is_refused_with_a_user_defined_trainer() -> None:
    def trainer(recipe: miha.Recipe, n_epochs: int) -> Iterator[miha.EpochResult]:
        yield miha.EpochResult(value=0.0)

    message = r"`precision` applies only to the built-in trainer.*autocast"
    with pytest.raises(ValueError, match=message):
        run(new_study(), trainer=trainer, precision="bf16")


def test_number_of_threads_is_restored() -> None:
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="failed"), intra_op_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise RuntimeError("failed")
    assert torch.get_num_threads() == before


def test_default_engine_does_not_autocast() -> None:
    with Engine().autocast(torch.device("cpu")):
        assert not torch.is_autocast_enabled("cpu")
    with Engine(precision="bf16").autocast(torch.device("cpu")):
        assert torch.is_autocast_enabled("cpu")
