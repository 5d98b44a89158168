"""The recipe that ``model_fn`` returns, the ``suggest_*`` functions, and what they act on.

Networks, losses, optimizers and random generators are inspected and adjusted here, but not
trained. This sub-package builds on ``_search``.
"""
