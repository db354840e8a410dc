"""What a run's metrology streams are to be linked to, and what of it is still to do. Touches no file itself.

The names in a run's metadata are resolved once, before its first stream is made, so that all streams of the run are
linked to the same ids. Instrument, project and, in the documented path family, the physical sample go out with
`initialize`; the rest are links of a stream that exists, each made once and noted. They never keep a chunk from
leaving; a stream is finalized when they are made.

    sample     the stream belongs to the physical sample
    project    the catalogue shows the stream in the project (looked at, no more can be done)
    tracking   the project follows the sample; once per run
    tags       the stream has the tags
    ending     when the run has stopped: the tag that tells how
    label      when it failed: the reason, in the stream's label
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from ..model.identifiers import is_uuid
from ..model.labels import label_with_reason
from ..model.links import Links
from ..spool.journal_format import Header, Stop
from ..spool.ledger_state import LedgerState, StreamState

ENDINGS = ("success", "abort", "fail")


class Link(NamedTuple):
    """One link of a stream that exists, of a kind in the list above."""

    kind: str
    to: str


class Linking:
    """The links of one run, as its header, orders and ledger tell."""

    def __init__(self, header: Header, state: LedgerState) -> None:
        self._header = header
        self._state = state

    @property
    def given(self) -> Links:
        """What the run's metadata or the last edit say."""
        return self._state.edited.links if self._state.edited else self._header.links

    @property
    def order(self) -> int:
        """Which edit that was, 0 for none."""
        return self._state.edited.order if self._state.edited else 0

    @property
    def to_resolve(self) -> bool:
        """Whether Atomscale has to be asked what they stand for, before anything is linked to them."""
        links, resolved = self.given, self._state.resolved
        if resolved is not None and resolved.order == self.order:
            return False
        return bool(links.physical_sample or links.physical_sample_id or links.project_id or links.tags)

    @property
    def links(self) -> Links:
        """What to initialize with: ids for names. Where an edit's names are not resolved yet, what was before."""
        resolved = self._state.resolved
        if resolved is not None and (resolved.order == self.order or self.to_resolve):
            return resolved.links
        return msgspec.structs.replace(self.given, physical_sample=None, tags=tuple(filter(is_uuid, self.given.tags)))

    @property
    def may_initialize(self) -> bool:
        """Whether a stream of the run may be made; a run that is under way is not held up by an edit's names."""
        return not self.to_resolve or self._state.exists

    def open(self, stream: StreamState, stop: Stop | None) -> list[Link]:
        """The links of a stream that are still to be made, those refused included."""
        if self.to_resolve or stream.data_id is None or stream.opening.joins is not None:
            return []
        return [link for link in self._wanted(stream, stop) if link not in stream.linked]

    def _wanted(self, stream: StreamState, stop: Stop | None) -> list[Link]:
        links, wanted = self.links, []
        sample, project = links.physical_sample_id, links.project_id
        if sample:
            wanted.append(Link("sample", sample))
        if project:
            wanted.append(Link("project", project))
        if links.track_sample and stream is self._first:
            wanted.append(Link("tracking", f"{project} {sample}"))
        if links.tags:
            wanted.append(Link("tags", " ".join(links.tags)))
        if links.tags and stop is not None:
            wanted.append(Link("ending", ending_tag(stop)))
            if stop.reason and not stop.interrupted and stop.exit_status != "success":
                label = label_with_reason(stream.opening.label, f"{stop.exit_status}: {stop.reason}")
                wanted.append(Link("label", label))
        return wanted

    @property
    def _first(self) -> StreamState | None:
        return next((stream for stream in self._state.streams.values() if stream.data_id is not None), None)


def ending_tag(stop: Stop) -> str:
    """The name of the tag that tells how a run ended: one of five, so that no tag list ever fills up with them."""
    if stop.interrupted:
        return "bluesky: interrupted"
    return f"bluesky: {stop.exit_status if stop.exit_status in ENDINGS else 'unknown'}"
