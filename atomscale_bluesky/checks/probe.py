"""Finds out what is not documented about a server: tries it with a few small streams, reads back, and finalizes them.

Each question changes what the server holds. So a question that is decided when a stream is finalized gets a stream of
its own, and a question that is decided at once gets a chunk of its own in a shared stream. A refused chunk is sent
again in its proper form. An answer counts as yes only if the points can be read as they were sent.
"""

from __future__ import annotations

import contextlib
import math
import secrets
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from ..api import wire
from ..api.client import Client
from ..errors import ApiError, ApiRefusedError, ApiUnavailableError
from ..status.probe_results import Fact

FAMILIES = ("metrology", "tool-state")
LABEL = "atomscale-bluesky probe"
POINTS = 4  # in a full chunk
FIRST_BODY_BYTES = 2**16
# How long to wait until accepted points can be read, and how long at most for a server that asks to wait.
PATIENCE_S, LEAST_PATIENCE_S, LONGEST_PAUSE_S = 30.0, 1.0, 30.0
ATTEMPTS = 3
LOOK_S = 0.05

Answer = tuple[bool | int | float | None, str]
Series = tuple[Sequence[float], Sequence[float | None]]  # times and values of one channel


@dataclass
class _Stream:
    """A stream that the probe has made."""

    family: str
    data_id: str
    label: str
    began: float
    finalized: bool = False

    def full(self, index: int) -> tuple[list[float], list[float]]:
        """Return times and values of the proper chunk of this index, the same for each channel."""
        rows = range(index * POINTS, (index + 1) * POINTS)
        return [self.began + row for row in rows], [float(row) for row in rows]

    def both(self, index: int) -> dict[str, Series]:
        """Return the proper chunk of this index for both channels."""
        return dict.fromkeys("ab", self.full(index))


