"""The front door, :func:`optimize`, and the loop behind it.

Arguments are checked, a session is opened, and the coordinator trains phase after phase. What to
train is decided in ``_search``, how to train it in ``_training``, and how to store it in
``_study``. This room stands on ``_report``.
"""
