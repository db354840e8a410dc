"""Tells a server in the foreground when to end: at Ctrl-C, or when it is asked to terminate."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_SIGNALS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGBREAK] if hasattr(signal, "SIGBREAK") else [])]


@contextmanager
def ending_at_signals() -> Iterator[threading.Event]:
    """Yield an event that is set by a signal to end. Call it from the main thread.

    Wait for the event with a limit: on Windows a wait without one does not notice the signal.
    """
    ending = threading.Event()
    before = {number: signal.signal(number, lambda _number, _frame: ending.set()) for number in _SIGNALS}
    try:
        yield ending
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
