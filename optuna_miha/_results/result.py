"""What a run leaves in the user's hands."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import optuna
import torch
from optuna.study import StudyDirection
from optuna.trial import FixedTrial, FrozenTrial, TrialState

from optuna_miha._history import attributes
from optuna_miha._history.lineage import Lineage
from optuna_miha._history.schedule import ANNEAL_TO, Schedule
from optuna_miha._history.segment import Segment
from optuna_miha._model.model_fn import ModelFn, build_recipe
from optuna_miha._model.recipe import device_of
from optuna_miha._results.combination import Combine
from optuna_miha._results.ensemble import Ensemble, Library
from optuna_miha._results.optional_imports import try_import
from optuna_miha._results.pytorch_code import code_of
from optuna_miha._results.summary import describe_run
from optuna_miha._results.trained_model import Trained
from optuna_miha._search.space import scalable_rate
from optuna_miha._study.checkpoint_store import CheckpointStore
from optuna_miha.exceptions import MihaError

if TYPE_CHECKING:
    import pandas

_COLUMNS = (
    "number",
    "role",
    "cycle",
    "branch",
    "parent",
    "birth",
    "end",
    "trained",
    "mutation",
    "value",
    "fitness",
)
"""Of a segment, as :meth:`Result.to_dataframe` shows it."""


@dataclass(frozen=True, kw_only=True)
class Result(Trained):
    """A trained model and how it came about.

    Args:
        model: The network with the weights that validated best, in evaluation mode.
        params:
            The hyperparameters at that epoch; where the learning rate was annealed, ``lr`` is the
            highest that it had meanwhile.
        value: Its validation value.
        trial: The trial that it comes from; ``study.best_trial`` of an undisturbed study.
        schedule: The hyperparameters over the epochs of its lineage.
        lineage: The segments that it descends from, the oldest first, its own last.
        segments: All segments of the run.
        n_epochs_trained: Epochs trained in the whole run, losers' and failures' included.
        library: The networks that :meth:`ensemble` chooses from.
    """

    trial: FrozenTrial
    lineage: tuple[Segment, ...]
    segments: tuple[Segment, ...]
    n_epochs_trained: int
    library: Library = field(repr=False)

    def ensemble(self, size: int = 12, *, combine: Combine | None = None) -> Ensemble:
        """Several networks of the run that answer as one: no training, only validation.

        Every segment of training, losers included, leaves the weights that validated best in it;
        the 60 best are kept, unless the run was told ``keep="final"``. Among them, greedy forward
        selection with repetition minimizes the loss, or what else is monitored, on the validation
        data: the returned network validates no worse than ``model``, and usually consists of
        two to five networks, each of which has to be computed.

        What is averaged depends on the loss. For :class:`torch.nn.CrossEntropyLoss`,
        :class:`torch.nn.NLLLoss`, :class:`torch.nn.KLDivLoss`,
        :class:`torch.nn.BCEWithLogitsLoss` and :class:`torch.nn.MultiLabelSoftMarginLoss` it is
        the probabilities; the output is the logarithm of their mean, or for the last two its
        logit, so that the loss, ``argmax`` and ``softmax`` can be applied to it as to the output
        of one network. For any other loss it is the outputs.

        Weights that are missing or damaged are left out with a warning. The outputs of all 60
        networks on the validation data are held in main memory meanwhile.

        Reference: R. Caruana, A. Niculescu-Mizil, G. Crew and A. Ksikes, *Ensemble Selection from
        Libraries of Models*, ICML 2004.

        Args:
            size:
                How many networks are chosen, counting repetitions: their weights in the ensemble
                are multiples of one over that number, or over a smaller one if that is better.
            combine:
                ``combine(outputs, weights)`` makes one output, ``(n_samples, ...)``, of those of
                several networks, ``(n_models, n_samples, ...)``, for a loss that is none of the
                above; the weights, ``(n_models,)``, sum to one.

        Returns:
            A network in evaluation mode, on the device of ``model``.

        Raises:
            MihaError: If the run left no networks over.
            TypeError: If the networks do not return one tensor.
            ValueError: If ``size`` is not positive, the recipe has a ``train_step``, or the
                validation data come in another order each time.
        """
        return self.library.ensemble(size, combine, device_of(self.model))

    def describe(self) -> str:
        """The run in words: the race, the best change of every cycle, the final phase."""
        is_maximized = self.library.sign < 0
        direction = StudyDirection.MAXIMIZE if is_maximized else StudyDirection.MINIMIZE
        return describe_run(Lineage(direction, self.segments), self.lineage[-1])

    def code(self) -> str:
        """The configuration of the returned model as PyTorch code, ready to paste.

        It works on a network named ``model``, as you wrote it: it replaces the activations, sets
        the dropout rates, and defines ``optimizer``, ``batch_size`` and ``loss_fn``. It does not
        need this package, and calls ``model_fn`` once to be written.

        This is where training ended, not how it got there: hyperparameters changed on the way,
        and :func:`optuna_miha.replay` follows them.
        """
        recipe = build_recipe(self.library.model_fn, FixedTrial(self.params), self.library.seed)
        last = self.lineage[-1]
        is_annealed = ANNEAL_TO in self.schedule[-1]
        return code_of(
            recipe,
            self.params,
            n_annealed=last.trained if is_annealed else None,
            is_raised=scalable_rate(last.distributions) is not None,
        )

    def to_dataframe(self) -> pandas.DataFrame:
        """All segments of the run as a table, one row for each, in the order of their trials.

        Columns: ``number``, ``role``, ``cycle``, ``branch``, ``parent``, ``birth``, ``end`` and
        ``trained`` (epochs), ``mutation``, ``value``, ``last_score``, ``fitness``, ``state``,
        ``in_lineage`` (whether the returned model descends from it), and ``params_<name>`` for
        every hyperparameter.

        Raises:
            ImportError: If pandas is not installed.
        """
        alternative = ", or use `result.segments`, a tuple of dataclasses"
        with try_import("pandas", needed_by="to_dataframe()", alternative=alternative):
            import pandas
        own = {segment.number for segment in self.lineage}
        rows = [
            {name: getattr(segment, name) for name in _COLUMNS}
            | {
                "last_score": segment.last_score if segment.scores else math.nan,
                "state": segment.state.name,
                "in_lineage": segment.number in own,
            }
            | {f"params_{name}": value for name, value in segment.params.items()}
            for segment in self.segments
        ]
        return pandas.DataFrame(rows)


def make_result(
    study: optuna.Study,
    lineage: Lineage,
    model_fn: ModelFn,
    store: CheckpointStore,
    device: torch.device,
) -> Result:
    """Rebuild the best network of a run from its checkpoint.

    Raises:
        MihaError: If no segment was completed.
        CheckpointError: If the checkpoint is missing or damaged.
    """
    best = lineage.best()
    if best is None or best.checkpoint is None:
        raise MihaError(
            f"No segment of the study {study.study_name!r} was completed, so there is no model "
            f"yet: {_remedy(study, lineage)}"
        )
    seed = study.user_attrs[attributes.RUN_SEED]
    recipe = build_recipe(model_fn, FixedTrial(best.params), seed)
    recipe.model.load_state_dict(store.load(best.checkpoint)["best"]["weights"])
    path = lineage.ancestry(best)
    anneals = study.user_attrs[attributes.PLAN].get("anneal") is not None
    rows = [_row(s, anneals=anneals) for s in path]
    rows[-1]["to_epoch"] = best.checkpoint["best_epoch"]
    trials = study.get_trials(deepcopy=False)
    return Result(
        model=recipe.model.to(device).eval(),
        params=best.params,
        value=best.value if best.value is not None else float("nan"),
        trial=trials[best.number],
        schedule=Schedule(rows),
        lineage=tuple(path),
        segments=tuple(lineage),
        n_epochs_trained=lineage.spent,
        library=Library(
            segments=lineage.library(),
            store=store,
            model_fn=model_fn,
            seed=seed,
            initial_params=study.user_attrs[attributes.INITIAL],
            sign=lineage.sign,
        ),
    )


def _remedy(study: optuna.Study, lineage: Lineage) -> str:
    """Why a run has no result, and what helps."""
    failed = [s.number for s in lineage if s.state == TrialState.FAIL]
    if not failed:
        return (
            "it was stopped before, by `timeout` or `study.stop()`. Call `optuna_miha.optimize` "
            "on it again."
        )
    last = study.get_trials(deepcopy=False)[failed[-1]]
    return (
        f"{len(failed)} of {len(lineage)} trials failed (the last of them, trial {last.number}: "
        f"{last.user_attrs[attributes.ERROR]}). Mend `model_fn`, then call "
        "`optuna_miha.optimize` with a larger `n_epochs`, or on a study of another name."
    )


def _row(segment: Segment, *, anneals: bool) -> dict[str, Any]:
    """A row of the schedule; ``anneals``: whether the plan says that the learning rate falls."""
    row = {"from_epoch": segment.birth, "to_epoch": segment.end, "role": segment.role}
    if anneals and segment.role in ("restart", "final"):
        row[ANNEAL_TO] = segment.end
    return row | segment.params
