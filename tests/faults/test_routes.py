"""A sample of `python -m tests.faults.routes`, which plays any number of seeds."""

from __future__ import annotations

import sys

import pytest

from .routes import play

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="its kills are forks that end at once")


@pytest.mark.parametrize("first", range(0, 40, 10))
def test_each_seed_ends_with_every_reading_there_once(first: int) -> None:
    assert {seed: problems for seed in range(first, first + 10) if (problems := play(seed))} == {}
