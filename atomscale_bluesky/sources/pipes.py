"""A pipe that can be left although nothing comes.

A read of a pipe returns when its writer has written or ended, and no signal interrupts it for good. A named pipe is not
even opened before it has a writer. So a thread opens and reads, and the caller stops waiting for that thread when the
command is to end.
"""

from __future__ import annotations

import io
import os
import queue
import threading
from pathlib import Path
from typing import Any

_BLOCK = 1 << 16
_BLOCKS = 16
_POLL_S = 0.1


class Pipe(io.RawIOBase):
    """The bytes that come through a pipe. Once `ending` is set, it is at its end.

    Args:
        pipe: A descriptor, which is not closed; or a named pipe, which is opened once it has a writer.
        ending: Ends it.
    """

    def __init__(self, pipe: int | Path, ending: threading.Event) -> None:
        super().__init__()
        self._pipe = pipe
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
        try:
            descriptor = self._pipe if isinstance(self._pipe, int) else os.open(self._pipe, os.O_RDONLY)
            try:
                while block := os.read(descriptor, _BLOCK):
                    self._blocks.put(block)
            finally:
                if descriptor is not self._pipe:
                    os.close(descriptor)
        except OSError as error:
            self._blocks.put(error)
        else:
            self._blocks.put(b"")
