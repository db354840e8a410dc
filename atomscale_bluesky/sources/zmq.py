"""Documents from 0MQ: Bluesky's own proxy, or any program that publishes documents in one of its forms.

0MQ keeps nothing. A document is lost if it is published before the subscription stands, while the network is down, or
faster than documents are taken here, and 0MQ does not say so. The intake leaves out and reports a run whose start
document was missed. The recorder reports a run whose stop document counts events that never came.

A message is one frame, `<prefix> <name> <document>`, as `bluesky.callbacks.zmq.Publisher` sends it; several frames, of
which the last has the document and an earlier one may be its name; or one frame with both. The document is JSON or
MessagePack. Bluesky's default is a pickle, and reading one can run any code, so that is done only if it is asked for.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import zmq

from .forms import KINDS, Document, MessageError, document_in
from .incoming import Incoming, idle, no_ack, unreadable
from .zmq_connection import ZmqConnection

_logger = logging.getLogger(__name__)

# How many messages 0MQ holds for this process before it drops further ones.
MAX_WAITING = 20_000
# A larger message ends the connection, which 0MQ then makes again.
MAX_BYTES = 1 << 29
POLL_S = 0.2


class ZmqDocuments:
    """Documents that a 0MQ proxy hands on: a source that cannot give anything again.

    Args:
        address: Where the proxy sends documents to, such as `tcp://localhost:5568` or `localhost:5568`.
        prefix: Take only messages with this prefix.
        trust_pickle: Read pickled documents. Everybody who can send to the proxy can then run code in this process.
        ending: Ends the iteration.
        configure: Sets options of the socket before it connects, such as those of CURVE.
    """

    def __init__(
        self,
        address: str,
        *,
        prefix: str = "",
        trust_pickle: bool = False,
        ending: threading.Event | None = None,
        configure: Callable[[zmq.Socket[bytes]], object] = lambda socket: None,
    ) -> None:
        self._address = address if "://" in address else f"tcp://{address}"
        self._prefix = prefix.encode()
        self._trust_pickle = trust_pickle
        self._ending = ending or threading.Event()
        self._configure = configure

    def __iter__(self) -> Iterator[Incoming]:
        """Yield documents until `ending` is set.

        Raises:
            zmq.ZMQError: The address or an option of the socket cannot be used.
        """
        with zmq.Context() as context, context.socket(zmq.SUB) as socket:
            socket.setsockopt(zmq.RCVHWM, MAX_WAITING)
            socket.setsockopt(zmq.MAXMSGSIZE, MAX_BYTES)
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.SUBSCRIBE, self._prefix)
            self._configure(socket)
            connection = ZmqConnection(socket, self._address)
            try:
                connection.connect()
                _logger.info(
                    "listening to %s; 0MQ keeps nothing, so what is sent while nobody listens is lost", self._address
                )
                yield from self._received(socket, connection)
            finally:
                connection.close()

    def pause(self, timeout_s: float) -> None:
        """Wait. Meanwhile 0MQ holds up to `MAX_WAITING` messages, and drops the others."""
        self._ending.wait(timeout_s)

    def close(self) -> None:
        """Do nothing: the socket is closed with the iteration."""

    def _received(self, socket: zmq.Socket[bytes], connection: ZmqConnection) -> Iterator[Incoming]:
        while not self._ending.is_set():
            came = socket.poll(int(POLL_S * 1000))
            if not (came and connection.connected):  # while documents come, the connection stands
                connection.check()
            if not came:
                yield idle()
                continue
            incoming = self._incoming(socket.recv_multipart())
            if incoming is not None:
                yield incoming

    def _incoming(self, frames: Sequence[bytes]) -> Incoming | None:
        try:
            document = self._document(frames)
        except MessageError as error:
            return unreadable(str(error))
        if document is None:
            return None
        return Incoming(*document, no_ack)

    def _document(self, frames: Sequence[bytes]) -> Document | None:
        """Return the document of a message, or None if its prefix is another one that only begins alike.

        Raises:
            MessageError: It has none.
        """
        if len(frames) > 1:
            if not self._has_prefix(frames[0]):
                return None
            name = frames[-2].decode(errors="replace").rpartition(".")[2]
            return document_in(frames[-1], name=name, trust_pickle=self._trust_pickle)
        prefix, _, rest = frames[0].partition(b" ")
        name, separator, body = rest.partition(b" ")
        if separator and name.decode(errors="replace") in KINDS:
            if self._prefix and prefix != self._prefix:
                return None
            try:
                return document_in(body, name=name.decode(), trust_pickle=self._trust_pickle)
            except MessageError:
                with suppress(MessageError):  # the blanks and the kind may stand in a text of a whole document
                    return document_in(frames[0], trust_pickle=self._trust_pickle)
                raise
        return document_in(frames[0], trust_pickle=self._trust_pickle)

    def _has_prefix(self, topic: bytes) -> bool:
        """Return True if the first frame of several is the prefix, or the prefix and a document's name behind a dot."""
        before, dot, name = topic.rpartition(b".")
        if name.decode(errors="replace") in KINDS:
            return self._prefix in {b"", topic, before, before + dot}
        return self._prefix in {b"", topic}
