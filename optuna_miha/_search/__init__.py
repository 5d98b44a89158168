"""What to train next: phases, proposals, mutations, and the sampler and pruner of Optuna.

Pure functions of the plan, the seed and the history. Nothing here trains, imports torch, or
writes to a study. This room stands on ``_history`` and ``fitness``.
"""
