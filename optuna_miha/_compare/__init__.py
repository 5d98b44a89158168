"""The same ``model_fn`` under this package and under plain Optuna, at an equal number of epochs.

Nothing here is used by a run. This room stands on ``_run``.
"""
