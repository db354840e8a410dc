"""Documents of a JSON file of any size: one after the other, in lines, in arrays, or separated by record separators."""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from ..model.text import encodable
from .forms import Document
from .recording_errors import EXPECTED, MAX_DOCUMENT, CutOffError, RecordingError, usable

# How much is read at a time.
_BLOCK = 1 << 20
# An error of the JSON decoder so near the end of what was read may be due to the end.
_NEAR_THE_END = 16
_BETWEEN = " \t\r\n,\x1e\ufeff"
# The rest of a line before another one on which a document begins without indentation.
_BEFORE_ANOTHER = re.compile(r"[^\n]*\n[\r\n]*[\[{\x1e]")


class Text:
    """The part of a text file that is in memory."""

    def __init__(self, file: io.BufferedReader[Any], *, live: bool) -> None:
        self._file = file
        self._live = live
        # What is no UTF-8 costs its own document alone.
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self.text = ""
        self.at = 0  # what is before this was used
        self.line = 1
        self._before = "\n"  # the letter before the text
        self.ended = False
        self.has_other_bytes = False  # something that was read is no UTF-8

    @property
    def begins_line(self) -> bool:
        """Return True if the next letter is the first of its line."""
        return (self.text[self.at - 1] if self.at else self._before) in "\n\x1e"

    @property
    def is_before_another(self) -> bool:
        """Return True if a further line is in memory, and a document may begin it."""
        return _BEFORE_ANOTHER.match(self.text, self.at) is not None

    def move_to(self, end: int) -> None:
        """Go on behind `end`."""
        self.line += self.text.count("\n", self.at, end)
        self.at = end

    def read_more(self) -> bool:
        """Read more, as much again as is in memory. Return False at the file's end.

        In a pipe, read up to the end of a line that has come.
        """
        self._before = self.text[self.at - 1] if self.at else self._before
        blocks, size, enough = [self.text[self.at :]], 0, max(_BLOCK, len(self.text) - self.at)
        self.at = 0
        while size < enough and not self.ended:
            read = self._file.read1(_BLOCK)
            blocks.append(self._decode(read, final=not read))
            self.has_other_bytes = self.has_other_bytes or not _is_encodable(blocks[-1])
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
            if not self.read_more():
                return False
        self.move_to(end + 1)
        return True

    def skip(self, letters: str) -> str:
        """Skip all of these letters, and return the next one; an empty text at the file's end."""
        while True:
            end = self.at
            while end < len(self.text) and self.text[end] in letters:
                end += 1
            self.move_to(end)
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.read_more():
                return ""


def _is_encodable(text: str) -> bool:
    return text.isascii() or text == encodable(text)


def from_json(text: Text, name: str, unusable: Callable[[str], object] | None) -> Iterator[Document]:
    """Yield the documents of a JSON file.

    Args:
        text: The file, at its beginning.
        name: What errors call it.
        unusable: Called with the reason for each document that cannot be used, if the next one can be found. None:
            raise an error.

    Raises:
        CutOffError: The file ends within a document, or within an array of documents.
        RecordingError: It holds something else.
    """
    decode = json.JSONDecoder().raw_decode
    of_lines = True  # the last document began a line, or there is none yet; so the next one may do so too
    arrays = 0  # how many arrays of documents have begun and not ended
    while letter := text.skip(_BETWEEN):
        where = f"{name}, line {text.line}"
        if letter == "]" or (letter == "[" and _begins_array(text)):
            text.move_to(text.at + 1)  # an array of documents ends or begins
            arrays = max(0, arrays + (1 if letter == "[" else -1))
            continue
        begins_line = text.begins_line
        try:
            found = _value(decode, text, where)
        except CutOffError:
            # What follows `["event", ` may have been taken for the missing value: the last line, up to the file's end.
            if unusable is None or not (begins_line and text.is_before_another and text.skip_line()):
                raise
            unusable(f"{where} is cut off")
            continue
        except RecordingError as error:
            if unusable is None or not (begins_line or of_lines) or not text.skip_line():
                raise
            unusable(str(error))
            continue
        document = usable(found, where, unusable)
        if document is not None:
            of_lines = begins_line
            yield document
    if arrays:
        raise CutOffError(f"{name} is cut off: the file ends within an array of documents")


def _begins_array(text: Text) -> bool:
    """Return True if the bracket here begins an array of documents, and not the document `[name, doc]`."""
    here = text.at
    while True:
        end = here + 1
        while end < len(text.text) and text.text[end] in _BETWEEN:
            end += 1
        if end < len(text.text):
            return text.text[end] != '"'
        if not text.read_more():
            return True
        here = 0  # what is here is not used yet, so it comes first now


def _value(decode: Any, text: Text, where: str) -> object:
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
            if not text.read_more():
                if text.text[text.at] in '[{"':
                    raise CutOffError(f"{where} is cut off: the file ends within this document") from error
                raise RecordingError(f"{where} is no JSON; {EXPECTED}") from error
            continue
        except ValueError as error:  # an integer of more digits than Python reads
            raise RecordingError(f"{where} cannot be read: {error}; {EXPECTED}") from error
        if text.has_other_bytes and not _is_encodable(text.text[text.at : end]):
            raise RecordingError(f"{where} cannot be read, because it is no UTF-8; {EXPECTED}")
        text.move_to(end)
        return found
