"""One method per API call: answers become results or errors. Never retries, and waits only for the answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, TypeVar

from ..errors import ApiRefusedError
from ..model.chunk import Chunk, Column
from ..model.links import Links
from ..settings import Settings
from . import answers, stream_content, wire
from .answer_reader import AnswerReader
from .connection import MAX_ANSWER_BYTES, Connection

# What the answer to a push may have about each channel, besides its name: an id, a label, an index and such.
MAX_CHANNEL_BYTES = 1024
# A character of a name in JSON is at most two escapes of six bytes.
_MAX_CHARACTER_BYTES = 12

T = TypeVar("T")


class ClockReading(NamedTuple):
    """What to add to this host's time to get the server's time, and how long the exchange took.

    The offset is right to half of the delay.
    """

    offset_s: float
    delay_s: float


class Client:
    """The API at the settings' endpoint, for one thread.

    Args:
        settings: Endpoint, key and limits.
        clock: A monotonic clock.
        make_way: Called around work that holds Python's lock for long, so that other threads can run.

    Another thread calls `connection.cut_if_late` every second or so, which keeps the time limit of a request.

    Raises:
        ApiUnavailableError: From every method: no answer from the API, or 408, 425, 429 or 5xx. Try again later.
        ApiKeyError: From every method: 401 or 403.
        ApiRefusedError: From every method: any other 4xx.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.monotonic,
        make_way: Callable[[], None] = lambda: None,
    ) -> None:
        self.max_body_bytes = settings.max_body_bytes
        self._make_way = make_way
        self._usual_answers = answers.UsualAnswers()
        self.connection = Connection(settings, clock)
        self._reader = AnswerReader(self.connection, settings.endpoint, make_way)
        self._send, self._read = self.connection.send, self._reader.read

    def initialize(self, family: str, *, label: str, points_per_chunk: int, links: Links) -> str:
        """Create a metrology stream and return its `data_id`. Not idempotent: each success makes a new stream."""
        request = wire.initialize(family, label=label, points_per_chunk=points_per_chunk, links=links)
        return self._read(self._send(request), answers.read_initialized)

    def link_sample(self, data_id: str, physical_sample_id: str) -> None:
        """Link a stream to a physical sample. Repeating it changes nothing."""
        self._send(wire.link_sample(data_id, physical_sample_id))

    def find_entry(self, label: str) -> answers.Entry | None:
        """Return the catalogue's entry with exactly this label, or None if the catalogue's search does not find it."""
        return self._reader.first_entry(wire.search(label), lambda entry: entry.label == label)

    def entry_of(self, data_id: str) -> answers.Entry | None:
        """Return the catalogue's entry of a stream, or None if it has none."""
        return self._reader.first_entry(wire.look_up(data_id), lambda entry: entry.data_id == data_id)

    def push(self, family: str, data_id: str, chunk: Chunk) -> None:
        """Push all channels of a chunk in one request. Pushing it again is harmless."""
        self._make_way()
        request = wire.push(family, data_id, chunk, pause=self._make_way)
        self._make_way()
        answer = self._send(request, _max_answer_bytes(chunk.names))
        self._read(answer, lambda body: self._usual_answers.check_confirmed(body, data_id, chunk.index, chunk.names))

    def push_channel(self, family: str, data_id: str, chunk: Chunk, column: Column) -> None:
        """Push one channel of a chunk. Pushing it again is harmless."""
        answer = self._send(wire.push_channel(family, data_id, chunk, column))
        self._read(answer, lambda body: self._usual_answers.check_confirmed(body, data_id, chunk.index, (column.name,)))

    def finalize(self, family: str, data_id: str) -> None:
        """Close a complete stream for good."""
        self._read(self._send(wire.finalize(family, data_id)), lambda body: answers.check_finalized(body, data_id))

    def points(self, family: str, data_id: str, due: Mapping[str, int]) -> stream_content.StreamContent:
        """Read the points of some channels of a stream, and the names of everything else in it.

        There is no documented way to ask for a part of a stream. So the answer is read piece by piece, and only points
        of the channels in `due` are kept, at 16 bytes per point.

        Args:
            family: The path family that the stream was made in.
            data_id: The stream's id.
            due: The channels to read, and how many points each may have. They bound the answer's size.

        Raises:
            ApiTooLargeError: The answer is larger than such a stream can be.
        """
        return self._reader.points(wire.read_back(family, data_id), data_id, due)

    def instruments(self) -> dict[int, str]:
        """Return the organisation's growth instruments: id → name."""
        return self._reader.instruments(wire.instruments())

    def samples(self, physical_sample_id: str | None = None) -> list[answers.Item]:
        """Return the organisation's physical samples, or the one with this id.

        Paging is not documented, so some samples may be missing.
        """
        return self._reader.items(wire.samples(physical_sample_id))

    def projects(self) -> list[answers.Item]:
        """Return the organisation's projects."""
        return self._reader.items(wire.projects())

    def project_samples(self, project_id: str) -> list[answers.Item]:
        """Return a project's physical samples."""
        return self._reader.items(wire.project_samples(project_id))

    def tags(self) -> list[answers.Item]:
        """Return the organisation's tags."""
        return self._reader.items(wire.tags())

    def create_sample(self, name: str) -> str:
        """Create a physical sample of this name and return its id, or return the id of an existing one with the name.

        Raises:
            ApiRefusedError: As for every method; also with 409 if the answer does not name the existing sample.
        """
        try:
            answer = self._send(wire.create_sample(name))
        except ApiRefusedError as error:
            taken = answers.read_existing_sample(error.answer) if error.status == 409 else None
            if taken is None:
                raise
            return taken
        return self._read(answer, answers.read_created)

    def create_tag(self, name: str) -> str:
        """Create a tag and return its id.

        Raises:
            ApiRefusedError: As for every method; also if a tag of this name exists, for which the vendor's client
                expects 400.
        """
        return self._read(self._send(wire.create_tag(name)), answers.read_created)

    def attach_tags(self, data_id: str, tag_ids: Iterable[str]) -> None:
        """Attach tags to a stream. Repeating it changes nothing."""
        self._send(wire.attach_tags(data_id, tag_ids))

    def track_sample(self, project_id: str, physical_sample_id: str, *, active: bool) -> None:
        """Add a sample to those that a project tracks.

        With `active`, all growth monitoring of the project follows it.
        """
        self._send(wire.track_sample(project_id, physical_sample_id, active=active))

    def rename(self, data_id: str, label: str) -> None:
        """Give a stream's catalogue entry another label."""
        self._send(wire.rename(data_id, label))

    def clock(self, limit_s: float | None = None) -> ClockReading:
        """Return how far this host's clock is from the server's, by one exchange of four time stamps.

        `limit_s` is a shorter time limit than the usual.
        """
        sent = time.time()
        answer = self._send(wire.clock(), limit_s=limit_s)
        back = time.time()
        server_received, server_sent = self._read(answer, answers.read_clock)
        return ClockReading(
            offset_s=((server_received - sent) + (server_sent - back)) / 2,
            delay_s=(back - sent) - (server_sent - server_received),
        )

    def send(self, request: wire.Request, read: Callable[[bytes], T]) -> T:
        """Send a request of any other kind and return its 2xx answer as parsed by `read`."""
        return self._read(self._send(request), read)

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()


def _max_answer_bytes(channels: Iterable[str]) -> int:
    """Return how large the answer to a push may be: it has an entry for each channel."""
    return MAX_ANSWER_BYTES + sum(MAX_CHANNEL_BYTES + _MAX_CHARACTER_BYTES * len(name) for name in channels)
