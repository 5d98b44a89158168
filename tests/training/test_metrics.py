"""Batches, outputs and metrics of other forms than tensors."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from typing import Any

import optuna
import pytest
import torch
from helpers.equality import same
from helpers.networks import recipe, samples
from helpers.problems import SHORT, run
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import DataLoader, Dataset

import optuna_miha as miha
from optuna_miha import Recipe, StepOutput
from optuna_miha._history.lineage import Lineage
from optuna_miha._history.segment import segment_of
from optuna_miha._model.recipe import accuracy
from optuna_miha._study.schema import read_lineage
from optuna_miha._training.compute import Engine
from optuna_miha._training.metrics import concatenated
from optuna_miha._training.trainer import evaluate, train
from optuna_miha.exceptions import RecordError


class Samples(Dataset[Any]):
    """Samples of any form, made from inputs and a target."""

    def __init__(self, make: Any, n: int = 20) -> None:
        self.make, self.data = make, samples(n)

    def __len__(self) -> int:
        return len(self.data[0])

    def __getitem__(self, index: int) -> Any:
        return self.make(*(part[index] for part in self.data))


class Named(nn.Module):
    """A network with inputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        out: Tensor = self.layer(torch.cat([left, right], dim=-1))
        return out


@dataclasses.dataclass
class Graph:
    """A batch that knows its length, its device and its targets."""

    x: Tensor
    y: Tensor

    @property
    def num_graphs(self) -> int:
        return len(self.y)

    def to(self, device: Any) -> Graph:
        return Graph(self.x.to(device), self.y.to(device))


class OnGraph(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, graph: Graph) -> Tensor:
        out: Tensor = self.layer(graph.x)
        return out


