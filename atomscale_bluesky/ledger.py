"""What became of a run's metrology streams and chunks: one line per fact, folded into the present state.

    metrology stream   opened → initializing → initialized → finalizing → finalized
                       parked, with a reason, until somebody mends or discards it
    chunk              tried → confirmed | refused;  refused → tried again after a person unparked it

Every fact is appended before anything is done that builds on it, and `LedgerState` guards each move: two uploaders
that share a run would be noticed here. What is settled is kept as counts, so memory holds the chunks still under way,
however long the run. Facts survive a killed process once noted; those that a power cut must not take are synced.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from .errors import SpoolError
from .journal import BLOCK_BYTES, LineFile, line, payload_of
from .lines import (
    Confirmed,
    Discarded,
    Edited,
    Finalized,
    Finalizing,
    Initialized,
    Initializing,
    LedgerLine,
    Left,
    Opened,
    Parked,
    Position,
    Refused,
    Tried,
    Unparked,
    decode_ledger,
    encode,
)


class Life(Enum):
    """Where a metrology stream stands."""

    OPENED = "opened"
    INITIALIZING = "initializing"
    INITIALIZED = "initialized"
    FINALIZING = "finalizing"
    FINALIZED = "finalized"


@dataclass(slots=True)
class Refusal:
    """Channels of a chunk that Atomscale will not take as they are."""

    channels: frozenset[str]
    status: int | None
    reason: str


@dataclass(slots=True)
class StreamState:
    """One metrology stream, as far as the ledger tells."""

    opening: Opened
    life: Life = Life.OPENED
    data_id: str | None = None
    family: str | None = None
    parked: str | None = None
    left: dict[str, int] = field(default_factory=dict)  # channel → row from which on it is no longer here
    tried: dict[int, Tried] = field(default_factory=dict)  # chunks not settled
    refused: dict[int, Refusal] = field(default_factory=dict)
    confirmed_channels: dict[int, set[str]] = field(default_factory=dict)  # of chunks that are confirmed in part
    next_index: int = 0
    last: Tried | None = None  # the chunk with the highest index
    delivered: Counter[tuple[str, ...]] = field(default_factory=Counter)  # points, by the channels that have them
    chunks_confirmed: int = 0
    confirmed_at: float | None = None
    finalized_at: float | None = None

    @property
    def settled(self) -> bool:
        """Whether every chunk tried so far is confirmed whole."""
        return not self.tried and not self.refused

    def resume(self) -> tuple[int, int, Position]:
        """The chunk to go on with, its first row, and where to read the journal from."""
        unsettled = [tried for index, tried in self.tried.items() if index not in self.refused]
        if unsettled:
            first = min(unsettled, key=lambda tried: tried.index)
            return first.index, first.first_row, Position(first.segment, first.offset)
        if self.last is not None:
            return self.last.index + 1, self.last.last_row + 1, Position(self.last.segment, self.last.offset)
        return 0, self.opening.from_row, Position(self.opening.segment, self.opening.offset)


class LedgerState:
    """The fold of a run's ledger."""

    def __init__(self) -> None:
        self.streams: dict[int, StreamState] = {}
        self.parked: str | None = None  # why the whole run waits for a person
        self.edited: Edited | None = None
        self.discarded: float | None = None

    def apply(self, fact: LedgerLine) -> None:
        """Take one fact into account.

        Raises:
            SpoolError: It cannot follow what is known already.
        """
        match fact:
            case Opened():
                if fact.stream in self.streams:
                    raise SpoolError(
                        f"metrology stream {fact.stream} is open already; do two uploaders share this run?"
                    )
                self.streams[fact.stream] = StreamState(fact)
            case Initializing():
                stream = self._stream(fact.stream, Life.OPENED, Life.INITIALIZING)
                stream.life, stream.family = Life.INITIALIZING, fact.family
            case Initialized():
                stream = self._stream(fact.stream, Life.OPENED, Life.INITIALIZING)
                stream.life, stream.data_id, stream.family = Life.INITIALIZED, fact.data_id, fact.family
            case Left():
                self._stream(fact.stream).left.setdefault(fact.channel, fact.from_row)
            case Tried():
                self._tried(fact)
            case Confirmed():
                self._confirmed(fact)
            case Refused():
                stream = self._stream(fact.stream, Life.INITIALIZED)
                known = stream.refused.get(fact.index)
                channels = frozenset(fact.channels) | (known.channels if known else frozenset())
                stream.refused[fact.index] = Refusal(channels, fact.status, fact.reason)
            case Parked(stream=None):
                self.parked = fact.reason
            case Parked():
                self._stream(fact.stream or 0).parked = fact.reason
            case Unparked():
                self._unparked(fact)
            case Edited():
                self.edited = fact
            case Discarded():
                self.discarded = fact.time
            case Finalizing():
                stream = self._stream(fact.stream, Life.INITIALIZED, Life.FINALIZING)
                if not stream.settled:
                    raise SpoolError(f"metrology stream {fact.stream} has chunks that are not confirmed; it stays open")
                stream.life = Life.FINALIZING
            case Finalized():
                stream = self._stream(fact.stream, Life.FINALIZING)
                stream.life, stream.finalized_at = Life.FINALIZED, fact.time

    def _stream(self, number: int, *lives: Life) -> StreamState:
        stream = self.streams.get(number)
        if stream is None or (lives and stream.life not in lives):
            life = "unknown" if stream is None else stream.life.value
            raise SpoolError(
                f"metrology stream {number} is {life}, so this cannot follow; do two uploaders share this run?"
            )
        return stream

    def _tried(self, fact: Tried) -> None:
        stream = self._stream(fact.stream)
        if fact.index != stream.next_index:
            raise SpoolError(
                f"chunk {fact.index} of metrology stream {fact.stream} cannot follow {stream.next_index - 1}"
            )
        stream.tried[fact.index] = stream.last = fact
        stream.next_index += 1

    def _confirmed(self, fact: Confirmed) -> None:
        stream = self._stream(fact.stream, Life.INITIALIZED)
        tried = stream.tried.get(fact.index)
        if tried is None:
            raise SpoolError(
                f"chunk {fact.index} of metrology stream {fact.stream} is not under way, so it cannot become "
                f"confirmed; do two uploaders share this run?"
            )
        before = stream.confirmed_channels.pop(fact.index, set())
        now = set(fact.channels if fact.channels is not None else tried.channels) - before
        stream.delivered[tuple(name for name in tried.channels if name in now)] += tried.points
        stream.confirmed_at = fact.time
        refusal = stream.refused.get(fact.index)
        if refusal is not None:
            refusal.channels -= now
            if not refusal.channels:
                del stream.refused[fact.index]
        if before | now >= set(tried.channels):
            del stream.tried[fact.index]
            stream.chunks_confirmed += 1
        else:
            stream.confirmed_channels[fact.index] = before | now

    def _unparked(self, fact: Unparked) -> None:
        if fact.stream is None:
            self.parked = None
        for number, stream in self.streams.items():
            if fact.stream in {None, number}:
                stream.parked = None
                stream.refused.clear()


