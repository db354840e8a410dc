"""Finds out what is not documented about a server: tries it with a few small streams, reads back, and finalizes them.

Each question changes what the server holds. So a question that is decided when a stream is finalized gets a stream of
its own, and a question that is decided at once gets a chunk of its own in a shared stream. A refused chunk is sent
again in its proper form. An answer counts as yes only if the points can be read as they were sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping

from ..api.client import Client
from ..errors import ApiError, ApiRefusedError, ApiUnavailableError
from ..status.probe_results import Fact
from .probe_streams import MIN_PATIENCE_S, PATIENCE_S, POINTS, ChannelPoints, ProbeStream, ProbeStreams

FAMILIES = ("metrology", "tool-state")
FIRST_BODY_BYTES = 2**16

Finding = tuple[bool | int | float | None, str]


class Probe:
    """One probe: `facts` yields its findings one by one.

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
        self._streams = ProbeStreams(client, patience_s)

    @property
    def left_open(self) -> list[str]:
        """Return the ids of streams that the server did not allow to be finalized."""
        return [stream.data_id for stream in self._streams.made if not stream.finalized]

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
            for stream in self._streams.made:
                self._streams.finalize_quietly(stream)

    # ---- the questions ---------------------------------------------------------------------------------------------

    def _families(self) -> Generator[Fact, None, ProbeStream]:
        for family in FAMILIES:
            question = f"are the paths {family}/stream/… served?"
            fact = self._ask(family, question, lambda family=family: self._serves(family))
            if family == FAMILIES[-1] and not self._streams.made:
                raise ApiUnavailableError(f"the server makes no stream, so nothing can be asked: {fact.evidence}")
            yield fact
        return self._streams.made[0]

    def _serves(self, family: str) -> Finding:
        stream = self._streams.open(family)
        return True, f"{stream.data_id} was made"

    def _at_once(self, stream: ProbeStream) -> Iterator[Fact]:
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
        self._streams.finalize_quietly(stream)
        yield self._ask("after_finalize", "is data taken after finalize?", lambda: self._after_finalize(stream, 5))
        yield self._ask("second_finalize", "may a stream be finalized twice?", lambda: self._again_finalized(stream))

    def _at_the_end(self, family: str) -> Iterator[Fact]:
        """Ask what is decided when a stream is finalized."""
        yield self._whole(family, "short", "may a chunk in the middle be short?", [(0, "ab", 2), (1, "ab", POINTS)])
        yield self._whole(family, "hole", "may a chunk be missing?", [(0, "ab", POINTS), (2, "ab", POINTS)])
        yield self._whole(family, "late", "may a channel begin later?", [(0, "a", POINTS), (1, "ab", POINTS)])

    def _takes_multi(self, stream: ProbeStream) -> Finding:
        try:
            self._streams.push(stream, 0, stream.both(0))
        except ApiRefusedError as error:
            self._streams.multi = False
            self._streams.push(stream, 0, stream.both(0))
            return False, f"{_short(error)}; one chunk per channel is taken"
        return True, "2 channels in one request"

    def _delay(self, stream: ProbeStream) -> Finding:
        begin = time.monotonic()
        if not self._streams.reads(stream, stream.both(0)):
            return None, f"not within {self._streams.patience_s:g} s"
        took = time.monotonic() - begin
        self._streams.patience_s = min(self._streams.patience_s, max(MIN_PATIENCE_S, 5 * took))
        return round(took, 3), "points are as they were sent"

    def _found(self, stream: ProbeStream) -> Finding:
        found = self._client.find_entry(stream.label)
        return found is not None, f"{stream.label!r} was {'found' if found else 'not found'}"

    def _largest_body(self, stream: ProbeStream) -> Finding:
        """Push the same chunk again, with blanks after it that are part of the body."""
        size, taken = FIRST_BODY_BYTES, 0
        while size <= self._largest_body_bytes:
            try:
                self._streams.push(stream, 0, stream.both(0), size=size)
            except ApiError as error:
                return taken or None, f"{taken} taken, {size} not: {_short(error)}"
            taken, size = size, size * 2
        return taken or None, f"{taken} taken, no more was tried"

    def _grows(self, stream: ProbeStream, index: int) -> Finding:
        times, values = stream.full(index)
        begun = (times[:2], values[:2])
        self._streams.push(stream, index, dict.fromkeys("ab", begun))
        self._streams.push(stream, index, stream.both(index))
        return self._read_to_decide(stream, stream.both(index))

    def _after_finalize(self, stream: ProbeStream, index: int) -> Finding:
        if not stream.finalized:
            return None, "the stream could not be finalized"
        self._streams.push(stream, index, stream.both(index))
        return self._read_to_decide(stream, stream.both(index))

    def _again_finalized(self, stream: ProbeStream) -> Finding:
        if not stream.finalized:
            return None, "the stream could not be finalized"
        self._streams.finalize(stream)
        return True, "finalize was taken twice"

    def _linked(self, family: str) -> Finding:
        stream = self._streams.open(family, physical_sample_id=self._sample)
        entry = self._client.entry_of(stream.data_id)
        if entry is None:
            return None, "the catalogue has no entry of the stream"
        return entry.physical_sample_id == self._sample, f"the entry says {entry.physical_sample_id}"

    def _chunk(
        self, name: str, question: str, stream: ProbeStream, index: int, *, apart: bool = False, **odd: ChannelPoints
    ) -> Fact:
        """Push a chunk of which some channels are odd. If it is refused, push it in its proper form.

        With `apart`, each channel is sent in a request of its own, as channels of different event streams would be.
        """
        sent = stream.both(index) | odd

        def pushed() -> Finding:
            for part in [{channel: series} for channel, series in sent.items()] if apart else [sent]:
                self._streams.push(stream, index, part)
            return self._read_to_decide(stream, sent)

        fact = self._ask(name, question, pushed)
        if fact.answer is not True:
            self._streams.mend(stream, [index])
        return fact

    def _whole(self, family: str, name: str, question: str, chunks: list[tuple[int, str, int]]) -> Fact:
        """Push chunks (index, channels, points) that leave a stream odd, and finalize it."""
        stream = self._streams.open(family)

        def finalized() -> Finding:
            sent: dict[str, tuple[list[float], list[float]]] = {"a": ([], []), "b": ([], [])}
            for index, channels, points in chunks:
                times, values = stream.full(index)
                self._streams.push(stream, index, dict.fromkeys(channels, (times[:points], values[:points])))
                for channel in channels:
                    sent[channel][0].extend(times[:points])
                    sent[channel][1].extend(values[:points])
            self._streams.finalize(stream)
            return self._read_to_decide(stream, sent)

        fact = self._ask(name, question, finalized)
        if not stream.finalized:
            self._streams.mend(stream, range(chunks[-1][0] + 1))
        return fact

    def _ask(self, name: str, question: str, find_out: Callable[[], Finding]) -> Fact:
        try:
            answer, evidence = find_out()
        except ApiRefusedError as error:
            answer, evidence = False, _short(error)
        except ApiUnavailableError as error:
            answer, evidence = None, _short(error)
        return Fact(name, question, answer, evidence)

    def _read_to_decide(self, stream: ProbeStream, sent: Mapping[str, ChannelPoints]) -> Finding:
        if self._streams.reads(stream, sent):
            return True, "taken, and reads back as it was sent"
        return False, "taken, but does not read back as it was sent"


def _short(error: ApiError) -> str:
    return f"answered {error.status}: {str(error).partition(': ')[2]}" if error.status else str(error)
