"""Closes a stream, once: when the run has stopped, all of it is confirmed and linked, and its account adds up."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, ClassVar

import msgspec

from ...api.answers import CLOSED
from ...api.client import Client
from ...errors import ApiError, ApiRefusedError
from ...spool.ledger_format import Finalized, Finalizing
from ...spool.stream_state import Life, MetrologyStreamState
from .. import backoff
from ..refusals import CATALOGUE_ATTEMPTS, status_of, surely_did_nothing
from .work import Kind, RetryAfter, Work, WorkerContext

if TYPE_CHECKING:
    from ..claimed_run import ClaimedRun

_logger = logging.getLogger(__name__)


class Finalize(Work["ApiRefusedError | None"], frozen=True, eq=False):
    """Close a stream. The result is a refusal that the catalogue may still explain, or None if the stream is closed."""

    kind: ClassVar[Kind] = Kind.FINALIZE

    data_id: str
    family: str
    may_be_closed: bool = False  # an earlier attempt, perhaps of another process, may have closed the stream
    looks: int = 0  # how often the catalogue did not show that

    def perform(self, client: Client, context: WorkerContext) -> ApiRefusedError | None:
        """Close the stream. Nothing is left to do if it is closed already."""
        try:
            client.finalize(self.family, self.data_id)
        except ApiRefusedError as error:
            # It may be closed already: an answer was lost, or the server closed a stream that was silent.
            status = status_of(client, self, self.data_id, context)
            if status not in CLOSED:
                if status is not None and self.may_be_closed and self.looks + 1 < CATALOGUE_ATTEMPTS:
                    return error
                raise
            if status != "success":
                _logger.warning(
                    "the server closed %r as %s before it was finalized; the stream is complete", self.label, status
                )
        return None

    def shows_write_access(self, result: ApiRefusedError | None) -> bool:
        """Return True if the stream was closed."""
        return result is None

    def apply_result(self, run: ClaimedRun, result: ApiRefusedError | None) -> RetryAfter | None:
        """Note that the stream is closed, or look again later: the catalogue may lag behind. That is no outage."""
        if result is None:
            run.ledger.note(Finalized(self.stream, run.unix_time()))
            return None
        _logger.info("%s was refused, perhaps because it is done; the catalogue does not show it yet: %s", self, result)
        return RetryAfter(msgspec.structs.replace(self, looks=self.looks + 1), backoff.READ.pause_s(self.looks))

    def apply_failure(self, run: ClaimedRun, error: ApiError, part: ApiRefusedError | None) -> Finalize:
        """Return this task, for a stream that may be closed by now unless the request certainly did nothing."""
        return self if surely_did_nothing(error) else msgspec.structs.replace(self, may_be_closed=True)


def next_work(run: ClaimedRun) -> Finalize | None:
    """Return the next stream to close, noted and synced. Park the run if its account does not add up."""
    chunker = run.run_chunker
    if run.must_reload or not chunker.all_cut or chunker.results.ready or run.unfinished_tasks.failed_tasks:
        return None  # `must_reload`: a stream was opened whose rows are read next
    ready = [stream for number, stream in run.streams.items() if _may_be_closed(run, number, stream)]
    unknown = [stream for stream in ready if stream.opening.stream not in run.account_checked]
    contradictions: dict[int, str] = {}
    if unknown:
        beyond = {*chunker.results.outgrown, *(number for number in run.streams if number in run.streams_about_to_end)}
        contradictions = chunker.account.contradictions(run.state, unknown, beyond)
        run.account_checked.update({stream.opening.stream for stream in unknown} - contradictions.keys())
    for stream in ready:
        number = stream.opening.stream
        if number in contradictions:
            continue
        may_be_closed = stream.life is not Life.INITIALIZED
        if not may_be_closed:
            run.ledger.note(Finalizing(number))
        return Finalize(number, stream.opening.label, stream.data_id or "", stream.family or "", may_be_closed)
    if contradictions and not run.unfinished_tasks.in_flight:
        run.park_for_its_account(next(iter(contradictions.values())))
    return None


def _may_be_closed(run: ClaimedRun, number: int, stream: MetrologyStreamState) -> bool:
    """Return True if all that is left to do for a stream is to close it, whatever the account says."""
    if run.unfinished_tasks.holds(Kind.FINALIZE, number) or stream.opening.joins is not None:
        return False
    if stream.group_parked or any(not one.all_confirmed or one.life is Life.CLOSED for one in stream.group):
        return False
    if run.unfinished_tasks.holds(Kind.LINK, number) or run.pending_links.must_resolve or run.missing_links(stream):
        return False
    if any(one.opening.stream in run.run_chunker.results.outgrown for one in stream.group):
        return False  # the rows after it have no stream yet
    return stream.life in {Life.INITIALIZED, Life.FINALIZING}
