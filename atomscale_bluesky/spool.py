"""The folder that holds the runs not yet finalized: their journals and ledgers, locks, limits and history.

    <spool>/<run folder>/journal-NNNN.jsonl, ledger.jsonl, orders.jsonl, writer.lock, uploader.lock
    <spool>/history.jsonl      one line per finished run

Two owners share a run, each behind a lock of the operating system that ends with its process: the writer appends to the
journal, the uploader to the ledger. A free writer lock and no stop means that the run was interrupted; a free uploader
lock, that whoever asks next may deliver the run. What a person orders is a line in a third file, obeyed by the
uploader. Folders are named by time and chance, never from a document; folders
are 0700 and files 0600.

Appending is one `write`. A thread of the spool's own syncs what was appended every 250 ms, which bounds what a power
cut can take, and looks after the room: at the spool's size limit or its disk's free-space floor new readings are left
out until there is room again, and what was kept before stays.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import psutil

from .errors import SpoolError, SpoolFullError
from .journal import (
    JournalReader,
    JournalWriter,
    LineFile,
    last_line,
    line,
    payload_of,
    segment_path,
    segments,
    sync_folder,
)
from .ledger import Ledger
from .lines import FORMAT, Header, Links, OrderLine, Stop, decode_journal, decode_order, encode

_logger = logging.getLogger(__name__)

# What a power cut may take: short enough to shrug at, long enough to batch the disk's work.
SYNC_INTERVAL_S = 0.25
# How often the disk is asked for the spool's size and its free space; in between our own writing is counted.
ROOM_INTERVAL_S = 1.0

LEDGER = "ledger.jsonl"
ORDERS = "orders.jsonl"
HISTORY = "history.jsonl"
_WRITER_LOCK = "writer.lock"
_UPLOADER_LOCK = "uploader.lock"


class RunLock:
    """One owner's claim on a run, held through the operating system while the owner lives."""

    def __init__(self, path: Path) -> None:
        from filelock import FileLock

        self._lock = FileLock(path, mode=0o600, thread_local=False)

    def acquire(self) -> bool:
        """Take the lock if it is free; never waits."""
        from filelock import Timeout

        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            return False
        return True

    def release(self) -> None:
        """Give it back; idempotent."""
        self._lock.release()


class RunWriter:
    """The writing end of one run: what the callback keeps of it.

    `append` may be called by one thread at a time.
    """

    def __init__(self, spool: Spool, folder: Path, header: Header) -> None:
        self.folder = folder
        self._spool = spool
        self._lock = RunLock(folder / _WRITER_LOCK)
        if not self._lock.acquire():
            raise SpoolError(f"{folder} belongs to another process")
        self._journal = JournalWriter(folder)
        self.dirty = True  # appended to since the last sync
        self._sync_failed = False  # said once
        self._named = False  # whether the folder's own name survives a power cut
        self._journal.append(line(encode(header)) * 2)  # twice, for the run is worth nothing without it

    def append(self, payloads: list[bytes], *, always: bool = False) -> None:
        """Keep these lines, all or none; they survive a killed process once this returns.

        With `durability = "event"` they survive a power cut too. With `always` the spool's limits do not count, only
        the disk's: for the few bytes that tell how a run ended.

        Raises:
            SpoolFullError: There is no room; the journal is as it was.
            SpoolError: The file cannot be written.
        """
        lines = b"".join(map(line, payloads)) if len(payloads) > 1 else line(payloads[0])
        if not (always or self._spool.has_room):
            raise SpoolFullError(f"the spool has no room: {self._spool.why_no_room}")
        self._journal.append(lines)
        self._spool.used_bytes += len(lines)
        self.dirty = True
        if self._spool.sync_each:
            try:
                self.sync()
            except OSError as error:
                # The lines are in the file and keep their numbers, so they are accepted; the next sync tries again.
                self.dirty = True
                if not self._sync_failed:
                    self._sync_failed = True
                    _logger.error("journal in %s could not be synced, a power cut may take it: %s", self.folder, error)

    def sync(self) -> None:
        """Have what was appended survive a power cut."""
        self.dirty = False
        self._journal.sync()
        if not self._named:
            sync_folder(self.folder.parent)
            self._named = True

    def close(self) -> None:
        """Sync, close and let go of the run; idempotent."""
        with contextlib.suppress(OSError):
            self.sync()
        self._journal.close()
        self._lock.release()


