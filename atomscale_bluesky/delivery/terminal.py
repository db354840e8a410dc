"""Prints lines on standard error. A terminal that stands still, as after Ctrl-S, holds up a thread of its own alone."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections import deque

from .prompt import as_line

# Up to this many lines wait for a terminal that stands still. Further ones are left out.
MAX_WAITING = 1000
# How long the end of the process waits for the last lines.
END_PATIENCE_S = 1.0


class _Printer:
    """The lines of one process that are to be printed. A thread prints them, and ends when there are no more."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self._lines: deque[str] = deque()
        self._thread: threading.Thread | None = None
        self._guard = threading.RLock()  # for memory operations only; a signal handler may come in

    def add(self, line: str) -> bool:
        """Add a line. Waits for no terminal. Return False if no thread can be started any more to print it."""
        with self._guard:
            if len(self._lines) < MAX_WAITING:
                self._lines.append(line)
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="atomscale-terminal", daemon=True)
                try:
                    self._thread.start()
                except RuntimeError:  # the interpreter is ending
                    self._thread = None
                    self._lines.clear()
                    return False
        return True

    def wait(self, timeout_s: float) -> None:
        """Wait until every line is printed, for up to `timeout_s`."""
        thread = self._thread
        if thread is not None:
            thread.join(timeout_s)

    def _loop(self) -> None:
        while True:
            with self._guard:
                if not self._lines:
                    self._thread = None
                    return
                line = self._lines.popleft()
            _write(line)


_printer = _Printer()


def print_line(text: str) -> None:
    """Print a line on standard error. Waits for it only if that is no terminal."""
    global _printer
    if _printer.process != os.getpid():  # a forked child has its parent's lines and no thread, and perhaps a taken lock
        _printer = _Printer()
    if not (is_terminal() and _printer.add(text)):
        _write(text)


def is_terminal() -> bool:
    """Return True if standard error is a terminal."""
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except (AttributeError, OSError, ValueError):  # another program's stream, or a closed one
        return False


def _write(text: str) -> None:
    with contextlib.suppress(AttributeError, OSError, ValueError):  # none, closed, or a terminal that is gone
        sys.stderr.write(as_line(text))
        sys.stderr.flush()


def wait_for_last_lines() -> None:
    """Wait until the lines so far are printed, for up to `END_PATIENCE_S`. For the end of the process."""
    if _printer.process == os.getpid():
        _printer.wait(END_PATIENCE_S)
