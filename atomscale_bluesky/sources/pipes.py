"""A pipe that can be left although nothing comes.

A read of a pipe returns when its writer has written or ended, and no signal interrupts it for good. So a thread reads,
and the caller stops waiting for that thread when the command is to end.
"""

from __future__ import annotations

import io
import os
import queue
import threading
from typing import Any

_BLOCK = 1 << 16
_BLOCKS = 16
_POLL_S = 0.1


class Pipe(io.RawIOBase):
    """The bytes that come through a pipe. Once `ending` is set, it is at its end.

    Args:
        descriptor: The pipe. It is not closed.
        ending: Ends it.
    """

    def __init__(self, descriptor: int, ending: threading.Event) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._ending = ending
        self._blocks: queue.Queue[bytes | OSError] = queue.Queue(_BLOCKS)
        self._rest = b""
        self._ended = False
        # Not joined: it may wait for a writer that never writes.
        threading.Thread(target=self._read_on, name="pipe", daemon=True).start()

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, into: Any) -> int:
        """Read what has come, at least one byte. Return 0 at the end."""
        while not self._rest and not self._ended:
            try:
                block = self._blocks.get(timeout=_POLL_S)
            except queue.Empty:
                self._ended = self._ending.is_set()
                continue
            if isinstance(block, OSError):
                raise block
            self._rest, self._ended = block, not block
        size = min(len(into), len(self._rest))
        into[:size], self._rest = self._rest[:size], self._rest[size:]
        return size

    def _read_on(self) -> None:
        while True:
            try:
                block = os.read(self._descriptor, _BLOCK)
            except OSError as error:
                self._blocks.put(error)
                return
            self._blocks.put(block)
            if not block:
                return
