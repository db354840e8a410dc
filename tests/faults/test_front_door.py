"""A sample of the seeds that `python -m tests.faults.front_door` plays."""

from __future__ import annotations

import sys

import pytest

from .seeds import play_many

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals, forks and kills are made for Linux")


@pytest.mark.parametrize("first", range(0, 12, 4))
def test_each_accepted_reading_arrives_once_however_the_front_door_is_used(first: int) -> None:
    assert play_many(first, 4) == []
