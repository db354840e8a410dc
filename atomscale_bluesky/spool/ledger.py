"""What happened to a run's metrology streams and chunks: one line per fact, folded into the present state.

    metrology stream   opened → initializing → initialized → finalizing → finalized
                       initialized → closed, by the server or with a hole; the rest goes on in a continuation
                       parked, with a reason, until the operator mends or discards it, or what was missing is there
    links of a stream  linked | refused;  refused → linked when the reason has passed
    chunk              tried → confirmed | refused;  refused → tried again after the operator unparked it
    preview            previewed → answered: shown | not taken, before the next one and before its chunk is tried

Every fact is appended before anything is done that builds on it, and `LedgerState` checks each transition,
so two uploaders of one run are detected. Each line is written twice in a row, so that one damaged line costs
nothing. If both copies are damaged, the state is derived from the other lines as far as they leave no doubt. If that
is not enough, the run is `broken`: it waits for the operator, who can have all of it delivered again.

Confirmed chunks are kept as counts, so memory holds only the chunks still in progress, however long the run is. Facts
are synced when they are noted, unless their kind can be found out again after a power cut. These survive a killed
process once `write` has returned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import SpoolError
from .ledger_format import (
    Confirmed,
    Discarded,
    Edited,
    Finalized,
    Finalizing,
    Initialized,
    LedgerLine,
    Moved,
    Obeyed,
    Opened,
    Parked,
    Together,
    Tried,
    Unparked,
    decode_ledger,
)
from .ledger_state import LedgerState, NoIdError
from .line_file import LineFile, whole_lines
from .lines import checksummed, encode, payload_of
from .own_files import open_to_read
from .stream_state import Life


class Ledger:
    """A run's ledger, open for its one writer, with the state that it adds up to.

    Args:
        path: The file. It is made if it is missing.
        make_room: Called when the disk is full, before the failed write is tried again.
    """

    def __init__(self, path: Path, *, make_room: Callable[[], object] | None = None) -> None:
        self._file = LineFile(path, make_room=make_room)
        self._together: list[LedgerLine] | None = None
        self._unwritten = bytearray()  # lines of facts that were noted
        try:
            self.state = LedgerReader(path).read_on()
            if self.state.broken is not None and (size := _size_before_damage(path)) != self._file.size:
                self._file.truncate(size)
                self.state: LedgerState = LedgerReader(path).read_on()
        except BaseException:
            self._file.close()
            raise

    def note(self, fact: LedgerLine, *, sync: bool = False) -> None:
        """Note a fact. It survives a power cut once this returns, unless its kind is `unsynced` and `sync` is not set.

        An unsynced fact survives a killed process once `write` returns. Whatever builds on it must wait for that.

        Raises:
            SpoolError: The fact cannot follow the known facts, or the file cannot be written. `state` is then ahead of
                the file: close this ledger and open it again.
        """
        self.state.apply(fact)
        if self._together is not None:
            self._together.append(fact)
            return
        self._unwritten += checksummed(encode(fact)) * 2
        if sync or not fact.unsynced:
            self.write()
            self._file.sync()

    def write(self) -> None:
        """Write the facts noted so far, in one go, so that they survive a killed process.

        Raises:
            SpoolError: As for `note`.
        """
        if self._unwritten:
            lines, self._unwritten = bytes(self._unwritten), bytearray()
            self._file.append(lines)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Write all facts noted within as one line, so that a crash leaves all of them or none. Synced at the end.

        Raises:
            SpoolError: As for `note`. The facts noted within are then not in the file.
        """
        self._together = noted = []
        try:
            yield
        finally:
            self._together = None
        self._unwritten += checksummed(encode(Together(tuple(noted)))) * 2
        self.write()
        self._file.sync()

    def tried_chunks(self, stream: int, from_index: int) -> dict[int, Tried]:
        """Return the stream's chunks that were tried, from `from_index` on, confirmed or not. Reads the file.

        Raises:
            SpoolError: A line cannot be decoded.
        """
        self.write()
        found: dict[int, Tried] = {}
        for fact in facts_of(self._file.path):
            if isinstance(fact, Moved):
                found.clear()
            elif isinstance(fact, Tried) and fact.stream == stream and fact.index >= from_index:
                found[fact.index] = fact
        return dict(sorted(found.items()))

    @property
    def size(self) -> int:
        """The file's length in bytes once all facts are written. It grows with every fact."""
        return self._file.size + len(self._unwritten)

    def close_until_needed(self) -> None:
        """Close the file until the next fact."""
        self.write()
        self._file.close_until_needed()

    def close(self) -> None:
        """Write what was noted, as far as that is possible, and close the file. A second call does nothing."""
        with suppress(SpoolError):  # then it is as if the process had been killed before
            self.write()
        self._file.close()


