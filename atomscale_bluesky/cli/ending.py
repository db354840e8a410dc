"""Ctrl-C and SIGTERM: a command finishes what is in hand, and its exit code says which of them it was."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

from ..spool.locks import SignalEvent

SIGNALS = ("SIGINT", "SIGTERM", "SIGBREAK")


class Ending:
    """Within its `with`, signals that end a process set `event`.

    They raise no exception, because one that is raised while Python tidies up an object is lost.
    """

    def __init__(self) -> None:
        self.event = SignalEvent()
        self.exit_code = 0  # 128 and the signal's number, as shells have it: 130 for Ctrl-C, 143 for SIGTERM
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Ending:
        """Begin."""
        for name in SIGNALS:
            if hasattr(signal, name):
                number = getattr(signal, name)
                self._before[number] = signal.signal(number, self._end)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore the handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _end(self, number: int, frame: FrameType | None) -> None:
        self.exit_code = 128 + number
        self.event.set()
