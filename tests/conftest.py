"""What all tests have in common: a quiet Optuna, and Hypothesis without deadlines."""

from __future__ import annotations

import optuna
from hypothesis import HealthCheck, settings

optuna.logging.set_verbosity(optuna.logging.WARNING)

settings.register_profile(
    "suite",
    deadline=None,  # The machine may be busy; how long an example takes proves nothing.
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("suite")