def _size_before_damage(path: Path) -> int:
    """Return how many bytes of a ledger are sound: all, except an end that a power cut damaged.

    After a power cut the disk may have later blocks of unsynced data and lack earlier ones. Lines after such a damaged
    line cannot be understood without it and are dropped, as if they had not been written. If a fact follows that had
    been synced, the cause was no power cut: then the damaged line is skipped like any other.

    That a fact is of a kind that is synced does not show that its sync was completed: the power may have gone during
    it. A line after it shows it. So what the last line alone would show is dropped too. Nothing was done about it.
    """
    sound_size, last_payload = 0, b""
    streams_with_id: set[int] = set()  # and those that join another
    must_be_synced = False  # the last line is synced before another one follows
    with open_to_read(path) as file:
        lines = ((end, None if text is None else payload_of(text)) for end, text in whole_lines(file))
        for end, payload in lines:
            if payload is None:
                break
            streams_with_id |= _streams_with_id_by(decode_ledger(payload))
            sound_size, last_payload = end, payload
        for _, payload in lines:  # after the damage
            if payload is None or payload == last_payload:
                continue
            fact = decode_ledger(payload)
            if must_be_synced or _shows_a_sync(fact, streams_with_id):
                return path.stat().st_size
            must_be_synced = not fact.unsynced or (isinstance(fact, Opened) and fact.stream > 0)
            last_payload = payload
    return sound_size


def _streams_with_id_by(fact: LedgerLine) -> set[int]:
    """Return the streams whose id is known by a fact, and those that join another stream by it."""
    facts = fact.facts if isinstance(fact, Together) else (fact,)
    return {
        one.stream
        for one in facts
        if isinstance(one, Initialized) or (isinstance(one, Opened) and one.joins is not None)
    }


def _shows_a_sync(fact: LedgerLine, streams_with_id: set[int]) -> bool:
    """Return True if a fact shows that the lines before it had been synced, so that no power cut can have damaged them.

    A chunk is tried only after the id of its stream was synced.
    """
    return isinstance(fact, Tried) and fact.stream not in streams_with_id


def _payloads(text: bytes | None) -> list[bytes]:
    """Return the payloads of a line without its newline: none if it is damaged, two if its newline was.

    A damaged newline joins the two copies of a line.
    """
    if text is None:
        return []
    whole = payload_of(text)
    if whole is not None:
        return [whole]
    half = len(text) // 2
    return [payload for part in (text[:half], text[half + 1 :]) if (payload := payload_of(part)) is not None]


def facts_of(path: Path) -> Iterator[LedgerLine]:
    """Yield the facts of a ledger one by one, or nothing if there is no ledger yet. A damaged line is skipped.

    Raises:
        SpoolError: A line cannot be decoded.
    """
    try:
        file = open_to_read(path)
    except FileNotFoundError:
        return
    with file:
        before = b""
        for _, text in whole_lines(file):
            for payload in _payloads(text):
                if payload != before:
                    fact = decode_ledger(payload)
                    yield from fact.facts if isinstance(fact, Together) else (fact,)
                before = payload


def is_delivered(path: Path) -> bool:
    """Return True if the ledger says that nothing of its run is left to deliver.

    Raises:
        SpoolError: A line cannot be decoded.
    """
    state = LedgerReader(path).read_on()
    return state.broken is None and state.is_done


