"""The results of a run: the trained model, its code, replays, ensembles and comparisons.

This room reads studies and writes only files of the user. It does not train branches. This room
stands on ``_study``.
"""
