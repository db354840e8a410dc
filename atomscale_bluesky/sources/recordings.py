"""Documents of recorded runs, from files that any tool of Bluesky's world has written.

    for name, doc, ack in Recordings(["growth.jsonl"]):
        ...

The content decides what a file is, not its name:

- JSON, one document after the other: a line each, indented, within one array or several, separated by commas or by the
  record separators of JSON sequences. A document is `[name, doc]`, `{"name": …, "doc": …}`, `{"type": …, "document":
  …}` or `{name: doc}`. NaN and Infinity may stand for numbers.
- MessagePack, one `[name, doc]` after the other, with numpy's arrays and numbers in the form of `msgpack-numpy`.
- Either of them compressed by gzip, bzip2 or xz.

A file may hold several runs. One document at a time is in memory, whatever the file's size.

In a file of lines, a damaged one costs no other: what cannot be read up to the next newline is reported and left out.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import stat
import sys
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from .forms import Document
from .incoming import Incoming, no_ack, unreadable
from .pipes import Pipe
from .recorded_json import Text, from_json
from .recorded_msgpack import from_msgpack
from .recording_errors import EXPECTED, CutOffError, RecordingError

# How much is read at a time.
_BLOCK = 1 << 20
_MAGIC_BYTES = 6
_DECOMPRESS: dict[bytes, Callable[[Any], Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
# How many damaged lines of a file are named one by one.
MAX_REASONS = 20
# The file name that stands for standard input.
STANDARD_INPUT = "-"


class Recordings:
    """The documents of recorded files, one file after the other: a source that can be read again from the beginning.

    What cannot be read is handed over as unreadable, with the file and the line: a damaged line, a last document that
    is cut off, or a file that holds something else. The next line or file follows.

    Args:
        paths: The files; `-` is standard input.
        ending: Once it is set, standard input and named pipes are at their end, although their writers have not ended.
    """

    def __init__(self, paths: Iterable[str | Path], ending: threading.Event | None = None) -> None:
        self._paths = list(paths)
        self._ending = ending or threading.Event()
        self._before = 0  # bytes of the files that were read to their end
        self._file: _Beginning | None = None

    @property
    def total_bytes(self) -> int | None:
        """The size of all files; None if one of them is a pipe."""
        if any(str(path) == STANDARD_INPUT or not Path(path).is_file() for path in self._paths):
            return None
        return sum(Path(path).stat().st_size for path in self._paths)

    @property
    def read_bytes(self) -> int:
        """How much of the files was read so far, compressed as it is."""
        return self._before + (self._file.read_so_far if self._file is not None else 0)

    def __iter__(self) -> Iterator[Incoming]:
        """Yield every document of every file."""
        for path in self._paths:
            odd = _Unusable("standard input" if str(path) == STANDARD_INPUT else str(path))
            try:
                for name, doc in self._documents_of(path, odd.note):
                    yield from map(unreadable, odd.before_a_document())
                    yield Incoming(name, doc, no_ack)
            except RecordingError as error:
                if not (isinstance(error, CutOffError) and self._ending.is_set()):
                    odd.note(str(error))
            yield from map(unreadable, odd.at_the_end())

    def pause(self, timeout_s: float) -> None:
        """Wait."""
        self._ending.wait(timeout_s)

    def close(self) -> None:
        """Do nothing: each file is closed at its end."""

    def _documents_of(self, path: str | Path, unusable: Callable[[str], object]) -> Iterator[Document]:
        if str(path) == STANDARD_INPUT:
            pipe = Pipe(_standard_input(), self._ending)
            yield from self._counted(pipe, "standard input", unusable, live=True)
            return
        if _is_pipe(Path(path)):
            yield from self._counted(Pipe(Path(path), self._ending), str(path), unusable, live=True)
            return
        with _opened(Path(path)) as file:
            yield from self._counted(file, str(path), unusable, live=False)

    def _counted(
        self, file: io.RawIOBase, name: str, unusable: Callable[[str], object], *, live: bool
    ) -> Iterator[Document]:
        self._file = _beginning_of(file, name)
        yield from _documents_in(self._file, name, unusable, live=live)
        self._before += self._file.read_so_far
        self._file = None


class _Unusable:
    """What of one file cannot be used: the first reasons one by one, the others by their number."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._reasons: list[str] = []  # not handed over yet
        self._count = 0
        self._last = ""
        self._has_documents = False

    def note(self, reason: str) -> None:
        """Note that something cannot be used."""
        self._count += 1
        self._last = reason
        if self._count <= MAX_REASONS:
            self._reasons.append(reason)

    def before_a_document(self) -> Iterable[str]:
        """Return the reasons that are new, now that a document has come."""
        self._has_documents = True
        if not self._reasons:
            return ()
        reasons, self._reasons = self._reasons, []
        return reasons

    def at_the_end(self) -> Iterable[str]:
        """Return what is left to say: one reason for all if the file holds no document at all."""
        if not self._has_documents and self._count > 1:
            return (f"{self._file} is no recorded run, because nothing in it is a document; {self._reasons[0]}",)
        more = self._count - MAX_REASONS
        rest = [f"{self._file} holds {more} more lines or values that are no documents; the last: {self._last}"]
        return self._reasons + (rest if more > 0 else [])


