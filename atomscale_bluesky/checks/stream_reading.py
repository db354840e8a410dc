"""Reads a metrology stream's points from Atomscale, and again while points are missing that should be there."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..api.answers import PointsByChannel
from ..api.client import Client
from ..api.stream_content import StreamContent
from ..errors import ApiRefusedError, ApiTooLargeError, ApiUnavailableError

# How long it may take until confirmed points can be read. That is not documented.
PATIENCE_S = 30.0
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.25, 5.0


def read_back(
    client: Client,
    families: tuple[str, ...],
    data_id: str,
    due: Mapping[str, int],
    *,
    is_whole: Callable[[PointsByChannel], bool],
    left_s: Callable[[], float],
    wait: Callable[[float], object],
) -> tuple[StreamContent, str | None]:
    """Return a stream's points, and why they could not be read. Reads again while points are missing and time is left.

    Args:
        client: Sends the requests.
        families: The path families under which the stream may be.
        data_id: The stream's id.
        due: The channels to read, and how many points each should have.
        is_whole: Returns True if none of these points is missing.
        left_s: Returns how much time is left, in seconds.
        wait: Waits for this many seconds.

    Raises:
        ApiKeyError: The key may not read.
        ApiUnavailableError: The API did not answer in time.
        ApiTooLargeError: The answer is far larger than the stream can be.
    """
    pause_s = _FIRST_PAUSE_S
    while True:
        found = StreamContent({}, {})
        problems: list[str] = []
        last = left_s() <= pause_s
        for family in families:
            try:
                found = client.points(family, data_id, due)
            except ApiTooLargeError:
                raise
            except ApiRefusedError as error:  # not found, or not yet, or not under this family
                problems.append(str(error))
            except ApiUnavailableError:
                if last:
                    raise
                problems.append("no answer")
            if found.points:
                break
        # One family that answers is enough, though it may hold nothing of a stream of the other family.
        problem = problems[0] if len(problems) == len(families) else None
        if last or (problem is None and is_whole(found.points)):
            return found, problem
        wait(pause_s)
        pause_s = min(2 * pause_s, _MAX_PAUSE_S)
