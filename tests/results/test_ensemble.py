"""Ensembles of the networks of a run."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from helpers.equality import same
from helpers.networks import train_steps
from helpers.problems import accuracy_classifier, blobs, classifier, new_study, run
from helpers.segments import segment
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.artifacts import FileSystemArtifactStore
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import optuna_miha as miha
from optuna_miha._history.lineage import LIBRARY_SIZE, Lineage
from optuna_miha._history.segment import Segment
from optuna_miha._results.combination import combination_for
from optuna_miha._results.ensemble import Ensemble, select
from optuna_miha._study.checkpoint_store import CheckpointStore
from optuna_miha._study.retention import Retention
from optuna_miha.exceptions import MihaError

X, Y = blobs(30, seed=1)
"""The validation data of ``classifier``."""


@pytest.fixture(scope="module")
def result() -> miha.Result:
    """The result of an undisturbed run. Tests must not modify it."""
    return run(new_study())


def member_files(folder: Path) -> list[Path]:
    """The files with best weights of segments."""
    return sorted(folder.glob("member-*"))


def assert_equal(one: Ensemble, other: Ensemble) -> None:
    """Check for bitwise equality, except for trial numbers."""
    assert same(dict(one.state_dict()), dict(other.state_dict()))
    assert one.value == other.value


class TestSelection:
    """Selection of candidates, with the mean square of their mean error as the cost."""

    @staticmethod
    def cost_of(errors: np.ndarray[Any, Any]) -> Callable[[Counter[int]], float]:
        def cost(counts: Counter[int]) -> float:
            total = sum(n * errors[i] for i, n in counts.items())
            return float(np.mean((total / counts.total()) ** 2))

        return cost

    errors = st.integers(1, 6).flatmap(
        lambda n: st.lists(
            st.lists(st.integers(-9, 9), min_size=4, max_size=4), min_size=n, max_size=n
        ).map(np.array)
    )

    @given(errors=errors, size=st.integers(1, 9))
    @settings(deadline=None)
    def test_is_never_worse_than_the_best_candidate(self, errors: Any, size: int) -> None:
        cost = self.cost_of(errors)
        counts, least = select(len(errors), cost, size)
        assert least == cost(counts)
        assert least <= min(cost(Counter([i])) for i in range(len(errors)))
        assert 1 <= counts.total() <= size
        assert all(n > 0 for n in counts.values())

    @pytest.mark.slow
    @given(errors=errors, size=st.integers(1, 9))
    @settings(deadline=None)
    def test_is_reproducible(self, errors: Any, size: int) -> None:
        cost = self.cost_of(errors)
        assert select(len(errors), cost, size) == select(len(errors), cost, size)

    @given(errors=errors, size=st.integers(1, 8))
    @settings(deadline=None)
    def test_does_not_get_worse_with_size(self, errors: Any, size: int) -> None:
        cost = self.cost_of(errors)
        assert select(len(errors), cost, size + 1)[1] <= select(len(errors), cost, size)[1]

    def test_gives_a_candidate_more_weight_by_repetition(self) -> None:
        errors = np.array([[1.0, -1.0], [-2.0, 2.0]])
        assert select(2, self.cost_of(errors), 12) == (Counter({0: 2, 1: 1}), 0.0)

    def test_continues_after_a_worse_ensemble_to_a_better_one(self) -> None:
        costs = {1: 1.0, 2: 3.0, 3: 0.5, 4: 2.0}
        counts, least = select(1, lambda counts: costs[counts.total()], 4)
        assert (counts, least) == (Counter({0: 3}), 0.5)

    def test_takes_the_first_candidate_and_the_smaller_ensemble_if_costs_tie(self) -> None:
        assert select(3, lambda counts: 1.0, 5)[0] == Counter([0])

    def test_never_takes_a_candidate_with_a_cost_of_nan(self) -> None:
        def cost(counts: Counter[int]) -> float:
            return float("nan") if 0 in counts else 5.0 - counts[2]

        assert select(3, cost, 4)[0] == Counter({2: 4})


class TestCombination:
    logits = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([0.5, 0.25, 0.25])

    def mean(self, values: Tensor) -> Tensor:
        return torch.einsum("m,m...->...", self.weights, values)

    @pytest.mark.parametrize(
        "loss_fn", [nn.CrossEntropyLoss(label_smoothing=0.1), functional.cross_entropy]
    )
    def test_for_cross_entropy_is_the_mean_of_probabilities(self, loss_fn: Any) -> None:
        combined = combination_for(loss_fn)(self.logits, self.weights)
        expected = self.mean(self.logits.softmax(dim=2))
        torch.testing.assert_close(combined.exp(), expected)
        y = torch.tensor([0, 1, 2, 3, 0])
        torch.testing.assert_close(
            functional.cross_entropy(combined, y), functional.nll_loss(expected.log(), y)
        )

    def test_for_segmentation_is_the_mean_of_probabilities_of_each_pixel(self) -> None:
        logits = torch.randn(3, 2, 4, 5, 5)
        combined = combination_for(nn.CrossEntropyLoss())(logits, self.weights)
        torch.testing.assert_close(combined.exp(), self.mean(logits.softmax(dim=2)))

    def test_for_negative_log_likelihood_is_the_mean_of_probabilities(self) -> None:
        combined = combination_for(nn.NLLLoss())(self.logits.log_softmax(2), self.weights)
        torch.testing.assert_close(combined.exp(), self.mean(self.logits.softmax(2)))

    def test_for_binary_logits_is_the_logit_of_the_mean_probability(self) -> None:
        combined = combination_for(nn.BCEWithLogitsLoss())(self.logits, self.weights)
        torch.testing.assert_close(combined.sigmoid(), self.mean(self.logits.sigmoid()))

    @pytest.mark.parametrize("loss_fn", [nn.MSELoss(), nn.L1Loss(), lambda output, y: output[0]])
    def test_for_any_other_loss_is_the_mean_of_outputs(self, loss_fn: Any) -> None:
        combined = combination_for(loss_fn)(self.logits, self.weights)
        torch.testing.assert_close(combined, self.mean(self.logits))

    @pytest.mark.parametrize("loss_fn", [nn.CrossEntropyLoss(), nn.BCEWithLogitsLoss()])
    def test_of_extreme_logits_is_finite(self, loss_fn: Any) -> None:
        combined = combination_for(loss_fn)(1e4 * self.logits, self.weights)
        assert combined.isfinite().all()

    def test_keeps_the_precision_of_the_outputs(self) -> None:
        for loss_fn in (nn.CrossEntropyLoss(), nn.BCEWithLogitsLoss(), nn.MSELoss()):
            combined = combination_for(loss_fn)(self.logits.double(), self.weights)
            assert combined.dtype == torch.double


class TestModule:
    def test_has_its_stated_value_which_is_no_worse_than_that_of_the_single_network(
        self, result: miha.Result
    ) -> None:
        ensemble = result.ensemble()
        with torch.no_grad():
            value = functional.cross_entropy(ensemble(X), Y)
        assert ensemble.value == pytest.approx(value.item(), rel=1e-6)
        assert ensemble.value <= result.value * (1 + 1e-6)
        assert len(set(ensemble.trials)) == len(ensemble.models) > 1

    def test_is_in_evaluation_mode_with_weights_that_sum_to_one(self, result: miha.Result) -> None:
        ensemble = result.ensemble()
        assert not any(module.training for module in ensemble.modules())
        assert ensemble.weights.sum().item() == pytest.approx(1)
        multiples = ensemble.weights * 12
        assert len(ensemble.models) <= 12 and multiples.min() >= 1

    def test_of_size_one_is_the_single_network(self, result: miha.Result) -> None:
        ensemble = result.ensemble(size=1)
        assert ensemble.trials == (result.trial.number,)
        assert same(
            dict(ensemble.models[0].state_dict()),  # type: ignore[union-attr]
            dict(result.model.state_dict()),
        )
        torch.testing.assert_close(ensemble(X), result.model(X).log_softmax(1))

    def test_is_reproducible(self, result: miha.Result) -> None:
        assert_equal(result.ensemble(), result.ensemble())
        assert result.ensemble().trials == result.ensemble().trials

    @pytest.mark.slow
    def test_is_copied_saved_and_exported_like_any_module(
        self, result: miha.Result, tmp_path: Path
    ) -> None:
        ensemble = result.ensemble()
        twin = copy.deepcopy(ensemble)
        assert torch.equal(twin(X), ensemble(X))
        for parameter in twin.parameters():
            nn.init.zeros_(parameter)
        torch.save(ensemble.state_dict(), tmp_path / "ensemble.pt")
        twin.load_state_dict(torch.load(tmp_path / "ensemble.pt", weights_only=True))
        assert torch.equal(twin(X), ensemble(X))
        shapes = ({0: torch.export.Dim("batch")},)
        program = torch.export.export(ensemble, (X,), dynamic_shapes=(shapes,))
        torch.export.save(program, tmp_path / "ensemble.pt2")
        loaded = torch.export.load(tmp_path / "ensemble.pt2").module()
        torch.testing.assert_close(loaded(X[:7]), ensemble(X[:7]))

    def test_does_not_change_the_random_generators(self, result: miha.Result) -> None:
        state = torch.get_rng_state()
        result.ensemble()
        assert torch.equal(torch.get_rng_state(), state)

    def test_uses_a_custom_combination(self, result: miha.Result) -> None:
        def median(outputs: Tensor, weights: Tensor) -> Tensor:
            assert weights.shape == (len(outputs),)
            return outputs.median(dim=0).values

        ensemble = result.ensemble(combine=median)
        outputs = torch.stack([model(X) for model in ensemble.models])
        assert torch.equal(ensemble(X), outputs.median(dim=0).values)

    @pytest.mark.parametrize("size", [0, -3, 2.0, "all", True])
    def test_of_an_invalid_size_is_refused(self, result: miha.Result, size: Any) -> None:
        with pytest.raises(ValueError, match=r"`size` must be a positive number of networks, got"):
            result.ensemble(size)


def test_networks_are_rebuilt_with_their_own_hyperparameters(
    result: miha.Result,
) -> None:
    segments = {s.number: s for s in result.segments}
    ensemble = result.ensemble()
    for number, model in zip(ensemble.trials, ensemble.models, strict=True):
        activation, dropout = model[2], model[3]  # type: ignore[index]
        assert type(activation).__name__.lower() == segments[number].params["activation.2"]
        assert dropout.p == segments[number].params["dropout.3"]


@pytest.mark.slow
def test_a_maximized_metric_is_optimized() -> None:
    result = run(new_study(direction="maximize"), accuracy_classifier)
    ensemble = result.ensemble()
    assert ensemble.value >= result.value
    assert (ensemble(X).argmax(1) == Y).double().mean().item() == ensemble.value


@pytest.mark.slow
def test_outputs_of_a_regression_are_averaged() -> None:
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    y = x[:, :2].prod(dim=1, keepdim=True) + 0.3 * x[:, 2:3]

    def model_fn(trial: Any) -> miha.Recipe:
        return miha.Recipe(
            model=nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)),
            loss_fn=nn.MSELoss(),
            train_data=(x[:40], y[:40]),
            valid_data=(x[40:], y[40:]),
        )

    ensemble = run(new_study(), model_fn).ensemble()
    outputs = torch.stack([model(x) for model in ensemble.models])
    expected = (ensemble.weights[:, None, None] * outputs).sum(0)
    torch.testing.assert_close(ensemble(x), expected)
    loss = functional.mse_loss(ensemble(x[40:]), y[40:])
    assert ensemble.value == pytest.approx(loss.item())


@pytest.mark.slow
def test_missing_targets_compare_as_equal() -> None:
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    y = x[:, :1].where(x[:, 1:2] > -1, torch.nan)

    def masked_loss(output: Tensor, target: Tensor) -> Tensor:
        return functional.mse_loss(output[~target.isnan()], target[~target.isnan()])

    def model_fn(trial: Any) -> miha.Recipe:
        return miha.Recipe(
            model=nn.Linear(4, 1),
            loss_fn=masked_loss,
            train_data=(x[:40], y[:40]),
            valid_data=(x[40:], y[40:]),
        )

    ensemble = run(new_study(), model_fn).ensemble()
    assert ensemble.value == pytest.approx(masked_loss(ensemble(x[40:]), y[40:]).item())


@pytest.mark.slow
def test_an_ensemble_is_selected_after_a_custom_trainer() -> None:
    def trainer(recipe: miha.Recipe, n_epochs: int) -> Any:
        for _ in range(n_epochs):
            train_steps(recipe.model, recipe.optimizer)
            yield miha.EpochResult(value=functional.cross_entropy(recipe.model(X), Y).item())

    result = run(new_study(), trainer=trainer)
    assert len(result.library.segments) == len(result.segments)
    assert result.ensemble().models


class Turning(IterableDataset[Any]):
    """Changes its direction with every epoch."""

    def __init__(self) -> None:
        self.step = 1

    def __iter__(self) -> Iterator[Any]:
        self.step = -self.step
        return iter(list(zip(X, Y, strict=True))[:: self.step])


class TestValidationData:
    @staticmethod
    def result(data: Any) -> miha.Result:
        def model_fn(trial: Any) -> miha.Recipe:
            recipe = classifier(trial)
            recipe.valid_data = data
            return recipe

        return run(new_study(), model_fn)

    @pytest.mark.slow
    def test_of_a_loader_are_read_in_its_order(self) -> None:
        loader = DataLoader(TensorDataset(X, Y), batch_size=7, generator=torch.Generator())
        ensemble = self.result(loader).ensemble()
        with torch.no_grad():
            assert ensemble.value == pytest.approx(functional.cross_entropy(ensemble(X), Y).item())

    @pytest.mark.slow
    def test_in_another_order_are_refused(self) -> None:
        result = self.result(Turning())
        with pytest.raises(ValueError, match=r"same order each time.*`shuffle=False`"):
            result.ensemble()


@pytest.mark.slow
def test_a_train_step_is_refused() -> None:
    def model_fn(trial: Any) -> miha.Recipe:
        recipe = classifier(trial)
        recipe.train_step = lambda model, batch, loss_fn: loss_fn(model(batch[0]), batch[1])
        return recipe

    with pytest.raises(ValueError, match="got a recipe with a `train_step`"):
        run(new_study(), model_fn).ensemble()


class Pair(nn.Module):
    """Returns two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same output twice."""
        return self.body(x), self.body(x)


@pytest.mark.slow
def test_networks_that_do_not_return_a_tensor_are_refused() -> None:
    def model_fn(trial: Any) -> miha.Recipe:
        recipe = classifier(trial)
        return miha.Recipe(
            model=Pair(),
            loss_fn=lambda outputs, y: functional.cross_entropy(outputs[0], y),
            train_data=recipe.train_data,
            valid_data=recipe.valid_data,
        )

    with pytest.raises(TypeError, match="return one tensor, got tuple"):
        run(new_study(), model_fn).ensemble()


class TestFiles:
    @pytest.mark.slow
    def test_are_not_written_with_keep_final(self, tmp_path: Path) -> None:
        study = new_study()
        result = run(study, keep="final", checkpoint_dir=tmp_path)
        assert member_files(tmp_path) == []
        for one in (result, miha.load_result(study, classifier)):
            with pytest.raises(MihaError, match=r'with `keep="trunk"` or `keep="all"`, not with'):
                one.ensemble()

    @pytest.mark.slow
    @pytest.mark.parametrize("keep", ["trunk", "all"])
    def test_contain_only_weights(self, keep: Any, tmp_path: Path) -> None:
        result = run(new_study(), keep=keep, checkpoint_dir=tmp_path)
        files = member_files(tmp_path)
        assert len(files) == len(result.library.segments) == len(result.segments)
        for file in files:
            content = torch.load(file, weights_only=True)
            assert content.keys() == {"weights"}
            assert content["weights"].keys() == result.model.state_dict().keys()

    @pytest.mark.slow
    @pytest.mark.parametrize("how", ["damaged", "missing"])
    def test_that_are_damaged_or_missing_are_left_out_with_a_warning(
        self, how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        result = run(new_study(), checkpoint_dir=tmp_path)
        lost = result.ensemble().trials[0]
        member = next(s.member for s in result.segments if s.number == lost)
        assert member is not None
        path = tmp_path / member["id"]
        content = path.read_bytes()
        path.unlink()
        if how == "damaged":
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        optuna.logging.enable_propagation()
        try:
            ensemble = result.ensemble()
        finally:
            optuna.logging.disable_propagation()
        assert f"Trial {lost} is left out of the ensemble. Checkpoint {path.name} is {how}" in (
            caplog.text
        )
        assert lost not in ensemble.trials

    @pytest.mark.slow
    def test_that_are_all_missing_raise_an_error(self, tmp_path: Path) -> None:
        result = run(new_study(), checkpoint_dir=tmp_path)
        for file in member_files(tmp_path):
            file.unlink()
        with pytest.raises(MihaError, match="needs the weights of at least one segment"):
            result.ensemble()

    @pytest.mark.slow
    def test_are_removed_when_a_run_is_continued_with_keep_final(self, tmp_path: Path) -> None:
        study = new_study(f"sqlite:///{tmp_path}/study.db")
        run(study, checkpoint_dir=tmp_path)
        assert member_files(tmp_path)
        miha.optimize(study, classifier, n_epochs=100, keep="final", show_progress_bar=False)
        assert member_files(tmp_path) == []


class TestBound:
    """The limit on the number of files, tested on segments with artificial values."""

    values = st.lists(
        st.integers(0, 40), min_size=LIBRARY_SIZE - 5, max_size=LIBRARY_SIZE + 20
    ).flatmap(st.permutations)

    @staticmethod
    def kept(
        values: list[int], folder: Path, *, sign: int, order: list[int], every: int
    ) -> list[tuple[int, int]]:
        """Cycles and values of the remaining files if the segments end in ``order``."""
        directions = {1: optuna.study.StudyDirection.MINIMIZE}
        lineage = Lineage(directions.get(sign, optuna.study.StudyDirection.MAXIMIZE))
        folder.mkdir()
        store = CheckpointStore(FileSystemArtifactStore(folder))
        retention = Retention(store, "trunk", lineage, lambda: None)
        written: dict[str, Segment] = {}
        for number, cycle in enumerate(order):
            state = {"best": {"value": float(values[cycle]), "weights": {"w": torch.zeros(1)}}}
            member = retention.write_member(state, 0.0, f"{cycle}")
            new = segment(number, cycle=cycle, member=member)
            lineage.add(new)
            retention.add_member(new)
            if member is not None:
                written[member["id"]] = new
            if number % every == 0:
                retention.clean(None)
        retention.clean(None)
        remaining = [written[file.name] for file in folder.iterdir()]
        assert {s.number for s in remaining} == {s.number for s in lineage.library()}
        return sorted((s.cycle, values[s.cycle]) for s in remaining)

    @pytest.mark.slow
    @given(data=st.data(), sign=st.sampled_from([1, -1]))
    @settings(deadline=None, max_examples=20)
    def test_keeps_the_best_in_any_completion_order(
        self, data: st.DataObject, sign: int, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        values = data.draw(self.values)
        order = data.draw(st.permutations(range(len(values))))
        folder = tmp_path_factory.mktemp("members")
        straight = list(range(len(values)))
        one = self.kept(values, folder / "one", sign=sign, order=straight, every=7)
        other = self.kept(values, folder / "other", sign=sign, order=order, every=3)
        best = sorted(range(len(values)), key=lambda cycle: (sign * values[cycle], cycle))
        assert one == other == sorted((c, values[c]) for c in best[:LIBRARY_SIZE])


class _InterruptAfter:
    """A callback that interrupts the run after ``n`` trials."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __call__(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        self.n -= 1
        if self.n == 0:
            raise KeyboardInterrupt


