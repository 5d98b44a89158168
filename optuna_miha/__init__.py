"""One network, trained once, with the hyperparameters found on the way."""

from optuna_miha import exceptions, fitness, integrations, visualization
from optuna_miha._compare.compare import compare
from optuna_miha._compare.plain_objective import plain_objective
from optuna_miha._history.curve import Curve, EpochResult
from optuna_miha._history.schedule import Schedule
from optuna_miha._history.segment import Segment
from optuna_miha._model.fixed import fixed
from optuna_miha._model.recipe import Recipe
from optuna_miha._model.step_output import StepOutput
from optuna_miha._model.suggest import (
    suggest_batch_size,
    suggest_dropout,
    suggest_label_smoothing,
    suggest_loss,
)
from optuna_miha._model.suggest_activations import suggest_activations
from optuna_miha._model.suggest_optimizer import suggest_optimizer
from optuna_miha._model.suggest_value import suggest_categorical, suggest_float, suggest_int
from optuna_miha._results.comparison import Comparison
from optuna_miha._results.ensemble import Ensemble
from optuna_miha._results.replay import Replay, replay
from optuna_miha._results.result import Result
from optuna_miha._run.early_stopping import EarlyStopping
from optuna_miha._run.epoch_report import EpochReport
from optuna_miha._run.load import load_result
from optuna_miha._run.optimize import optimize
from optuna_miha._run.tracking import (
    MLflowCallback,
    TensorBoardCallback,
    WeightsAndBiasesCallback,
)
from optuna_miha._search.crossover import AverageWeights, Crossover, UniformCrossover
from optuna_miha._search.plan import Plan
from optuna_miha._search.pruner import SlopePruner
from optuna_miha._search.sampler import MihaSampler
from optuna_miha._study.storage import create_storage
from optuna_miha._training.trainer import Trainer
from optuna_miha._training.trainer_context import ContextTrainer, TrainerContext
from optuna_miha._version import __version__ as __version__
from optuna_miha.fitness import Fitness

__all__ = [
    "AverageWeights",
    "Comparison",
    "ContextTrainer",
    "Crossover",
    "Curve",
    "EarlyStopping",
    "Ensemble",
    "EpochReport",
    "EpochResult",
    "Fitness",
    "MLflowCallback",
    "MihaSampler",
    "Plan",
    "Recipe",
    "Replay",
    "Result",
    "Schedule",
    "Segment",
    "SlopePruner",
    "StepOutput",
    "TensorBoardCallback",
    "Trainer",
    "TrainerContext",
    "UniformCrossover",
    "WeightsAndBiasesCallback",
    "compare",
    "create_storage",
    "exceptions",
    "fitness",
    "fixed",
    "integrations",
    "load_result",
    "optimize",
    "plain_objective",
    "replay",
    "suggest_activations",
    "suggest_batch_size",
    "suggest_categorical",
    "suggest_dropout",
    "suggest_float",
    "suggest_int",
    "suggest_label_smoothing",
    "suggest_loss",
    "suggest_optimizer",
    "visualization",
]