class Spool:
    """The spool in one folder, for one callback or command.

    Raises:
        SpoolError: The folder cannot be made or written, or belongs to another user.
    """

    def __init__(
        self, path: Path, *, max_bytes: int = 20 * 10**9, min_free_bytes: int = 0, sync_each: bool = False
    ) -> None:
        self.path = path
        self.sync_each = sync_each
        self.used_bytes = 0
        self.why_no_room = ""
        self._max_bytes = max_bytes
        self._min_free_bytes = min_free_bytes
        self._free_enough = True
        self._writers: list[RunWriter] = []
        self._closing: list[RunWriter] = []
        self._retired = False
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._guard = threading.Lock()  # around the thread's start and end, held for memory operations only
        # filelock costs more to import than the rest of the package, so whoever has no spool is spared it; and it is
        # imported here rather than by a thread later, because a process that forks meanwhile would leave it half done.
        import filelock  # noqa: F401

        _prepare_folder(path)
        self._look_after_room()

    @property
    def has_room(self) -> bool:
        """Whether new readings can be kept; costs nothing to ask."""
        return self._free_enough and self.used_bytes < self._max_bytes

    # ---- writing ---------------------------------------------------------------------------------------------------

    def create(self, header: Header) -> RunWriter:
        """A folder for a new run, with its header in it; ours until the writer is closed or this process ends.

        Raises:
            SpoolFullError: There is no room for a further run.
            SpoolError: The folder cannot be made.
        """
        with self._guard:
            self._start_thread()  # also where there is no room: it notices when there is some again
        if not self.has_room:
            raise SpoolFullError(f"the spool has no room: {self.why_no_room}")
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
        folder = self.path / name
        try:
            folder.mkdir(mode=0o700)
            writer = RunWriter(self, folder, header)
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise SpoolError(f"spool {self.path} takes no further run: {error}") from error
        with self._guard:
            self._writers.append(writer)
        return writer

    def release(self, writer: RunWriter) -> None:
        """The run has ended: sync and close its files on the spool's own time."""
        with self._guard:
            if writer in self._writers:
                self._writers.remove(writer)
                self._closing.append(writer)
            running = self._thread is not None and self._thread.is_alive()
        if running:
            self._wake.set()
        else:
            self._sync_all()

    def retire(self) -> None:
        """Nobody writes any more: end the thread soon. Takes no lock, so it may be called by the garbage collector."""
        self._retired = True

    def close_writers(self) -> None:
        """Close what nobody writes to any more, and let go of those runs."""
        with self._guard:
            writers = self._writers + self._closing
            self._writers, self._closing = [], []
        for writer in writers:
            writer.close()

    def close(self, timeout_s: float = 5.0) -> bool:
        """Sync everything and stop the thread; writers stay usable, and sync within each call from now on."""
        self._stopping.set()
        self._wake.set()
        with self._guard:
            thread = self._thread
        if thread is not None:
            thread.join(timeout_s)
        ended = thread is None or not thread.is_alive()
        if ended:
            self._sync_all()
            self.sync_each = True
        return ended

    def forget_after_fork(self) -> None:
        """In a forked child: the parent's runs are the parent's, so leave their files and locks alone."""
        self._guard = threading.Lock()
        self._writers, self._closing = [], []
        self._thread = None
        self._stopping = threading.Event()
        self._wake = threading.Event()

    def _start_thread(self) -> None:
        if self._thread is None and not self._stopping.is_set():
            thread = threading.Thread(target=self._loop, name="atomscale-spool", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the interpreter is ending: sync within each call instead
                self.sync_each = True
                return
            self._thread = thread

    def _loop(self) -> None:
        looked = time.monotonic()
        kind = network_file_system(self.path)
        if kind:
            _logger.warning(
                "spool %s is on a network file system (%s): what a crash keeps depends on it; set `spool_dir` to a "
                "local disk", self.path, kind,
            )  # fmt: skip
        while not (self._stopping.is_set() or self._retired):
            self._wake.wait(SYNC_INTERVAL_S)
            self._wake.clear()
            self._sync_all()
            if time.monotonic() - looked >= ROOM_INTERVAL_S:
                looked = time.monotonic()
                self._look_after_room()

    def _sync_all(self) -> None:
        with self._guard:
            writers, closing = list(self._writers), self._closing
            self._closing = []
        for writer in writers:
            if writer.dirty:
                try:
                    writer.sync()
                except OSError as error:
                    writer.dirty = True
                    _logger.warning("journal in %s could not be synced: %s", writer.folder, error)
        for writer in closing:
            writer.close()

    def measure(self) -> tuple[int, int]:
        """How large the spool is, and how much is free on its disk, in bytes.

        Raises:
            OSError: The folder cannot be read.
        """
        return sum(_size(folder) for folder in self.run_folders()), shutil.disk_usage(self.path).free

    def _look_after_room(self) -> None:
        try:
            self.used_bytes, free = self.measure()
        except OSError as error:
            _logger.warning("spool %s cannot be measured: %s", self.path, error)
            return
        self._free_enough = free >= self._min_free_bytes
        if not self._free_enough:
            self.why_no_room = (
                f"its disk has {free / 1e6:.0f} MB free, and {self._min_free_bytes / 1e6:.0f} MB are to stay free "
                f"(spool_min_free_bytes)"
            )
        else:
            self.why_no_room = (
                f"it holds {self.used_bytes / 1e6:.0f} of {self._max_bytes / 1e6:.0f} MB (spool_max_bytes)"
            )

    # ---- reading and delivering ------------------------------------------------------------------------------------

    def run_folders(self) -> list[Path]:
        """The folders of the runs that are not finished, oldest first."""
        with os.scandir(self.path) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False))

    def claim(self, folder: Path) -> Claim | None:
        """Become the one who delivers a run; None while somebody else does, or where there is no run in the folder.

        Raises:
            SpoolError: The run's files cannot be read, or were written by a newer version.
        """
        if read_header(folder) is None:
            self._remove_corpse(folder)
            return None
        lock = RunLock(folder / _UPLOADER_LOCK)
        if not lock.acquire():
            return None
        try:
            return Claim(self, folder, lock)
        except BaseException:
            lock.release()
            raise

    def writer_alive(self, folder: Path) -> bool:
        """Whether a process holds the run open for writing."""
        return _is_held(folder / _WRITER_LOCK)

    def uploader_alive(self, folder: Path) -> bool:
        """Whether a process delivers the run."""
        return _is_held(folder / _UPLOADER_LOCK)

    def links_of(self, folder: Path) -> Links:
        """What a run's metadata say that its streams are linked to."""
        header = read_header(folder)
        return header.links if header else Links()

    def order(self, folder: Path, order: OrderLine) -> None:
        """Ask for something to be done with a run; whoever delivers it obeys, within seconds if it is somebody now.

        Raises:
            SpoolError: The file cannot be written.
        """
        from filelock import FileLock

        with FileLock(folder / "orders.lock", mode=0o600):
            file = LineFile(folder / ORDERS)
            try:
                file.append(line(encode(order)))
                file.sync()
            finally:
                file.close()

    def history(self) -> list[dict[str, Any]]:
        """What is kept of finished runs, oldest first."""
        try:
            texts = (self.path / HISTORY).read_bytes().splitlines()
        except FileNotFoundError:
            return []
        payloads = (payload_of(text) for text in texts)
        return [msgspec.json.decode(payload) for payload in payloads if payload is not None]

    def content_of(self, run_uid: str) -> str | None:
        """The digest of the start document of a run that is in the spool or its history; None if it is in neither."""
        for entry in self.history():
            if entry.get("run_uid") == run_uid:
                return str(entry.get("content", ""))
        for folder in self.run_folders():
            header = read_header(folder)
            if header is not None and header.run_uid == run_uid:
                return header.content
        return None

    def add_to_history(self, entry: dict[str, Any]) -> None:
        """Note a finished run; several processes may do so at once.

        Raises:
            SpoolError: The file cannot be written.
        """
        from filelock import FileLock

        with FileLock(self.path / "history.lock", mode=0o600):
            file = LineFile(self.path / HISTORY)
            try:
                file.append(line(msgspec.json.encode(entry)))
                file.sync()
            finally:
                file.close()

    def _remove_corpse(self, folder: Path) -> None:
        """Remove the folder of a run whose writer died before it had written the header: nothing was accepted.

        Raises:
            SpoolError: There are lines, so it is no such run: its header is damaged, and the rest is kept.
        """
        lock = RunLock(folder / _WRITER_LOCK)
        try:
            age = time.time() - folder.stat().st_mtime
            if not lock.acquire():
                return  # it is just being made
            lock.release()
            if _has_lines(folder):
                raise SpoolError(f"{folder} holds a run whose header is damaged; its other lines are kept")
            if age > 60:
                shutil.rmtree(folder, ignore_errors=True)
        except FileNotFoundError:  # removed meanwhile
            return


