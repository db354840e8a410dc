"""Names the package before its warnings where no handler is configured.

Python prints such warnings on standard error as bare text, and among a plan's lines it is not clear whose they are.
"""

from __future__ import annotations

import logging
import sys

from .terminal import print_line

_NAME = "atomscale_bluesky"
# Tells our handler from others. Its class does not: a module that is loaded again has another one.
_HANDLER = "atomscale_bluesky terminal"


class _TerminalLog(logging.Handler):
    """Prints warnings as Python does where no handler is configured, with the package's name before them.

    It is silent as soon as any other handler gets the record.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.set_name(_HANDLER)
        self.setFormatter(logging.Formatter("atomscale: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Print the record, unless another handler gets it."""
        if logging.lastResort is None or sys.stderr is None or _has_another_handler(record.name):
            return
        print_line(self.format(record))


def log_to_terminal() -> None:
    """Print the package's warnings with its name, where no handler is configured. A second call does nothing."""
    logger = logging.getLogger(_NAME)
    if not any(handler.get_name() == _HANDLER for handler in logger.handlers):
        logger.addHandler(_TerminalLog())


def _has_another_handler(name: str) -> bool:
    """Return True if a handler other than ours gets the records of this logger."""
    # Not by `logging.getLogger`: if a signal handler raised within it, its lock stays taken, and no thread could log.
    logger = logging.Logger.manager.loggerDict.get(name)
    while isinstance(logger, logging.Logger):
        if any(handler.get_name() != _HANDLER for handler in logger.handlers):
            return True
        logger = logger.parent if logger.propagate else None
    return False
