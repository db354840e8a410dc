"""The status of one run, for operators and programs: its account, its streams, and what it waits for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Literal

import msgspec

from ..errors import SpoolError
from ..spool.ledger_format import NO_POINT
from ..spool.ledger_state import LedgerState
from ..spool.orders import AnyOrder, Discard, Edit, Retry
from ..spool.own_files import recording_began
from ..spool.stream_state import MetrologyStreamState
from .account import Account, Counts
from .linked_to import LinkedTo, OrderedEdit, linked_to, ordered_edit

# What keeps a run waiting for the operator: its metadata; something that it names and Atomscale does not have; a
# damaged ledger; the whole run, for the reason that its problem tells; or, of a stream, its beginning, a chunk or a
# link.
Cause = Literal["metadata", "missing", "ledger", "run", "stream", "chunk", "link", "unreadable"]


class StreamStatus(msgspec.Struct, frozen=True):
    """One metrology stream of a run."""

    label: str  # its name in Atomscale
    event_stream: str
    why: str
    state: str  # opened, initializing, initialized, finalizing, finalized; closed, if it ended early; or parked
    data_id: str | None
    problem: str | None  # why it is parked, or the last refusal: of a chunk, or of a link
    chunks_confirmed: int
    chunks_refused: int
    # Those that it holds or will hold. Empty if an earlier version noted it, or if a finished run has hundreds of them.
    channels: tuple[str, ...] = ()


class RunStatus(msgspec.Struct, frozen=True):
    """One run of the spool."""

    run_uid: str
    label: str
    started: float  # Unix seconds
    state: str  # running, delivering, waiting, parked, interrupted, finalized, discarded or unreadable
    points: Counts
    channels: Mapping[str, Counts]
    streams: tuple[StreamStatus, ...]
    problem: str | None
    # Since when the oldest waiting point waits, Unix seconds: its time, or when its run's recording began, if later
    oldest_waiting: float | None
    folder: str = ""  # the run's folder in the spool
    rounded: Mapping[str, int] = {}  # by channel: integers beyond 2**53 that lost digits
    endpoint: str = ""  # where it is delivered
    scan_id: int | None = None  # of the start document
    not_given: Mapping[str, int] = {}  # by event stream: events of num_events that never came
    repeated_rows: int = 0  # rows with the number of an earlier row; those that no chunk holds are lost
    exit_status: str = ""  # of the stop document; empty until it has come, and for a run that was interrupted
    reason: str = ""  # why it failed or was aborted, by the stop document
    cause: Cause | None = None  # the kind of `problem`
    last_confirmed: float | None = None  # when Atomscale last confirmed a chunk of it, Unix seconds
    # Metadata keys that cannot be used; `atomscale` for an unknown key in that dict. Empty once they are corrected
    unusable: tuple[str, ...] = ()
    # What the operator ordered and no process has carried out yet: retry, discard, edit, settle, move
    ordered: tuple[str, ...] = ()
    interrupted: bool = False  # no stop document came, and the run is completed without one
    linked_to: LinkedTo | None = None  # to what its streams are linked in Atomscale; None if it cannot be read
    ordered_edit: OrderedEdit | None = None  # the values of the `edit` among `ordered`
    last_written: float | None = None  # when its journal was last written to, Unix seconds; None once it has stopped

    @property
    def name(self) -> str:
        """The name of its first metrology stream in Atomscale; its label until it has one."""
        return next((stream.label for stream in self.streams), self.label)

    @property
    def needs_operator(self) -> bool:
        """True if something of the run does not move by itself."""
        refused = self.points.refused > 0 and not self.ordered
        return self.state in {"parked", "unreadable"} or refused or self.points.lost > 0

    @property
    def unfinished(self) -> bool:
        """True if a process has something left to do for it: to deliver points, or to finalize its streams."""
        ended = self.state not in {"running", "finalized", "discarded"}
        return not self.needs_operator and (self.points.waiting > 0 or ended)

    @property
    def data_ids(self) -> tuple[str, ...]:
        """The ids that Atomscale has given its metrology streams so far."""
        return tuple(dict.fromkeys(stream.data_id for stream in self.streams if stream.data_id))


def status_of(
    account: Account,
    ledger: LedgerState,
    *,
    writer_alive: bool = True,
    folder: str = "",
    ordered: Sequence[AnyOrder] = (),
    last_written: float | None = None,
) -> RunStatus:
    """Return the run's status for operators and programs.

    Args:
        account: What the run's journal holds.
        ledger: What happened to its chunks.
        writer_alive: True if a process may still write the journal.
        folder: The run's folder.
        ordered: The operator's orders that no process has carried out yet. A run that one of them mends is not parked.
        last_written: When its journal was last written to, Unix seconds.

    Raises:
        SpoolError: The journal has no header.
    """
    header = account.header
    if header is None:
        raise SpoolError("the journal has no header")
    channels = account.channels(ledger)
    problem = ledger.parked_reason or (header.problem if ledger.edited is None else None) or ledger.unresolved
    streams = tuple(_stream_status(stream, account) for stream in ledger.streams.values() if stream.ended != NO_POINT)
    parked = problem or next((stream.problem for stream in streams if stream.state == "parked"), None)
    cause = _cause(account, ledger) if parked else None
    if ledger.discarded:
        state = "discarded"
    elif ledger.streams and all(stream.is_done for stream in ledger.streams.values()) and not ledger.parked_reason:
        state = "finalized"
    elif parked and not any(_may_mend(order, cause) for order in ordered):
        state = "parked"
    elif account.stop is None:
        state = "running" if writer_alive else "interrupted"
    else:
        state = "delivering"
    points = sum(channels.values(), Counts())
    since = [stream.last_tried.last_time for stream in ledger.streams.values() if stream.last_tried]
    tried = [chunk for stream in ledger.streams.values() for chunk in stream.tried.values()]
    since += [chunk.first_time for chunk in tried if chunk.first_time is not None]
    stop = account.stop if account.stop is not None and not account.stop.interrupted else None
    edited, found = ledger.edited, ledger.resolved
    edits = [order for order in ordered if isinstance(order, Edit)]
    return RunStatus(
        folder=folder,
        run_uid=header.run_uid,
        label=(ledger.edited and ledger.edited.label) or header.label,
        started=header.started,
        state=state,
        points=points,
        channels=channels,
        streams=streams,
        problem=parked,
        rounded=dict(account.rounded),
        not_given=dict(account.stop.not_given) if account.stop else {},
        repeated_rows=account.rows_repeated.total(),
        scan_id=header.scan_id,
        endpoint=ledger.endpoint or header.endpoint,
        oldest_waiting=(max(min(since, default=header.started), recording_began(folder)) if points.waiting else None),
        exit_status=stop.exit_status if stop else "",
        reason=stop.reason if stop else "",
        cause=cause,
        unusable=header.unusable if ledger.edited is None else (),
        last_confirmed=max((s.confirmed_at for s in ledger.streams.values() if s.confirmed_at), default=None),
        ordered=tuple(type(order).__name__.lower() for order in ordered),
        interrupted=account.stop is not None and account.stop.interrupted,
        linked_to=linked_to(
            edited.links if edited else header.links,
            found.links if found and found.order == (edited.order if edited else 0) else None,
        ),
        ordered_edit=ordered_edit(edits[-1]) if edits else None,
        last_written=last_written if account.stop is None else None,
    )


def unreadable(folder: str, problem: str) -> RunStatus:
    """Return the status of a run of which only the reason is known why it cannot be read."""
    return RunStatus(
        run_uid=PurePath(folder).name,
        label="",
        started=0.0,
        state="unreadable",
        points=Counts(),
        channels={},
        streams=(),
        problem=problem,
        oldest_waiting=None,
        folder=folder,
        cause="unreadable",
    )


def _may_mend(order: AnyOrder, cause: Cause | None) -> bool:
    """Return True if a parked run goes on, or ends, when this order is carried out."""
    return isinstance(order, Edit | Discard) or (isinstance(order, Retry) and cause != "metadata")


def _cause(account: Account, ledger: LedgerState) -> Cause:
    """Return the kind of problem of a run that has one."""
    if ledger.parked_reason:
        return "ledger" if ledger.broken else "run"
    if account.header is not None and account.header.problem and ledger.edited is None:
        return "metadata"
    if ledger.unresolved:
        return "missing"
    streams = ledger.streams.values()
    if any(stream.parked for stream in streams):
        return "stream"
    return "chunk" if any(stream.refused for stream in streams) else "link"


def _stream_status(stream: MetrologyStreamState, account: Account) -> StreamStatus:
    opening = stream.opening
    event_stream = next(
        (layout.event_stream for layout in account.layouts.values() if layout.time_base == opening.time_base),
        opening.time_base,
    )
    refusal = next(iter(stream.refused.values()), None)
    held = {name for names in stream.delivered for name in names}
    held |= {name for tried in stream.tried.values() for name in tried.channels}
    problem = stream.parked or (refusal.reason if refusal else None) or next(iter(stream.links_refused.values()), None)
    return StreamStatus(
        label=stream.renamed or opening.label,
        event_stream=event_stream,
        why=opening.why,
        state="parked" if problem else stream.life.value,
        data_id=stream.data_id,
        problem=problem,
        chunks_confirmed=stream.chunks_confirmed,
        chunks_refused=len(stream.refused),
        channels=tuple(name for name in account.channels_of(stream) if name in held or name not in stream.left_at_row),
    )
