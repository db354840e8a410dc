"""Links an existing stream to its sample, project and tags, one link after the other.

Repeating anything here changes nothing. A refused look-up in the catalogue shows nothing: only the refusal of the
link itself counts.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, ClassVar

import msgspec

from ...api.answers import Entry
from ...api.client import Client
from ...errors import ApiError, ApiRefusedError
from ...spool.ledger_format import Linked, LinkRefused
from ...spool.run_reader import stop_of
from .. import backoff
from ..backoff import Backoff
from ..pending_links import Link
from ..refusals import LOOK_UP_REFUSED
from .resolve import tag_ids
from .work import Kind, PartlyDoneError, Work, WorkerContext

if TYPE_CHECKING:
    from ..claimed_run import ClaimedRun

_logger = logging.getLogger(__name__)

# A run that stopped longer ago does not tell which sample a project's growth monitoring should follow now.
TRACKED_LATE_S = 600.0


class LinksMade(msgspec.Struct, frozen=True):
    """The links of a stream that were made, and those that were refused."""

    made: tuple[Link, ...] = ()
    refused: dict[Link, str] = {}  # with the reason


class MakeLinks(Work[LinksMade], frozen=True, eq=False):
    """Make the links of a stream that are not made yet."""

    kind: ClassVar[Kind] = Kind.LINK
    backoff: ClassVar[Backoff | None] = backoff.LINK

    data_id: str
    links_to_make: tuple[Link, ...]
    stopped_at: float | None = None  # when the run had stopped, as far as was known; Unix seconds

    def perform(self, client: Client, context: WorkerContext) -> LinksMade:
        """Make one link after the other. Earlier results are kept, whatever happens to a later link."""
        made: list[Link] = []
        refused: dict[Link, str] = {}
        for link in self.links_to_make:
            try:
                _LINKERS[link.kind](client, self, link.to)
            except ApiRefusedError as error:
                refused[link] = str(error)
            except Exception as error:
                raise PartlyDoneError(LinksMade(tuple(made), refused)) from error
            else:
                made.append(link)
        return LinksMade(tuple(made), refused)

    def apply_result(self, run: ClaimedRun, result: LinksMade) -> None:
        """Note which links are made and which are refused."""
        self._note_made(run, result.made)
        known = run.streams[self.stream].links_refused
        new = {link: reason for link, reason in result.refused.items() if known.get(link) != reason}
        for link, reason in new.items():
            run.ledger.note(LinkRefused(self.stream, link.kind, link.to, reason))
        if new:
            uid = run.header.run_uid
            _logger.error(
                "run %s: %r is not linked (%s), its readings are delivered and it stays unfinalized: %s; %s",
                uid, self.label, ", ".join(link.kind for link in new), next(iter(new.values())), run.edit_or_retry(),
            )  # fmt: skip

    def park(self, run: ClaimedRun, reason: str) -> None:
        """Note that all of them are refused. Chunks are sent all the same."""
        self.apply_result(run, LinksMade(refused=dict.fromkeys(self.links_to_make, reason)))

    def apply_failure(self, run: ClaimedRun, error: ApiError, part: LinksMade | None) -> MakeLinks:
        """Note the links that were made, and return the others."""
        if part is None:
            return self
        self._note_made(run, part.made)
        return msgspec.structs.replace(
            self, links_to_make=tuple(link for link in self.links_to_make if link not in part.made)
        )

    def _note_made(self, run: ClaimedRun, made: Iterable[Link]) -> None:
        for link in made:
            run.ledger.note(Linked(self.stream, link.kind, link.to))


def next_work(run: ClaimedRun, now: float) -> MakeLinks | None:
    """Return the links of the next stream that has any to make. Refused ones come again, by a monotonic clock."""
    for number, stream in run.streams.items():
        if run.unfinished_tasks.holds(Kind.LINK, number) or number in run.streams_about_to_end:
            continue
        links_to_make = tuple(
            link
            for link in run.missing_links(stream)
            if link not in stream.links_refused or run.patience.may_ask_again((number, link), now)
        )
        if links_to_make:
            stop = stop_of(run.claim.folder)  # which may not have been read yet
            stopped_at = stop.time if stop else None
            return MakeLinks(number, stream.opening.label, stream.data_id or "", links_to_make, stopped_at)
    return None


def _entry(client: Client, data_id: str) -> Entry | None:
    """Return a stream's entry in the catalogue, or None if there is none or the catalogue does not tell."""
    try:
        return client.entry_of(data_id)
    except LOOK_UP_REFUSED as error:
        _logger.info("the catalogue does not tell what stream %s is linked to: %s", data_id, error)
        return None


def _link_sample(client: Client, work: MakeLinks, sample: str) -> None:
    entry = _entry(client, work.data_id)
    if entry is None or (entry.physical_sample_id or "").lower() != sample.lower():
        client.link_sample(work.data_id, sample)


def _look_for_project(client: Client, work: MakeLinks, project: str) -> None:
    """Check the project, and warn if the catalogue does not show it.

    It is not documented that naming a project puts a stream into it, and no call is known that would.
    """
    entry = _entry(client, work.data_id)
    if entry is not None and project not in {one.lower() for one in entry.project_ids}:
        _logger.warning(
            "%r was initialized for project %s, but the catalogue does not show it there yet", work.label, project
        )


def _track(client: Client, work: MakeLinks, to: str) -> None:
    """Track the sample. For a run that is long over, the sample that grows meanwhile stays the active one."""
    project, sample = to.split()
    active = work.stopped_at is None or time.time() - work.stopped_at < TRACKED_LATE_S
    if not active:
        _logger.warning(
            "%r stopped long ago, so its sample does not become the active one of project %s", work.label, project
        )
    client.track_sample(project, sample, active=active)


def _attach(client: Client, work: MakeLinks, tags: str) -> None:
    client.attach_tags(work.data_id, tags.split())


def _attach_ending(client: Client, work: MakeLinks, tag: str) -> None:
    client.attach_tags(work.data_id, tag_ids(client, [tag]))


def _tell_reason(client: Client, work: MakeLinks, label: str) -> None:
    """Put the reason for a failure into the label. A refusal does no harm: the stream keeps its label."""
    try:
        client.rename(work.data_id, label)
    except ApiRefusedError as error:
        _logger.warning("%r keeps its label, because the one with the reason was refused: %s", work.label, error)


_LINKERS: dict[str, Callable[[Client, MakeLinks, str], None]] = {
    "sample": _link_sample,
    "project": _look_for_project,
    "tracking": _track,
    "tags": _attach,
    "ending": _attach_ending,
    "label": _tell_reason,
}