class OnPacked(nn.Module):
    """A network for packed sequences, whose single output for each step is not padded."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(1, 3)

    def forward(self, packed: PackedSequence) -> Tensor:
        out: Tensor = self.rnn(packed)[1][0]
        return out


@dataclasses.dataclass
class ModelOutput(OrderedDict[str, Any]):
    """A dictionary and data class, as the outputs of Hugging Face are."""

    logits: Tensor
    hidden: Any = None

    def __post_init__(self) -> None:
        self.update(logits=self.logits, hidden=self.hidden)


class WithOutput(nn.Module):
    def __init__(self, make: Any) -> None:
        super().__init__()
        self.layer, self.make = nn.Linear(4, 3), make

    def forward(self, x: Tensor) -> Any:
        return self.make(self.layer(x))


def graphs(batch: list[Any]) -> Graph:
    return Graph(*(torch.stack(part) for part in zip(*batch, strict=True)))


def packed(batch: list[Any]) -> Any:
    xs, ys = zip(*batch, strict=True)
    sequences = [x[: 2 + int(y), None] for x, y in zip(xs, ys, strict=True)]
    return pack_sequence(sequences, enforce_sorted=False), torch.stack(ys)


INPUTS: dict[str, tuple[Any, Any, Any]] = {
    "dictionary": (Named, lambda x, y: {"left": x[:1], "right": x[1:], "labels": y}, None),
    "tuple": (Named, lambda x, y: (x[:2], x[2:], y), None),
    "graphs": (OnGraph, lambda x, y: (x, y), graphs),
    "packed sequences": (OnPacked, lambda x, y: (x, y), packed),
}


@pytest.mark.parametrize(("make_model", "make", "collate"), INPUTS.values(), ids=INPUTS)
def test_batches_of_any_form_are_trained_and_validated(
    make_model: Any, make: Any, collate: Any
) -> None:
    loader = DataLoader(Samples(make), batch_size=8, collate_fn=collate)
    model = make_model()
    made = recipe(
        model=model,
        train_data=loader,
        valid_data=loader,
        optimizer=torch.optim.Adam(model.parameters(), lr=0.05),
        monitor="accuracy",
    )
    results = list(train(made, 20))
    assert results[-1].train_loss < 0.8 * results[0].train_loss
    assert results[-1].metrics["loss"] < results[0].metrics["loss"]
    assert results[-1].value > 0.5


OUTPUTS: dict[str, tuple[Any, Any]] = {
    "tuple": (lambda out: (out, None), lambda outputs: outputs[0]),
    "dictionary": (lambda out: {"logits": out}, lambda outputs: outputs["logits"]),
    "Hugging Face": (lambda out: ModelOutput(out), lambda outputs: outputs.logits),
}


@pytest.mark.parametrize("precision", [None, "bf16"])
@pytest.mark.parametrize(("make", "logits"), OUTPUTS.values(), ids=OUTPUTS)
def test_outputs_of_any_form_reach_loss_and_metrics(
    make: Any, logits: Any, precision: Any
) -> None:
    def hits(outputs: Any, targets: Tensor) -> Tensor:
        assert logits(outputs).dtype == torch.float32
        return accuracy(logits(outputs), targets)

    torch.manual_seed(0)
    model = WithOutput(make)
    made = recipe(
        model=model,
        loss_fn=lambda outputs, y: nn.functional.cross_entropy(logits(outputs), y),
        metrics={"hits": hits},
        valid_batch_size=5,
    )
    values = evaluate(made, model, Engine(precision=precision))
    plain = recipe(model=WithOutput(lambda out: out), monitor="accuracy")
    plain.model.load_state_dict(model.state_dict())
    expected = evaluate(plain, plain.model, Engine(precision=precision))
    assert values["hits"] == expected["accuracy"]
    assert values["loss"] == pytest.approx(expected["loss"], rel=1e-5)


def test_outputs_of_batches_are_combined_part_by_part() -> None:
    a, b = torch.zeros(2, 3), torch.ones(1, 3)
    assert same(concatenated([a, b]), torch.cat([a, b]))
    assert same(concatenated([(a, None), (b, None)]), (torch.cat([a, b]), None))
    assert same(concatenated([{"x": a}, {"x": b}]), {"x": torch.cat([a, b])})
    output = concatenated([ModelOutput(a, (a,)), ModelOutput(b, (b,))])
    assert isinstance(output, ModelOutput)
    assert same(output.hidden, (torch.cat([a, b]),))
    ragged = torch.ones(2, 4)
    assert same(concatenated([a, ragged]), [a, ragged])
    assert same(concatenated([[a], [b, ragged]]), [a, b, ragged])
    assert same(concatenated([torch.tensor(1.0), torch.tensor(2.0)]), torch.tensor([1.0, 2.0]))
    sequences = [pack_sequence([torch.ones(3)]), pack_sequence([torch.ones(2)])]
    assert concatenated(sequences)[1] is sequences[1]


class Hits:
    """A metric that adds up batches."""

    def __init__(self) -> None:
        self.n, self.total, self.sizes = 7, 9, [0]  # Until the first reset.

    def reset(self) -> None:
        self.n, self.total, self.sizes = 0, 0, []

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.n += int((outputs.argmax(1) == targets).sum())
        self.total += len(targets)
        self.sizes.append(len(targets))

    def compute(self) -> Tensor:
        return torch.tensor(self.n / self.total)


def test_metric_objects_add_up_batches_of_the_given_size() -> None:
    hits = Hits()
    made = recipe(metrics={"hits": hits, "accuracy": accuracy}, valid_batch_size=5)
    for _ in range(2):
        values = evaluate(made, made.model)
        assert hits.sizes == [5, 5, 5, 1]
    assert values["hits"] == pytest.approx(values["accuracy"], rel=1e-6)


def test_metrics_of_torchmetrics_work() -> None:
    torchmetrics = pytest.importorskip("torchmetrics")
    metric = torchmetrics.Accuracy(task="multiclass", num_classes=3, average="micro")
    made = recipe(metrics={"torchmetrics": metric}, monitor="accuracy", valid_batch_size=5)
    values = evaluate(made, made.model)
    assert values["torchmetrics"] == pytest.approx(values["accuracy"], rel=1e-6)


@pytest.mark.parametrize("form", [StepOutput, lambda *parts: parts], ids=["object", "tuple"])
def test_metrics_use_what_a_train_step_returns(form: Any) -> None:
    def step(model: nn.Module, batch: Any, loss_fn: Any) -> Any:
        x, y = batch
        out = model(x)
        return form(loss_fn(out, y), out, y)

    made = recipe(train_step=step, monitor="accuracy")
    plain = recipe(model=made.model, monitor="accuracy")
    assert evaluate(made, made.model) == evaluate(plain, plain.model)
    made.optimizer = torch.optim.SGD(made.model.parameters(), lr=0.1)
    (result,) = train(made, 1)
    assert 0 <= result.value <= 1


def loss_alone(model: nn.Module, batch: Any, loss_fn: Any) -> Tensor:
    loss: Tensor = loss_fn(model(batch[0]), batch[1])
    return loss


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no outputs": ({"train_step": loss_alone, "monitor": "accuracy"}, "returns a Tensor: end it"),
    "many numbers": ({"metrics": {"all": lambda out, y: out}}, "'all' must be one number"),
    "no targets": (
        {"train_data": DataLoader(Samples(lambda x, y: {"x": x, "class": y}))},
        "name its targets .* with 'x', 'class'",
    ),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_unsuitable_metrics_and_batches_are_refused_before_anything_is_written(
    options: dict[str, Any], message: str
) -> None:
    study = optuna.create_study(direction="maximize" if "monitor" in options else "minimize")
    with pytest.raises((ValueError, TypeError), match=message):
        run(study, lambda trial: recipe(**options))
    assert not study.trials
    assert not study.user_attrs


def test_batch_size_of_a_validation_loader_is_its_own() -> None:
    loader = DataLoader(Samples(lambda x, y: (x, y)))
    with pytest.raises(ValueError, match="`valid_batch_size` must not be set for a DataLoader"):
        recipe(valid_data=loader, valid_batch_size=4)


@pytest.mark.parametrize("curves", [3, {"f1": 3}, {"f1": ["x"]}, {"f1": [True]}])
def test_metrics_that_no_run_has_written_are_named(curves: Any) -> None:
    study = optuna.create_study(sampler=miha.MihaSampler(seed=0))
    run(study, lambda trial: recipe(metrics={"f1": accuracy}), plan=miha.Plan.no_search(1))
    trial = study.trials[0]
    assert segment_of(trial).metrics.keys() == {"f1"}  # type: ignore[union-attr]
    trial.system_attrs["miha:metric_curves"] = curves
    with pytest.raises(RecordError, match="'miha:metric_curves'"):
        segment_of(trial)


def test_every_metric_of_every_epoch_is_stored_and_drawn() -> None:
    plotly = pytest.importorskip("plotly")
    assert plotly

    def model_fn(trial: Any) -> Recipe:
        trial.suggest_float("lr", 1e-4, 1e-2, log=True)
        third = lambda outputs, targets: torch.tensor(1 / 3)  # noqa: E731
        return recipe(metrics={"accuracy": accuracy, "third": third})

    study = optuna.create_study(sampler=miha.MihaSampler(seed=0))
    run(study, model_fn, plan=SHORT)
    lineage: Lineage = read_lineage(study)
    for segment in lineage:
        assert len(segment.metrics["accuracy"]) == segment.trained
        assert set(segment.metrics["third"]) == {0.333333}
        stored = study.trials[segment.number].user_attrs["miha:metrics"]
        assert stored["accuracy"] == pytest.approx(segment.metrics["accuracy"][-1], rel=1e-5)
    figure = miha.visualization.plot_training_history(study, metric="accuracy")
    trace = next(t for t in figure.data if t.name == "accuracy")
    assert len(trace.x) > 15
    assert figure.layout.yaxis2.title.text == "accuracy"
    with pytest.raises(ValueError, match="it has 'accuracy', 'third'"):
        miha.visualization.plot_training_history(study, metric="f1")
