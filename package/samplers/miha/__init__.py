"""The sampler of optuna_miha, which has to be installed."""

from optuna_miha import MihaSampler

__all__ = ["MihaSampler"]
