"""The command line: ``optuna-miha`` and ``python -m optuna_miha``.

Commands parse arguments and call the public API; they hold no logic of their own. This room
stands on all the others.
"""
