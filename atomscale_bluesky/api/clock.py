"""Measures the server's clock by a few exchanges.

An exchange has four time stamps: when the request was sent, when the server received it and sent its answer, and when
the answer arrived. Of several exchanges the one with the least delay is kept, since its offset is right to half of its
delay. An exchange with a negative delay, because a clock was set meanwhile, is skipped.
"""

from __future__ import annotations

from ..errors import ApiUnavailableError
from .client import Client, ClockReading

# How many exchanges are made. The one with the least delay counts.
EXCHANGES = 4


def measure(client: Client, limit_s: float | None = None) -> ClockReading:
    """Return the exchange with the least delay out of a few with the server's clock.

    Args:
        client: Whose server.
        limit_s: A shorter time limit than the usual, for each exchange.

    Raises:
        ApiUnavailableError: There was no answer, or the time stamps of each exchange contradict each other.
        ApiRefusedError: The server has no such clock.
        ApiKeyError: The server asks for a valid key.
    """
    readings = [reading for reading in (client.clock(limit_s) for _ in range(EXCHANGES)) if reading.delay_s >= 0]
    if not readings:
        raise ApiUnavailableError("the time stamps of the server's clock contradict this host's; was a clock just set?")
    return min(readings, key=lambda reading: reading.delay_s)
