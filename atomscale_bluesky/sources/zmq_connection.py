"""Reports whether a 0MQ socket is connected. 0MQ itself waits for ever and says nothing, and what is sent is lost."""

from __future__ import annotations

import logging
import socket as network
import time
from contextlib import suppress
from urllib.parse import urlsplit

import zmq
from zmq.utils.monitor import recv_monitor_message

_logger = logging.getLogger(__name__)

# After how long without a connection a warning is logged, and how often it is repeated.
PATIENCE_S = 5.0
WARN_AGAIN_S = 900.0
# After how long a server that is no publisher is connected to again. 0MQ gives it up for good.
RECONNECT_S = 5.0

_FAILED = (
    zmq.Event.HANDSHAKE_FAILED_NO_DETAIL,
    zmq.Event.HANDSHAKE_FAILED_PROTOCOL,
    zmq.Event.HANDSHAKE_FAILED_AUTH,
)
_EVENTS = zmq.Event.HANDSHAKE_SUCCEEDED | zmq.Event.DISCONNECTED | zmq.Event.CLOSED | sum(_FAILED)
_OUT = "`--address` is where the proxy sends documents out, the second of its two addresses"


class ZmqConnection:
    """Watches the one connection of a socket, and makes it again where 0MQ does not. Used by the socket's thread.

    Args:
        socket: Not connected yet.
        address: Where it connects to. If its transport is not TCP, nothing is reported.
    """

    def __init__(self, socket: zmq.Socket[bytes], address: str) -> None:
        self.connected = False
        self._socket = socket
        self._address = address
        self._monitor = socket.get_monitor_socket(_EVENTS) if address.startswith("tcp://") else None
        self._lost_before = False
        self._apart_since = time.monotonic()
        self._warn_at = self._apart_since + PATIENCE_S
        self._is_other = False  # something answers, and is no publisher
        self._reconnect_at: float | None = None

    def connect(self) -> None:
        """Connect. Logs a warning at once if the host is not known, since a name is mostly misspelt.

        Raises:
            zmq.ZMQError: The address cannot be used.
        """
        self._socket.connect(self._address)
        if self._monitor is not None and (problem := _host_problem(self._address)):
            _logger.warning("%s: %s; it is tried again", self._address, problem)

    def check(self) -> None:
        """Report what has changed, and now and then that there is no connection."""
        if self._monitor is None:
            return
        while self._monitor.poll(0):
            self._note(recv_monitor_message(self._monitor)["event"])
        if self.connected:
            return
        now = time.monotonic()
        if self._reconnect_at is not None and now >= self._reconnect_at:
            self._reconnect_at = None
            with suppress(zmq.ZMQError):  # 0MQ has forgotten it already
                self._socket.disconnect(self._address)
            self._socket.connect(self._address)
        if now >= self._warn_at:
            self._warn_at = now + WARN_AGAIN_S
            _logger.warning(
                "not connected to %s for %.0f s, so documents that are sent are lost: %s",
                self._address, now - self._apart_since, self._why_apart(),
            )  # fmt: skip

    def close(self) -> None:
        """Stop watching."""
        if self._monitor is not None:
            self._socket.disable_monitor()
            self._monitor.close(0)

    def _note(self, event: int) -> None:
        if event == zmq.Event.HANDSHAKE_SUCCEEDED:
            _logger.info("connected to %s%s", self._address, " again" if self._lost_before else "")
            self.connected, self._is_other, self._reconnect_at = True, False, None
        elif event == zmq.Event.CLOSED:  # an attempt has failed: nothing answers
            self._is_other = False
        elif self.connected:
            self.connected, self._lost_before = False, True
            self._apart_since = time.monotonic()
            self._warn_at = self._apart_since + PATIENCE_S
            _logger.warning(
                "the connection to %s is lost; documents that are sent until it stands again are lost", self._address
            )
        else:
            self._is_other = True
            self._reconnect_at = time.monotonic() + RECONNECT_S

    def _why_apart(self) -> str:
        if self._is_other:
            return f"what answers there is no publisher, or its CURVE keys are others; {_OUT}"
        return _host_problem(self._address) or f"nothing answers there; start the proxy, or correct the address: {_OUT}"


def _host_problem(address: str) -> str | None:
    """Return why the host of a TCP address cannot be found, or None if it can. Asks the resolver, which may take long.

    An address with the interface to connect from, as in `tcp://eth0;host:5568`, is not judged.
    """
    if ";" in address:
        return None
    try:
        parts = urlsplit(address)
        if parts.hostname is not None:
            network.getaddrinfo(parts.hostname, parts.port)
    except (network.gaierror, UnicodeError) as error:
        return f"its host is not known: {error.args[-1]}; correct the name, or give the host's number"
    except ValueError:  # 0MQ has refused the address, or knows a form that is none of a URL
        return None
    return None
