"""What a callback knows of whatever delivers its runs: an uploader in this process, or one in another.

Only `drain` and `stop` block. Every method may be called from any thread.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from ..spool.run_writer import RunWriter
from .drain import DrainQuestion


class Deliverer(ABC):
    """Delivers the runs of a spool in the background, between `start` and `stop`."""

    @property
    @abstractmethod
    def running(self) -> bool:
        """Return True while its thread lives, which answers drains."""

    @property
    @abstractmethod
    def delivers_new_runs(self) -> bool:
        """Return True if it delivers a run that begins now: then its lock is taken together with the run's folder."""

    @property
    @abstractmethod
    def _is_own_thread(self) -> bool:
        """Return True if called from a thread of this deliverer, as when a log handler calls the callback."""

    @abstractmethod
    def start(self) -> None:
        """Start delivering. Idempotent until `stop`."""

    @abstractmethod
    def add(self, writer: RunWriter) -> None:
        """Take up a run that begins in this process."""

    @abstractmethod
    def wake(self, folder: Path | None = None) -> None:
        """Note that a journal has new lines that can be sent."""

    @abstractmethod
    def writer_done(self, folder: Path) -> None:
        """Note that the writer in this process has finished with a run."""

    @abstractmethod
    def retire(self) -> None:
        """Complete what the callback left, because it is gone, then end. The garbage collector may call this."""

    @abstractmethod
    def ask_whether_drained(self) -> DrainQuestion | None:
        """Return the question that `drain` asks, without waiting. Return None if it does not run."""

    @abstractmethod
    def stop(self, timeout_s: float = 5.0) -> bool:
        """Stop. Return True if its threads ended in time. What waits stays spooled."""

    @abstractmethod
    def close_at_exit(self) -> None:
        """Stop at the interpreter's exit, within the time that the settings allow."""

    @abstractmethod
    def after_fork_in_child(self) -> None:
        """Release in a forked child what belongs to the parent."""

    def drain(self, timeout_s: float) -> bool:
        """Wait until nothing can move any more.

        Returns:
            True if every stopped run is finalized, and every full chunk of the others is confirmed. False at the
            time-out, at once if the rest waits for the operator, and in its own threads, which must not wait.
        """
        drain = None if self._is_own_thread else self.ask_whether_drained()
        return drain is not None and drain.wait(timeout_s)