@pytest.mark.slow
class TestReproduction:
    def test_of_a_loaded_result_is_the_same(self, tmp_path: Path) -> None:
        study = new_study(f"sqlite:///{tmp_path}/study.db")
        ensemble = run(study).ensemble()
        loaded = miha.load_result(new_study(f"sqlite:///{tmp_path}/study.db"), classifier)
        assert_equal(loaded.ensemble(), ensemble)
        assert loaded.ensemble().trials == ensemble.trials

    @pytest.mark.parametrize(
        "n", [2, *(pytest.param(n, marks=pytest.mark.long) for n in (4, 7, 11)), 9]
    )
    def test_of_a_resumed_run_is_the_same(
        self, n: int, result: miha.Result, tmp_path: Path
    ) -> None:
        storage = f"sqlite:///{tmp_path}/study.db"
        with pytest.raises(KeyboardInterrupt):
            run(new_study(storage), callbacks=[_InterruptAfter(n)])
        assert_equal(run(new_study(storage)).ensemble(), result.ensemble())

    @pytest.mark.long
    def test_of_a_run_in_two_processes_is_the_same(self, result: miha.Result) -> None:
        assert_equal(run(new_study(), n_jobs=2).ensemble(), result.ensemble())

    def test_of_an_interrupted_run_is_available_before_it_is_resumed(self) -> None:
        study = new_study()
        with pytest.raises(KeyboardInterrupt):
            run(study, callbacks=[_InterruptAfter(9)])
        partial = miha.load_result(study, classifier)
        assert partial.ensemble().value <= partial.value * (1 + 1e-6)
