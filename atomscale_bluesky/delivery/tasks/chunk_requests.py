"""The requests that sending a chunk takes: all channels together, in halves, or channel by channel."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from ...api.client import Client, Pushed
from ...api.wire import push_bytes
from ...errors import ApiRefusedError
from ...model.chunk import Chunk
from ..refusals import is_closed, is_no_route, is_too_large
from .work import Attempt, PartlyDoneError, Work


class Sent(msgspec.Struct, frozen=True):
    """What became of the channels of a chunk that was sent."""

    confirmed: tuple[str, ...] = ()
    refused: dict[str, ApiRefusedError] = {}
    closed: bool = False  # the server has closed the stream


class ChunkWork(Work[Sent], frozen=True, eq=False):
    """Send a chunk, or the beginning of one."""

    # Find out which of the channels are refused, and whether the stream is closed. Else all of them are.
    finds_refused: ClassVar[bool] = True

    data_id: str
    family: str
    points_per_chunk: int
    chunk: Chunk
    apart: frozenset[str] = frozenset()  # channels refused before: sent one by one

    def __str__(self) -> str:
        """Return what a log line calls it."""
        return f"{self.kind.value} chunk {self.chunk.index} of {self.label!r}"

    def perform(self, client: Client, attempt: Attempt) -> Sent:
        """Send the chunk, and ask the catalogue whether the stream is closed if nothing of it is taken."""
        pushed = self._send(client, self.chunk, attempt)
        if pushed.unavailable is not None:
            raise PartlyDoneError(Sent(pushed.confirmed, pushed.refused)) from pushed.unavailable
        closed = bool(pushed.refused) and not pushed.confirmed and is_closed(client, self, self.data_id, attempt)
        return Sent(pushed.confirmed, pushed.refused, closed)

    def _send(self, client: Client, chunk: Chunk, attempt: Attempt) -> Pushed:
        """Send all channels at once; singly where that does not exist, in halves to find those that are not taken."""
        apart = [name for name in chunk.names if name in self.apart] if self.apart else []
        together = chunk.only(name for name in chunk.names if name not in self.apart) if apart else chunk
        single_only = attempt.knowledge.single_only
        if not together.columns or self.family in single_only:
            return client.push_channels(self.family, self.data_id, chunk)
        if len(together.columns) > 1 and push_bytes(together) > client.max_body_bytes:
            return self._send_halves(client, chunk, attempt)
        try:
            client.push(self.family, self.data_id, together)
        except ApiRefusedError as error:
            if is_no_route(error):
                one_by_one = client.push_channels(self.family, self.data_id, chunk)
                if one_by_one.confirmed:
                    single_only.add(self.family)
                return one_by_one
            if not self.finds_refused:
                return Pushed((), dict.fromkeys(chunk.names, error))
            if len(together.columns) > 1:
                whole = chunk is self.chunk
                if whole and not is_too_large(error) and is_closed(client, self, self.data_id, attempt):
                    return Pushed((), dict.fromkeys(chunk.names, error))  # all of it would be refused, one by one
                return self._send_halves(client, chunk, attempt)
            pushed = Pushed((), {together.names[0]: error})
        else:
            pushed = Pushed(together.names, {})
        if not apart:
            return pushed
        rest = client.push_channels(self.family, self.data_id, chunk.only(apart))
        return Pushed(pushed.confirmed + rest.confirmed, pushed.refused | rest.refused, rest.unavailable)

    def _send_halves(self, client: Client, chunk: Chunk, attempt: Attempt) -> Pushed:
        """Send a chunk that is too large for one request, or refused as a whole, in two, under the same index.

        One refused channel of n is found, and all others are through, after about 2 log2(n) requests.
        """
        half = len(chunk.names) // 2
        first = self._send(client, chunk.only(chunk.names[:half]), attempt)
        if first.unavailable:
            return first
        second = self._send(client, chunk.only(chunk.names[half:]), attempt)
        return Pushed(first.confirmed + second.confirmed, first.refused | second.refused, second.unavailable)
