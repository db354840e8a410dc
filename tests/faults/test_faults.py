"""A short selection of the fault bench; `python -m tests.faults` plays many more seeds of each scenario."""

from __future__ import annotations

import sys

import pytest

from .scenarios import SCENARIOS, Scenario

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kills and the model of the disk are made for Linux")


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=lambda scenario: scenario.name)
def test_what_the_scenario_promises_is_kept(scenario: Scenario) -> None:
    result = scenario.run(seed=1)

    assert result.problems == []
