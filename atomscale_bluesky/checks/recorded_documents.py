"""Reads the documents of recorded runs from a file, whatever tool of Bluesky's world has written it.

The content decides what a file is, not its name:

- JSON, one document after the other: a line each, indented, within one array or several, separated by commas or by the
  record separators of JSON sequences. A document is `[name, doc]`, `{"name": …, "doc": …}`, `{"type": …, "document":
  …}` or `{name: doc}`. NaN and Infinity may stand for numbers.
- MessagePack, one `[name, doc]` after the other, with numpy's arrays and numbers in the form of `msgpack-numpy`.
- Either of them packed by gzip, bzip2 or xz.

A file may hold several runs. One document at a time is in memory, whatever the file's size.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..errors import AtomscaleBlueskyError

Document = tuple[str, dict[str, Any]]

# How much is read at a time.
_BLOCK = 1 << 20
# A document larger than this is none: no bus and no store takes one.
MAX_DOCUMENT = 1 << 29
# An error of the JSON decoder so near the end of what was read may be due to the end.
_NEAR_THE_END = 16
_PACKED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
_BETWEEN = " \t\r\n,\x1e\ufeff"
_SHAPES = (("name", "doc"), ("type", "document"), ("name", "document"), ("type", "doc"))
_KINDS = {
    *("start", "descriptor", "event", "event_page", "bulk_events", "stop"),
    *("resource", "datum", "datum_page", "bulk_datum", "stream_resource", "stream_datum"),
}
EXPECTED = (
    'expected JSON or MessagePack, plain or packed, in which each document is [name, doc], {"name": …, "doc": …}, '
    '{"type": …, "document": …} or {name: doc}'
)


class RecordingError(AtomscaleBlueskyError, ValueError):
    """A file is not a recorded run."""


class CutOffError(RecordingError):
    """A file ends within a document. All documents before it were read."""


def read_documents(path: Path) -> Iterator[Document]:
    """Yield the documents of a file, in its order. Blocks while it reads.

    Raises:
        CutOffError: The file ends within a document, as it does when its writer was killed. Comes last, behind all
            whole documents. Names the line, or the number of the document.
        RecordingError: The file cannot be read, or holds something else. Names the line, or the number of the document.
    """
    try:
        with _opened(path) as file:
            first = file.peek(1)[:1]
            if first and first[0] >= 0x80 and first != b"\xef":  # MessagePack begins with an array or a mapping
                yield from _from_msgpack(file, path)
            else:
                with io.TextIOWrapper(file, encoding="utf-8") as text:
                    yield from _from_json(text, path)
    except EOFError as error:  # of a packed file
        raise CutOffError(f"{path} is cut off: the file ends within packed data") from error
    except (OSError, UnicodeDecodeError, zlib.error, lzma.LZMAError) as error:
        raise RecordingError(f"{path} cannot be read: {error}; {EXPECTED}") from error


def _opened(path: Path) -> io.BufferedReader:
    with path.open("rb") as file:
        begin = file.read(6)
    for magic, unpack in _PACKED.items():
        if begin.startswith(magic):
            return io.BufferedReader(unpack(path))
    return path.open("rb")


def _document(found: object, where: str) -> Document:
    """Return a document from any of the shapes in which one is written."""
    name: object = None
    doc: object = None
    if isinstance(found, list | tuple) and len(found) == 2:
        name, doc = found
    elif isinstance(found, dict):
        for name_key, doc_key in _SHAPES:
            if name_key in found and doc_key in found:
                name, doc = found[name_key], found[doc_key]
                break
        else:
            if len(found) == 1 and next(iter(found)) in _KINDS:
                ((name, doc),) = found.items()
    if not isinstance(name, str) or not isinstance(doc, dict):
        raise RecordingError(f"{where} is no document but a {type(found).__name__}; {EXPECTED}")
    return name, doc


# ---- JSON ------------------------------------------------------------------------------------------------------------


class _Text:
    """The part of a text file that is in memory."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self.text = ""
        self.at = 0  # what is before this was used
        self.line = 1
        self.ended = False

    def use(self, end: int) -> None:
        """Go on behind `end`."""
        self.line += self.text.count("\n", self.at, end)
        self.at = end

    def more(self) -> bool:
        """Read more, as much again as is in memory. Return False at the file's end."""
        self.text = self.text[self.at :]
        self.at = 0
        block = self._file.read(max(_BLOCK, len(self.text)))
        self.text += block
        self.ended = not block
        return not self.ended

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


def _from_json(file: IO[str], path: Path) -> Iterator[Document]:
    decode = json.JSONDecoder().raw_decode
    text = _Text(file)
    while letter := text.skip(_BETWEEN):
        where = f"{path}, line {text.line}"
        if letter == "]" or (letter == "[" and _begins_array(text)):
            text.use(text.at + 1)  # an array of documents ends or begins
        else:
            yield _document(_value(decode, text, where), where)


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


def _from_msgpack(file: IO[bytes], path: Path) -> Iterator[Document]:
    try:
        import msgpack
    except ImportError as error:
        raise RecordingError(
            f"{path} is MessagePack, and msgpack is not installed: `pip install 'atomscale-bluesky[cli]'`"
        ) from error
    counted = _Counted(file)
    unpacker = msgpack.Unpacker(
        counted,
        strict_map_key=False,
        object_hook=_from_numpy,
        unicode_errors="surrogateescape",
        max_buffer_size=MAX_DOCUMENT,
    )
    number = whole = 0
    while True:
        where = f"{path}, document {number + 1}"
        try:
            found = unpacker.unpack()
        except msgpack.OutOfData:
            break
        except (msgpack.UnpackException, ValueError, TypeError) as error:
            raise RecordingError(f"{where} is no MessagePack ({type(error).__name__}: {error}); {EXPECTED}") from error
        number, whole = number + 1, unpacker.tell()
        yield _document(found, where)
    if whole < counted.read_so_far:
        raise CutOffError(f"{path}, document {number + 1} is cut off: the file ends within this document")


def _from_numpy(found: dict[Any, Any]) -> object:
    """Return the array or number for which `msgpack-numpy` wrote a mapping; any other mapping unchanged.

    An array of objects is a pickle, which may do anything when it is read. It stays a mapping, which is no number.
    """
    is_array = _member(found, "nd")
    if not isinstance(is_array, bool) or _member(found, "kind") in {b"O", "O"}:
        return found
    data = _member(found, "data")
    if isinstance(data, str):  # written by a msgpack that knew no bytes
        data = data.encode(errors="surrogateescape")
    values = np.frombuffer(data, dtype=_dtype(_member(found, "type")))
    return values.reshape(_member(found, "shape")) if is_array else values[0]


def _member(found: Mapping[Any, Any], name: str) -> Any:
    return found.get(name.encode(), found.get(name))


def _dtype(described: Any) -> np.dtype[Any]:
    if isinstance(described, list | tuple):
        return np.dtype([(_text(name), _dtype(kind), *map(tuple, shape)) for name, kind, *shape in described])
    dtype = np.dtype(_text(described))
    if dtype.hasobject:
        raise ValueError("an array of objects")
    return dtype


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
