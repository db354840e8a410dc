"""Documents from 0MQ: Bluesky's own proxy, or any program that publishes documents in one of its forms.

0MQ keeps nothing. What is published before the subscription stands, while the network is down, or faster than it is
taken, is gone, and nobody is told. So a run whose start document was missed is left out and reported, and at a run's
end the events that came are compared with the number that its stop document tells.

A message is one frame, `<prefix> <name> <document>`, as `bluesky.callbacks.zmq.Publisher` sends it; several frames, of
which the last has the document and an earlier one may be its name; or one frame with both. The document is JSON or
MessagePack. Bluesky's default is a pickle, and reading one can run any code, so that is done only if it is asked for.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import zmq

from .forms import KINDS, Document, MessageError, document_in
from .incoming import Incoming, idle, no_ack, unreadable

_logger = logging.getLogger(__name__)

# How many messages 0MQ holds for this process before it drops further ones.
MOST_WAITING = 20_000
# A larger message ends the connection, which 0MQ then makes again.
MAX_BYTES = 1 << 29
POLL_S = 0.2
# Of so many runs it is counted which events came.
MOST_RUNS = 1000


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
        self._events = _EventsThatCame()

    def __iter__(self) -> Iterator[Incoming]:
        """Yield documents until `ending` is set.

        Raises:
            zmq.ZMQError: The address or an option of the socket cannot be used.
        """
        with zmq.Context() as context, context.socket(zmq.SUB) as socket:
            socket.setsockopt(zmq.RCVHWM, MOST_WAITING)
            socket.setsockopt(zmq.MAXMSGSIZE, MAX_BYTES)
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.SUBSCRIBE, self._prefix)
            self._configure(socket)
            socket.connect(self._address)
            _logger.info(
                "listening to %s; 0MQ keeps nothing, so what is sent while nobody listens is lost", self._address
            )
            while not self._ending.is_set():
                if not socket.poll(int(POLL_S * 1000)):
                    yield idle()
                    continue
                incoming = self._incoming(socket.recv_multipart())
                if incoming is not None:
                    yield incoming

    def rest(self, timeout_s: float) -> None:
        """Wait. Meanwhile 0MQ holds up to `MOST_WAITING` messages, and drops the others."""
        self._ending.wait(timeout_s)

    def close(self) -> None:
        """Do nothing: the socket is closed with the iteration."""

    def _incoming(self, frames: Sequence[bytes]) -> Incoming | None:
        try:
            document = self._document(frames)
        except MessageError as error:
            return unreadable(str(error))
        if document is None:
            return None
        self._events.note(*document)
        return Incoming(*document, no_ack)

    def _document(self, frames: Sequence[bytes]) -> Document | None:
        """Return the document of a message, or None if its prefix is another one that only begins alike.

        Raises:
            MessageError: It has none.
        """
        if len(frames) > 1:
            name = frames[-2].decode(errors="replace").rpartition(".")[2]
            return document_in(frames[-1], name=name, trust_pickle=self._trust_pickle)
        prefix, _, rest = frames[0].partition(b" ")
        name, separator, body = rest.partition(b" ")
        if separator and name.decode(errors="replace") in KINDS:
            if self._prefix and prefix != self._prefix:
                return None
            return document_in(body, name=name.decode(), trust_pickle=self._trust_pickle)
        return document_in(frames[0], trust_pickle=self._trust_pickle)


class _EventsThatCame:
    """Counts the events of each run, and reports a run of which some did not come."""

    def __init__(self) -> None:
        self._runs: OrderedDict[str, Counter[str]] = OrderedDict()  # by uid: events by event stream
        self._streams: dict[str, tuple[str, str]] = {}  # descriptor uid → run uid and event stream

    def note(self, name: str, doc: Mapping[str, Any]) -> None:
        """Count a document. One that lacks something is reported by the recorder."""
        match name:
            case "start":
                self._runs[str(doc.get("uid"))] = Counter()
                if len(self._runs) > MOST_RUNS:
                    self._forget(next(iter(self._runs)))
            case "descriptor" if (uid := str(doc.get("run_start"))) in self._runs:
                self._streams[str(doc.get("uid"))] = uid, str(doc.get("name") or "primary")
            case "event" | "event_page" if str(doc.get("descriptor")) in self._streams:
                uid, event_stream = self._streams[str(doc.get("descriptor"))]
                uids = doc.get("uid")
                self._runs[uid][event_stream] += len(uids) if name == "event_page" and isinstance(uids, list) else 1
            case "stop":
                self._compare(str(doc.get("run_start")), doc.get("num_events"))
            case _:
                pass

    def _compare(self, uid: str, told: object) -> None:
        came = self._runs.get(uid)
        if came is None:
            return
        for event_stream, number in told.items() if isinstance(told, Mapping) else ():
            if isinstance(number, int) and number > came[event_stream]:
                _logger.warning(
                    "run %s: %d of %d events of %r never came, since 0MQ keeps nothing; `atomscale-bluesky send` takes "
                    "them from a recorded file, and `status` tells what came", uid, number - came[event_stream], number,
                    event_stream,
                )  # fmt: skip
        self._forget(uid)

    def _forget(self, uid: str) -> None:
        del self._runs[uid]
        self._streams = {key: value for key, value in self._streams.items() if value[0] != uid}
