"""Compares a run in Atomscale with what must have arrived, point by point, while the spool still has the run.

The run's files alone say what must have arrived: the ledger says which rows made each chunk that was tried, and the
journal has the rows. They are cut again by the same rules as when they were sent. Nothing is noted and nothing is sent,
so it does not matter which process delivers the run, or whether any does. A confirmed chunk must be there. A chunk that
was tried and never answered may be there.

Reading disturbs no process and may be done at any time: of a run in progress, the chunks confirmed so far are compared.
Memory holds one metrology stream at a time, both the expected points and those found in the same channels. The journal
is read once per stream. Series that Atomscale adds to a stream, such as scores and forecasts, are named and counted,
and are not differences.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from ..api.answers import PointsByChannel
from ..api.client import Client
from ..api.stream_content import StreamContent
from ..chunking.recut import cut_again
from ..errors import ApiRefusedError, ApiTooLargeError, ApiUnavailableError, SpoolError
from ..model.points import packed_column
from ..model.text import safe
from ..spool.ledger import LedgerReader, facts_of
from ..spool.ledger_format import Confirmed, Moved, Tried
from ..spool.run_reader import LEDGER, RunReader
from ..spool.segments import segments
from ..spool.spool import Spool
from ..spool.stream_state import MetrologyStreamState
from ..status.account import Account, Counts
from ..status.notebook import html_table
from ..status.run_summary import verified_at
from ..status.spool_status import SpoolStatus
from .comparison import Difference, Part, Series, arrangement, differences, same_points

# How many differences are reported. Further ones are only counted.
MAX_DIFFERENCES = 20
# How long it may take until confirmed points can be read. That is not documented.
PATIENCE_S = 30.0
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.25, 5.0


@dataclass(frozen=True, slots=True)
class StreamDifference(Difference):
    """One thing that is not as expected, and where."""

    data_id: str


@dataclass(frozen=True, slots=True)
class StreamVerified:
    """One metrology stream as it was read back."""

    data_id: str
    label: str
    channels: int
    points: int  # how many points were compared, over all channels
    different: int  # how many things were not equal
    uncompared: int = 0  # points whose lines in the journal are damaged
    problem: str | None = None  # why it could not be read
    added: dict[str, int] = field(default_factory=dict)  # series of the service's own: name, and how many values


@dataclass(frozen=True, slots=True, repr=False)
class Verification:
    """The result of reading a run back."""

    run_uid: str
    label: str
    streams: tuple[StreamVerified, ...]
    differences: tuple[StreamDifference, ...]  # the first ones
    waiting: int = 0  # points that are not confirmed, so they cannot be checked
    refused: int = 0
    discarded: int = 0
    lost: int = 0

    @property
    def points(self) -> int:
        """How many points were compared."""
        return sum(stream.points for stream in self.streams)

    @property
    def different(self) -> int:
        """How many things were not equal, including those beyond the reported `differences`."""
        return sum(stream.different for stream in self.streams)

    @property
    def uncompared(self) -> int:
        """How many points could not be compared, because their lines in the journal are damaged."""
        return sum(stream.uncompared for stream in self.streams)

    @property
    def problem(self) -> str | None:
        """Why a stream could not be read."""
        return next((stream.problem for stream in self.streams if stream.problem), None)

    @property
    def added(self) -> dict[str, int]:
        """Series that the service has added to the run's streams, with the number of values of each.

        Not differences.
        """
        found: dict[str, int] = {}
        for stream in self.streams:
            for name, values in stream.added.items():
                found[name] = found.get(name, 0) + values
        return found

    @property
    def arrived(self) -> bool:
        """Return True if everything confirmed could be read and is equal."""
        return not (self.different or self.uncompared or self.problem)

    @property
    def equal(self) -> bool:
        """Return True if the whole run is in Atomscale, and all of it is equal."""
        return self.arrived and not (self.waiting or self.refused or self.discarded or self.lost)

    def __repr__(self) -> str:
        """Return a line that says which run it is and how it compared."""
        return f"<Verification of run {safe(self.run_uid[:8])}: {safe(str(self))}>"

    def _repr_html_(self) -> str:
        """Return the streams as a table for a notebook."""
        columns = ("stream", "channels", "points compared", "differences", "not compared", "problem")
        rows = ((s.data_id, s.channels, s.points, s.different, s.uncompared, s.problem) for s in self.streams)
        return html_table(f"Run {self.run_uid[:8]} ({self.label}): {self}", columns, rows)

    def __str__(self) -> str:
        """Return the result as one line of text."""
        if self.problem:
            return f"it could not be read back: {self.problem}"
        if self.different:
            first = self.differences[0]
            more = f", and {self.different - 1} further differences" if self.different > 1 else ""
            return f"channel {first.channel!r} of {first.data_id}: {first}{more}"
        if self.uncompared:
            return f"{self.uncompared} points could not be compared, their lines in the journal are damaged"
        rest = {"waiting": self.waiting, "refused": self.refused, "discarded": self.discarded, "lost": self.lost}
        left = ", ".join(f"{n} {what}" for what, n in rest.items() if n)
        said = f"all {self.points} points that were confirmed are equal" if self.points else "no point is confirmed"
        return said + (f"; {left}" if left else "")


def find_to_verify(spool: Spool, watch: SpoolStatus, run: str) -> Path:
    """Return the folder of the run whose uid begins with `run`.

    Raises:
        SpoolError: No run or several runs match, or it has left the spool. The text then says whether it was read back.
    """
    try:
        return Path(watch.find(run).folder)
    except SpoolError:
        entry = spool.history.newest_beginning_with(run) if run else None
        if entry is None:
            raise
        uid = safe(str(entry.get("run_uid"))[:8])
    if (at := verified_at(entry)) is not None:
        when = f"{datetime.fromtimestamp(at).astimezone():%Y-%m-%d %H:%M:%S}"
        raise SpoolError(f"run {uid} was read back on {when} and was equal, and has left the spool")
    raise SpoolError(
        f"run {uid} is finished and has left the spool: compare it with its recorded documents "
        f"(`atomscale-bluesky verify {uid} --file FILE`), or look at what Atomscale has (`atomscale-bluesky show {uid} "
        f'--from api`); with the setting keep = "verified" a run is read back before it leaves the spool'
    )


def verify_run(
    folder: Path,
    client: Client,
    *,
    patience_s: float = PATIENCE_S,
    wait: Callable[[float], object] | None = None,
    monotonic: Callable[[], float] = time.monotonic,
) -> Verification:
    """Compare what Atomscale holds of the run in a spool's folder with what must have arrived.

    Args:
        folder: The run's folder. Nothing in it is changed.
        client: Sends the requests.
        patience_s: How long to go on reading while points are missing or there is no answer.
        wait: Waits for this many seconds between two polls.
        monotonic: The clock that `patience_s` is measured by.

    Raises:
        SpoolError: The folder holds no run that can be read, or the run left the spool meanwhile.
        ApiKeyError: The key may not read.
        ApiUnavailableError: The API did not answer within `patience_s`.
        ApiTooLargeError: An answer is far larger than its stream can be.
    """
    wait = wait or threading.Event().wait
    try:
        journal = set(segments(folder))
        run = _Run(folder)
        end = monotonic() + patience_s
        told: list[StreamDifference] = []
        streams = tuple(
            _verify_stream(run, stream, client, told, lambda: end - monotonic(), wait)
            for stream in run.state.streams.values()
            if stream.data_id is not None and stream.opening.joins is None
        )
        if not journal <= set(segments(folder)):
            raise FileNotFoundError(folder)
    except FileNotFoundError as error:
        raise SpoolError(f"the run in {folder} left the spool while it was read") from error
    counts = run.counts
    return Verification(
        run_uid=run.header.run_uid,
        label=run.header.label,
        streams=streams,
        differences=tuple(told),
        waiting=counts.waiting,
        refused=counts.refused,
        discarded=counts.discarded,
        lost=counts.lost,
    )


def read_back(
    client: Client,
    families: tuple[str, ...],
    data_id: str,
    due: Mapping[str, int],
    *,
    is_whole: Callable[[PointsByChannel], bool],
    left_s: Callable[[], float],
    wait: Callable[[float], object],
) -> tuple[StreamContent, str | None]:
    """Return a stream's points, and why they could not be read. Reads again while points are missing and time is left.

    Args:
        client: Sends the requests.
        families: The path families under which the stream may be.
        data_id: The stream's id.
        due: The channels to read, and how many points each should have.
        is_whole: Returns True if none of these points is missing.
        left_s: Returns how much time is left, in seconds.
        wait: Waits for this many seconds.

    Raises:
        ApiKeyError: The key may not read.
        ApiUnavailableError: The API did not answer in time.
        ApiTooLargeError: The answer is far larger than the stream can be.
    """
    pause_s = _FIRST_PAUSE_S
    while True:
        found = StreamContent({}, {})
        problems: list[str] = []
        last = left_s() <= pause_s
        for family in families:
            try:
                found = client.points(family, data_id, due)
            except ApiTooLargeError:
                raise
            except ApiRefusedError as error:  # not found, or not yet, or not under this family
                problems.append(str(error))
            except ApiUnavailableError:
                if last:
                    raise
                problems.append("no answer")
            if found.points:
                break
        # One family that answers is enough, though it may hold nothing of a stream of the other family.
        problem = problems[0] if len(problems) == len(families) else None
        if last or (problem is None and is_whole(found.points)):
            return found, problem
        wait(pause_s)
        pause_s = min(2 * pause_s, _MAX_PAUSE_S)


def expected_series(parts: list[Part], theirs: Series) -> Series:
    """Return what must be there of a channel, as far as that is known.

    Parts that may be missing and are missing are left out. Parts that are not known are taken from the points found.
    """
    ours = Series(theirs.unit)
    there = None if all(part.required for part in parts) else arrangement(parts, theirs)
    required = sum(part.points for part in parts if part.required)  # in the parts from this one on
    for i, part in enumerate(parts):
        at, end = len(ours), len(ours) + part.points
        if part.times is None:
            is_there = part.required or len(theirs) - at > required
            times, values = theirs.times[at:end], theirs.values[at:end]
        else:
            times, values = part.times, part.values
            is_there = part.required or same_points(times, values, theirs.times[at:end], theirs.values[at:end])
        if is_there if there is None else there[i]:
            ours.times.extend(times)
            ours.values.extend(values)
        required -= part.points if part.required else 0
    return ours


def is_long_enough(parts: dict[str, list[Part]], points: PointsByChannel) -> bool:
    """Return True if every channel has as many points as it must have."""
    return all(
        sum(part.points for part in ours if part.required) <= len(points[name][1] if name in points else ())
        for name, ours in parts.items()
    )


def add_differences(data_id: str, found: Iterator[Difference], told: list[StreamDifference]) -> int:
    """Add the first differences to `told`, up to the limit over all streams, and return how many there are."""
    count = 0
    for one in found:
        count += 1
        if len(told) < MAX_DIFFERENCES:
            told.append(StreamDifference(one.channel, one.what, one.index, one.ours, one.theirs, data_id))
    return count


def _verify_stream(
    run: _Run,
    stream: MetrologyStreamState,
    client: Client,
    told: list[StreamDifference],
    left_s: Callable[[], float],
    wait: Callable[[float], object],
) -> StreamVerified:
    data_id, family = stream.data_id or "", stream.family or ""
    due = run.must_be_there(stream)
    found, problem = read_back(
        client,
        (family,),
        data_id,
        {name: sum(part.points for part in parts) for name, parts in due.parts.items()},
        is_whole=lambda points: is_long_enough(due.parts, points),
        left_s=left_s,
        wait=wait,
    )
    different, compared = 0, 0
    for name, parts in due.parts.items() if problem is None else ():
        theirs = Series.of(*found.points[name]) if name in found.points else None
        ours = expected_series(parts, theirs or Series())
        ours = Series(due.units.get(name), ours.times, ours.values)
        compared += min(len(ours), len(theirs or ()))
        if ours or theirs:  # a channel without a point may be shown or not
            different += add_differences(data_id, differences(name, ours or None, theirs), told)
    return StreamVerified(
        data_id=data_id,
        label=stream.opening.label,
        channels=len(due.parts),
        points=max(0, compared - due.uncompared),
        different=different,
        uncompared=due.uncompared if problem is None else 0,
        problem=problem,
        added=found.added,
    )


@dataclass(slots=True)
class _Due:
    """The points that must be in one metrology stream."""

    parts: dict[str, list[Part]] = field(default_factory=dict)
    units: dict[str, str | None] = field(default_factory=dict)
    uncompared: int = 0


class _Run:
    """A run's files as they are now.

    The ledger is read first, because the rows it refers to are already in the journal.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.state = LedgerReader(folder / LEDGER).read_on()
        self._tried: dict[int, dict[int, Tried]] = {}  # by stream and index
        self._confirmed: dict[tuple[int, int], set[str]] = {}
        for fact in facts_of(folder / LEDGER):
            if isinstance(fact, Moved):
                self._tried, self._confirmed = {}, {}
            elif isinstance(fact, Tried):
                self._tried.setdefault(fact.stream, {})[fact.index] = fact
            elif isinstance(fact, Confirmed):
                noted = self._tried.get(fact.stream, {}).get(fact.index)
                names = fact.channels or (noted.channels if noted else ())
                self._confirmed.setdefault((fact.stream, fact.index), set()).update(names)
        for number, stream in self.state.streams.items():
            shown = stream.last_preview_taken or stream.last_preview
            if shown is not None and shown.index == stream.next_index:  # there, and confirmed only with its chunk
                self._tried.setdefault(number, {})[shown.index] = shown.as_tried(cut_short=False)
        account = Account()
        reader = RunReader(folder)
        try:
            account.read_on(reader)
        finally:
            reader.close()
        if account.header is None:
            raise SpoolError(f"{folder} holds no run")
        self.header = account.header
        self._layouts = account.layouts
        self.counts = sum(account.channels(self.state).values(), Counts())

    def must_be_there(self, stream: MetrologyStreamState) -> _Due:
        """Return the points that a metrology stream must hold, channel by channel, in the order of its chunks."""
        due = _Due()
        for one in stream.group:
            self._collect(one, due)
        return due

    def _collect(self, stream: MetrologyStreamState, due: _Due) -> None:
        """Add the points that one opening has put into its metrology stream."""
        opening = stream.opening
        tried = self._tried.get(opening.stream, {})
        offset_s = self.state.clock.offset_s if self.state.clock else 0.0
        cut = cut_again(
            self._folder, self._layouts.values(), self.header.non_finite, opening, stream.left_at_row, tried
        )
        again = {chunk.index: chunk.shifted(offset_s) for chunk in cut}
        units = {channel.name: channel.unit for one in reversed(self._layouts.values()) for channel in one.channels}
        for index, noted in tried.items():
            chunk = again.pop(index, None)
            confirmed = self._confirmed.get((opening.stream, index), set())
            whole = chunk is not None and chunk.points == noted.points
            columns = {column.name: column for column in chunk.columns} if chunk is not None and whole else {}
            times = packed_column(chunk.times) if chunk is not None and whole else None
            for name in noted.channels:
                due.units[name] = units.get(name)
                values = packed_column(columns[name].values) if name in columns else ()
                part = Part(noted.points, name in confirmed, times if name in columns else None, values)
                due.parts.setdefault(name, []).append(part)
                due.uncompared += noted.points if part.times is None and part.required else 0
