"""Normalizes the names of physical samples, projects and tags that a user writes. Pure.

Names are compared as Atomscale compares them: trimmed, and ignoring case. Also, two Unicode encodings of the same
letters count as one name, since an accent typed on one machine and pasted on another looks the same but is encoded
differently. A name that cannot be used raises a ValueError that says what was expected.
"""

from __future__ import annotations

import re
import unicodedata
import uuid
from collections.abc import Iterable
from typing import Any

# No limit is documented for the names of samples and tags. The documented names of channels end at 255.
MAX_NAME = 255
# Fifty tags are enough to find a stream by. More is a mistake, such as a text taken for a list of letters.
MAX_TAGS = 50
# How many may be given, with repetitions.
MAX_TAGS_GIVEN = 1000
# The path families of the API, the documented one first.
FAMILIES = ("metrology", "tool-state")
# An id in the documentation is a UUID. Whatever its form, an id must not lead a request to another path.
_ID = re.compile(r"[0-9A-Za-z._~:@+=,-]{1,255}")

# How many hexadecimal digits a UUID has, and the longest text that is checked for being nearly one.
_UUID_DIGITS = 32
_MAX_NEARLY_UUID = 60


def uuid_of(value: object) -> str:
    """Return a UUID in the form in which Atomscale writes it."""
    try:
        return str(value if isinstance(value, uuid.UUID) else uuid.UUID(value.strip()))  # type: ignore[attr-defined]
    except (ValueError, AttributeError, TypeError):
        raise ValueError("expected a UUID such as '6f0e2c1a-93c4-4b7e-8d55-0a1b2c3d4e5f'") from None


def is_id(text: str) -> bool:
    """Return True if the text may be an id in the path of a request: it is exactly one part of the path."""
    return _ID.fullmatch(text) is not None and text != "." and ".." not in text


def is_uuid(text: str) -> bool:
    """Return True if the text is a UUID, in the usual form with dashes, rather than a name."""
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False


def is_nearly_uuid(value: object) -> bool:
    """Return True if a value is no UUID, but text that was meant as one: a digit or two are missing, added or wrong.

    A text of 32 hexadecimal digits is a UUID. Hashes of 24 or 40 digits, as other programs use them, are not near one.
    """
    if not isinstance(value, str) or len(value) > _MAX_NEARLY_UUID:
        return False
    text = value.strip().strip("{}").lower().removeprefix("urn:uuid:").strip()
    letters = text.replace("-", "")
    wrong = sum(letter not in "0123456789abcdef" for letter in letters)
    if not _UUID_DIGITS - 2 <= len(letters) <= _UUID_DIGITS + 2:
        return False
    return wrong == 0 or (wrong <= 2 and text.count("-") in {3, 4, 5})


def name_of(value: object) -> str:
    """Return a name without blanks around it; a UUID in lower case."""
    text = unicodedata.normalize("NFC", value.strip()) if isinstance(value, str) else ""
    if not text or not text.isprintable():
        raise ValueError("expected printable text on one line")
    if len(text) > MAX_NAME:
        raise ValueError(f"expected up to {MAX_NAME} characters, there are {len(text)}")
    return text.lower() if is_uuid(text) else text


def tags_of(value: object) -> tuple[str, ...]:
    """Return tags, given as one text or a list of texts, without blank ones and repetitions (ignoring case)."""
    given: Iterable[Any] = (value,) if isinstance(value, str) else value  # type: ignore[assignment]
    if not isinstance(value, str | list | tuple | set | frozenset):
        raise ValueError("expected text or a list of texts")
    if not isinstance(value, str) and len(value) > MAX_TAGS_GIVEN:
        raise ValueError(f"expected up to {MAX_TAGS} tags, there are {len(value)}")
    if isinstance(value, set | frozenset):
        given = sorted(value, key=str)  # the order of a set differs between processes
    tags: dict[str, str] = {}
    for tag in given:
        if not isinstance(tag, str):
            raise ValueError(f"expected texts, {tag!r:.40} is none")  # noqa: TRY004 - one kind of error for any input
        if tag.strip():
            name = name_of(tag)
            tags.setdefault(comparable(name), name)
    if len(tags) > MAX_TAGS:
        raise ValueError(f"expected up to {MAX_TAGS} tags, there are {len(tags)}")
    return tuple(tags.values())


def comparable(name: str) -> str:
    """Return the form that two spellings of one name share."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name.strip()).casefold())
