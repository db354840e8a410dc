"""What the front half knows of a run: how it begins, what it has seen, and what never reaches its journal."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from .account import NotKept
from .channels import EventStream, Names, Selection
from .errors import ChannelError, MetadataError
from .lines import FORMAT, Header, LeftOut, Links, encode
from .metadata import content_digest, read_metadata, run_label
from .oddities import plain
from .settings import Settings
from .values import LATE
from .writer import RunWriter

_logger = logging.getLogger("atomscale_bluesky.callback")

# The same event may come twice (two subscriptions, a bus that delivers again); so many uids of each run are remembered.
REMEMBERED_EVENTS = 10_000
# Longer than any uid, label or path that means something; a start document's uid is written with everything.
MAX_UID = 255

NO_ROOM = "no room in the spool"
NOT_SELECTED = "event stream not selected"
TOO_LONG = "document too long"

# A line of the journal names no more keys than this, so that it is never too long.
KEYS_PER_LINE = 10_000


class OpenRun:
    """A run whose stop document has not come.

    Args:
        uid: The run's.
        header: The first line of its journal.
        after: By time base, the time of the last row kept before it was interrupted.
    """

    def __init__(self, uid: str, header: Header, after: Mapping[str, float] | None = None) -> None:
        self.uid = uid
        self.header = header
        self.writer: RunWriter | None = None  # None: the spool had no room for it, or it is settled
        self.settled = False  # its files say how it ended
        self.why_not_kept = ""  # why the spool did not take it when it was asked last
        self.event_streams: dict[str, EventStream | None] = {}  # None: not selected
        self.names: Names = {}  # of all channels
        self._after = after
        self._seen: set[str] = set()  # the youngest events
        self._seen_before: set[str] = set()  # those before them
        self._layouts = 0
        self._left_out: Counter[tuple[str, str]] = Counter()  # reason, key

    def describe(self, descriptor: Mapping[str, Any], name: str, selection: Selection) -> bool:
        """Take the first descriptor of an event stream; False if that is not selected."""
        taken = selection.takes_event_stream(name)
        self.event_streams[name] = (
            EventStream(
                descriptor,
                selection,
                started=self.header.started,
                next_layout=self._next_layout,
                names=self.names,
                after=self._after,
            )
            if taken
            else None
        )
        return taken

    def begin_again(self, writer: RunWriter) -> None:
        """Go on in another journal, which begins with nothing."""
        self.writer, self.settled = writer, False
        for event_stream in self.event_streams.values():
            if event_stream is not None:
                event_stream.start_over()

    def has_seen(self, uid: str) -> bool:
        """Whether this event came before, among the last `REMEMBERED_EVENTS` at least."""
        return uid in self._seen or uid in self._seen_before

    def remember(self, uid: str) -> None:
        """Note an event's uid, and forget the oldest ones, many at once, when there are many."""
        self._seen.add(uid)
        if len(self._seen) > REMEMBERED_EVENTS:
            self._seen, self._seen_before = set(), self._seen

    def leave_out(self, reason: str, keys: Iterable[Any], events: int = 1) -> None:
        """Count readings that do not reach the journal."""
        for key in keys:
            self._left_out[reason, text_of(key)] += events

    def not_kept(self, ended: float) -> NotKept | None:
        """What to note of a run that has no journal for what was left out; None where there is nothing to note.

        Begins to count anew.
        """
        readings = sum(n for (reason, _), n in self._left_out.items() if reason == NO_ROOM)
        if self.settled and not readings:
            return None
        self._left_out.clear()
        return NotKept(
            run_uid=self.uid,
            label=self.header.label,
            started=self.header.started,
            ended=ended,
            readings=readings,
            reason=self.why_not_kept,
        )

    def left_out_lines(self) -> list[bytes]:
        """What was counted, as lines for the journal; begins to count anew."""
        for event_stream in filter(None, self.event_streams.values()):
            self._left_out.update({(LATE, key): n for key, n in event_stream.late.items()})
            event_stream.late.clear()
        by_reason: dict[str, list[dict[str, int]]] = {}
        for (reason, key), n in self._left_out.items():
            lines = by_reason.setdefault(reason, [{}])
            if len(lines[-1]) >= KEYS_PER_LINE:
                lines.append({})
            lines[-1][key] = n
        self._left_out.clear()
        return [
            encode(LeftOut(event_stream="", reason=reason, readings=sum(keys.values()), keys=keys))
            for reason, lines in by_reason.items()
            for keys in lines
        ]

    def rows(self) -> dict[str, int]:
        """How many rows each time base has given to this journal."""
        streams = (event_stream for event_stream in self.event_streams.values() if event_stream is not None)
        return {time_base: rows for stream in streams for time_base, rows in stream.rows_by_time_base.items()}

    def tell_what_was_odd(self) -> None:
        """Say, at the run's end, which readings arrived otherwise than they were read."""
        for event_stream in filter(None, self.event_streams.values()):
            if event_stream.replaced_times:
                _logger.warning(
                    "event stream %r of run %s: %d readings had impossible times and got their event's",
                    event_stream.name, self.uid, event_stream.replaced_times,
                )  # fmt: skip
            if event_stream.late:
                _logger.warning(
                    "event stream %r of run %s: keys that its first event and descriptor did not have are left out: %s",
                    event_stream.name, self.uid, plain(", ".join(event_stream.late)),
                )  # fmt: skip
            if event_stream.rounded:
                _logger.warning(
                    "event stream %r of run %s: integers beyond 2**53 lost digits in %s; `status` has the counts",
                    event_stream.name, self.uid, plain(", ".join(event_stream.rounded)),
                )  # fmt: skip

    def _next_layout(self) -> int:
        """A number for a layout, unique in this run."""
        self._layouts += 1
        return self._layouts - 1


