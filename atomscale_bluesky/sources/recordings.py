"""Documents of recorded runs, from files that any tool of Bluesky's world has written.

    for name, doc, ack in Recordings(["growth.jsonl"]):
        ...

The content decides what a file is, not its name:

- JSON, one document after the other: a line each, indented, within one array or several, separated by commas or by the
  record separators of JSON sequences. A document is `[name, doc]`, `{"name": …, "doc": …}`, `{"type": …, "document":
  …}` or `{name: doc}`. NaN and Infinity may stand for numbers.
- MessagePack, one `[name, doc]` after the other, with numpy's arrays and numbers in the form of `msgpack-numpy`.
- Either of them packed by gzip, bzip2 or xz.

A file may hold several runs. One document at a time is in memory, whatever the file's size.

In a file of lines, a damaged one costs no other: what cannot be read up to the next newline is reported and left out.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import lzma
import sys
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from ..errors import AtomscaleBlueskyError
from .forms import Document, as_document, from_numpy
from .incoming import Incoming, no_ack, unreadable
from .pipes import Pipe

# How much is read at a time.
_BLOCK = 1 << 20
# A document larger than this is none: no bus and no store takes one.
MAX_DOCUMENT = 1 << 29
# An error of the JSON decoder so near the end of what was read may be due to the end.
_NEAR_THE_END = 16
_MAGIC_BYTES = 6
_PACKED: dict[bytes, Callable[[Any], Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
# The file name that stands for standard input.
STANDARD_INPUT = "-"
_BETWEEN = " \t\r\n,\x1e\ufeff"
EXPECTED = (
    'expected JSON or MessagePack, plain or packed, in which each document is [name, doc], {"name": …, "doc": …}, '
    '{"type": …, "document": …} or {name: doc}'
)


class RecordingError(AtomscaleBlueskyError, ValueError):
    """A file is not a recorded run."""


class CutOffError(RecordingError):
    """A file ends within a document. All documents before it were read."""


class Recordings:
    """The documents of recorded files, one file after the other: a source that can be read again from the beginning.

    What cannot be read is handed over as unreadable, with the file and the line: a damaged line, a last document that
    is cut off, or a file that holds something else. The next line or file follows.

    Args:
        paths: The files; `-` is standard input.
        ending: Once it is set, standard input is at its end, although its writer has not ended.
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
        """How much of the files was read so far, packed as it is."""
        return self._before + (self._file.read_so_far if self._file is not None else 0)

    def __iter__(self) -> Iterator[Incoming]:
        """Yield every document of every file."""
        for path in self._paths:
            odd: deque[str] = deque()
            try:
                for name, doc in self._documents_of(path, odd.append):
                    while odd:
                        yield unreadable(odd.popleft())
                    yield Incoming(name, doc, no_ack)
            except RecordingError as error:
                if not (isinstance(error, CutOffError) and self._ending.is_set()):
                    odd.append(str(error))
            while odd:
                yield unreadable(odd.popleft())

    def rest(self, timeout_s: float) -> None:
        """Wait."""
        self._ending.wait(timeout_s)

    def close(self) -> None:
        """Do nothing: each file is closed at its end."""

    def _documents_of(self, path: str | Path, unusable: Callable[[str], object]) -> Iterator[Document]:
        if str(path) == STANDARD_INPUT:
            pipe = Pipe(sys.stdin.fileno(), self._ending)
            yield from self._counted(pipe, "standard input", unusable, live=True)
            return
        with _opened(Path(path)) as file:
            yield from self._counted(file, str(path), unusable, live=False)

    def _counted(
        self, file: io.RawIOBase, name: str, unusable: Callable[[str], object], *, live: bool
    ) -> Iterator[Document]:
        self._file = _Beginning(file)
        yield from _documents_in(self._file, name, unusable, live=live)
        self._before += self._file.read_so_far
        self._file = None


