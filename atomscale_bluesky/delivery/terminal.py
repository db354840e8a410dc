"""Prints lines on standard error. A terminal that stands still, as after Ctrl-S, holds up a thread of its own alone."""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading

from .prompt import as_line

# Up to this many lines wait for a terminal that stands still. Further ones are left out.
MAX_WAITING = 1000
# How long the end of the process waits for the last lines.
END_PATIENCE_S = 1.0


class _Printer:
    """The thread that prints in one process, and the lines that wait for it."""

    def __init__(self) -> None:
        self.process = os.getpid()
        # An event is set when everything before it was printed.
        self._lines: queue.SimpleQueue[str | threading.Event] = queue.SimpleQueue()
        threading.Thread(target=self._loop, name="atomscale-terminal", daemon=True).start()

    def add(self, line: str) -> None:
        """Add a line to those that are to be printed. Waits for nothing."""
        if self._lines.qsize() < MAX_WAITING:
            self._lines.put(line)

    def wait(self, timeout_s: float) -> None:
        """Wait until what was added before is printed, for up to `timeout_s`."""
        printed = threading.Event()
        self._lines.put(printed)
        printed.wait(timeout_s)

    def _loop(self) -> None:
        while True:
            line = self._lines.get()
            if isinstance(line, threading.Event):
                line.set()
            else:
                _write(line)


_printer: _Printer | None = None


def print_line(text: str) -> None:
    """Print a line on standard error. Waits for it only if that is no terminal."""
    global _printer
    if not is_terminal():
        _write(text)
        return
    if _printer is None or _printer.process != os.getpid():  # a forked child has its parent's lines, and no thread
        try:
            _printer = _Printer()
        except RuntimeError:  # the interpreter is ending, and starts no thread any more
            _write(text)
            return
    _printer.add(text)


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
    if _printer is not None and _printer.process == os.getpid():
        _printer.wait(END_PATIENCE_S)
