"""Why readings cannot be delivered, for other processes to read: one small file in the spool.

The uploader that cannot send writes the file, and the first one for its endpoint that succeeds again removes it. So
status needs no connection to the process that delivers, and still reports what is wrong and since when after that
process has died.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from ..spool.atomic_file import replace_file
from ..spool.own_files import read_own, refuse_link

_NAME = "trouble.json"
# The note of the same outage with other words (a port number, a request's path) is not rewritten more often than this.
REWRITE_S = 5.0
# An uploader of another endpoint removes a note that was not rewritten for this time. Attempts come more often.
STALE_S = 900.0
# What ends an outage that a refused key makes. A key may get its rights back, and is then used without this.
# The old callback has to go first: with another key it counts as another account, and both would record every run.
NEW_KEY = (
    "a process keeps the key that it began with: to use another key, end the process, or unsubscribe and close its "
    "callback before you subscribe a new one"
)


def key_for_upload(option: str) -> str:
    """Return what ends such an outage once the process ends that had the key.

    Args:
        option: By which a command finds the spool, such as ` --spool-dir /data/spool`.
    """
    return f"put a key that works into ATOMSCALE_API_KEY, then `atomscale-bluesky upload{option}` sends what waits"


class Outage(msgspec.Struct, frozen=True):
    """Why Atomscale takes no data at present."""

    since: float  # Unix seconds
    time: float  # of the last error, Unix seconds
    error: str
    endpoint: str
    key_refused: bool = False  # True if the API key of the process that delivers is refused
    # Since when `key_refused` is as it is, Unix seconds; later than `since` if another failure came before
    kind_since: float | None = None

    @property
    def of_kind_since(self) -> float:
        """Since when it fails in the present way; that of the outage in a note of an earlier version."""
        return self.since if self.kind_since is None else self.kind_since


class OutageNote:
    """Writes and removes the file for one uploader. Belongs to one thread. Errors of writing the file are ignored."""

    def __init__(
        self,
        spool: Path,
        endpoint: str,
        *,
        unix_time: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = spool / _NAME
        self._endpoint = endpoint
        self._unix_time = unix_time
        self._monotonic = monotonic
        self._since: float | None = None
        self._key_refused = False
        self._kind_since = 0.0
        self._written_at: float | None = None
        self._perhaps_there = True  # an earlier uploader may have left it
        self._not_before = float("-inf")  # monotonic; another endpoint's note is read again then

    def note_failure(self, error: str, *, lasting: bool = False, key_refused: bool = False) -> None:
        """Note a failed attempt that keeps all data waiting. A single failure is no outage, unless `lasting` is set."""
        now = self._unix_time()
        if self._since is None:
            before = read_outage(self._path.parent)
            goes_on = before is not None and before.endpoint == self._endpoint  # no uploader has succeeded since
            self._since = self._kind_since = now
            self._key_refused = key_refused
            if before is not None and goes_on:
                self._since = before.since
                self._kind_since = before.of_kind_since if before.key_refused == key_refused else now
            if not (goes_on or lasting):
                return
        if key_refused != self._key_refused:
            self._key_refused, self._kind_since = key_refused, now
            self._written_at = None  # it needs another remedy, so it is written at once
        if self._written_at is not None and self._monotonic() - self._written_at < REWRITE_S:
            return
        self._written_at = self._monotonic()
        self._perhaps_there, self._not_before = True, float("-inf")
        note = Outage(self._since, now, error[:1000], self._endpoint, key_refused, self._kind_since)
        with contextlib.suppress(OSError):
            replace_file(self._path, msgspec.json.encode(note))

    def note_answer(self) -> None:
        """Note that Atomscale takes data again."""
        self._since = self._written_at = None
        if self._perhaps_there and self._monotonic() >= self._not_before:
            there = read_outage(self._path.parent)
            if there is not None and there.endpoint != self._endpoint and self._unix_time() - there.time < STALE_S:
                self._not_before = self._monotonic() + STALE_S  # its own uploader removes it, if that one lives
                return
            with contextlib.suppress(OSError):
                refuse_link(self._path)
                self._path.unlink(missing_ok=True)
                self._perhaps_there = False


def read_outage(spool: Path) -> Outage | None:
    """Return why the readings of this spool cannot be delivered, or None if no uploader has met an outage."""
    try:
        return msgspec.json.decode(read_own(spool / _NAME), type=Outage)
    except (OSError, msgspec.DecodeError):
        return None
