"""Tells which links of a run's metrology streams are still to be made. Touches no file itself.

The names in a run's metadata are resolved once, before its first stream is made, so that all streams of the run are
linked to the same ids. Instrument, project and, in the documented path family, the physical sample are sent with
`initialize`. All others are links of a stream that exists. Each is made once and noted. Links never hold up a chunk,
but a stream is finalized only after they are made.

    sample     the stream belongs to the physical sample
    project    the catalogue shows the stream in the project (this can only be checked)
    tracking   the project follows the sample. Once per run
    tags       the stream has the tags
    ending     after the run has stopped: the tag that tells how it ended
    label      after it failed or was aborted: the stream's label says so, and for runs with tags has the reason
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from ..model.identifiers import is_uuid
from ..model.labels import label_with_reason
from ..model.links import Links
from ..spool.journal_format import Header, Stop
from ..spool.ledger_state import LedgerState
from ..spool.stream_state import MetrologyStreamState

ENDINGS = ("success", "abort", "fail")


class Link(NamedTuple):
    """One link of a stream that exists, of a kind in the list above."""

    kind: str
    to: str


class PendingLinks:
    """The links of one run, from its header, orders and ledger."""

    def __init__(self, header: Header, state: LedgerState) -> None:
        self._header = header
        self._state = state

    @property
    def named_links(self) -> Links:
        """The links that the run's metadata give, or the last edit."""
        return self._state.edited.links if self._state.edited else self._header.links

    @property
    def edit_number(self) -> int:
        """The number of that edit, 0 for none."""
        return self._state.edited.order if self._state.edited else 0

    @property
    def must_resolve(self) -> bool:
        """Return True if the run names a sample, project or tags whose ids are not known yet."""
        links, resolved = self.named_links, self._state.resolved
        if resolved is not None and resolved.order == self.edit_number:
            return False
        return bool(links.physical_sample or links.physical_sample_id or links.project_id or links.tags)

    @property
    def resolved_links(self) -> Links:
        """The links with ids in place of names. While an edit's names are not resolved, those before the edit."""
        resolved = self._state.resolved
        if resolved is not None and (resolved.order == self.edit_number or self.must_resolve):
            return resolved.links
        return msgspec.structs.replace(
            self.named_links, physical_sample=None, tags=tuple(filter(is_uuid, self.named_links.tags))
        )

    @property
    def may_initialize(self) -> bool:
        """Return True if a stream may be made. The names of an edit do not hold up a run that is under way."""
        return not self.must_resolve or self._state.is_initialized

    def missing(self, stream: MetrologyStreamState, stop: Stop | None) -> list[Link]:
        """Return the links of a stream that are still to be made, including refused ones."""
        if self.must_resolve or stream.data_id is None or stream.opening.joins is not None:
            return []
        return [link for link in self._wanted(stream, stop) if link not in stream.linked]

    def _wanted(self, stream: MetrologyStreamState, stop: Stop | None) -> list[Link]:
        links, wanted = self.resolved_links, []
        sample, project = links.physical_sample_id, links.project_id
        if sample:
            wanted.append(Link("sample", sample))
        if project:
            wanted.append(Link("project", project))
        if links.track_sample and stream is self._first_made_stream:
            wanted.append(Link("tracking", f"{project} {sample}"))
        if links.tags:
            wanted.append(Link("tags", " ".join(links.tags)))
        if links.tags and stop is not None:
            wanted.append(Link("ending", ending_tag(stop)))
        if stop is not None and not stop.interrupted and stop.exit_status not in {"", "success"}:
            # The reason may be an exception's text. It leaves the machine only for runs that have tags.
            why = f"{stop.exit_status}: {stop.reason}" if links.tags and stop.reason else stop.exit_status
            wanted.append(Link("label", label_with_reason(stream.opening.label, why)))
        return wanted

    @property
    def _first_made_stream(self) -> MetrologyStreamState | None:
        return next((stream for stream in self._state.streams.values() if stream.data_id is not None), None)


def ending_tag(stop: Stop) -> str:
    """Return the name of the tag that tells how a run ended. There are only five, so they never fill a list of tags."""
    if stop.interrupted:
        return "bluesky: interrupted"
    return f"bluesky: {stop.exit_status if stop.exit_status in ENDINGS else 'unknown'}"
