"""`history.jsonl`: one line for each run that has finished and left the spool."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from ..model.text import encodable
from .line_file import LineFile, whole_lines
from .lines import checksummed, payload_of
from .locks import locked
from .own_files import open_to_read

HISTORY = "history.jsonl"
# About 20 000 runs. Up to twice as many while the previous file is still kept.
HISTORY_BYTES = 16 * 2**20

_RUN_UID = re.compile(rb'"run_uid":"([^"]*)"')
_DESCRIPTORS = re.compile(rb'"descriptors":\[((?:"(?:[^"\\]|\\.)*",?)*)\]')
_TEXT = re.compile(rb'"((?:[^"\\]|\\.)*)"')


class History:
    """The entries of a spool's finished runs: one line each, with at least the last `max_bytes` kept.

    When the file reaches `max_bytes`, a new file is begun and the old one is kept until the new one is as large. So
    both files together have at most twice `max_bytes`, and a search never reads more. Several threads may use it at
    once.
    """

    def __init__(
        self,
        spool: Path,
        *,
        name: str = HISTORY,
        max_bytes: int = HISTORY_BYTES,
        make_room: Callable[[], object] = lambda: None,
    ) -> None:
        self._path = spool / name
        self._make_room = make_room
        self._older_path = self._path.with_stem(f"{self._path.stem}-1")
        self._max_bytes = max_bytes
        self._uids: dict[tuple[int, int], _Uids] = {}  # by file
        self._lock = threading.RLock()  # guards `_uids`; re-entrant, as a signal handler may come here during a read
        self._name_synced_of = (0, 0)  # the file whose name in the folder survives a power cut

    def after_fork_in_child(self) -> None:
        """Renew the lock in a forked child: a thread of the parent may have had it, and never releases this copy."""
        self._lock = threading.RLock()

    def entries(self) -> list[dict[str, Any]]:
        """Return all entries, oldest first."""
        return list(self._entries_containing(b""))

    def entries_with(self, name: str, value: str) -> list[dict[str, Any]]:
        """Return the entries whose `name` has this value. Other entries are not decoded, however many there are."""
        sought = msgspec.json.encode({name: value})[1:-1]  # without the braces
        return [entry for entry in self._entries_containing(sought) if entry.get(name) == value]

    def entries_of(self, run_uid: str) -> list[dict[str, Any]]:
        """Return the entries of one run. If there are none, only the lines added since the last call are read."""
        self.read_on()
        with self._lock:
            perhaps = any(run_uid in uids for uids in self._uids.values())
        return self.entries_with("run_uid", run_uid) if perhaps else []

    def entry_with_descriptor(self, uid: str) -> dict[str, Any] | None:
        """Return the youngest entry of an interrupted run with this descriptor, or None.

        If there is none, only the lines added since the last call are read.
        """
        uid = encodable(uid)  # as its journal had it
        self.read_on()
        with self._lock:
            perhaps = any(uids.may_describe(uid) for uids in self._uids.values())
        if not perhaps:
            return None
        found = [
            entry
            for entry in self._entries_containing(msgspec.json.encode(uid))
            if uid in (entry.get("descriptors") or ())
        ]
        return found[-1] if found else None

    def newest_beginning_with(self, beginning: str) -> dict[str, Any] | None:
        """Return the newest entry of a run whose uid begins with `beginning`, or None."""
        found = self.entries_beginning_with(beginning)
        return found[-1] if found else None

    def entries_beginning_with(self, beginning: str) -> list[dict[str, Any]]:
        """Return the entries of the runs whose uids begin with `beginning`, oldest first."""
        sought = msgspec.json.encode({"run_uid": beginning})[1:-2]  # without the braces and the closing quote
        return [entry for entry in self._entries_containing(sought) if str(entry.get("run_uid")).startswith(beginning)]

    def entries_added(self, marks: dict[tuple[int, int], int]) -> Iterator[dict[str, Any]]:
        """Yield the entries added since the last call with the same `marks`, oldest first. The first call yields all.

        Args:
            marks: Of each file the offset up to which it was read. The caller begins with an empty dict and keeps it.
        """
        before = dict(marks)
        marks.clear()
        with self._open() as files:
            for file in files:
                found = os.fstat(file.fileno())
                key, offset = (found.st_dev, found.st_ino), before.get((found.st_dev, found.st_ino), 0)
                marks[key] = offset = offset if offset <= found.st_size else 0  # a number that a new file has got
                for end, text in whole_lines(file, offset):
                    marks[key] = end
                    if text is not None and (payload := payload_of(text)) is not None:
                        yield msgspec.json.decode(payload)

    def read_on(self) -> None:
        """Read the run uids of the entries added since the last call."""
        with self._lock, self._open() as files:
            uids: dict[tuple[int, int], _Uids] = {}
            for file in files:
                found = os.fstat(file.fileno())
                known = self._uids.get((found.st_dev, found.st_ino))
                if known is None or known.offset > found.st_size:
                    known = _Uids()
                if known.offset < found.st_size:
                    known.read_on(file)
                uids[found.st_dev, found.st_ino] = known
            self._uids = uids

    def add(self, entry: dict[str, Any]) -> None:
        """Add the entry of a finished run. Several processes may call this at once.

        Raises:
            SpoolError: The file cannot be written, or another process has its lock for too long.
        """
        with locked(self._path.with_suffix(".lock"), self._make_room):
            name_synced = False
            with contextlib.suppress(FileNotFoundError):
                found = self._path.stat()
                if found.st_size >= self._max_bytes:
                    self._path.replace(self._older_path)
                else:
                    name_synced = (found.st_dev, found.st_ino) == self._name_synced_of
            file = LineFile(self._path, make_room=self._make_room, name_synced=name_synced)
            try:
                file.append(checksummed(msgspec.json.encode(entry)))
                file.sync()
            finally:
                file.close()
            with contextlib.suppress(FileNotFoundError):  # it was removed just now
                found = self._path.stat()
                self._name_synced_of = found.st_dev, found.st_ino

    def _entries_containing(self, sought: bytes) -> Iterator[dict[str, Any]]:
        """Yield the entries of the lines that contain `sought`, oldest first."""
        with self._open() as files:
            for file in files:
                for _, text in whole_lines(file):
                    if text is not None and sought in text and (payload := payload_of(text)) is not None:
                        yield msgspec.json.decode(payload)

    @contextlib.contextmanager
    def _open(self) -> Iterator[list[BinaryIO]]:
        """Open the files that exist, the older one first, and close them at the end."""
        with contextlib.ExitStack() as opened:
            files: list[BinaryIO] = []
            # The younger file is opened first: it may become the older one between the two calls.
            for path in (self._path, self._older_path):
                with contextlib.suppress(FileNotFoundError):
                    files.insert(0, opened.enter_context(open_to_read(path)))
            if len(files) == 2 and os.path.sameopenfile(files[0].fileno(), files[1].fileno()):
                files.pop()
            yield files


class _Uids:
    """The uids of runs and descriptors in one file, as far as it was read. Keeps only their hashes."""

    def __init__(self) -> None:
        self.offset = 0
        self._hashes: set[int] = set()
        self._descriptors: set[int] = set()

    def __contains__(self, run_uid: str) -> bool:
        """Return True if the file may have an entry of the run, and False if it certainly has none."""
        text = _RUN_UID.search(msgspec.json.encode({"run_uid": run_uid}))
        return text is not None and hash(text[1]) in self._hashes

    def may_describe(self, descriptor: str) -> bool:
        """Return True if the file may have an entry of a run with this descriptor, False if it certainly has none."""
        return hash(msgspec.json.encode(descriptor)[1:-1]) in self._descriptors

    def read_on(self, file: BinaryIO) -> None:
        """Read the lines added to `file` since the last call."""
        for end, text in whole_lines(file, self.offset):
            found = None if text is None else _RUN_UID.search(text)
            if found is not None:
                self._hashes.add(hash(found[1]))
                descriptors = _DESCRIPTORS.search(text or b"")
                if descriptors is not None:
                    self._descriptors.update(map(hash, _TEXT.findall(descriptors[1])))
            self.offset = end  # set last: after an interruption a line is read twice, never skipped
