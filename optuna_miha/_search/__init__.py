"""What to train next: phases, proposals and mutations, with a sampler and a pruner for Optuna.

All decisions are functions of the plan, the seed and the history. This room does not train, does
not import torch, and does not write to a study. It imports ``_history`` and ``fitness``.
"""
