"""Documents from Kafka, as bluesky-kafka publishes them: `(name, doc)` in the value of each message.

A consumer group keeps on the brokers up to which offset each partition was taken. An offset is committed once all
messages before it are safe on this disk, even from a power cut. After a crash the messages behind it come again, and
are known.

Kafka keeps the order within a partition. Documents of one run are in one partition if their key is the run's uid, as
bluesky-kafka has it, or if the topic has only one.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from .forms import MessageError, document_in
from .incoming import Incoming, idle, unreadable

_logger = logging.getLogger(__name__)

POLL_S = 0.5
# How many messages are taken from the client in one go.
BATCH = 256
_POLL_AT_REST_S = 0.1
# How soon the brokers give the partitions of a dead process to another one.
SESSION_TIMEOUT_MS = 10_000
# How much the client fetches ahead. Its own default is 64 MB for each partition.
FETCHED_AHEAD_KB = 16_384
# How long the client waits before it fetches again, once it has so much. Its default is a second; we take it in less.
FETCH_AGAIN_MS = 20

# The client prints each failed attempt to connect, 20 a second while the brokers are away. It also reports what is
# wrong to `error_cb`, so its own lines are left out, unless `config` has another level: these are syslog's.
LOG_LEVEL = 2
# How often the same kind of error is reported while no message comes.
WARN_AGAIN_S = 900.0

Partition = tuple[str, int]


class KafkaDocuments:
    """Documents of Kafka topics: a source that gives again what was not committed. Used by one thread.

    Args:
        bootstrap: Brokers, such as `broker:9092,other:9092`.
        topics: The topics, or patterns that begin with `^`.
        group: The consumer group. No other process may take its partitions at the same time: one that gets a partition
            in the middle of a run knows nothing of the run.
        ending: Ends the iteration.
        config: Further settings of librdkafka, such as those of TLS and SASL. They go before those made here, except
            that offsets are never committed automatically.

    Raises:
        KafkaException: A setting cannot be used.
    """

    def __init__(
        self,
        bootstrap: str,
        topics: Sequence[str],
        *,
        group: str,
        ending: threading.Event | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self._ending = ending or threading.Event()
        self._positions: dict[Partition, _Position] = {}
        self._received: deque[Message] = deque()  # came, and were not handed over yet
        self._warned_at: dict[int | str, float] = {}  # by kind of error: when it was reported, monotonic
        self._closed = False
        self._consumer = Consumer(
            {
                "client.id": "atomscale-bluesky",
                "auto.offset.reset": "earliest",
                "session.timeout.ms": SESSION_TIMEOUT_MS,
                "queued.max.messages.kbytes": FETCHED_AHEAD_KB,
                "fetch.queue.backoff.ms": FETCH_AGAIN_MS,
                "log_level": LOG_LEVEL,
                **(config or {}),
                "bootstrap.servers": bootstrap,
                "group.id": group,
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "error_cb": self._note_error,
            }
        )
        self._consumer.subscribe(list(topics), on_revoke=self._hand_back, on_lost=self._hand_back)
        _logger.info("taking %s of %s as group %r", ", ".join(topics), bootstrap, group)

    def __iter__(self) -> Iterator[Incoming]:
        """Yield documents until `ending` is set. While the brokers are away, `idle`.

        Raises:
            KafkaException: The client cannot go on.
        """
        while not self._ending.is_set():
            if not self._received:
                self._commit()
                self._receive()
            if not self._received:
                yield idle()
                continue
            message = self._received.popleft()
            error = message.error()
            if error is None:
                self._warned_at.clear()
                yield self._incoming(message)
            elif error.fatal():
                raise KafkaException(error)
            elif error.code() != KafkaError._PARTITION_EOF:  # noqa: SLF001 - the library's public name for it
                self._note_error(error)
                yield idle()

    def pause(self, timeout_s: float) -> None:
        """Wait without taking messages. The process stays in the group."""
        partitions = self._consumer.assignment()
        self._consumer.pause(partitions)
        left_s = timeout_s
        while left_s > 0 and not self._ending.is_set():
            message = self._consumer.poll(min(_POLL_AT_REST_S, left_s))
            if message is not None:
                self._received.append(message)
            left_s -= _POLL_AT_REST_S
        self._consumer.resume(self._consumer.assignment())

    def close(self) -> None:
        """Commit, and leave the group."""
        if not self._closed:
            self._closed = True
            self._commit(wait=True)
            self._consumer.close()

    def _receive(self) -> None:
        """Wait for a message, and take those that have come behind it in one call, which costs less than one for each.

        If a rebalance gives a partition to another process meanwhile, librdkafka leaves its messages out of the batch,
        as `_hand_back` leaves them out of `_received`.
        """
        message = self._consumer.poll(POLL_S)
        if message is not None:
            self._received.append(message)
            self._received.extend(self._consumer.consume(BATCH - 1, 0))

    def _incoming(self, message: Message) -> Incoming:
        partition, offset = (message.topic() or "", message.partition() or 0), message.offset() or 0
        position = self._positions.get(partition)
        if position is None:
            position = self._positions[partition] = _Position()
        position.note_taken(offset)
        ack = partial(position.acknowledge, offset)
        value = message.value()
        try:
            if value is None:
                raise MessageError("a message has no value")
            name, doc = document_in(value)
            return Incoming(name, doc, ack)
        except MessageError as error:
            return unreadable(f"topic {partition[0]}: {error}", ack)

    def _commit(self, *, wait: bool = False) -> None:
        """Commit up to where everything was acknowledged. What is not committed comes again, and is known."""
        moved = {key: position.next for key, position in self._positions.items() if position.moved}
        if not moved:
            return
        offsets = [TopicPartition(topic, number, offset) for (topic, number), offset in moved.items() if offset >= 0]
        try:
            self._consumer.commit(offsets=offsets, asynchronous=not wait)
        except KafkaException as error:
            self._warn_if_due("commit", f"offsets could not be committed, so messages come again: {error.args[0]}")
            return
        for key in moved:
            self._positions[key].moved = False

    def _hand_back(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Commit what was acknowledged of partitions that go to another process of the group, or to this one again."""
        self._commit(wait=True)
        for partition in partitions:
            self._positions.pop((partition.topic, partition.partition), None)
        given_up = {(partition.topic, partition.partition) for partition in partitions}
        self._received = deque(one for one in self._received if (one.topic(), one.partition()) not in given_up)

    def _note_error(self, error: KafkaError) -> None:
        self._warn_if_due(error.code(), f"the brokers: {error.str()}")

    def _warn_if_due(self, kind: int | str, text: str) -> None:
        """Log a warning, unless one of its kind was logged lately. The texts differ by milliseconds and addresses."""
        now = time.monotonic()
        if now - self._warned_at.get(kind, -math.inf) >= WARN_AGAIN_S:
            self._warned_at[kind] = now
            _logger.warning("%s", text)


class _Position:
    """Up to where a partition was acknowledged without a gap."""

    def __init__(self) -> None:
        self.next = -1  # the offset to commit
        self.moved = False  # since the last commit
        self._taken: deque[int] = deque()
        self._acknowledged: set[int] = set()

    def note_taken(self, offset: int) -> None:
        """Note that a message was handed over."""
        self._taken.append(offset)

    def acknowledge(self, offset: int) -> None:
        """Note that a message is safe on disk."""
        if self._taken and self._taken[0] == offset:  # in the order in which they came, as nearly always
            self.next, self.moved = self._taken.popleft() + 1, True
        else:
            self._acknowledged.add(offset)
        while self._acknowledged and self._taken and self._taken[0] in self._acknowledged:
            self._acknowledged.discard(self._taken[0])
            self.next, self.moved = self._taken.popleft() + 1, True
