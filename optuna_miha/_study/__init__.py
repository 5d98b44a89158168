"""A run in its storage: trials, attributes, checkpoints, the lease, and recovery after failures.

The only room that writes to a study, and with ``optuna_internals`` the only one that uses private
API of Optuna. Nothing here decides what to train. This room stands on ``_training``.
"""
