"""Starts the process that uploads, watches it, and starts another if it dies.

A process is started if no other one holds the spool's service lock. If the process dies, the next one is
started after a growing pause. Warnings in its log are logged here too. The API key goes through a pipe, so that
no command line and no environment holds it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from ..model.text import safe
from ..settings import Settings
from ..spool.locks import RunLock
from ..spool.own_files import open_own, open_to_read, read_own
from . import backoff
from .uploader_service import ALREADY_SERVED, KEY_REFUSED, LOG, LOG_BYTES, Assignment, is_served, service_lock_path

_logger = logging.getLogger(__name__)

# The standard error of a process that cannot even log.
LAST_WORDS = "uploader.stderr"
# How much of its log is read at a time.
LOG_READ_BYTES = 2**16
# How long a started process stays when its starter is gone and there is nothing to do.
IDLE_S = 30.0
# A process has this long to take the spool's lock. One that lived longer was no failure.
STARTING_S = 30.0

# Finds the package of this process, whatever the plan's own folder and environment hold. After an upgrade a session
# that still runs the old version starts the new one with this text, so the module and `main` keep their names.
_BOOTSTRAP = (
    "import json, os, sys; line = b''\n"
    "while not line.endswith(b'\\n'): line += os.read(0, 1) or b'\\n'\n"
    "sys.path[:] = json.loads(line)\n"
    "from atomscale_bluesky.delivery.uploader_service import main; sys.exit(main())"
)


class UploaderWatcher:
    """Starts the process that uploads, as a child of this one, and watches it.

    Only one thread may call `pass_on_log`. Any thread may call the other methods.

    Args:
        spool_path: The spool's folder.
        settings: The callback's. The process gets the same.
        report: Called with an error that keeps the process from being watched.
    """

    def __init__(self, spool_path: Path, settings: Settings, report: Callable[[OSError], None]) -> None:
        self._spool_path = spool_path
        self._settings = settings
        self._report = report
        self._guard = threading.Lock()  # at the interpreter's exit two threads may start the process
        self._process: subprocess.Popen[bytes] | None = None
        self._starting_lock: RunLock | None = None  # held by the one of many callbacks that has started a process
        self._started_at = 0.0
        self._failures = 0
        self._not_before = 0.0
        self._log = _ChildLog(settings.spool_path / LOG)

    def start_if_due(self) -> None:
        """Start a process if none serves the spool and the pause after the last failure is over."""
        with self._guard:
            try:
                self._start_if_due(time.monotonic())
            except OSError as error:  # a SpoolError is one
                self._report(error)

    def pass_on_log(self) -> None:
        """Log the warnings that the process has logged since the last call."""
        self._log.pass_on()

    def release(self) -> None:
        """Let the process finish its work and end by itself: this process needs it no longer."""
        with self._guard:
            self._release_starting_lock()
            if self._process is not None:
                _close_pipe(self._process)
                _reap_later(self._process.pid)
                self._process = None

    def after_fork_in_child(self) -> None:
        """Hold nothing of the process, which belongs to the parent."""
        if self._process is not None:
            _close_pipe(self._process)
        self._starting_lock = None

    def _start_if_due(self, now: float) -> None:
        if self._process is not None:
            code = self._process.poll()
            if code is None:
                if self._starting_lock and (is_served(self._settings) or now - self._started_at > STARTING_S):
                    self._release_starting_lock()
                return
            self._note_ended(self._process, code, now)
        if now < self._not_before or is_served(self._settings):
            return
        # Of many callbacks that see the same free lock one starts a process. The others check again later.
        lock = RunLock(service_lock_path(self._settings).with_suffix(".starting"))
        if not lock.acquire():
            return
        self._starting_lock, self._started_at = lock, now
        try:
            self._process = _start_process(self._settings)
        except (OSError, UnicodeError) as error:  # UnicodeError: the name of the spool's folder is no text
            self._note_failure(now, f"cannot be started: {error}")
        else:
            _logger.info("process %d uploads; it logs to %s", self._process.pid, self._log.path)

    def _note_ended(self, process: subprocess.Popen[bytes], code: int, now: float) -> None:
        _close_pipe(process)
        self._process = None
        if code == ALREADY_SERVED:
            self._release_starting_lock()
        elif code == KEY_REFUSED:
            self._note_failure(now, "ended because the API key is refused")
        elif code != 0 or now - self._started_at < STARTING_S:
            self._note_failure(now, f"ended with code {code}{self._last_words()}")
        else:
            self._release_starting_lock()
            self._failures = 0

    def _note_failure(self, now: float, what: str) -> None:
        self._release_starting_lock()
        if now - self._started_at > STARTING_S:
            self._failures = 0
        pause_s = backoff.RESTART.pause_s(self._failures)
        self._failures += 1
        self._not_before = now + pause_s
        _logger.warning(
            "the uploader's process %s; readings are kept in %s, and another is started in %.0f s; see %s",
            what, self._spool_path, pause_s, self._log.path,
        )  # fmt: skip

    def _last_words(self) -> str:
        try:
            words = read_own(self._settings.spool_path / LAST_WORDS).decode(errors="replace").strip()
        except OSError:
            return ""
        return f" ({safe(words.splitlines()[-1], 500)})" if words else ""

    def _release_starting_lock(self) -> None:
        if self._starting_lock is not None:
            self._starting_lock.release()
            self._starting_lock = None


def _start_process(settings: Settings) -> subprocess.Popen[bytes]:
    """Start a process that serves the settings' spool. It holds nothing of this one but a pipe.

    Raises:
        OSError: It cannot be started.
        UnicodeError: A setting cannot be passed on: a path that is no text.
    """
    if not sys.executable:
        raise FileNotFoundError("this program does not know its Python interpreter")
    whole = msgspec.structs.replace(
        settings,
        spool_dir=str(settings.spool_path),
        ca_bundle=None if settings.ca_bundle is None else os.path.abspath(settings.ca_bundle),
    )
    package = str(Path(__file__).parents[2])
    path = [os.path.abspath(entry) for entry in sys.path if entry]  # "" is the folder that the plan is in just now
    path += [package] * (package not in path)
    assignment = Assignment(settings=whole, idle_s=IDLE_S)
    given = json.dumps(path).encode() + b"\n" + msgspec.json.encode(assignment) + b"\n"
    flags = 0
    if sys.platform == "win32":
        flags = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
    with open(settings.spool_path / LAST_WORDS, "wb", opener=open_own) as last_words:
        process = subprocess.Popen(
            # The list of processes shows what it is. It does not show its standard input, which holds the key.
            [sys.executable, "-P", "-c", _BOOTSTRAP, "atomscale-bluesky-uploader", str(settings.spool_path)],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=last_words,
            cwd=settings.spool_path,
            creationflags=flags,
            start_new_session=True,  # Ctrl-C in a terminal is for the plan
        )
    if process.stdin is not None:  # it always is
        with contextlib.suppress(BrokenPipeError):  # it has died already, which the next poll finds
            # Two lines, together far below what a pipe takes at once, so this does not wait.
            process.stdin.write(given)
    return process


def _close_pipe(process: subprocess.Popen[bytes]) -> None:
    """Close the pipe. This tells the process that its starter needs it no longer. It outlives its starter."""
    if process.stdin is not None:
        process.stdin.close()
    if process.poll() is None:
        process.returncode = 0  # or Python would warn that it still runs, which is intended


def _reap_later(pid: int) -> None:
    """Take note of a process's end in a thread, or the system keeps an entry for it until this process ends."""
    if sys.platform == "win32":
        return

    def reap() -> None:
        with contextlib.suppress(ChildProcessError):  # it was taken note of already
            os.waitpid(pid, 0)

    with contextlib.suppress(RuntimeError):  # the interpreter ends, and the system removes the entry
        threading.Thread(target=reap, name=f"reap-{pid}", daemon=True).start()


