"""One network, trained once, with the hyperparameters found on the way."""

from optuna_miha import exceptions, fitness, visualization
from optuna_miha._compare import compare
from optuna_miha._comparison import Comparison
from optuna_miha._crossover import AverageWeights, Crossover, UniformCrossover
from optuna_miha._curve import EpochResult
from optuna_miha._optimize import load_result, optimize
from optuna_miha._plain import plain_objective
from optuna_miha._plan import Plan
from optuna_miha._pruner import SlopePruner
from optuna_miha._recipe import Recipe
from optuna_miha._replay import Replay, replay
from optuna_miha._result import Result
from optuna_miha._sampler import MihaSampler
from optuna_miha._schedule import Schedule
from optuna_miha._storage import create_storage
from optuna_miha._suggest import (
    suggest_batch_size,
    suggest_dropout,
    suggest_label_smoothing,
    suggest_loss,
    suggest_optimizer,
)
from optuna_miha._suggest_activations import suggest_activations
from optuna_miha._trainer import Trainer
from optuna_miha.fitness import Fitness

__all__ = [
    "AverageWeights",
    "Comparison",
    "Crossover",
    "EpochResult",
    "Fitness",
    "MihaSampler",
    "Plan",
    "Recipe",
    "Replay",
    "Result",
    "Schedule",
    "SlopePruner",
    "Trainer",
    "UniformCrossover",
    "compare",
    "create_storage",
    "exceptions",
    "fitness",
    "load_result",
    "optimize",
    "plain_objective",
    "replay",
    "suggest_activations",
    "suggest_batch_size",
    "suggest_dropout",
    "suggest_label_smoothing",
    "suggest_loss",
    "suggest_optimizer",
    "visualization",
]
