"""What is wrong with a file of documents: it is none, it is cut off, or one of its documents is none. Pure."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import AtomscaleBlueskyError
from .forms import Document, as_document

# A document larger than this is none: no bus and no store takes one.
MAX_DOCUMENT = 1 << 29
EXPECTED = (
    'expected JSON or MessagePack, compressed or not, in which each document is [name, doc], {"name": …, "doc": …}, '
    '{"type": …, "document": …} or {name: doc}'
)


class RecordingError(AtomscaleBlueskyError, ValueError):
    """A file is not a recorded run."""


class CutOffError(RecordingError):
    """A file ends within a document. All documents before it were read."""


def usable(found: object, where: str, unusable: Callable[[str], object] | None) -> Document | None:
    """Return a document. If it is not one, call `unusable` with the reason and return None."""
    document = as_document(found)
    if document is None:
        why = f"{where} is no document but a {type(found).__name__}; {EXPECTED}"
        if unusable is None:
            raise RecordingError(why)
        unusable(why)
    return document
