"""A run in its storage: trials, attributes, checkpoints, the lease, and recovery after failures.

This room alone writes to a study. It uses private API of Optuna only in ``optuna_internals``, and
leaves decisions about training to ``_search``. This room stands on ``_training``.
"""
