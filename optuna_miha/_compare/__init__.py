"""The same ``model_fn`` under this package and under plain Optuna, for the same number of epochs.

Runs of :func:`optimize` use nothing from here. This room stands on ``_run``.
"""