class LedgerReader:
    """The state of a ledger for a process that does not write it. Each call reads on from the last.

    The two copies of a line count once, wherever the second one stands. `damaged` counts the lines that failed their
    checksum.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reset()

    def _reset(self) -> None:
        self.state: LedgerState = LedgerState()
        self.damaged = 0
        self._offset = 0
        self._lines = 0
        self._first_damaged = 0  # line, counted from 1
        self._last_payload = b""  # the last intact line
        self._endpoint_offset = 0  # where the facts begin that hold at the run's present endpoint
        self._seen_lines: set[int] | None = None  # the lines from there on; read after a fact that could not follow

    def read_on(self) -> LedgerState:
        """Read the lines written since the last call and return the state. An absent file gives an empty state.

        Lines that contradict each other make the state `broken`.

        Raises:
            SpoolError: A line cannot be decoded, or names an id that cannot be one. Each later call raises it too,
                until the file is mended.
        """
        try:
            file = open_to_read(self._path)
        except FileNotFoundError:
            return self.state
        with file:
            for end, text in whole_lines(file, self._offset):
                self._lines += 1
                payloads = _payloads(text)
                if text is None or not payloads or len(payloads[0]) + 9 != len(text):
                    self.damaged += 1
                    self._first_damaged = self._first_damaged or self._lines
                for payload in payloads:
                    if payload != self._last_payload:
                        self._take_payload(payload)
                        if self._seen_lines is not None:
                            self._seen_lines.add(hash(payload))
                    self._last_payload = payload
                self._offset = end
        return self.state

    def _take_payload(self, payload: bytes) -> None:
        fact, state = decode_ledger(payload), self.state
        if isinstance(fact, Unparked | Edited | Moved | Discarded | Obeyed):
            # Orders also count in a broken ledger. They are numbered, so a second copy is recognised.
            if fact.order <= state.orders_obeyed:
                return
        elif state.broken is not None:
            # After the damage nothing else counts, except that it was noted.
            state.broken_was_noted = state.broken_was_noted or fact == Parked(state.broken)
            return
        try:
            if self.damaged:
                self._apply_what_was_damaged(fact)
            if isinstance(fact, Opened) and fact.stream > len(state.streams):
                raise SpoolError(
                    f"the opening of metrology stream {len(state.streams)} is missing before that of {fact.stream}"
                )
            state.apply(fact)
        except NoIdError:
            self._reset()  # otherwise the next call would skip the line
            raise
        except SpoolError as error:
            if not self._came_before(payload):
                self._mark_broken(fact, str(error).partition(";")[0])
        if isinstance(fact, Moved):
            self._endpoint_offset, self._first_damaged, self.damaged, self._seen_lines = self._offset, 0, 0, None

    def _apply_what_was_damaged(self, fact: LedgerLine) -> None:
        """Apply what a damaged line must have said, as far as the fact that follows makes that certain.

        Raises:
            SpoolError: A line is missing without which the fact must not be believed.
        """
        state = self.state
        match fact:
            case Finalizing() if fact.stream in state.streams:
                # It is noted only after every chunk is confirmed, and no chunk is pushed after it.
                for stream in state.streams[fact.stream].group:
                    if stream.life is Life.INITIALIZED and not stream.refused:
                        for index in sorted(stream.tried):
                            state.apply(Confirmed(stream.opening.stream, index, stream.confirmed_at or 0.0))
            case Finalized() if fact.stream in state.streams:
                if state.streams[fact.stream].life is Life.INITIALIZED:
                    self._apply_what_was_damaged(Finalizing(fact.stream))
                    state.apply(Finalizing(fact.stream))
            case Tried() if fact.stream in state.streams:
                stream = state.streams[fact.stream]
                if stream.data_id is None:
                    raise SpoolError(
                        f"a chunk of metrology stream {fact.stream} was tried, but the stream's id is missing"
                    )
                before = stream.opening.channels if stream.last_tried is None else stream.last_tried.channels
                for name in before or ():
                    if name not in fact.channels:
                        stream.left_at_row.setdefault(name, fact.first_row)
            case _:
                pass

    def _came_before(self, payload: bytes) -> bool:
        """Return True if the same line came before.

        Asked only for a line that cannot follow. Reads the file again, once.
        """
        if self._seen_lines is None:
            self._seen_lines = set()
            with open_to_read(self._path) as file:
                at = self._endpoint_offset
                for end, text in whole_lines(file, self._endpoint_offset):
                    if at >= self._offset:
                        break
                    self._seen_lines.update(map(hash, _payloads(text)))
                    at = end
        return hash(payload) in self._seen_lines

    def _mark_broken(self, fact: LedgerLine, why: str) -> None:
        where = f"line {self._lines} of its ledger cannot follow those before it"
        if self._first_damaged:
            where = f"line {self._first_damaged} of its ledger is damaged, and line {self._lines} needs it"
        self.state.broken = (
            f"{where} ({why}), so it is unknown which chunks have arrived. Its readings are kept. Check its streams in "
            f"Atomscale, then `move` it to the same endpoint, which delivers all of it again as new streams, or "
            f"`discard` it"
        )
        self.state.may_have_moved = isinstance(fact, Opened) and fact.stream == 0
