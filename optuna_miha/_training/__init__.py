"""Training one segment, in this process or in a worker.

A job is a pure function of hyperparameters, state and seed. Nothing here reads or writes a
study. This sub-package builds on ``_model``.
"""
