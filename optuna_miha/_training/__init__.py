"""Training one segment, in this process or in another one.

A job is a pure function of hyperparameters, state and seed. Nothing here reads or writes a
study. This room stands on ``_model``.
"""
