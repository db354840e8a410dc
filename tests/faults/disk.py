"""A model of the disk: everything a process does to the spool is written down, and a power cut is made of it.

`Recorder` stands between a process and the system's calls and keeps a log of them outside the spool. `after_power_cut`
builds what a disk may hold when the power goes at the end of such a log. What a sync covered is there. Of what came
after the last sync of a file there may be all, nothing, a part that ends anywhere, zeros where data should be, or later
blocks without earlier ones. New names are safe when something was synced after them (`journalled`, as on today's usual
file systems) or, in the strict reading of POSIX (`strict`), when their own folder was synced.
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK = 4096
# How often a process writes down that it had its turn: time in which it had none is not its own.
BEAT_S = 0.02


class Recorder:
    """Writes down what this process does to the files below `root`."""

    def __init__(self, root: Path, log: Path, cut_at: int | None = None) -> None:
        self._root = str(root)
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._count = 0
        self._cut_at = cut_at
        self._lock = threading.RLock()
        self._write = os.write

    def install(self) -> None:
        """Stand between this process and the system, for good."""
        os.open, os.write, os.ftruncate = self._open(os.open), self._written(os.write), self._ftruncate(os.ftruncate)
        os.fsync, os.fdatasync = self._sync(os.fsync), self._sync(os.fdatasync)
        for name in ("mkdir", "unlink", "rmdir"):
            setattr(os, name, self._changing(name, getattr(os, name)))
        os.remove = os.unlink
        os.rename = os.replace = self._rename(os.rename)
        threading.Thread(target=self._beat, name="beat", daemon=True).start()

    def _beat(self) -> None:
        pause = threading.Event()
        while not pause.wait(BEAT_S):
            entry = {"n": self._count, "t": time.monotonic(), "op": "beat", "path": ""}
            self._write(self._log, json.dumps(entry).encode() + b"\n")

    def _path(self, name: Any, dir_fd: int | None = None) -> str | None:
        """Where a file is below the root; None if it is elsewhere."""
        if isinstance(name, int):
            try:
                path = os.readlink(f"/proc/self/fd/{name}")
            except OSError:
                return None
        else:
            path = os.fspath(name)
            if isinstance(path, bytes):
                path = path.decode()
            if dir_fd is not None:
                path = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), path)
            path = os.path.abspath(path)
        inside = path == self._root or path.startswith(self._root + "/")
        return path[len(self._root) + 1 :] if inside else None

    def _note(self, op: str, path: str, **more: Any) -> None:
        self._count += 1
        entry = {"n": self._count, "t": time.monotonic(), "op": op, "path": path, **more}
        self._write(self._log, json.dumps(entry).encode() + b"\n")

    def _perhaps_cut(self) -> None:
        if self._cut_at is not None and self._count + 1 >= self._cut_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def _changing(self, op: str, real: Callable[..., Any]) -> Callable[..., Any]:
        """For calls that change names: done and noted in one go."""

        def call(name: Any, *args: Any, dir_fd: int | None = None, **more: Any) -> Any:
            path = self._path(name, dir_fd)
            if path is None:
                return real(name, *args, dir_fd=dir_fd, **more)
            with self._lock:
                self._perhaps_cut()
                result = real(name, *args, dir_fd=dir_fd, **more)
                self._note(op, path)
                return result

        return call

    def _rename(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def rename(source: Any, target: Any, **more: Any) -> None:
            old, new = self._path(source), self._path(target)
            with self._lock:
                real(source, target, **more)
                if old is not None and new is not None:
                    self._note("rename", old, to=new)

        return rename

    def _open(self, real: Callable[..., int]) -> Callable[..., int]:
        def open_(name: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            path = self._path(name, dir_fd) if flags & (os.O_CREAT | os.O_TRUNC) else None
            if path is None:
                return real(name, flags, mode, dir_fd=dir_fd)
            with self._lock:
                self._perhaps_cut()
                new = not os.path.lexists(os.path.join(self._root, path))
                descriptor = real(name, flags, mode, dir_fd=dir_fd)
                if new:
                    self._note("create", path)
                elif flags & os.O_TRUNC:
                    self._note("truncate", path, size=0)
                return descriptor

        return open_

    def _written(self, real: Callable[[int, bytes], int]) -> Callable[[int, bytes], int]:
        def write(descriptor: int, data: bytes) -> int:
            path = self._path(descriptor)
            if path is None:
                return real(descriptor, data)
            with self._lock:
                self._perhaps_cut()
                written = real(descriptor, data)
                self._note("write", path, data=bytes(data[:written]).hex())
                return written

        return write

    def _ftruncate(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def ftruncate(descriptor: int, size: int) -> None:
            path = self._path(descriptor)
            with self._lock:
                self._perhaps_cut()
                real(descriptor, size)
                if path is not None:
                    self._note("truncate", path, size=size)

        return ftruncate

    def _sync(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def sync(descriptor: int) -> None:
            path = self._path(descriptor)
            if path is None:
                real(descriptor)
                return
            with self._lock:
                self._perhaps_cut()
                since = self._count  # what was done up to here is covered; what comes meanwhile is not
            real(descriptor)
            with self._lock:
                self._note("sync", path, since=since)

        return sync


@dataclass
class _File:
    """A file's content as it surely is, and what was done to it after that, in order."""

    content: bytes = b""
    unsure: list[tuple[int, dict[str, Any]]] = field(default_factory=list)

    def sync(self, since: int) -> None:
        """Everything that was done up to `since` is on the disk."""
        for number, entry in list(self.unsure):
            if number <= since:
                self.content = _applied(self.content, entry)
                self.unsure.remove((number, entry))

    def after_power_cut(self, chance: random.Random) -> bytes:
        """What may be found of it."""
        if not self.unsure:
            return self.content
        way = chance.choice(["all", "nothing", "torn", "torn", "zeros", "blocks"])
        if way == "nothing":
            return self.content
        whole = chance.randrange(len(self.unsure)) if way in {"torn", "zeros"} else len(self.unsure)
        content = self.content
        for _, entry in self.unsure[:whole]:
            content = _applied(content, entry)
        if way == "torn" and self.unsure[whole][1]["op"] == "write":
            data = bytes.fromhex(self.unsure[whole][1]["data"])
            content += data[: chance.randrange(len(data) + 1)]
        elif way == "zeros":
            rest = content
            for _, entry in self.unsure[whole:]:
                rest = _applied(rest, entry)
            content += bytes(max(0, len(rest) - len(content)))
        elif way == "blocks":
            # What was appended lies in blocks, each of which may have made it; the one that was begun before did.
            first = (len(self.content) + BLOCK - 1) // BLOCK
            for block in range(first, len(content) // BLOCK + 1):
                if chance.random() < 0.5:
                    begin, end = block * BLOCK, min(len(content), (block + 1) * BLOCK)
                    content = content[:begin] + bytes(end - begin) + content[end:]
        return content


def _applied(content: bytes, entry: dict[str, Any]) -> bytes:
    if entry["op"] == "write":
        return content + bytes.fromhex(entry["data"])
    return content[: entry["size"]].ljust(entry["size"], b"\0")


def read_log(path: Path) -> list[dict[str, Any]]:
    """What was done, in order; an entry that was being written at the end is no longer one."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def after_power_cut(log: list[dict[str, Any]], target: Path, *, strict: bool, seed: int) -> None:
    """Make in `target` what a disk may hold after the power went at the end of `log`.

    Args:
        log: From the first operation on the root on; the root itself is safe.
        target: A folder that does not exist yet.
        strict: Names are safe only when their own folder was synced.
        seed: Chooses among what may be.
    """
    chance = random.Random(seed)
    files: dict[str, _File] = {}  # by the name at creation, with its number, so that a name may come again
    current: dict[str, str] = {}
    names: list[dict[str, Any]] = []
    safe: dict[str, int] = {}  # folder → number of the last change of its names that is safe
    for entry in log:
        path, op = entry["path"], entry["op"]
        if op == "create":
            current[path] = f"{path}#{entry['n']}"
            files[current[path]] = _File()
        if op in {"create", "mkdir", "unlink", "rmdir", "rename"} and path:  # the root itself is safe
            names.append(entry | {"file": current.get(path)})
        if op == "rename":
            current[entry["to"]] = current.pop(path, "")
        elif op == "unlink":
            current.pop(path, None)
        elif op in {"write", "truncate"} and path in current:
            files[current[path]].unsure.append((entry["n"], entry))
        elif op == "sync":
            if path in current:
                files[current[path]].sync(entry["since"])
                if not strict:
                    safe["*"] = entry["since"]
            else:
                safe[path if strict else "*"] = entry["since"]
    kept: list[dict[str, Any]] = []
    for folder in {_folder(entry, strict) for entry in names}:
        changes = [entry for entry in names if _folder(entry, strict) == folder]
        unsure = [entry for entry in changes if entry["n"] > safe.get(folder, 0)]
        end = chance.randrange(len(unsure) + 1)
        kept += changes[: len(changes) - len(unsure) + end]
    target.mkdir(parents=True)
    there: dict[str, str | None] = {}  # path → file, None for a folder
    for entry in sorted(kept, key=lambda entry: entry["n"]):
        path = entry["path"]
        match entry["op"]:
            case "create":
                there[path] = entry["file"]
            case "mkdir":
                there[path] = None
            case "rename":
                there[entry["to"]] = there.pop(path, None)
            case _:
                there.pop(path, None)
    for path in sorted(there):
        if os.path.dirname(path) and os.path.dirname(path) not in there:
            continue  # its folder did not make it
        file = there[path]
        if file is None:
            (target / path).mkdir(mode=0o700)
        else:
            (target / path).write_bytes(files[file].after_power_cut(chance))
            (target / path).chmod(0o600)


def _folder(entry: dict[str, Any], strict: bool) -> str:
    return os.path.dirname(entry["path"]) if strict else "*"
