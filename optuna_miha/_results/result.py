"""The result of a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import optuna
import torch
from optuna.study import StudyDirection
from optuna.trial import FixedTrial, FrozenTrial

from optuna_miha._history import attributes
from optuna_miha._history.lineage import Lineage
from optuna_miha._history.optional_imports import try_import
from optuna_miha._history.schedule import ANNEAL_TO, BY_STEP, RUN_SEED, Schedule
from optuna_miha._history.segment import Segment
from optuna_miha._model.model_fn import ModelFn, build_recipe
from optuna_miha._model.recipe import device_of
from optuna_miha._results.combination import Combine
from optuna_miha._results.ensemble import Ensemble, Library
from optuna_miha._results.overview import overview, result_html
from optuna_miha._results.pytorch_code import code_of
from optuna_miha._results.summary import describe_run
from optuna_miha._results.trained_model import Trained
from optuna_miha._results.untried import untried_kinds, untried_line
from optuna_miha._search.learning_rate import Course
from optuna_miha._search.space import lr_distributions
from optuna_miha._study.checkpoint_store import CheckpointStore
from optuna_miha.exceptions import MihaError, RecordError

if TYPE_CHECKING:
    import pandas

_logger = optuna.logging.get_logger("optuna.miha")

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
"""Attributes of segments that are columns of :meth:`Result.to_dataframe`."""


@dataclass(frozen=True, kw_only=True)
class Result(Trained):
    """The trained model of a run, and its history.

    Args:
        model: The network with the weights of the best validation value, in evaluation mode.
        params:
            The hyperparameters at the epoch of these weights. If the learning rate was annealed,
            ``lr`` is its highest value.
        value: The validation value of the model.
        trial: The trial of the model. It is ``study.best_trial``, unless the study has other
            trials.
        schedule: The hyperparameters over the epochs of the model's lineage.
        lineage: The segments of the model's lineage, the oldest first.
        segments: All segments of the run.
        n_epochs_trained: Epochs trained in the whole run, including pruned and failed segments.
        library: The networks from which :meth:`ensemble` selects.
        draw: Draws the lineage as SVG, for notebooks.
        untried: The kinds of parameters that could mutate and were never changed.
    """

    trial: FrozenTrial
    lineage: tuple[Segment, ...]
    segments: tuple[Segment, ...]
    n_epochs_trained: int
    library: Library = field(repr=False)
    draw: Callable[[], bytes] = field(repr=False)
    untried: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """The value, the parameters and the schedule in a few lines."""
        head, *lines = overview(self)
        width = max(len(name) for name, _ in lines)
        indent = "\n" + " " * (width + 4)
        texts = [f"  {name:{width}}  {text.replace(chr(10), indent)}" for name, text in lines]
        return "\n".join([head[1], *texts])

    def _repr_html_(self) -> str:
        """The same with the figure of the lineage and the schedule as a table."""
        return result_html(self, self.draw)

    def ensemble(self, size: int = 12, *, combine: Combine | None = None) -> Ensemble:
        """Select an ensemble from the networks of the run, without further training.

        The best weights of the 60 best segments, including pruned ones, are kept during the run,
        except with ``keep="final"``. From these networks, greedy forward selection with repetition
        optimizes the monitored value on the validation data. The validation value of the ensemble
        is at least as good as that of ``model``. An ensemble usually consists of two to five
        networks, all of which are evaluated for a prediction.

        The loss determines what is averaged. For :class:`torch.nn.CrossEntropyLoss`,
        :class:`torch.nn.NLLLoss`, :class:`torch.nn.KLDivLoss`,
        :class:`torch.nn.BCEWithLogitsLoss` and :class:`torch.nn.MultiLabelSoftMarginLoss`, these
        are the probabilities. The output is the logarithm of their mean, or for the last two its
        logit, so that the loss, ``argmax`` and ``softmax`` apply as to the output of a single
        network. For any other loss, the outputs are averaged.

        Missing or damaged weights are left out with a warning. During selection, the outputs of
        all 60 networks on the validation data are held in main memory.

        Reference: R. Caruana, A. Niculescu-Mizil, G. Crew and A. Ksikes, *Ensemble Selection from
        Libraries of Models*, ICML 2004.

        Args:
            size:
                The maximum number of networks, counting repetitions. The weights of the networks
                are multiples of ``1 / size``, or of a larger fraction if fewer networks are
                better.
            combine:
                ``combine(outputs, weights)`` combines outputs of shape
                ``(n_models, n_samples, ...)`` into one of shape ``(n_samples, ...)``. The weights,
                of shape ``(n_models,)``, sum to one. Default by the loss, as described above.

        Returns:
            The ensemble in evaluation mode, on the device of ``model``.

        Raises:
            MihaError: If the weights of no network are available.
            TypeError: If the networks do not return one tensor.
            ValueError: If ``size`` is not positive, the recipe has a ``train_step``, or the order
                of the validation data changes.
        """
        return self.library.ensemble(size, combine, device_of(self.model))

    def describe(self) -> str:
        """Describe the run: the race, the best change of every cycle, and the final phase.

        If there are parameters that no segment has changed, the last line names them, with a
        budget that would suffice to try them.
        """
        is_maximized = self.library.sign < 0
        direction = StudyDirection.MAXIMIZE if is_maximized else StudyDirection.MINIMIZE
        lineage = Lineage(direction, self.segments)
        untried = untried_line(lineage, self.untried)
        lines = [describe_run(lineage, self.lineage[-1]), *([] if untried is None else [untried])]
        return "\n".join(lines)

    def code(self) -> str:
        """Generate PyTorch code for the configuration of the model, ready to paste.

        The code modifies a network named ``model`` with the original architecture: it replaces
        the activations, sets the dropout rates, and defines ``optimizer``, ``batch_size`` and
        ``loss_fn``. It does not depend on this package. This method calls ``model_fn`` once.

        The code contains the hyperparameters at the end of training only. To repeat their
        changes during training, use :func:`optuna_miha.replay`.
        """
        recipe = build_recipe(self.library.model_fn, FixedTrial(self.params), self.library.seed)
        last = self.lineage[-1]
        is_annealed = ANNEAL_TO in self.schedule[-1]
        return code_of(
            recipe,
            self.params,
            n_annealed=last.trained if is_annealed else None,
            is_raised=bool(lr_distributions(last.distributions)),
            course=_course_of(last) if last.by_step else None,
        )

    def to_dataframe(self) -> pandas.DataFrame:
        """Export all segments of the run as a table, in the order of their trials.

        Columns: ``number``, ``role``, ``cycle``, ``branch``, ``parent``, ``birth``, ``end`` and
        ``trained`` (epochs), ``mutation``, ``value``, ``last_score``, ``fitness``, ``state``,
        ``in_lineage`` (whether it is in the lineage of the model), and ``params_<name>`` for every
        hyperparameter.

        Raises:
            ImportError: If pandas is not installed.
        """
        alternative = ", or use `result.segments`, a tuple of dataclasses"
        with try_import("pandas", needed_by="to_dataframe()", alternative=alternative):
            import pandas
        in_lineage = {segment.number for segment in self.lineage}
        rows = [
            {name: getattr(segment, name) for name in _COLUMNS}
            | {
                "last_score": segment.last_score if segment.scores else math.nan,
                "state": segment.state.name,
                "in_lineage": segment.number in in_lineage,
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
    draw: Callable[[], bytes],
) -> Result:
    """Rebuild the best network of a run from its checkpoint.

    Args:
        study: The study of the run.
        lineage: Its history.
        model_fn: The user's function.
        store: The checkpoint store.
        device: The device of the network.
        draw: Draws the lineage as SVG; called when a notebook displays the result.

    Raises:
        MihaError: If no segment was completed.
        CheckpointError: If the checkpoint is missing or damaged.
        RecordError: If the value of the best trial was changed.
    """
    best = lineage.best()
    if best is None or best.checkpoint is None:
        raise MihaError(
            f"The study {study.study_name!r} must have a completed segment, got none: "
            f"{_remedy(study, lineage)}"
        )
    if best.violation:
        _logger.warning(
            f"The result, trial {best.number}, violates constraints by {best.violation:g} in "
            "total: no complete trial satisfies all of them. A larger `n_epochs` continues the "
            "search."
        )
    seed = study.user_attrs[attributes.RUN_SEED]
    recipe = build_recipe(model_fn, FixedTrial(best.params), seed)
    stored = store.load_state(best.checkpoint)["best"]
    if stored["value"] != best.value:
        raise RecordError(
            f"The value of trial {best.number} must be that of its checkpoint, "
            f"{stored['value']!r}, got {best.value!r}: it was changed after the run. Restore the "
            "original value, or start a study with another name."
        )
    recipe.model.load_state_dict(stored["weights"])
    recipe.model.to(device)
    recipe.model.eval()  # The return value of an overridden `eval` or `train` may be None.
    path = lineage.ancestry(best)
    anneals = study.user_attrs[attributes.PLAN].get("anneal") is not None
    rows = [_row(s, seed=seed, anneals=anneals) for s in path]
    rows[-1]["to_epoch"] = best.checkpoint["best_epoch"]
    trials = study.get_trials(deepcopy=False)
    return Result(
        model=recipe.model,
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
        draw=draw,
        untried=untried_kinds(
            lineage,
            study.user_attrs[attributes.INITIAL],
            study.user_attrs[attributes.PLAN].get("mutations"),
        ),
    )


def _remedy(study: optuna.Study, lineage: Lineage) -> str:
    """The reason why a run has no result, and the repair."""
    trials = study.get_trials(deepcopy=False)
    failed = [s.number for s in lineage if attributes.ERROR in trials[s.number].user_attrs]
    if not failed:
        return (
            "the run was stopped by `timeout` or `study.stop()`. Call `optuna_miha.optimize` on "
            "it again."
        )
    last = trials[failed[-1]]
    return (
        f"{len(failed)} of {len(lineage)} trials failed (the last one, trial {last.number}, with "
        f"{last.user_attrs[attributes.ERROR]}). Fix `model_fn`, then call "
        "`optuna_miha.optimize` with a larger `n_epochs`, or on a study with another name."
    )


def _course_of(segment: Segment) -> Course:
    return Course(n_epochs=segment.trained, is_fresh=segment.parent is None)


def _row(segment: Segment, *, seed: int, anneals: bool) -> dict[str, Any]:
    """A row of the schedule.

    Args:
        segment: The segment.
        seed: The seed of the run.
        anneals: Whether the plan anneals the learning rate.
    """
    row = {"from_epoch": segment.birth, "to_epoch": segment.end, "role": segment.role}
    row[RUN_SEED] = seed
    if segment.by_step:
        return row | {ANNEAL_TO: segment.end, BY_STEP: True} | segment.params
    if anneals and segment.role in ("restart", "final"):
        row[ANNEAL_TO] = segment.end
    return row | segment.params
