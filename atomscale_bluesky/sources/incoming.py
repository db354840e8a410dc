"""What a source hands over: a document, and a call that acknowledges it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from ..errors import AtomscaleBlueskyError

# Names that no document of Bluesky's has. A recorder keeps nothing under them, so a loop may pass them on to it.
IDLE = "idle"  # nothing came for a moment
UNREADABLE = "unreadable"  # something came that is no document; the member `reason` says what


class SourceError(AtomscaleBlueskyError):
    """A source gives nothing more, although there is more. What it gave before is not affected."""


class Incoming(NamedTuple):
    """A document from a source.

    Call `ack` once the document is safe on disk, even from a power cut, that is after `DocumentRecorder.sync`. It does
    not block. A source gives a document again, later or to another process, until it is acknowledged.
    """

    name: str
    doc: Mapping[str, Any]
    ack: Callable[[], object]


class Source(Protocol):
    """Where documents come from. Used by one thread."""

    def __iter__(self) -> Iterator[Incoming]:
        """Yield documents in the order in which they came.

        While there are none, yield `IDLE` at least every second, so that what came before is acknowledged.
        """
        ...

    def pause(self, timeout_s: float) -> None:
        """Wait up to `timeout_s` before the next document is asked for, without losing what was not acknowledged."""
        ...

    def close(self) -> None:
        """Pass on the last acknowledgements, and give back what the source holds. May be called again."""
        ...


def no_ack() -> None:
    """Acknowledge nothing, for a source that keeps its documents whatever becomes of them."""


def unreadable(reason: str, ack: Callable[[], object] = no_ack) -> Incoming:
    """Return what a source hands over in the place of something that is no document."""
    return Incoming(UNREADABLE, {"reason": reason}, ack)


def idle() -> Incoming:
    """Return what a source hands over while there are no documents."""
    return Incoming(IDLE, {}, no_ack)