class _ChildLog:
    """Passes on the warnings in the log of the other process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = self._size()

    def pass_on(self) -> None:
        """Log the warnings since the last call. A line longer than `LOG_READ_BYTES` is passed over."""
        size = self._size()
        if size < self._offset:  # a new file has begun, and the old one may have further lines
            with contextlib.suppress(OSError):
                self._pass_on(self.path.with_name(f"{self.path.name}.1"), LOG_BYTES)
            self._offset = 0
        if size > self._offset:
            self._pass_on(self.path, LOG_READ_BYTES)

    def _pass_on(self, path: Path, max_bytes: int) -> None:
        with open_to_read(path) as file:
            file.seek(self._offset)
            found = file.read(max_bytes)
        whole, newline, _ = found.rpartition(b"\n")
        if newline:
            self._offset += len(whole) + 1
        elif len(found) == max_bytes:  # a part of a line that is too long
            self._offset += max_bytes
        for text in whole.split(b"\n"):
            parts = text.decode(errors="replace").split(" ", 3)  # date, time, level, message
            if len(parts) == 4 and parts[2] in {"WARNING", "ERROR"}:
                _logger.log(logging.getLevelName(parts[2]), "%s", safe(parts[3]))

    def _size(self) -> int:
        try:
            return self.path.stat().st_size
        except OSError:
            return 0