class Ledger:
    """A run's ledger, open for its one writer, with the state it tells."""

    def __init__(self, path: Path) -> None:
        self._file = LineFile(path)
        try:
            self.state = LedgerReader(path).read_on()
        except BaseException:
            self._file.close()
            raise

    def note(self, fact: LedgerLine, *, sync: bool = False) -> None:
        """Append a fact; it survives a killed process once this returns, and a power cut with `sync`.

        Raises:
            SpoolError: The fact cannot follow what is known, or the file cannot be written. What `state` says is then
                ahead of the file: close this ledger and open it again.
        """
        self.state.apply(fact)
        self._file.append(line(encode(fact)))
        if sync:
            self._file.sync()

    def close(self) -> None:
        """Close the file; idempotent."""
        self._file.close()


class LedgerReader:
    """The state that a ledger tells to whoever does not write it, read on from call to call.

    `damaged` counts the lines that failed their checksum, which were passed over.
    """

    def __init__(self, path: Path) -> None:
        self.state = LedgerState()
        self.damaged = 0
        self._path = path
        self._offset = 0

    def read_on(self) -> LedgerState:
        """Take in the lines written since the last call; an absent file tells nothing.

        Raises:
            SpoolError: A line is not understood, or contradicts those before it.
        """
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return self.state
        with file:
            file.seek(self._offset)
            rest = b""
            while block := file.read(BLOCK_BYTES):
                *texts, rest = (rest + block).split(b"\n")
                for text in texts:
                    self._offset += len(text) + 1
                    payload = payload_of(text)
                    if payload is None:
                        self.damaged += 1
                    else:
                        self.state.apply(decode_ledger(payload))
        return self.state
