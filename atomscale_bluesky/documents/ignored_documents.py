"""Documents that could not be used: counted by kind, and each kind logged once. Takes no lock of its own.

Log entries are collected, and are written when the caller holds no lock: a log handler is foreign code, which may wait
for another thread or call the callback.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict, deque
from contextlib import suppress
from typing import Any

from ..errors import AtomscaleBlueskyError, ChannelError, DocumentError, StartMissingError
from ..model.loss import Loss
from ..model.text import safe

_logger = logging.getLogger("atomscale_bluesky.callback")

SEEN_BEFORE = "event seen before"
TAKEN_BEFORE = "run taken before"
NOT_KEPT = "run not kept"

# What the log says when a run's start document never came: a callback that was subscribed too late, or to events alone.
INCOMPLETE = "incomplete run"
SUBSCRIBE_EARLY = "subscribe before the run begins, and to documents of every kind: `RE.subscribe(callback)`"

# Up to this many different warnings are logged. More would not be read. Errors tell of data loss, and each of them is
# logged: only their subjects are remembered up to this number, so that after many others one may be logged again.
MAX_LOGGED_SUBJECTS = 1000
# Of documents that cannot be used, the first of each of these kinds is logged, and the first of all other kinds.
_KINDS = frozenset({"start", "descriptor", "event", "event_page", "bulk_events", "stop"})


class IgnoredDocuments:
    """Counts of documents that were not taken, and the memory of what was logged about them.

    Args:
        log_missing_starts: Log it if only some of a run's documents come. False if the source of the documents does.
    """

    def __init__(self, *, log_missing_starts: bool = True) -> None:
        self._log_missing_starts = log_missing_starts
        self.counts: Counter[str] = Counter()
        self.pending_log: deque[tuple[int, str, tuple[Any, ...], BaseException | None]] = deque()
        self._warned_about: set[str] = set()
        self._reported_errors: OrderedDict[str, None] = OrderedDict()  # the subjects of errors, the oldest first
        self._writing_thread: int | None = None  # the thread that is in `write_log`

    def log_later(self, level: int, text: str, *args: object, error: BaseException | None = None) -> None:
        """Collect a log entry, written once the caller holds no lock.

        Includes the error's traceback, if there is one.
        """
        self.pending_log.append((level, text, args, error))

    def write_log(self) -> None:
        """Write the collected log entries.

        A handler that calls this again gets none: the outer call goes on with them.
        """
        if self._writing_thread == threading.get_ident():
            return
        self._writing_thread = threading.get_ident()
        try:
            with suppress(IndexError):
                while True:
                    level, text, args, error = self.pending_log.popleft()
                    _logger.log(level, text, *args, exc_info=error)
        finally:
            self._writing_thread = None

    def after_fork_in_child(self) -> None:
        """Forget the parent's log entries, which the parent writes, and that one of its threads may be writing them."""
        self.pending_log.clear()
        self._writing_thread = None

    def ignore(self, kind: str, text: str) -> DocumentError:
        """Count a document that belongs to nothing known, and log it once.

        Returns:
            The error that says so. The caller raises it if the document's source must know.
        """
        self.counts[kind] += 1
        text = safe(text)  # it quotes a uid from outside, which may be any text, and it is remembered
        self.log_once(text, text)
        return DocumentError(text)

    def ignore_without_start(self, kind: str, text: str, run_uid: str = "") -> DocumentError:
        """Count a document of a run whose start never came, and return the error. Logged once, with the remedy."""
        self.counts[kind] += 1
        text = safe(text)
        self.warn_of_incomplete_run(text)
        return StartMissingError(text, run_uid=run_uid)

    def warn_of_incomplete_run(self, text: str) -> None:
        """Log, once, that only some of a run's documents come, with the remedy for a callback."""
        if self._log_missing_starts:
            self.log_once(INCOMPLETE, f"{text}; {SUBSCRIBE_EARLY}")

    def count_without_descriptor(self, descriptor: str, name: str) -> DocumentError:
        """Count an event, or a page of events, whose descriptor never came, and return the error. Logged once."""
        what = "an event" if name == "event" else "a page"
        return self.ignore_without_start(name, f"{what} of descriptor {descriptor}, which never came, is ignored")

    def count_given_up(self, descriptor: str, name: str) -> None:
        """Count an event, or a page of events, that waited for its descriptor in vain. Logged once."""
        self.count_without_descriptor(descriptor, name)
        if not self._log_missing_starts:
            # Its source was told that it waits, so no error reaches it and it must be logged here.
            self.log_once(
                f"descriptor {descriptor}",
                f"events of descriptor {descriptor} are left out: it has not come",
                logging.ERROR,
            )

    def log_once(self, about: str, text: str, level: int = logging.WARNING) -> None:
        """Log a text, unless one was logged about the same thing before.

        After `MAX_LOGGED_SUBJECTS` warnings only errors are logged, and that a start never came. What tells of lost
        readings is one of these.
        """
        if level >= logging.ERROR:
            if self._is_new_error(about):
                self.log_later(level, "%s", safe(text))
        elif about in self._warned_about:
            return
        elif about == INCOMPLETE or len(self._warned_about) < MAX_LOGGED_SUBJECTS:
            self._warned_about.add(about)
            self.log_later(level, "%s", safe(text))
            if len(self._warned_about) == MAX_LOGGED_SUBJECTS:
                self.log_later(
                    level, "that was the last of %d different warnings; from here on only errors are logged",
                    MAX_LOGGED_SUBJECTS,
                )  # fmt: skip

    def _is_new_error(self, about: str) -> bool:
        """Return True if no error about the same thing is remembered. Remember it."""
        if about in self._reported_errors:
            return False
        self._reported_errors[about] = None
        while len(self._reported_errors) > MAX_LOGGED_SUBJECTS:
            self._reported_errors.popitem(last=False)
        return True

    def count_unusable(self, name: object, error: Exception) -> DocumentError:
        """Count a document that cannot be read, and return the error that says so."""
        self.counts[Loss.MALFORMED] += 1
        try:
            shown = str(error) if isinstance(error, ChannelError) else f"{type(error).__name__}: {error}"
        except Exception:  # noqa: BLE001 - a foreign exception may have no text
            shown = type(error).__name__
        try:
            what = safe(repr(name), 80)
        except Exception:  # noqa: BLE001 - a kind of document may be a foreign object too
            what = type(name).__name__
        shown = safe(shown)
        if self._is_new_error(f"broken {name if type(name) is str and name in _KINDS else 'others'}"):
            expected = isinstance(error, AtomscaleBlueskyError | LookupError | TypeError | ValueError)
            self.log_later(
                logging.ERROR, "a document of kind %s could not be used, the run goes on: %s", what, shown,
                error=None if expected else error,
            )  # fmt: skip
        return DocumentError(f"a document of kind {what} cannot be used: {shown}")