def read_documents(path: Path) -> Iterator[Document]:
    """Yield the documents of a file, in its order. Blocks while it reads.

    Raises:
        CutOffError: The file ends within a document, as it does when its writer was killed. Comes last, behind all
            whole documents. Names the line, or the number of the document.
        RecordingError: The file cannot be read, or holds something else. Names the line, or the number of the document.
    """
    with _opened(path) as file:
        yield from _documents_in(_beginning_of(file, str(path)), str(path))


def documents_in(file: IO[bytes], name: str) -> Iterator[Document]:
    """Yield the documents of an open file, in its order. Blocks while it reads, and leaves it open.

    Args:
        file: The file, at its beginning.
        name: What errors call it.

    Raises:
        CutOffError: The file ends within a document.
        RecordingError: The file cannot be read, or holds something else.
    """
    yield from _documents_in(_beginning_of(_Raw(file), name), name)


def _opened(path: Path) -> io.FileIO:
    try:
        return io.FileIO(path)
    except OSError as error:
        raise RecordingError(f"{path} cannot be read: {error}; {EXPECTED}") from error


def _is_pipe(path: Path) -> bool:
    """Return True for a file of which a read may wait for another program: a named pipe, or a terminal."""
    try:
        mode = path.stat().st_mode
    except OSError:  # reported when it is opened
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def _standard_input() -> int:
    try:
        return sys.stdin.fileno()
    except (AttributeError, ValueError) as error:  # None, or closed since
        raise RecordingError("standard input is closed; give a file, or send the documents through a pipe") from error


def _beginning_of(file: io.RawIOBase, name: str) -> _Beginning:
    try:
        return _Beginning(file)
    except OSError as error:
        raise RecordingError(f"{name} cannot be read: {error}; {EXPECTED}") from error


def _documents_in(
    file: _Beginning, name: str, unusable: Callable[[str], object] | None = None, *, live: bool = False
) -> Iterator[Document]:
    """Yield the documents of an open file.

    Args:
        file: The file.
        name: What errors call it.
        unusable: Called with the reason for each document that cannot be used, if the next one can be found. None:
            raise an error.
        live: It is a pipe, in which a line is to be read when it has come.
    """
    try:
        decompress = next((opener for magic, opener in _DECOMPRESS.items() if file.begin.startswith(magic)), None)
        raw = io.BufferedReader(file, _BLOCK)
        contents = raw if decompress is None else io.BufferedReader(decompress(raw), _BLOCK)
        with contents:
            first = file.begin[:1] if decompress is None else contents.peek(1)[:1]
            if first and first[0] >= 0x80 and first != b"\xef":  # MessagePack begins with an array or a mapping
                yield from from_msgpack(contents, name, unusable)
            else:
                yield from from_json(Text(contents, live=live and decompress is None), name, unusable)
    except EOFError as error:  # of a compressed file
        raise CutOffError(f"{name} is cut off: the file ends within compressed data") from error
    except (OSError, UnicodeDecodeError, zlib.error, lzma.LZMAError) as error:
        raise RecordingError(f"{name} cannot be read: {error}; {EXPECTED}") from error


class _Raw(io.RawIOBase):
    """A file that has no `readinto` of its own in every version of Python."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = file

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, into: Any) -> int:
        """Read."""
        block = self._file.read(len(into))
        into[: len(block)] = block
        return len(block)


class _Beginning(io.RawIOBase):
    """A file whose first bytes are known, and of which it is known how much was read."""

    def __init__(self, file: io.RawIOBase) -> None:
        super().__init__()
        self._file = file
        self.begin = b""
        while len(self.begin) < _MAGIC_BYTES and (more := file.read(_MAGIC_BYTES - len(self.begin))):
            self.begin += more
        self._left = self.begin
        self.read_so_far = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, into: Any) -> int:
        """Read, and count."""
        if self._left:
            size = min(len(into), len(self._left))
            into[:size], self._left = self._left[:size], self._left[size:]
        else:
            size = self._file.readinto(into) or 0
        self.read_so_far += size
        return size
