"""The HTML report, and what optuna-dashboard shows of a run.

No module here imports torch at the top level. This room stands on ``visualization``.
"""
