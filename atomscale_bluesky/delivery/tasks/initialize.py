"""Makes a metrology stream. The path family is noted before the request leaves, so a crash in between shows."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, ClassVar

import msgspec

from ...api.answers import is_about_the_route
from ...api.client import Client
from ...errors import ApiError, ApiKeyError, ApiRefusedError
from ...model.identifiers import FAMILIES
from ...model.links import Links
from ...spool.ledger_format import Initialized, Initializing
from ...spool.stream_state import Life
from ...status.remedies import NO_API
from ..refusals import LOOK_UP_REFUSED, is_no_route, surely_did_nothing
from .work import Kind, RetryAfter, Work, WorkerContext

if TYPE_CHECKING:
    from ..claimed_run import ClaimedRun

_logger = logging.getLogger(__name__)


class Initialize(Work[str], frozen=True, eq=False):
    """Make a stream, or find the one that an earlier attempt has made. The result is its id."""

    kind: ClassVar[Kind] = Kind.INITIALIZE

    links: Links
    points_per_chunk: int
    family: str
    may_exist: bool = False  # an earlier attempt may have made the stream
    refusal: str = ""  # why another path family refused it before

    def perform(self, client: Client, context: WorkerContext) -> str:
        """Look for the stream if it may exist, and make it if it does not."""
        look_up_error: ApiError | None = None
        if self.may_exist:
            # An earlier request may have been applied although its answer never came. So look before making another.
            try:
                entry = client.find_entry(self.label)
            except LOOK_UP_REFUSED as error:
                look_up_error = error
            else:
                found = "was found in the catalogue" if entry else "is not in the catalogue, so it is made"
                _logger.info("%r %s", self.label, found)
                if entry:
                    return entry.data_id
        try:
            made = client.initialize(
                self.family, label=self.label, points_per_chunk=self.points_per_chunk, links=self.links
            )
        except ApiKeyError as error:
            _check_instrument(client, self.links.synth_source_id, error)
            raise
        if look_up_error is not None:
            # Nothing was ever pushed to a stream whose id is not known, so an empty one may be left at most.
            _logger.warning(
                "%r may have existed already, and the catalogue gave no answer (%s), so it was made again; delete an "
                "empty stream of this label if there is one", self.label, look_up_error,
            )  # fmt: skip
        return made

    def shows_write_access(self, result: str) -> bool:
        """Return True: the stream was made."""
        return True

    def apply_result(self, run: ClaimedRun, result: str) -> None:
        """Note the stream's id. Its chunks may leave now, unless the answer has the id of another stream."""
        run.server_facts.family = run.server_facts.family or self.family
        other = next((one.opening.label for one in run.streams.values() if one.data_id == result), None)
        other = other or run.server_facts.note_stream(result, self.label)
        if other is not None:  # its chunks would replace those of the other one
            self.park(run, f"its initialize was answered with the id of another stream, {other!r}: {result}")
            return
        if run.streams[self.stream].parked:
            run.request_reload("chunks of a stream were passed over while it was parked")
        run.ledger.note(Initialized(self.stream, result, self.family))
        _logger.info("metrology stream %r has the id %s", self.label, result)

    def apply_refusal(self, run: ClaimedRun, error: ApiRefusedError) -> RetryAfter | None:
        """Try the next path family if this one may not exist here, else park the stream."""
        known = run.server_facts.family
        if known != self.family:  # the family was a guess
            # The next one is tried, or the one that another stream has found out meanwhile.
            following = FAMILIES[FAMILIES.index(self.family) + 1 :] if known is None else (known,)
            no_route = is_no_route(error) and is_about_the_route(error.detail, self.links)
            if following and no_route:
                _note_family(run, self.stream, following[0])
                work = msgspec.structs.replace(self, family=following[0], refusal=str(error), may_exist=False)
                return RetryAfter(work, 0.0)
            if known is None and self.family != FAMILIES[0]:  # all were refused
                _note_family(run, self.stream, FAMILIES[0])  # after a correction it begins with the first family
                if self.refusal and no_route:
                    self.park(run, f"{self.refusal}; {error}; {NO_API}{_what_it_named(self.links, self.refusal)}")
                    return None
        reason = f"{self.refusal}; {error}" if self.refusal else str(error)
        self.park(run, reason + _what_it_named(self.links, reason))
        return None

    def apply_failure(self, run: ClaimedRun, error: ApiError, part: str | None) -> Initialize:
        """Return this task, for a stream that may exist by now unless the request certainly did nothing."""
        return self if surely_did_nothing(error) else msgspec.structs.replace(self, may_exist=True)


def next_work(run: ClaimedRun, now: float) -> Initialize | None:
    """Return the next stream to make. A refused one is tried again now and then, by a monotonic clock."""
    if not run.pending_links.may_initialize:
        return None
    for number, stream in run.streams.items():
        if stream.life not in {Life.OPENED, Life.INITIALIZING} or run.unfinished_tasks.holds(Kind.INITIALIZE, number):
            continue
        if stream.opening.joins is not None:
            continue  # initialized with the one that it joins
        may_exist = stream.life is Life.INITIALIZING
        if not (may_exist or run.is_made_at_once(number) or run.run_chunker.has_point(stream)):
            continue  # perhaps it never has one
        if stream.parked and not run.patience.may_ask_again(number, now):
            continue
        family = stream.family or run.server_facts.family or FAMILIES[0]
        _note_family(run, number, family)
        opening = stream.opening
        return Initialize(
            number, opening.label, run.pending_links.resolved_links, opening.points_per_chunk, family, may_exist
        )
    return None


def _note_family(run: ClaimedRun, stream: int, family: str) -> None:
    """Note that the request is about to leave for this path family."""
    if run.streams[stream].family != family:
        run.ledger.note(Initializing(stream, family))


def _check_instrument(client: Client, source_id: int | None, error: ApiKeyError) -> None:
    """Find out whether a key may not write, or may write but not for the instrument of another organisation.

    Raises:
        ApiRefusedError: The instrument is not among those that the key can see.
    """
    if error.status != 403 or source_id is None:
        return
    try:
        known = client.instruments()
    except ApiError:
        return
    if source_id not in known:
        raise ApiRefusedError(
            f"growth instrument {source_id} is not one that this key can see ({error}); correct it with "
            f"`edit --synth-source-id`",
            status=error.status,
        ) from error


def _what_it_named(links: Links, reason: str) -> str:
    """Return the links of a refused stream that the refusal itself does not name."""
    named = {
        "synth_source_id": links.synth_source_id,
        "physical_sample_id": links.physical_sample_id,
        "project_id": links.project_id,
    }
    unsaid = [f"{name} {value}" for name, value in named.items() if value is not None and str(value) not in reason]
    return f"; the run names {', '.join(unsaid)}" if unsaid else ""
