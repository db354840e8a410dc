"""Every reason why a reading does not become a point. Pure.

To add a reason, add a line here and use it where the reason is found. Then classify it, or leave it out, in each of
these:

    may_be_kept_later, below                    may the same document be kept when it is given again?
    documents/open_run, _COMES_AGAIN            does each replay bring the same readings? Then they are counted already
    documents/missing_events, _WITHOUT_A_ROW    did the event come, although no journal has a row of it?
    documents/channels, _NO_NUMBER_YET          may a value of a numeric key be this for a while?
    documents/layout_chooser, may_change        is a key left out because of its first values, which may change?

CONTRIBUTING.md lists the files that find reasons. `ROW_DROPPED` alone is counted where the account is made
(`status/account`), not where documents are taken. The table of every reason in the documentation is made from this
file. The texts are in journals and in the account of every run, so they never change.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Self


class Loss(StrEnum):
    """A reason, as it is written in journals and reported by `status`; `explanation` says when it applies."""

    explanation: str

    def __new__(cls, text: str, explanation: str) -> Self:
        """Make the reason that is written as `text`."""
        self = str.__new__(cls, text)
        self._value_ = text
        self.explanation = explanation
        return self

    # A reason read from a file is plain text and must be found under it; and it is shown to the user as that text.
    __hash__ = str.__hash__
    __repr__ = str.__repr__

    # of a value: its row has a gap
    NOT_FINITE = "not finite", "the value is NaN or infinite"
    NO_VALUE = "no value", "the value is None, a masked element, or an array without elements"
    TOO_LARGE = "number too large", "the value is a number beyond the largest float"
    MISSING = "missing", "the event lacks the key, or the array has fewer elements than another one had"
    TEXT = "text", "the value is text, and not one of the `choices` or `enum_strs` of the descriptor"
    NOT_NUMERIC = "not numeric", "the value is no number, for example a table, a date or an object"

    # of a data key: it becomes no channel
    ARRAY = "array", "the value is an array of more than one dimension, or a list of something else than numbers"
    LONG_ARRAY = (
        "array too long",
        "the array has more elements than `max_elements`, or grew after keys or arrays had changed 100 times",
    )
    EXTERNAL = "external data", "the document names a file that has the value"
    KEY_NOT_SELECTED = "not selected", "the setting `channels` leaves the key out"
    NAMELESS = "its name is no text", "the data key is no text"
    LATE = (
        "not there at first",
        "the key came after the keys or arrays of its event stream had changed 100 times",
    )

    # of a row with a gap
    ROW_DROPPED = "row with a gap dropped", 'another channel of the row has a gap, with `non_finite = "drop_row"`'

    # of a document: none of its readings is in the journal
    EVENT_STREAM_NOT_SELECTED = "event stream not selected", "the setting `event_streams` leaves the event stream out"
    NO_ROOM = "no room in the spool", "the spool or its disk is full"
    NOT_WRITTEN = "its file could not be written", "the disk failed, or the process could open no more files"
    DOCUMENT_TOO_LONG = "document too long", "the document's rows are longer than a line of a journal may be"
    MALFORMED = "malformed document", "the document is not what an event has to be"
    BEHIND_STOP = "event behind its run's stop", "the event came after the run's stop document"
    NO_DESCRIPTOR = (
        "its descriptor never came",
        "the run ended before the descriptor that the event names came, or too many events were waiting for theirs",
    )

    @property
    def may_be_kept_later(self) -> bool:
        """Return True if the same document may be kept when it is given again later."""
        return self in {Loss.NO_ROOM, Loss.NOT_WRITTEN}


def count_not_kept(left_out: Mapping[str, int]) -> int:
    """Return how many readings could not be written, for want of space or because the disk failed.

    Args:
        left_out: How many readings were left out, by reason.
    """
    return sum(left_out.get(reason, 0) for reason in Loss if reason.may_be_kept_later)
