"""Reads JSON text while it arrives in parts, and keeps none of it. Pure.

Up to `STEP_BYTES` are processed between two pauses. Skipped values are not checked, except that their brackets close.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

import msgspec
import numpy as np
from numpy.typing import NDArray

from .answers import AnswerError

# How much is processed between two pauses: about 0.2 ms of work, in which no other thread can run.
STEP_BYTES = 8192
# A channel name has up to 255 characters, of up to 12 bytes each if they are written as escapes.
MAX_NAME_BYTES = 4096
# What a member, a row or a number costs in addition to its bytes, counted in bytes.
_STEP_AT_LEAST = 32

_COLUMN = msgspec.json.Decoder(list[float | None])
_NAME = msgspec.json.Decoder(str)
# Without possessive quantifiers, which the first versions of Python 3.11 match wrongly, such as Debian 12's 3.11.2
# (https://github.com/python/cpython/issues/106052). The next byte decides each alternative, so nothing is tried twice
# and the time stays linear.
_BLANKS = re.compile(rb"[ \t\r\n]*")
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_SCALAR = re.compile(rb'[^ \t\r\n,:"\[\]{}]*')
_STRINGS = re.compile(rb'[^"]*(?:"[^"\\]*(?:\\.[^"\\]*)*"[^"]*)*', re.DOTALL)  # text in which every string is whole
_IN_STRING = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)
_ESCAPED = re.compile(rb"\\.", re.DOTALL)
_QUOTE, _COMMA = ord('"'), ord(",")
_NOWHERE = np.empty(0, dtype=np.intp)
_DEEPER = np.zeros(256, dtype=np.int64)
_DEEPER[list(b"[{")], _DEEPER[list(b"]}")] = 1, -1


class TooMuchError(AnswerError):
    """An answer holds far more than there can be."""


class JsonParts:
    """JSON text that arrives in parts. Text that was read is not kept."""

    def __init__(self, parts: Iterable[bytes], pause: Callable[[], object], max_members: int) -> None:
        self._parts = iter(parts)
        self.left_out = 0  # elements that were too large for `blocks`
        self._members_left = max_members
        self._pause = pause
        self._text = b""
        self._offset = 0  # up to here it was read
        self._since = 0  # bytes read since the last pause

    def members(self) -> Iterator[str]:
        """Read an object: yields the name of each member. The caller must read its value before the next one."""
        for _ in self._items(b"{", b"}"):
            self._members_left -= 1
            if self._members_left < 0:
                raise TooMuchError("the answer has more series than a stream can have")
            if self.peek() != b'"':
                raise AnswerError("the answer has a member without a name")
            found = _STRING.match(self._text, self._offset, self._offset + MAX_NAME_BYTES)
            if found:
                self._advance(len(found.group()))
            name = _NAME.decode(found.group() if found else self.value(MAX_NAME_BYTES))
            self._expect(b":")
            yield name

    def elements(self) -> Iterator[None]:
        """Read an array: yields once per element, which the caller must read."""
        return self._items(b"[", b"]")

    def _items(self, opening: bytes, closing: bytes) -> Iterator[None]:
        self._expect(opening)
        if self.peek() == closing:
            self._advance(1)
            return
        while True:
            yield
            if self.peek() == closing:
                self._advance(1)
                return
            self._expect(b",")

    def numbers(self) -> Iterator[list[float | None]]:
        """Read an array of numbers and nulls, and yield them block by block."""
        self._expect(b"[")
        begun = False
        while True:
            limit = self._offset + STEP_BYTES
            end = self._text.find(b"]", self._offset, limit)
            if end < 0 and len(self._text) < limit and self._read_more():
                continue
            cut = end if end >= 0 else self._text.rfind(b",", self._offset, limit)
            if cut < 0:
                raise AnswerError("the answer ends within a series, or holds something other than numbers")
            block = self._text[self._offset : cut]
            if begun and not block.strip():
                raise AnswerError("a series of the answer ends with a comma")
            self._advance(cut + 1 - self._offset)
            yield _COLUMN.decode(b"[%b]" % block)
            if end >= 0:
                return
            begun = True

    def blocks(self, max_bytes: int) -> Iterator[bytes]:
        """Read an array: yields the texts of its elements, several of them at a time, with the commas between them.

        Args:
            max_bytes: How large an element may be. A larger one is left out and counted in `left_out`.
        """
        self._expect(b"[")
        if self.peek() == b"]":
            self._advance(1)
            return
        block, end, too_large = bytearray(), b"", False
        for piece, commas in self._inside():
            end = piece[-1:]
            if not commas.size:
                too_large = too_large or len(block) + len(piece) > max_bytes
                block += piece
                if too_large:
                    block.clear()
                continue
            first, last = int(commas[0]), int(commas[-1])
            if not too_large:
                yield _with_elements(block + piece[:last])
            elif last > first:
                yield _with_elements(bytearray(piece[first + 1 : last]))
            self.left_out += too_large
            block, too_large = bytearray(piece[last + 1 :]), False
        if end != b"]":
            raise AnswerError("a list of the answer ends with another bracket")
        self.left_out += too_large
        if not too_large:
            yield _with_elements(block[:-1])

    def value(self, max_bytes: int) -> bytes:
        """Read one value and return its whole text."""
        taken = bytearray()
        for piece in self._value():
            taken += piece
            if len(taken) > max_bytes:
                raise AnswerError(f"a member of the answer has more than {max_bytes} bytes")
        return bytes(taken)

    def skip(self) -> int:
        """Skip one value of any kind and depth. Return its number of elements if it is an array, else 0."""
        if self.peek() != b"[":
            for _ in self._value():
                pass
            return 0
        self._advance(1)
        empty = self.peek() == b"]"
        commas = sum(commas.size for _, commas in self._inside())
        return 0 if empty else commas + 1

    def peek(self) -> bytes:
        """Return the next character that is not a blank, without reading it."""
        char = self._text[self._offset : self._offset + 1]
        if char > b" ":
            return char
        while True:
            found = _BLANKS.match(self._text, self._offset, self._offset + STEP_BYTES)
            self._advance(found.end() - self._offset if found else 0)
            if self._offset < len(self._text):
                char = self._text[self._offset : self._offset + 1]
                if char not in b" \t\r\n":  # JSON's blanks; Python has more
                    return char
            elif not self._read_more():
                raise AnswerError("the answer ends too early")

    def check_end(self) -> None:
        """Check that only blanks follow."""
        while not self._text[self._offset :].strip():
            self._advance(len(self._text) - self._offset)
            if not self._read_more():
                return
        raise AnswerError("the answer goes on after its end")

    def _value(self) -> Iterator[bytes]:
        """Read one value: yields the pieces of its text."""
        first = self.peek()
        if first in b"[{":
            self._advance(1)
            yield first
            for piece, _ in self._inside():
                yield piece
        elif first == b'"':
            yield from self._string()
        else:
            empty = True
            while (found := _SCALAR.match(self._text, self._offset, self._offset + STEP_BYTES)) and found.group():
                empty = False
                self._advance(len(found.group()))
                yield found.group()
                if self._offset < len(self._text) or not self._read_more():
                    return
            if empty:
                raise AnswerError(f"the answer has {first!r} where a value was expected")

    def _inside(self) -> Iterator[tuple[bytes, NDArray[np.intp]]]:
        """Read to the end of an array or object that has begun, however deep it is.

        Yields the pieces of its text, up to its last bracket, and where in each its own commas are.
        """
        depth = 1
        while depth:
            found = _STRINGS.match(self._text, self._offset, self._offset + STEP_BYTES)
            piece = found.group() if found else b""
            if not piece and self._offset < len(self._text):
                for part in self._string():  # a long string, or one that is in two parts
                    yield part, _NOWHERE
            elif piece:
                text = np.frombuffer(_ESCAPED.sub(b"??", piece) if b"\\" in piece else piece, dtype=np.uint8)
                outside = (np.cumsum(text == _QUOTE) & 1) == 0
                depths = depth + np.cumsum(np.where(outside, _DEEPER[text], 0))
                size = int(np.argmax(depths == 0)) + 1 if (depths == 0).any() else len(piece)
                commas = np.flatnonzero(outside[:size] & (text[:size] == _COMMA) & (depths[:size] == 1))
                depth = int(depths[size - 1])
                self._advance(size)
                yield piece[:size], commas
            elif not self._read_more():
                raise AnswerError("the answer ends too early")

    def _string(self) -> Iterator[bytes]:
        self._advance(1)
        yield b'"'
        while True:
            found = _IN_STRING.match(self._text, self._offset, self._offset + STEP_BYTES)
            piece = found.group() if found else b""
            self._advance(len(piece))
            yield piece
            if self._text[self._offset : self._offset + 1] == b'"':
                self._advance(1)
                yield b'"'
                return
            if not piece and not self._read_more():
                raise AnswerError("the answer ends within a text")

    def _expect(self, char: bytes) -> None:
        if self.peek() != char:
            raise AnswerError(f"the answer has {self.peek()!r} where {char!r} was expected")
        self._advance(1)

    def _advance(self, size: int) -> None:
        self._offset += size
        self._since += size + _STEP_AT_LEAST
        if self._since >= STEP_BYTES // 2:  # a step ends at the end of a number or a string
            self._since = 0
            self._pause()

    def _read_more(self) -> bool:
        """Get more of the text and drop the part already read. Return False if there is no more."""
        parts = [self._text[self._offset :]]
        size = 0
        while size < STEP_BYTES and (part := next(self._parts, b"")):
            parts.append(part)
            size += len(part)
        self._text, self._offset = b"".join(parts), 0
        return size > 0


def _with_elements(block: bytearray) -> bytes:
    """Return a block of an array's text, which must have an element."""
    if not block.strip():
        raise AnswerError("a list of the answer has a comma too many")
    return bytes(block)
