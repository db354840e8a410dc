"""Sends a chunk: all channels together, in halves, or channel by channel."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from ...api.client import Client
from ...api.wire import push_bytes
from ...errors import ApiError, ApiKeyError, ApiRefusedError, ApiUnavailableError
from ...model.chunk import Chunk
from ..refusals import is_closed, is_no_route, is_too_large
from .work import PartlyDoneError, Work, WorkerContext

# A failure that can clear. What was taken before it stays taken.
_FAILED = (ApiUnavailableError, ApiKeyError)


class Sent(msgspec.Struct, frozen=True):
    """What happened to the channels of a chunk that was sent."""

    confirmed: tuple[str, ...] = ()
    refused: dict[str, ApiRefusedError] = {}
    closed: bool = False  # the server has closed the stream
    failure: ApiError | None = None  # why the other channels are neither: it can clear

    def and_then(self, rest: Sent) -> Sent:
        """Return the sum of two requests for parts of one chunk."""
        return Sent(
            self.confirmed + rest.confirmed,
            self.refused | rest.refused,
            failure=self.failure or rest.failure,
        )


class ChunkWork(Work[Sent], frozen=True, eq=False):
    """Send a chunk, or the beginning of one."""

    # True to find out which channels are refused. Else a refusal counts for all of them.
    finds_refused: ClassVar[bool] = True

    data_id: str
    family: str
    points_per_chunk: int
    chunk: Chunk
    pushed_singly: frozenset[str] = frozenset()  # channels that were refused before. Sent one by one.

    def __str__(self) -> str:
        """Return its name for log lines."""
        return f"{self.kind.value} chunk {self.chunk.index} of {self.label!r}"

    def perform(self, client: Client, context: WorkerContext) -> Sent:
        """Send the chunk. If nothing of it is taken, ask the catalogue whether the stream is closed."""
        sent = self._send(client, self.chunk, context)
        if sent.failure is not None:
            raise PartlyDoneError(sent) from sent.failure
        if sent.refused and not sent.confirmed and is_closed(client, self, self.data_id, context):
            return Sent(refused=sent.refused, closed=True)
        return sent

    def shows_write_access(self, result: Sent) -> bool:
        """Return True if any channel was taken."""
        return bool(result.confirmed)

    def _send(self, client: Client, chunk: Chunk, context: WorkerContext) -> Sent:
        """Send all channels in one request.

        If the server has no such request, send them one by one. If it refuses, send halves, to find which channels it
        refuses. Stops at the first request that fails.
        """
        singly = [name for name in chunk.names if name in self.pushed_singly] if self.pushed_singly else []
        together = (
            chunk.with_channels(name for name in chunk.names if name not in self.pushed_singly) if singly else chunk
        )
        if not together.names or context.server_facts.lacks_multi(self.family):
            return self._send_each(client, chunk)
        if len(together.names) > 1 and push_bytes(together) > client.max_body_bytes:
            return self._send_halves(client, chunk, context)
        try:
            client.push(self.family, self.data_id, together)
        except ApiRefusedError as error:
            if is_no_route(error):
                one_by_one = self._send_each(client, chunk)
                if one_by_one.confirmed:
                    context.server_facts.note_no_multi(self.family)
                return one_by_one
            if not self.finds_refused:
                return Sent(refused=dict.fromkeys(chunk.names, error))
            if len(together.names) > 1:
                whole = chunk is self.chunk
                if whole and not is_too_large(error) and is_closed(client, self, self.data_id, context):
                    return Sent(refused=dict.fromkeys(chunk.names, error))  # all would be refused, one by one
                return self._send_halves(client, chunk, context)
            sent = Sent(refused=dict.fromkeys(together.names, error))
        except _FAILED as error:
            return Sent(failure=error)
        else:
            context.server_facts.note_multi(self.family)
            sent = Sent(together.names)
        return sent.and_then(self._send_each(client, chunk.with_channels(singly))) if singly else sent

    def _send_halves(self, client: Client, chunk: Chunk, context: WorkerContext) -> Sent:
        """Send a chunk that is too large for one request, or refused as a whole, in two, under the same index.

        One refused channel of n is found, and all others are through, after about 2 log2(n) requests.
        """
        half = len(chunk.names) // 2
        first = self._send(client, chunk.with_channels(chunk.names[:half]), context)
        if first.failure:
            return first
        return first.and_then(self._send(client, chunk.with_channels(chunk.names[half:]), context))

    def _send_each(self, client: Client, chunk: Chunk) -> Sent:
        """Send the channels of a chunk one by one. Stops at the first that fails."""
        confirmed: list[str] = []
        refused: dict[str, ApiRefusedError] = {}
        failure = None
        for column in chunk.columns:
            try:
                client.push_channel(self.family, self.data_id, chunk, column)
            except ApiRefusedError as error:
                refused[column.name] = error
            except _FAILED as error:
                failure = error
                break
            else:
                confirmed.append(column.name)
        return Sent(tuple(confirmed), refused, failure=failure)
