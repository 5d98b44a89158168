"""Pages for people: the HTML report, and what optuna-dashboard shows of a run.

Nothing here imports torch at the top level. This room stands on ``visualization``.
"""