def read_documents(path: Path) -> Iterator[Document]:
    """Yield the documents of a file, in its order. Blocks while it reads.

    Raises:
        CutOffError: The file ends within a document, as it does when its writer was killed. Comes last, behind all
            whole documents. Names the line, or the number of the document.
        RecordingError: The file cannot be read, or holds something else. Names the line, or the number of the document.
    """
    with _opened(path) as file:
        yield from _documents_in(_Beginning(file), str(path))


def documents_in(file: IO[bytes], name: str) -> Iterator[Document]:
    """Yield the documents of an open file, in its order. Blocks while it reads, and leaves it open.

    Args:
        file: The file, at its beginning.
        name: What errors call it.

    Raises:
        CutOffError: The file ends within a document.
        RecordingError: The file cannot be read, or holds something else.
    """
    yield from _documents_in(_Beginning(_Raw(file)), name)


def _opened(path: Path) -> io.FileIO:
    try:
        return io.FileIO(path)
    except OSError as error:
        raise RecordingError(f"{path} cannot be read: {error}; {EXPECTED}") from error


def _documents_in(
    file: _Beginning, name: str, unusable: Callable[[str], object] | None = None, *, live: bool = False
) -> Iterator[Document]:
    """Yield the documents of an open file.

    Args:
        file: The file.
        name: What errors call it.
        unusable: Is told of each document that cannot be used, if the next one can be found. None: raise an error.
        live: It is a pipe, in which a line is to be read when it has come.
    """
    try:
        packed = next((unpack for magic, unpack in _PACKED.items() if file.begin.startswith(magic)), None)
        plain = io.BufferedReader(file, _BLOCK)
        unpacked = plain if packed is None else io.BufferedReader(packed(plain), _BLOCK)
        with unpacked:
            first = file.begin[:1] if packed is None else unpacked.peek(1)[:1]
            if first and first[0] >= 0x80 and first != b"\xef":  # MessagePack begins with an array or a mapping
                yield from _from_msgpack(unpacked, name, unusable)
            else:
                yield from _from_json(_Text(unpacked, live=live and packed is None), name, unusable)
    except EOFError as error:  # of a packed file
        raise CutOffError(f"{name} is cut off: the file ends within packed data") from error
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


# ---- JSON ------------------------------------------------------------------------------------------------------------


class _Text:
    """The part of a text file that is in memory."""

    def __init__(self, file: io.BufferedReader[Any], *, live: bool) -> None:
        self._file = file
        self._live = live
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self.text = ""
        self.at = 0  # what is before this was used
        self.line = 1
        self._before = "\n"  # the letter before the text
        self.ended = False

    @property
    def begins_line(self) -> bool:
        """Return True if the next letter is the first of its line."""
        return (self.text[self.at - 1] if self.at else self._before) in "\n\x1e"

    def use(self, end: int) -> None:
        """Go on behind `end`."""
        self.line += self.text.count("\n", self.at, end)
        self.at = end

    def more(self) -> bool:
        """Read more, as much again as is in memory. Return False at the file's end.

        In a pipe, read up to the end of a line that has come.
        """
        self._before = self.text[self.at - 1] if self.at else self._before
        blocks, size, enough = [self.text[self.at :]], 0, max(_BLOCK, len(self.text) - self.at)
        self.at = 0
        while size < enough and not self.ended:
            read = self._file.read1(_BLOCK)
            blocks.append(self._decode(read, final=not read))
            size += len(blocks[-1])
            self.ended = not read
            if self._live and "\n" in blocks[-1]:
                break
        self.text = "".join(blocks)
        return size > 0

    def skip_line(self) -> bool:
        """Go on behind the next newline. Return False if there is none."""
        while (end := self.text.find("\n", self.at)) < 0:
            self.at = len(self.text)
            if not self.more():
                return False
        self.use(end + 1)
        return True

    def skip(self, letters: str) -> str:
        """Skip all of these letters, and return the next one; an empty text at the file's end."""
        while True:
            end = self.at
            while end < len(self.text) and self.text[end] in letters:
                end += 1
            self.use(end)
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""


