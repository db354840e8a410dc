"""A claimed run as its tasks see it: its files, their content as it was read, and what is under way."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container

from ..chunking.run_chunker import RunChunker
from ..model.chunk import Chunk
from ..model.uids import shown_uid
from ..spool.gil_yield import GilYield
from ..spool.ledger_format import Parked
from ..spool.ledger_state import LedgerState
from ..spool.run_claim import RunClaim
from ..spool.segments import START
from ..spool.stream_state import MetrologyStreamState
from ..status.commands import with_option
from ..status.remedies import NO_API, move_away
from ..status.run_status import RunStatus, status_of
from .backoff import Patience
from .pending_links import Link, PendingLinks
from .previews import Previews, cut_short_in_doubt
from .streams_about_to_end import StreamsAboutToEnd
from .tasks.work import Kind, ServerFacts
from .unfinished_tasks import Task, UnfinishedTasks

_logger = logging.getLogger(__name__)


class ClaimedRun:
    """A claimed run, in the state that its files tell. Belongs to the deciding thread.

    Args:
        claim: Has its files.
        server_facts: What is known about the server, shared by all runs.
        unix_time: Returns Unix seconds. A test passes its own.
        gil_yield: Makes way for a plan's thread.

    Raises:
        SpoolError: From every method: the run's files cannot be read or written, or contradict each other.
    """

    def __init__(
        self, claim: RunClaim, server_facts: ServerFacts, unix_time: Callable[[], float], gil_yield: GilYield | None
    ) -> None:
        self.claim = claim
        self.header = claim.header
        self.ledger = claim.ledger
        self.server_facts = server_facts
        self.unix_time = unix_time
        self.unfinished_tasks = UnfinishedTasks()
        self.patience = Patience()
        self.pushed_singly: dict[int, set[str]] = {}  # by stream: channels that were refused
        self.account_checked: set[int] = set()  # streams whose account was checked and is right
        self.must_reload = False  # what was read of the files no longer holds
        self.pending_links = PendingLinks(claim.header, claim.ledger.state)
        if self.state.broken is None:
            cut_short_in_doubt(claim.ledger)
        self.run_chunker = RunChunker(
            claim.folder, claim.header, claim.ledger, synced_to=claim.synced_to, gil_yield=gil_yield
        )
        self.previews = Previews(claim.header, claim.ledger, self.run_chunker, unix_time)
        self.streams_about_to_end = StreamsAboutToEnd(claim.ledger, self.run_chunker, unix_time)
        if self.state.broken is not None:
            _logger.error("run %s is parked and stays in the spool: %s", self.header.run_uid, self.state.broken)
        elif self.offset_unknown and self.parked is None and self._has_sent_times:
            self.park(
                "the line of its ledger that tells the shift of its times is damaged, and a part of it was sent",
                "`move` it to the same endpoint, which delivers all of it again as new streams, or `discard` it",
            )
        if not (self.streams or self.parked):
            self.run_chunker.openings.open(
                why="run start", time_base=self.header.primary, from_row=0, position=START, channels=None
            )

    @property
    def state(self) -> LedgerState:
        """The state that the ledger tells."""
        return self.ledger.state

    @property
    def streams(self) -> dict[int, MetrologyStreamState]:
        """The metrology streams in the ledger, by number."""
        return self.ledger.state.streams

    def is_made_at_once(self, stream: int) -> bool:
        """Return True for the first stream of a run, which shows that the run is there, also without a point.

        Any other stream is made with its first point. So is each stream of a run that goes on after an interruption.
        """
        return stream == 0 and self.header.part == 0

    @property
    def stopped(self) -> bool:
        """Return True if the journal, as far as it was read, holds the run's stop."""
        return self.run_chunker.account.stop is not None

    @property
    def delivered(self) -> bool:
        """Return True if every metrology stream of the stopped run is finalized, and linked."""
        return (
            self.run_chunker.all_cut
            and all(stream.is_done for stream in self.streams.values())
            and not self.pending_links.must_resolve
            and not any(self.missing_links(stream) for stream in self.streams.values())
        )

    @property
    def finished(self) -> bool:
        """Return True if nothing is left to do, so that the run may leave the spool.

        Then all of it is delivered, and read back if wanted. Or it was discarded, and no worker has a task of it.
        """
        if self.must_reload:
            return False
        if self.state.discarded:
            return self.stopped and self.unfinished_tasks.in_flight == 0
        if self.state.parked_reason:
            return False
        return self.delivered and (self.header.keep != "verified" or self.state.verified is not None)

    @property
    def parked(self) -> str | None:
        """The reason why the whole run waits for the operator or for something missing in Atomscale, or None."""
        return self.needs_operator_because or (None if self.state.is_initialized else self.state.unresolved)

    @property
    def needs_operator_because(self) -> str | None:
        """Why only the operator can free the run, or None if it is not parked or waits for something in Atomscale."""
        return self.state.parked_reason or (self.header.problem if self.state.edited is None else None)

    @property
    def offset_unknown(self) -> bool:
        """Return True if it is not known yet by how much the run's times are to be shifted."""
        return self.header.clock == "reference" and self.state.clock is None

    @property
    def _has_sent_times(self) -> bool:
        """Return True if a part of the run was pushed, or may have been."""
        return any(stream.last_tried or stream.last_preview for stream in self.streams.values())

    def status(self) -> RunStatus:
        """Return the run's public status."""
        return status_of(self.run_chunker.account, self.state, folder=str(self.claim.folder))

    def as_sent(self, chunk: Chunk) -> Chunk:
        """Return a chunk with its times as they are sent."""
        return chunk.shifted(self.state.clock.offset_s) if self.state.clock else chunk

    def missing_links(self, stream: MetrologyStreamState) -> list[Link]:
        """Return the links of a stream that are still to be made, including refused ones."""
        return self.pending_links.missing(stream, self.run_chunker.account.stop)

    def request_reload(self, reason: str) -> None:
        """Let the run be read again from its files once nothing of it is under way. Until then no task begins."""
        _logger.debug("run %s is to be read again from its files: %s", self.header.run_uid, reason)
        self.must_reload = True

    def park(self, reason: str, remedy: str) -> None:
        """Keep the run in the spool until the operator acts."""
        self.ledger.note(Parked(f"{reason}; {remedy}"))
        remedy = with_option(remedy, self.server_facts.spool_option)
        _logger.error("run %s is parked and stays in the spool: %s; %s", self.header.run_uid, reason, remedy)

    def park_for_its_account(self, contradiction: str) -> None:
        """Park the run because the delivered points are not those that its files say."""
        self.park(
            f"its account does not add up ({contradiction}), so it is not finalized",
            "compare it by `atomscale-bluesky verify`, then `move` it, which delivers all of it again, or `discard` it",
        )

    def park_stream(self, number: int, label: str, reason: str) -> None:
        """Park a stream and those that share it, until the operator acts or what is missing appears. Data are kept."""
        stream = self.streams[number]
        if stream.parked == reason:  # tried again, with the same answer
            return
        self.ledger.note(Parked(reason, number))
        together = {one.opening.stream for one in stream.group}
        self.run_chunker.results.drop_ready(together)
        self.pop_failed(together)
        _logger.error(
            "run %s: %r is parked, its readings are kept: %s; %s", self.header.run_uid, label, reason,
            self._remedy_for(reason),
        )  # fmt: skip

    def _remedy_for(self, reason: str) -> str:
        """Return the commands that may mend a parked stream, for a log line."""
        if NO_API not in reason:
            return self.edit_or_retry()
        short, option = shown_uid(self.header.run_uid), self.server_facts.spool_option
        move = move_away(self.state.endpoint or self.header.endpoint)
        return f"if it is wrong, `{move}{option}`, else `atomscale-bluesky retry {short}{option}` once the API is there"

    def edit_or_retry(self) -> str:
        """Return the commands that mend the run, or one of its streams, for a log line."""
        short, option = shown_uid(self.header.run_uid), self.server_facts.spool_option
        return f"mend it with `atomscale-bluesky edit {short} …{option}` or `atomscale-bluesky retry {short}{option}`"

    def pop_failed(self, streams: Container[int]) -> list[Task]:
        """Remove and return the failed tasks of some streams.

        A failed link task still holds its kind, so these links are made only after the run was read again.
        """
        popped = self.unfinished_tasks.pop_failed(streams)
        for task in popped:
            if task.kind is not Kind.LINK:
                self.unfinished_tasks.finish(task)
        return popped

    def keep_for_retry(self, task: Task) -> None:
        """Let a failed task that was removed be tried again after all."""
        if task.kind is not Kind.LINK:
            self.unfinished_tasks.hold(task.kind, task.stream)
        self.unfinished_tasks.keep_for_retry(task)
