"""The command line: ``optuna-miha`` and ``python -m optuna_miha``.

Commands parse arguments and call the public API; the logic is in the other rooms. This room
stands on all of them.
"""
