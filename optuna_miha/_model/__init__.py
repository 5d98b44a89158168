"""The recipe that ``model_fn`` returns, the ``suggest_*`` functions, and what they act on.

Networks, losses, optimizers, data and random generators are inspected and adjusted here, but
nothing is trained. This sub-package builds on ``_search``.
"""
