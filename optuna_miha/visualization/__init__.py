"""Figures of runs and comparisons."""

from optuna_miha.visualization._comparison import plot_comparison
from optuna_miha.visualization._lineage import plot_lineage
from optuna_miha.visualization._mutation_gains import plot_mutation_gains
from optuna_miha.visualization._picture import write_picture
from optuna_miha.visualization._schedule import plot_schedule
from optuna_miha.visualization._training_history import plot_training_history

__all__ = [
    "plot_comparison",
    "plot_lineage",
    "plot_mutation_gains",
    "plot_schedule",
    "plot_training_history",
    "write_picture",
]
