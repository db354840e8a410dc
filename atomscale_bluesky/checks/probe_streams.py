"""The streams that a probe makes: opens them, pushes chunks as they are given, reads them back, and finalizes them."""

from __future__ import annotations

import contextlib
import math
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from ..api import answers, wire
from ..api.client import Client
from ..errors import ApiError, ApiRefusedError, ApiUnavailableError

LABEL = "atomscale-bluesky probe"
POINTS = 4  # in a full chunk
# How long to wait until accepted points can be read, and how long at most for a server that asks to wait.
PATIENCE_S, MIN_PATIENCE_S, MAX_PAUSE_S = 30.0, 1.0, 30.0
ATTEMPTS = 3
POLL_S = 0.05

ChannelPoints = tuple[Sequence[float], Sequence[float | None]]  # times and values of one channel


@dataclass
class ProbeStream:
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

    def both(self, index: int) -> dict[str, ChannelPoints]:
        """Return the proper chunk of this index for both channels."""
        return dict.fromkeys("ab", self.full(index))


class ProbeStreams:
    """The streams of one probe.

    Args:
        client: For the endpoint that is probed.
        patience_s: How long to wait until accepted points can be read.
    """

    def __init__(self, client: Client, patience_s: float) -> None:
        self.patience_s = patience_s
        self.multi = True  # the server takes several channels in one request
        self.made: list[ProbeStream] = []
        self._client = client

    def open(self, family: str, **more: Any) -> ProbeStream:
        """Make a stream."""
        label = f"{LABEL} {time.strftime('%Y-%m-%d')} [{secrets.token_hex(4)}]"
        body = {"stream_name": label, "points_per_chunk": POINTS, **more}
        request = wire.Request("POST", f"{family}/stream/initialize", (orjson.dumps(body),))
        try:
            data_id = self._patiently(lambda: self._client.send(request, answers.read_initialized))
        except (ApiUnavailableError, KeyboardInterrupt) as error:
            made = self._find_made(family, label)
            if made is None or isinstance(error, KeyboardInterrupt):
                raise
            return made
        return self._note_made(family, data_id, label)

    def _note_made(self, family: str, data_id: str, label: str) -> ProbeStream:
        self.made.append(ProbeStream(family, data_id, label, math.floor(time.time()) - 100.0))
        return self.made[-1]

    def _find_made(self, family: str, label: str) -> ProbeStream | None:
        """Return the stream that was made although its id did not reach us. It is finalized like the others."""
        with contextlib.suppress(ApiError):
            entry = self._client.find_entry(label)
            if entry is not None:
                return self._note_made(family, entry.data_id, label)
        return None

    def push(self, stream: ProbeStream, index: int, channels: Mapping[str, ChannelPoints], *, size: int = 0) -> None:
        """Push a chunk as given, whatever the API promises, padded with blanks up to `size` bytes."""
        head = {"data_id": stream.data_id, "chunk_index": index}
        series = {name: {"timestamps": times, "values": values} for name, (times, values) in channels.items()}
        if self.multi:
            bodies = [(f"{stream.family}/stream/chunk/multi", head | {"channels": series})]
        else:
            path = f"{stream.family}/stream/chunk"
            bodies = [(path, head | {"channel_name": name} | one) for name, one in series.items()]
        for path, body in bodies:
            request = wire.Request("POST", path, (orjson.dumps(body).ljust(size),))
            self._patiently(lambda request=request: self._client.send(request, bytes))

    def _patiently(self, ask: Callable[[], Any]) -> Any:
        """Call `ask`. If the server asks to wait for a while, wait and call it again."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return ask()
            except ApiUnavailableError as error:
                if error.status not in {429, 503} or attempt == ATTEMPTS:
                    raise
                time.sleep(min(error.retry_after_s or 1.0, MAX_PAUSE_S))
        return None

    def reads(self, stream: ProbeStream, sent: Mapping[str, ChannelPoints]) -> bool:
        """Return True if these points can finally be read, with null where null was sent."""
        end = time.monotonic() + self.patience_s
        due = {name: len(times) for name, (times, _) in sent.items()}
        while True:
            held = self._patiently(lambda: self._client.points(stream.family, stream.data_id, due)).points
            if all(_holds(held.get(name), times, values) for name, (times, values) in sent.items()):
                return True
            if time.monotonic() > end:
                return False
            time.sleep(POLL_S)

    def finalize(self, stream: ProbeStream) -> None:
        """Finalize a stream."""
        self._patiently(lambda: self._client.finalize(stream.family, stream.data_id))
        stream.finalized = True

    def finalize_quietly(self, stream: ProbeStream) -> None:
        """Finalize a stream unless that is done already. A refusal is ignored."""
        if not stream.finalized:
            with contextlib.suppress(ApiError):
                self.finalize(stream)

    def mend(self, stream: ProbeStream, indices: Iterable[int]) -> None:
        """Push proper chunks, so that the stream can be finalized. A server may refuse even that."""
        for index in indices:
            with contextlib.suppress(ApiRefusedError, ApiUnavailableError):
                self.push(stream, index, stream.both(index))


def _holds(series: Any, times: Sequence[float], values: Sequence[float | None]) -> bool:
    if series is None:
        return False
    _, held_times, held_values = series
    sent = {(round(at * 1000), value) for at, value in zip(times, values, strict=True)}
    held = {(round(at * 1000), value) for at, value in zip(held_times, held_values, strict=False) if at is not None}
    at_these_times = {at for at, _ in sent}
    return {point for point in held if point[0] in at_these_times} == sent
