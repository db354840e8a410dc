"""Keeps the API key out of every error, also if a server or a gateway repeats it in its answer. Pure.

It is replaced before a text is shortened, however its characters are escaped. Of an answer that was cut within the key,
the key's beginning is replaced too. A key of a few characters is left alone: ordinary words would be garbled.
"""

from __future__ import annotations

import copy
import html
import re
from collections.abc import Callable
from functools import cached_property
from typing import TypeVar

from ..errors import AtomscaleBlueskyError

PLACEHOLDER = "<API key>"

_SHORTEST_KEY = 8
# How many characters of a key's beginning are recognised where a text was cut, and what may follow the cut.
_SHORTEST_BEGINNING = 4
_CUT = re.compile(r"""['"…]*(?:;|\Z)""")

T = TypeVar("T")


class HiddenKey:
    """An API key that no error may show.

    Args:
        key: The key, which is printable ASCII. None or a short one is not looked for.
    """

    def __init__(self, key: str | None) -> None:
        self._key = key if key and len(key) >= _SHORTEST_KEY else ""

    def replaced_in(self, body: bytes) -> bytes:
        """Return the body of an answer without the key."""
        if not self._key:
            return body
        return self._whole.sub(PLACEHOLDER, body.decode("latin-1")).encode("latin-1")

    def kept_from_errors(self, work: Callable[[], T]) -> T:
        """Return the result of `work`. If its error shows the key, raise the same without it and without its causes."""
        try:
            return work()
        except AtomscaleBlueskyError as error:
            if not self._key or not any(text != self._without_key(text) for text in _texts(error)):
                raise
            shown = copy.copy(error)
            shown.args = (self._without_key(str(error)),)
        raise shown  # here, where no other error is its context

    @cached_property
    def _whole(self) -> re.Pattern[str]:
        return re.compile("".join(map(_spellings, self._key)))

    @cached_property
    def _characters(self) -> list[re.Pattern[str]]:
        return [re.compile(_spellings(character)) for character in self._key]

    @cached_property
    def _beginning(self) -> re.Pattern[str]:
        return re.compile("".join(map(_spellings, self._key[:_SHORTEST_BEGINNING])))

    def _without_key(self, text: str) -> str:
        text = self._whole.sub(PLACEHOLDER, text)
        for begun in reversed(list(self._beginning.finditer(text))):
            end = begun.end()
            for character in self._characters[_SHORTEST_BEGINNING:]:
                if not (found := character.match(text, end)):
                    break
                end = found.end()
            if _CUT.match(text, end):
                text = text[: begun.start()] + PLACEHOLDER + text[end:]
        return text


def _spellings(character: str) -> str:
    """Return a pattern of all ways in which a character may stand in JSON, HTML, an address or Python's `repr`."""
    code = ord(character)
    return (
        rf"(?:\\{{0,4}}{re.escape(character)}|\\{{1,4}}(?i:u00{code:02x}|x{code:02x})|(?i:%{code:02x})"
        rf"|&#(?:0{{0,4}}{code}|(?i:x0{{0,4}}{code:x}));|{re.escape(html.escape(character))})"
    )


def _texts(error: BaseException) -> list[str]:
    """Return what a traceback may show of an error and of all errors behind it."""
    errors: list[BaseException] = [error]
    for one in errors:
        errors += [behind for behind in (one.__cause__, one.__context__) if behind and behind not in errors]
    return [text for one in errors for text in (str(one), repr(one))]
