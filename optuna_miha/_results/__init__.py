"""What a user takes home: the result, its schedule and code, replays, ensembles, comparisons.

Nothing here trains branches or writes to a study. This room stands on ``_study``.
"""