def uid_of(start: Mapping[str, Any]) -> str:
    """A start document's uid.

    Raises:
        ChannelError: It has none that is text, of bounded length, and such as a file can hold.
    """
    uid = start["uid"]
    if not isinstance(uid, str) or not uid:
        raise ChannelError(f"a start document's uid is a {type(uid).__name__}, expected text; its run is left out")
    if len(uid) > MAX_UID or not uid.isprintable():
        raise ChannelError(
            f"a start document's uid has {len(uid)} characters and begins with {uid[:20]!r}, expected up to {MAX_UID} "
            f"printable ones; its run is left out"
        )
    return uid


def header_of(start: Mapping[str, Any], uid: str, settings: Settings) -> Header:
    """The first line of a run's journal, whatever its start document holds: what cannot be used parks the run."""
    problem, links, points, label = None, Links(), settings.points_per_chunk, None
    defaults = Links(synth_source_id=settings.synth_source_id, project_id=settings.project_id, tags=settings.tags)
    try:
        metadata = read_metadata(start, defaults)
    except MetadataError as error:
        problem = str(error)
    except Exception as error:  # noqa: BLE001 - a foreign object may do anything when it is asked for its value
        problem = f"the metadata cannot be read: {type(error).__name__}"
    else:
        links, label = metadata.links, metadata.label
        points = metadata.points_per_chunk or points
    return Header(
        format=FORMAT,
        run_uid=uid,
        started=time_of(start),
        label=label or run_label(start, settings.label),
        points_per_chunk=points,
        primary=settings.primary,
        endpoint=settings.endpoint,
        non_finite=settings.non_finite,
        layout=settings.layout,
        links=links,
        problem=problem,
        content=content_digest(start),
        keep=settings.keep,
        clock=settings.clock,
        max_latency_s=settings.max_latency_s,
    )


def time_of(doc: Mapping[str, Any]) -> float:
    """A document's time, or the present one if it has none that is."""
    try:
        at = float(doc.get("time"))  # type: ignore[arg-type]
    except Exception:  # noqa: BLE001 - no number, none at all, or a foreign object
        return time.time()
    return at if math.isfinite(at) else time.time()


def text_of(value: object) -> str:
    """Text that a file can hold, of bounded length."""
    try:
        return str("" if value is None else value)[:500].encode(errors="replace").decode()
    except Exception:  # noqa: BLE001 - a foreign object's text may do anything
        return type(value).__name__


def without(page: Mapping[str, Any], rows: list[int]) -> dict[str, Any]:
    """An event page without some of its rows."""
    gone = set(rows)

    def kept(column: Any) -> list[Any]:
        return [value for i, value in enumerate(column) if i not in gone]

    out = dict(page)
    for member in ("uid", "time", "seq_num"):
        if member in page:
            out[member] = kept(page[member])
    for member in ("data", "timestamps", "filled"):
        out[member] = {key: kept(column) for key, column in (page.get(member) or {}).items()}
    return out