class Claim:
    """A run that is ours to deliver, until `close`."""

    def __init__(self, spool: Spool, folder: Path, lock: RunLock) -> None:
        header = read_header(folder)
        if header is None:
            raise SpoolError(f"{folder} holds no run")
        if header.format > FORMAT:
            raise SpoolError(
                f"{folder} was written in format {header.format}, this version knows up to {FORMAT}; update the package"
            )
        # Before anything is asked for it, the run can be found again after a power cut, with its header.
        JournalReader(folder).sync()
        sync_folder(spool.path)
        self.folder = folder
        self.header = header
        self.ledger = Ledger(folder / LEDGER)
        self._spool = spool
        self._lock = lock

    def settle_if_interrupted(self) -> bool:
        """Write the stop of a run whose writer is gone without one; False while it lives, or where there is a stop."""
        lock = RunLock(self.folder / _WRITER_LOCK)
        if not lock.acquire():
            return False
        try:
            if has_stop(self.folder):
                return False
            journal = JournalWriter(self.folder)
            try:
                stop = Stop(time=time.time(), exit_status="", reason="no stop document", interrupted=True)
                journal.append(line(encode(stop)))
                journal.sync()
            finally:
                journal.close()
        finally:
            lock.release()
        return True

    def orders(self) -> list[OrderLine]:
        """Everything that was asked for so far, in order.

        Raises:
            SpoolError: An order is not understood.
        """
        try:
            texts = (self.folder / ORDERS).read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return []
        return [decode_order(payload) for text in texts if (payload := payload_of(text)) is not None]

    def finish(self, entry: dict[str, Any]) -> bool:
        """Move a run that is finalized whole into the history; False while its writer still has files open."""
        lock = RunLock(self.folder / _WRITER_LOCK)
        if not lock.acquire():
            return False
        folder = entry["folder"] = self.folder.name
        # A process that died between these two steps leaves the run in both places; whoever comes next only removes it.
        if all(finished.get("folder") != folder for finished in self._spool.history()):
            self._spool.add_to_history(entry)
        self.ledger.close()
        # The ledger goes last: a journal that is found without one would be delivered again from its beginning.
        for segment in reversed(segments(self.folder)):
            segment_path(self.folder, segment).unlink(missing_ok=True)
        sync_folder(self.folder)
        (self.folder / LEDGER).unlink(missing_ok=True)
        self._lock.release()
        lock.release()
        shutil.rmtree(self.folder, ignore_errors=True)
        return True

    def close(self) -> None:
        """Let go of the run as it is; idempotent."""
        self.ledger.close()
        self._lock.release()


