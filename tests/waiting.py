"""Waiting for a condition, with a limit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any


def wait_until(condition: Callable[[], Any], timeout_s: float = 30.0) -> Any:
    """The condition's first true value; fails when there is none in time."""
    end = time.monotonic() + timeout_s
    pause = threading.Event()
    while not (value := condition()):
        assert time.monotonic() < end, f"not so within {timeout_s:g} s"
        pause.wait(0.01)
    return value
