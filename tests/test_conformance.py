"""Optuna's own tests of samplers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    RelativeSamplerTestCase,
    SingleOnlySamplerTestCase,
)

from optuna_miha import MihaSampler


class TestMihaSampler(BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return MihaSampler

    @pytest.mark.xfail(strict=True, reason="BUG: `sample_relative` of an empty space is silent")
    def test_raise_error_for_samplers_during_multi_objectives(
        self, sampler: Callable[[], BaseSampler]
    ) -> None:
        super().test_raise_error_for_samplers_during_multi_objectives(sampler)