class Probe:
    """One probe; `facts` yields its findings one by one.

    Args:
        client: For the endpoint that is probed.
        largest_body_bytes: No request is larger than this.
        physical_sample_id: A sample to link probe streams to. Without one, linking is not probed.
        patience_s: How long to wait until accepted points can be read.
    """

    def __init__(
        self,
        client: Client,
        *,
        largest_body_bytes: int = 2**22,
        physical_sample_id: str | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._client = client
        self._largest_body_bytes = largest_body_bytes
        self._sample = physical_sample_id
        self._patience_s = patience_s
        self._multi = True
        self.streams: list[_Stream] = []

    @property
    def left_open(self) -> list[str]:
        """Ids of streams that the server did not allow to be finalized."""
        return [stream.data_id for stream in self.streams if not stream.finalized]

    def facts(self) -> Iterator[Fact]:
        """Ask all questions. The streams made are finalized at the end, whatever happens.

        Raises:
            ApiKeyError: The key does not have the rights that a stream needs.
            ApiUnavailableError: There is no server, or it takes no stream at all.
        """
        try:
            stream = yield from self._families()
            yield from self._at_once(stream)
            yield from self._at_the_end(stream.family)
            if self._sample:
                for family in FAMILIES:
                    yield self._ask(
                        f"sample_{family}",
                        f"does {family}'s initialize link physical_sample_id?",
                        lambda family=family: self._linked(family),
                    )
        finally:
            for stream in self.streams:
                self._finalize_quietly(stream)

    # ---- the questions ---------------------------------------------------------------------------------------------

    def _families(self) -> Generator[Fact, None, _Stream]:
        for family in FAMILIES:
            question = f"are the paths {family}/stream/… served?"
            fact = self._ask(family, question, lambda family=family: self._serves(family))
            if family == FAMILIES[-1] and not self.streams:
                raise ApiUnavailableError(f"the server makes no stream, so nothing can be asked: {fact.evidence}")
            yield fact
        return self.streams[0]

    def _serves(self, family: str) -> Answer:
        stream = self._open(family)
        return True, f"{stream.data_id} was made"

    def _at_once(self, stream: _Stream) -> Iterator[Fact]:
        """Ask what is decided when a chunk is pushed, or read."""
        yield self._ask("multi", "is chunk/multi taken?", lambda: self._takes_multi(stream))
        yield self._ask("read_back", "after how many seconds can a chunk be read?", lambda: self._delay(stream))
        yield self._ask("search", "does the catalogue's search find a label?", lambda: self._found(stream))
        yield self._ask("largest_body", "how many bytes may a request have?", lambda: self._largest_body(stream))
        times, values = stream.full(1)
        yield self._chunk("null", "is null taken as a value?", stream, 1, a=(times, [None, *values[1:]]))
        times, values = stream.full(2)
        own = ([at + 0.25 for at in times], values)
        yield self._chunk("times", "may channels of a chunk have times of their own?", stream, 2, apart=True, b=own)
        times, values = stream.full(3)
        longer = ([*times, times[-1] + 0.5], [*values, 0.5])
        yield self._chunk("over_length", "may a chunk be too long?", stream, 3, a=longer, b=longer)
        times, values = stream.full(0)
        other = (times, [value + 100.0 for value in values if value is not None])
        yield self._chunk("changed", "may a chunk be sent again with other values?", stream, 0, a=other, b=other)
        yield self._ask("grown", "may a chunk be sent again with more points?", lambda: self._grows(stream, 4))
        self._finalize_quietly(stream)
        yield self._ask("after_finalize", "is data taken after finalize?", lambda: self._after_finalize(stream, 5))
        yield self._ask("second_finalize", "may a stream be finalized twice?", lambda: self._again_finalized(stream))

    def _at_the_end(self, family: str) -> Iterator[Fact]:
        """Ask what is decided when a stream is finalized."""
        yield self._whole(family, "short", "may a chunk in the middle be short?", [(0, "ab", 2), (1, "ab", POINTS)])
        yield self._whole(family, "hole", "may a chunk be missing?", [(0, "ab", POINTS), (2, "ab", POINTS)])
        yield self._whole(family, "late", "may a channel begin later?", [(0, "a", POINTS), (1, "ab", POINTS)])

    def _takes_multi(self, stream: _Stream) -> Answer:
        try:
            self._push(stream, 0, stream.both(0))
        except ApiRefusedError as error:
            self._multi = False
            self._push(stream, 0, stream.both(0))
            return False, f"{_short(error)}; one chunk per channel is taken"
        return True, "2 channels in one request"

    def _delay(self, stream: _Stream) -> Answer:
        begin = time.monotonic()
        if not self._reads(stream, stream.both(0)):
            return None, f"not within {self._patience_s:g} s"
        took = time.monotonic() - begin
        self._patience_s = min(self._patience_s, max(LEAST_PATIENCE_S, 5 * took))
        return round(took, 3), "points are as they were sent"

    def _found(self, stream: _Stream) -> Answer:
        found = self._client.find(stream.label)
        return found is not None, f"{stream.label!r} was {'found' if found else 'not found'}"

    def _largest_body(self, stream: _Stream) -> Answer:
        """Push the same chunk again, with blanks after it that are part of the body."""
        size, taken = FIRST_BODY_BYTES, 0
        while size <= self._largest_body_bytes:
            try:
                self._push(stream, 0, stream.both(0), size=size)
            except ApiError as error:
                return taken or None, f"{taken} taken, {size} not: {_short(error)}"
            taken, size = size, size * 2
        return taken or None, f"{taken} taken, no more was tried"

    def _grows(self, stream: _Stream, index: int) -> Answer:
        times, values = stream.full(index)
        begun = (times[:2], values[:2])
        self._push(stream, index, dict.fromkeys("ab", begun))
        self._push(stream, index, stream.both(index))
        return self._told_by_reading(stream, stream.both(index))

    def _after_finalize(self, stream: _Stream, index: int) -> Answer:
        if not stream.finalized:
            return None, "the stream could not be finalized"
        self._push(stream, index, stream.both(index))
        return self._told_by_reading(stream, stream.both(index))

    def _again_finalized(self, stream: _Stream) -> Answer:
        if not stream.finalized:
            return None, "the stream could not be finalized"
        self._finalize(stream)
        return True, "finalize was taken twice"

    def _linked(self, family: str) -> Answer:
        stream = self._open(family, physical_sample_id=self._sample)
        entry = self._client.entry(stream.data_id)
        if entry is None:
            return None, "the catalogue has no entry of the stream"
        return entry.physical_sample_id == self._sample, f"the entry says {entry.physical_sample_id}"

    def _chunk(
        self, name: str, question: str, stream: _Stream, index: int, *, apart: bool = False, **odd: Series
    ) -> Fact:
        """Push a chunk of which some channels are odd. If it is refused, push it in its proper form.

        With `apart`, each channel is sent in a request of its own, as channels of different event streams would be.
        """
        sent = stream.both(index) | odd

        def pushed() -> Answer:
            for part in [{channel: series} for channel, series in sent.items()] if apart else [sent]:
                self._push(stream, index, part)
            return self._told_by_reading(stream, sent)

        fact = self._ask(name, question, pushed)
        if fact.answer is not True:
            self._mend(stream, [index])
        return fact

    def _whole(self, family: str, name: str, question: str, chunks: list[tuple[int, str, int]]) -> Fact:
        """Push chunks (index, channels, points) that leave a stream odd, and finalize it."""
        stream = self._open(family)

        def finalized() -> Answer:
            sent: dict[str, tuple[list[float], list[float]]] = {"a": ([], []), "b": ([], [])}
            for index, channels, points in chunks:
                times, values = stream.full(index)
                self._push(stream, index, dict.fromkeys(channels, (times[:points], values[:points])))
                for channel in channels:
                    sent[channel][0].extend(times[:points])
                    sent[channel][1].extend(values[:points])
            self._finalize(stream)
            return self._told_by_reading(stream, sent)

        fact = self._ask(name, question, finalized)
        if not stream.finalized:
            self._mend(stream, range(chunks[-1][0] + 1))
        return fact

    def _mend(self, stream: _Stream, indices: Iterable[int]) -> None:
        """Push proper chunks, so that the stream can be finalized. A server may refuse even that."""
        for index in indices:
            with contextlib.suppress(ApiRefusedError, ApiUnavailableError):
                self._push(stream, index, stream.both(index))

    # ---- asking ----------------------------------------------------------------------------------------------------

    def _ask(self, name: str, question: str, find_out: Callable[[], Answer]) -> Fact:
        try:
            answer, evidence = find_out()
        except ApiRefusedError as error:
            answer, evidence = False, _short(error)
        except ApiUnavailableError as error:
            answer, evidence = None, _short(error)
        return Fact(name, question, answer, evidence)

    def _open(self, family: str, **more: Any) -> _Stream:
        label = f"{LABEL} {time.strftime('%Y-%m-%d')} [{secrets.token_hex(4)}]"
        body = {"stream_name": label, "points_per_chunk": POINTS, **more}
        request = wire.Request("POST", f"{family}/stream/initialize", orjson.dumps(body))
        try:
            data_id = self._patiently(lambda: self._client.ask(request, wire.read_initialized))
        except (ApiUnavailableError, KeyboardInterrupt) as error:
            made = self._made_unseen(family, label)
            if made is None or isinstance(error, KeyboardInterrupt):
                raise
            return made
        return self._keep(family, data_id, label)

    def _keep(self, family: str, data_id: str, label: str) -> _Stream:
        self.streams.append(_Stream(family, data_id, label, math.floor(time.time()) - 100.0))
        return self.streams[-1]

    def _made_unseen(self, family: str, label: str) -> _Stream | None:
        """Return the stream that was made although its id did not reach us. It is finalized like the others."""
        with contextlib.suppress(ApiError):
            entry = self._client.find(label)
            if entry is not None:
                return self._keep(family, entry.data_id, label)
        return None

    def _push(self, stream: _Stream, index: int, channels: Mapping[str, Series], *, size: int = 0) -> None:
        """Push a chunk as given, whatever the API promises, padded with blanks up to `size` bytes."""
        head = {"data_id": stream.data_id, "chunk_index": index}
        series = {name: {"timestamps": times, "values": values} for name, (times, values) in channels.items()}
        if self._multi:
            bodies = [(f"{stream.family}/stream/chunk/multi", head | {"channels": series})]
        else:
            path = f"{stream.family}/stream/chunk"
            bodies = [(path, head | {"channel_name": name} | one) for name, one in series.items()]
        for path, body in bodies:
            request = wire.Request("POST", path, orjson.dumps(body).ljust(size))
            self._patiently(lambda request=request: self._client.ask(request, bytes))

    def _patiently(self, ask: Callable[[], Any]) -> Any:
        """Call `ask`. If the server asks to wait for a while, wait and call it again."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return ask()
            except ApiUnavailableError as error:
                if error.status not in {429, 503} or attempt == ATTEMPTS:
                    raise
                time.sleep(min(error.retry_after_s or 1.0, LONGEST_PAUSE_S))
        return None

    def _told_by_reading(self, stream: _Stream, sent: Mapping[str, Series]) -> Answer:
        if self._reads(stream, sent):
            return True, "taken, and reads back as it was sent"
        return False, "taken, but does not read back as it was sent"

    def _reads(self, stream: _Stream, sent: Mapping[str, Series]) -> bool:
        """Return True if these points can finally be read, with null where null was sent."""
        end = time.monotonic() + self._patience_s
        due = {name: len(times) for name, (times, _) in sent.items()}
        while True:
            held = self._patiently(lambda: self._client.points(stream.family, stream.data_id, due)).points
            if all(_holds(held.get(name), times, values) for name, (times, values) in sent.items()):
                return True
            if time.monotonic() > end:
                return False
            time.sleep(LOOK_S)

    def _finalize(self, stream: _Stream) -> None:
        self._patiently(lambda: self._client.finalize(stream.family, stream.data_id))
        stream.finalized = True

    def _finalize_quietly(self, stream: _Stream) -> None:
        if not stream.finalized:
            with contextlib.suppress(ApiError):
                self._finalize(stream)


def _holds(series: Any, times: Sequence[float], values: Sequence[float | None]) -> bool:
    if series is None:
        return False
    _, held_times, held_values = series
    sent = {(round(at * 1000), value) for at, value in zip(times, values, strict=True)}
    held = {(round(at * 1000), value) for at, value in zip(held_times, held_values, strict=False) if at is not None}
    at_these_times = {at for at, _ in sent}
    return {point for point in held if point[0] in at_these_times} == sent


def _short(error: ApiError) -> str:
    return f"answered {error.status}: {str(error).partition(': ')[2]}" if error.status else str(error)
