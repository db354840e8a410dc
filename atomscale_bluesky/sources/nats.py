"""Documents from NATS JetStream, as bluesky-nats publishes them: one per message, its name the subject's last token.

A durable pull consumer keeps on the server which messages were acknowledged. Each is acknowledged by itself, once it is
safe on this disk, even from a power cut, and given again until then.

The order of a run's documents matters: an event means nothing before its descriptor. JetStream gives a message again
only when `ack_wait` has passed, and meanwhile later ones. So after a delivery that did not come, which the consumer's
count of deliveries shows, nothing is taken until `ack_wait` has passed, and all that was not acknowledged comes again
in order. The same is done at the beginning if a process before this one left messages unacknowledged. So no other
process may take from the same durable at the same time.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig
from nats.js.errors import APIError, NotFoundError

from ..errors import SettingsError
from ..model.text import without_user
from .forms import MessageError, document_in
from .incoming import Incoming, idle, unreadable

_logger = logging.getLogger(__name__)

T = TypeVar("T")

# For how long a message that was delivered is left alone before it is given again. Takes over a dead worker's messages.
ACK_WAIT_S = 10.0
FETCH = 256
FETCH_S = 0.5
# How many messages may be unacknowledged: what is fetched, what waits for a sync, and the events that wait for their
# descriptors, for up to `MAX_DOCUMENTS_BEHIND` documents.
MAX_UNACKNOWLEDGED = 110_000
RETRY_S = 1.0
POLL_S = 0.1
_SCHEMES = ("nats", "tls", "ws", "wss")
_ACK, _WORKING = b"+ACK", b"+WPI"
# What the client raises while the server is slow or away: errors of its own, and Python's, as TimeoutError.
_AWAY = (Error, OSError)


class NatsDocuments:
    """Documents of a JetStream stream: a source that gives again what was not acknowledged.

    Used by one thread. Its connection does its work while a document is asked for.

    Args:
        servers: Addresses of the servers, such as `nats://bus:4222`. They are shown without user and password.
        stream: The stream's name.
        durable: The consumer's name. It is made if it is not there; an existing one is used as it is.
        subject: Take only messages of this subject, with NATS's wildcards. For a consumer that is made.
        ending: Ends the iteration.
        **options: Given to `nats.connect`: `tls`, `user_credentials`, `token` and the like.

    Raises:
        SettingsError: An address has another scheme than NATS's.
    """

    def __init__(
        self,
        servers: str | Sequence[str],
        *,
        stream: str,
        durable: str,
        subject: str = ">",
        ending: threading.Event | None = None,
        **options: Any,
    ) -> None:
        self._servers = [servers] if isinstance(servers, str) else list(servers)
        for server in self._servers:
            scheme, separator, _ = server.partition("://")
            if separator and scheme.lower() not in _SCHEMES:
                shown = without_user(server)
                raise SettingsError(f"the server's address is {shown!r}: expected such as nats://bus:4222")
        self._shown_servers = ", ".join(map(without_user, self._servers))
        self._stream = stream
        self._durable = durable
        self._subject = subject
        self._ending = ending or threading.Event()
        self._options = options
        self._loop = asyncio.new_event_loop()
        self._connection: Client | None = None
        self._subscription: JetStreamContext.PullSubscription | None = None
        self._ack_wait_s = ACK_WAIT_S
        self._max_unacknowledged = MAX_UNACKNOWLEDGED  # the server gives no more until some are acknowledged
        self._next: int | None = None  # which delivery has to come next; None: any
        self._unacknowledged: set[str] = set()  # where to acknowledge what was handed over
        self._waiting: set[str] = set()  # what was unacknowledged when `_hold_back` last ran
        self._hold_back_at = 0.0  # monotonic
        self._acks: list[str] = []
        self._lost = False  # deliveries, or the consumer itself
        self._last_warning = ""

    def __iter__(self) -> Iterator[Incoming]:
        """Yield documents until `ending` is set. While the server is away, `idle`.

        Nothing is yielded before the first connection, for which it waits.

        Raises:
            SettingsError: The server has no such stream, or refuses the connection for good.
        """
        yield from self._connected()
        while not self._ending.is_set():
            if len(self._unacknowledged) + FETCH > self._max_unacknowledged:
                yield idle()  # what was taken is acknowledged now, before the server waits for that
                self._send_acks()
            self._hold_back()
            messages = self._fetched()
            if not messages:
                yield idle()
            for message in messages:
                if not self._is_next(message):
                    self._lost = True
                    yield idle()  # what was taken is acknowledged now
                    break
                yield self._incoming(message)
            self._send_acks()
            if self._lost:
                yield from self._restart_after_last_ack()

    def pause(self, timeout_s: float) -> None:
        """Wait, and let the server wait for what was not acknowledged."""
        self._send_acks()

        self._prolong(self._unacknowledged, timeout_s)

    def _hold_back(self) -> None:
        """Keep messages from coming again that are unacknowledged for long, such as events without a descriptor."""
        now = time.monotonic()
        if now < self._hold_back_at:
            return
        self._hold_back_at = now + self._ack_wait_s / 4  # so that each is prolonged before it is overdue
        waiting, self._waiting = self._waiting & self._unacknowledged, set(self._unacknowledged)
        if waiting:
            self._prolong(waiting)

    def _prolong(self, replies: Iterable[str], wait_s: float = 0.0) -> None:
        """Let the server wait for these acknowledgements as long as for new ones. Then wait."""

        async def prolong() -> None:
            if self._connection is not None and self._connection.is_connected:
                for reply in replies:
                    await self._connection.publish(reply, _WORKING)
            await asyncio.sleep(wait_s)

        try:
            self._run(prolong())
        except _AWAY as error:
            self._warn_if_new(f"the server cannot be told that messages are still worked on: {error}")

    def close(self) -> None:
        """Send the last acknowledgements, and close the connection."""
        if self._loop.is_closed():
            return
        self._send_acks()
        if self._connection is not None:
            with suppress(*_AWAY):
                self._run(self._connection.close(), always=True)
        self._run(self._loop.shutdown_asyncgens(), always=True)
        self._loop.close()

    def _connected(self) -> Iterator[Incoming]:
        """Wait for a connection, then find or make the consumer. Yields `idle` while there is none."""
        connecting = nats.connect(
            self._servers,
            name=f"atomscale-bluesky {self._durable}",
            max_reconnect_attempts=-1,
            reconnect_time_wait=RETRY_S,
            error_cb=self._note_error,
            **self._options,
        )
        try:
            self._connection = self._run(connecting)
        except Error as error:
            # What is behind the error may quote a part of the password.
            raise SettingsError(f"{self._shown_servers} refuses the connection: {error}") from None
        while self._subscription is None and not self._ending.is_set():
            try:
                pending = self._run(self._subscribe())
            except NotFoundError as error:
                raise SettingsError(
                    f"stream {self._stream!r} is not on {self._shown_servers}: {error.description}; make it, or "
                    f"name the one whose subjects the documents have"
                ) from error
            except _AWAY as error:
                self._warn_if_new(f"consumer {self._durable!r} cannot be used yet: {error}")
                self.pause(RETRY_S)
                yield idle()
                continue
            if pending:
                yield from self._restart_after_last_ack()

    async def _subscribe(self) -> int:
        """Find or make the consumer. Return how many messages were delivered and not acknowledged."""
        if self._connection is None:
            return 0
        config = ConsumerConfig(
            ack_policy=AckPolicy.EXPLICIT, ack_wait=ACK_WAIT_S, max_ack_pending=MAX_UNACKNOWLEDGED, max_waiting=8
        )
        stream = self._connection.jetstream()
        await stream.stream_info(self._stream)
        subscription = await stream.pull_subscribe(
            self._subject, durable=self._durable, stream=self._stream, config=config
        )
        info = await subscription.consumer_info()
        self._ack_wait_s = info.config.ack_wait or ACK_WAIT_S
        permitted = info.config.max_ack_pending or 0
        self._max_unacknowledged = permitted if permitted > 0 else MAX_UNACKNOWLEDGED  # -1: as many as one likes
        self._subscription, self._next = subscription, None
        _logger.info("taking stream %r as consumer %r", self._stream, self._durable)
        return info.num_ack_pending or 0

    def _restart_after_last_ack(self) -> Iterator[Incoming]:
        """Wait until everything that was not acknowledged comes again, in order."""
        self._warn_if_new(f"messages were delivered and did not come, so they are waited for: {self._ack_wait_s:g} s")
        self._send_acks()
        if self._subscription is not None:
            subscription, self._subscription = self._subscription, None
            try:
                self._run(subscription.unsubscribe())
            except _AWAY:  # the connection is gone, and with it the subscription
                _logger.debug("a subscription could not be given up")
        self._unacknowledged.clear()
        self._lost = False
        left_s = self._ack_wait_s + RETRY_S
        while left_s > 0 and not self._ending.is_set():
            self.pause(min(POLL_S * 5, left_s))
            left_s -= POLL_S * 5
            yield idle()
        while self._subscription is None and not self._ending.is_set():
            try:
                self._run(self._subscribe())
            except _AWAY as error:
                self._warn_if_new(f"consumer {self._durable!r} cannot be used yet: {error}")
                self.pause(RETRY_S)
                yield idle()

    def _fetched(self) -> list[Msg]:
        if self._subscription is None:
            return []
        try:
            number = min(FETCH, self._max_unacknowledged)
            messages = self._run(self._subscription.fetch(number, timeout=FETCH_S)) or []
        except TimeoutError:
            return []
        except APIError as error:  # the consumer is gone, or the server begins
            self._warn_if_new(f"consumer {self._durable!r} gives nothing: {error.description or error}")
            self._lost = True
            self.pause(RETRY_S)
            return []
        except _AWAY as error:
            self._warn_if_new(f"the connection gives nothing: {error}")
            self.pause(RETRY_S)
            return []
        self._last_warning = ""
        return messages

    def _is_next(self, message: Msg) -> bool:
        number = message.metadata.sequence.consumer
        if self._next is not None and number != self._next:
            return False
        self._next = number + 1
        return True

    def _incoming(self, message: Msg) -> Incoming:
        reply = message.reply
        self._unacknowledged.add(reply)

        def ack() -> None:
            self._acks.append(reply)

        try:
            name, doc = document_in(message.data, name=message.subject.rpartition(".")[2])
        except MessageError as error:
            return unreadable(f"{message.subject}: {error}", ack)
        return Incoming(name, doc, ack)

    def _send_acks(self) -> None:
        """Send the acknowledgements given so far. If the connection is away, the messages come again, and are known."""
        acks, self._acks = self._acks, []
        self._unacknowledged.difference_update(acks)
        connection = self._connection
        if not acks or connection is None:
            return

        async def send() -> None:
            for reply in acks:
                await connection.publish(reply, _ACK)
            await connection.flush(timeout=5)

        try:
            self._run(send(), always=True)
        except _AWAY as error:
            self._warn_if_new(f"{len(acks)} messages could not be acknowledged, and come again: {error}")

    def _run(self, work: Coroutine[Any, Any, T], *, always: bool = False) -> T | None:
        """Do something with the connection. Return None if it was told to end meanwhile."""
        task = self._loop.create_task(work)
        while not task.done():
            self._loop.run_until_complete(asyncio.wait([task], timeout=POLL_S))
            if self._ending.is_set() and not always and not task.done():
                task.cancel()
                self._loop.run_until_complete(asyncio.wait([task], timeout=POLL_S))
                return None
        return None if task.cancelled() else task.result()

    async def _note_error(self, error: Exception) -> None:
        self._warn_if_new(f"the connection to {self._shown_servers}: {str(error) or type(error).__name__}")

    def _warn_if_new(self, text: str) -> None:
        if text != self._last_warning:
            self._last_warning = text
            _logger.warning("%s", text)
