"""The public function :func:`optimize` and the training loop behind it.

Arguments are validated, a session is opened, and the coordinator trains phase after phase.
``_search`` decides what to train, ``_training`` trains, and ``_study`` stores. This room stands
on ``_report``.
"""
