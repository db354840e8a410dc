"""The server's clock, measured by a few exchanges.

An exchange has four time stamps: when the question left, when the server received it and sent its answer, and when that
arrived. Of several the least delayed is kept, since its offset is right to half of its delay. One with a negative
delay, because a clock was set meanwhile, is passed over.
"""

from __future__ import annotations

from ..errors import ApiUnavailableError
from .client import Client, ClockReading

# Of this many exchanges the least delayed one counts.
EXCHANGES = 4


def measure(client: Client) -> ClockReading:
    """The least delayed of a few exchanges with the server's clock.

    Raises:
        ApiUnavailableError: There was no answer, or the stamps of each contradict each other.
        ApiRefusedError: The server has no such clock.
        ApiKeyError: It is asked for a key that works.
    """
    readings = [reading for reading in (client.clock() for _ in range(EXCHANGES)) if reading.delay_s >= 0]
    if not readings:
        raise ApiUnavailableError("the time stamps of the server's clock contradict this host's; was a clock just set?")
    return min(readings, key=lambda reading: reading.delay_s)
