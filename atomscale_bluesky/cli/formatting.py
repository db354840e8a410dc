"""How the command line shows things: text from outside made harmless, numbers and times made readable.

Whatever came from a document, a server or a file passes `safe` before it reaches a terminal, and is given to rich as
`Text`, never as markup.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections import OrderedDict
from datetime import datetime
from typing import Any, TextIO, cast

from rich.console import Console
from rich.text import Text

from ..model.text import safe as in_one_line

# How wide lines may be where the output is no terminal: wide enough that nothing wraps, whatever the environment says.
PIPE_COLUMNS = 10_000
_BLANKS_AT_END = re.compile(r"[ ]+(?=\n)")


def console(*, stderr: bool = False) -> Console:
    """Return a console that takes nothing in a text for markup, an emoji or a number to be coloured.

    In a pipe or a file it wraps no line, and prints plain blanks, so that programs can read it.
    """
    found = Console(markup=False, emoji=False, highlight=False, stderr=stderr)
    if found.is_terminal:
        return found
    file = cast(TextIO, _PlainBlanks(cast(TextIO, found.file)))
    return Console(markup=False, emoji=False, highlight=False, file=file, width=PIPE_COLUMNS)


def plain_blanks(text: str) -> str:
    """Return a text without non-breaking blanks, and without blanks at the ends of its lines."""
    return _BLANKS_AT_END.sub("", text.replace("\N{NO-BREAK SPACE}", " "))


class _PlainBlanks:
    """A file that gets plain blanks only."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> int:
        """Write a text with plain blanks."""
        return self._file.write(plain_blanks(text))

    def flush(self) -> None:
        """Flush the file."""
        self._file.flush()

    def isatty(self) -> bool:
        """Return False: this is for pipes and files."""
        return False

    @property
    def encoding(self) -> str:
        """The file's encoding."""
        return self._file.encoding


def safe(value: Any, *, limit: int = 500) -> str:
    """Return text from outside in one line, with what cannot be printed as Python writes it. A long text is cut."""
    return in_one_line(str(value), limit)


def age(seconds: float) -> str:
    """Return a time span with at most two units: 4 s, 3 min 20 s, 2 d 5 h."""
    left = max(0, round(seconds))
    if left < 60:
        return f"{left} s"
    minutes, s = divmod(left, 60)
    if minutes < 60:
        return f"{minutes} min {s} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


def moment(unix_s: float) -> str:
    """Return a time of this machine's clock and zone."""
    try:
        return f"{datetime.fromtimestamp(unix_s).astimezone():%Y-%m-%d %H:%M:%S}"
    except (OverflowError, OSError, ValueError):
        return safe(repr(unix_s))


# For how long the same line about a run is not printed again, and how many lines are remembered for that.
SAME_S, MAX_PRINTED = 60.0, 1000


class ConsoleLog(logging.Handler):
    """Prints what the package logs, one line each. Prints nothing twice within `SAME_S` about a run.

    A command may take up a run several times at once, and each time the log says the same. A service prints again what
    comes again later.
    """

    def __init__(self, console: Console, level: int) -> None:
        super().__init__(level)
        self._console = console
        self._printed_at: OrderedDict[str, float] = OrderedDict()  # the last texts about runs, monotonic

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record of the log."""
        text = record.getMessage()
        if str(record.msg).startswith("run %s"):
            now = time.monotonic()
            if now - self._printed_at.get(text, -math.inf) < SAME_S:
                return
            self._printed_at[text] = now
            self._printed_at.move_to_end(text)
            if len(self._printed_at) > MAX_PRINTED:
                self._printed_at.popitem(last=False)
        style = "red" if record.levelno >= logging.ERROR else "yellow" if record.levelno >= logging.WARNING else "dim"
        self._console.print(Text(safe(text, limit=1000), style=style), soft_wrap=not self._console.is_terminal)
