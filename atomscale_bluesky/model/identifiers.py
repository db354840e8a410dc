"""What a person writes to name a physical sample, a project or a tag in, the name as it is kept out. Pure.

Names are compared as Atomscale does it, trimmed and ignoring case; besides, two ways to encode the same letters are
the same name, since an accent typed on one machine and pasted on another looks alike and is not. A name that cannot
be used raises ValueError with what was expected.
"""

from __future__ import annotations

import re
import unicodedata
import uuid
from collections.abc import Iterable
from typing import Any

# No limit is documented for the names of samples and tags; 255 is where the documented names of channels end.
MAX_NAME = 255
# A stream that is found under fifty words is found; more is a mistake, such as a text taken for a list of letters.
MAX_TAGS = 50
# … repetitions included.
MOST_GIVEN = 1000
# The path families of the API, the documented one first.
FAMILIES = ("metrology", "tool-state")
# A UUID in the documentation; whatever else it may be, it leads a request nowhere but to where it is meant to go.
_ID = re.compile(r"[0-9A-Za-z._~:@+=,-]{1,255}")


def uuid_of(value: object) -> str:
    """A UUID as Atomscale writes it."""
    try:
        return str(value if isinstance(value, uuid.UUID) else uuid.UUID(value.strip()))  # type: ignore[attr-defined]
    except (ValueError, AttributeError, TypeError):
        raise ValueError("expected a UUID such as '6f0e2c1a-93c4-4b7e-8d55-0a1b2c3d4e5f'") from None


def is_id(text: str) -> bool:
    """Return True if a text may stand for an id in the path of a request: it is one part of the path, and no other."""
    return _ID.fullmatch(text) is not None and text != "." and ".." not in text


def is_uuid(text: str) -> bool:
    """Whether a name is none, but an id in the usual form with dashes."""
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False


def name_of(value: object) -> str:
    """A name, trimmed; an id in lower case."""
    text = unicodedata.normalize("NFC", value.strip()) if isinstance(value, str) else ""
    if not text or not text.isprintable():
        raise ValueError("expected printable text on one line")
    if len(text) > MAX_NAME:
        raise ValueError(f"expected up to {MAX_NAME} characters, there are {len(text)}")
    return text.lower() if is_uuid(text) else text


def tags_of(value: object) -> tuple[str, ...]:
    """Tags, given as one text or a list of texts: blank ones and repetitions, ignoring case, are dropped."""
    given: Iterable[Any] = (value,) if isinstance(value, str) else value  # type: ignore[assignment]
    if not isinstance(value, str | list | tuple | set | frozenset):
        raise ValueError("expected text or a list of texts")
    if not isinstance(value, str) and len(value) > MOST_GIVEN:
        raise ValueError(f"expected up to {MAX_TAGS} tags, there are {len(value)}")
    if isinstance(value, set | frozenset):
        given = sorted(value, key=str)  # the order of a set differs from process to process
    tags: dict[str, str] = {}
    for tag in given:
        if not isinstance(tag, str):
            raise ValueError(f"expected texts, {tag!r:.40} is none")  # noqa: TRY004 - one kind of error for any input
        if tag.strip():
            name = name_of(tag)
            tags.setdefault(folded(name), name)
    if len(tags) > MAX_TAGS:
        raise ValueError(f"expected up to {MAX_TAGS} tags, there are {len(tags)}")
    return tuple(tags.values())


def folded(name: str) -> str:
    """What two spellings of one name have in common."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name.strip()).casefold())