def _from_json(text: _Text, name: str, unusable: Callable[[str], object] | None) -> Iterator[Document]:
    decode = json.JSONDecoder().raw_decode
    while letter := text.skip(_BETWEEN):
        where = f"{name}, line {text.line}"
        if letter == "]" or (letter == "[" and _begins_array(text)):
            text.use(text.at + 1)  # an array of documents ends or begins
            continue
        is_line = text.begins_line
        try:
            found = _value(decode, text, where)
        except CutOffError:
            raise
        except RecordingError as error:
            if unusable is None or not is_line or not text.skip_line():
                raise
            unusable(str(error))
            continue
        document = _usable(found, where, unusable)
        if document is not None:
            yield document


def _usable(found: object, where: str, unusable: Callable[[str], object] | None) -> Document | None:
    """Return a document, or None if it is none and `unusable` was told so."""
    document = as_document(found)
    if document is None:
        why = f"{where} is no document but a {type(found).__name__}; {EXPECTED}"
        if unusable is None:
            raise RecordingError(why)
        unusable(why)
    return document


def _begins_array(text: _Text) -> bool:
    """Return True if the bracket here begins an array of documents, and not the document `[name, doc]`."""
    here = text.at
    while True:
        end = here + 1
        while end < len(text.text) and text.text[end] in _BETWEEN:
            end += 1
        if end < len(text.text):
            return text.text[end] != '"'
        text.more()  # what is here is not used yet, so it comes first now
        here = 0
        if text.ended:
            return True


def _value(decode: Any, text: _Text, where: str) -> object:
    """Return the JSON value that begins here, and go on behind it."""
    while True:
        try:
            found, end = decode(text.text, text.at)
        except RecursionError as error:
            raise RecordingError(f"{where} is nested too deep to be a document") from error
        except json.JSONDecodeError as error:
            within = error.pos >= len(text.text) - _NEAR_THE_END or error.msg.startswith("Unterminated string")
            if not within:
                raise RecordingError(f"{where} is no JSON: {error.msg}, column {error.colno}; {EXPECTED}") from error
            if len(text.text) - text.at > MAX_DOCUMENT:
                raise RecordingError(f"{where} begins something larger than any document; {EXPECTED}") from error
            if not text.more():
                if text.text[text.at] in '[{"':
                    raise CutOffError(f"{where} is cut off: the file ends within this document") from error
                raise RecordingError(f"{where} is no JSON; {EXPECTED}") from error
            continue
        text.use(end)
        return found


# ---- MessagePack -----------------------------------------------------------------------------------------------------


class _Counted(io.RawIOBase):
    """A file that counts what was read of it."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = file
        self.read_so_far = 0

    def read(self, size: int = -1) -> bytes:
        """Read, and count."""
        block = self._file.read(size)
        self.read_so_far += len(block)
        return block


def _from_msgpack(file: IO[bytes], name: str, unusable: Callable[[str], object] | None) -> Iterator[Document]:
    try:
        import msgpack
    except ImportError as error:
        raise RecordingError(
            f"{name} is MessagePack, and msgpack is not installed: `pip install 'atomscale-bluesky[cli]'`"
        ) from error
    counted = _Counted(file)
    unpacker = msgpack.Unpacker(
        counted,
        strict_map_key=False,
        object_hook=from_numpy,
        unicode_errors="surrogateescape",
        max_buffer_size=MAX_DOCUMENT,
    )
    number = whole = 0
    while True:
        where = f"{name}, document {number + 1}"
        try:
            found = unpacker.unpack()
        except msgpack.OutOfData:
            break
        except (msgpack.UnpackException, ValueError, TypeError) as error:
            raise RecordingError(f"{where} is no MessagePack ({type(error).__name__}: {error}); {EXPECTED}") from error
        number, whole = number + 1, unpacker.tell()
        document = _usable(found, where, unusable)
        if document is not None:
            yield document
    if whole < counted.read_so_far:
        raise CutOffError(f"{name}, document {number + 1} is cut off: the file ends within this document")