# File systems of other machines: their locks and syncs are what the network makes of them.
_NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb", "smb2", "smb3", "smbfs", "afs", "afpfs", "lustre", "gpfs", "beegfs", "ceph", "9p",
     "fuse.sshfs", "fuse.glusterfs", "webdav", "davfs"}
)  # fmt: skip


def network_file_system(path: Path) -> str | None:
    """The kind of file system if `path` is on one of another machine, None if it is on this one."""
    here = path.resolve()
    best = ("", "", "")
    for partition in psutil.disk_partitions(all=True):
        mount = Path(partition.mountpoint)
        if (here == mount or mount in here.parents) and len(partition.mountpoint) >= len(best[0]):
            best = (partition.mountpoint, partition.fstype.lower(), partition.opts)
    _, kind, options = best
    return kind if kind in _NETWORK or "remote" in options.split(",") else None


def _has_lines(folder: Path) -> bool:
    """Whether anything was ever written to a run's journal, damaged or not."""
    reader = JournalReader(folder)
    try:
        return next(reader.read(), None) is not None or reader.damaged > 0
    finally:
        reader.close()


def has_stop(folder: Path) -> bool:
    """Whether a run's journal ends with its stop.

    Raises:
        SpoolError: Its last line is not understood.
    """
    payload = last_line(folder)
    return payload is not None and not payload.startswith(b"[") and isinstance(decode_journal(payload), Stop)


def read_header(folder: Path) -> Header | None:
    """A run's header, or None where there is no whole one yet.

    Raises:
        SpoolError: The journal does not begin with a header that this version understands.
    """
    reader = JournalReader(folder)
    try:
        for found in reader.read():
            header = decode_journal(found.payload)
            if isinstance(header, Header):
                return header
            return None
    finally:
        reader.close()
    return None


def _prepare_folder(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if hasattr(os, "getuid"):
            owner = path.stat().st_uid
            if owner != os.getuid():
                raise SpoolError(f"spool folder {str(path)!r} belongs to another user; choose another `spool_dir`")
            path.chmod(0o700)
        probe = path / f".probe-{secrets.token_hex(4)}"
        probe.touch(mode=0o600)
        probe.unlink()
        sync_folder(path)
    except OSError as error:
        if isinstance(error, SpoolError):
            raise
        raise SpoolError(
            f"spool folder {str(path)!r} cannot be written ({error.strerror}); choose another `spool_dir`"
        ) from error


def _is_held(path: Path) -> bool:
    if not path.exists():
        return False
    lock = RunLock(path)
    if lock.acquire():
        lock.release()
        return False
    return True


def _size(folder: Path) -> int:
    try:
        with os.scandir(folder) as entries:
            return sum(entry.stat(follow_symlinks=False).st_size for entry in entries)
    except FileNotFoundError:  # finished meanwhile
        return 0
