"""How a metrology stream ends before its run does, and where the run goes on.

A stream takes no more when the server has closed it, when its chunks are too large, damaged, or cut short by a preview.
Once nothing of it is under way, what was pushed and perhaps taken is read back; then, in one line of the ledger, the
stream ends and what it does not hold is given to further streams, channels with the same rest together.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import msgspec

from .chunks import Chunk, Column
from .cutting import Cutting
from .ledger import Ledger
from .lines import Confirmed, Ended, Why
from .tasks import Points

# A stream's end is told by the delivery, whichever module words it.
_logger = logging.getLogger("atomscale_bluesky.delivery")


class _Ending(msgspec.Struct):
    """A stream that takes no more, until nothing of it is under way."""

    why: Why
    points_per_chunk: int  # of what goes on
    doubtful: list[Chunk] = []  # pushed, and perhaps taken although that was never answered


class Endings:
    """The streams of one run that are about to end; belongs to the thread of its delivery.

    Args:
        ledger: Where each end is noted.
        cutting: Opens the streams that go on.
        now: Unix seconds.
    """

    def __init__(self, ledger: Ledger, cutting: Cutting, now: Callable[[], float]) -> None:
        self._ledger = ledger
        self._cutting = cutting
        self._now = now
        self._endings: dict[int, _Ending] = {}

    def __contains__(self, stream: int) -> bool:
        """Whether a stream is about to end."""
        return stream in self._endings

    def begin(self, stream: int, why: Why, points_per_chunk: int, doubtful: Iterable[Chunk] = ()) -> None:
        """The stream takes no more; of `doubtful` chunks nobody knows whether they were taken."""
        self._endings.setdefault(stream, _Ending(why, points_per_chunk)).doubtful.extend(doubtful)

    def read_back(self, stream: int, points: Points) -> None:
        """What the stream holds of the chunks in doubt counts as confirmed."""
        doubtful, self._endings[stream].doubtful = self._endings[stream].doubtful, []
        for chunk in doubtful:
            confirmed = tuple(column.name for column in chunk.columns if _holds(points, chunk, column))
            if confirmed:
                self._ledger.note(Confirmed(stream, chunk.index, self._now(), confirmed))

    def settle(self, is_under_way: Callable[[int], bool], ended: Callable[[int], None]) -> int | None:
        """End the streams of which nothing is under way; `ended` is told which, just before.

        Returns:
            A stream that has to be read back before it can end.
        """
        for number, ending in list(self._endings.items()):
            stream = self._ledger.state.streams[number]
            together = [one.opening.stream for one in stream.group]
            if any(map(is_under_way, together)):
                continue
            for one in together:
                if one in self._endings and self._endings[one].doubtful:
                    return one
            del self._endings[number]
            ended(number)
            rests = stream.rests(self._cutting.channels_of(stream.opening))
            with self._ledger.together():
                self._ledger.note(Ended(number, ending.why))
                for (from_row, skip, position), channels in rests.items():
                    self._cutting.open_stream(
                        why=ending.why,
                        time_base=stream.opening.time_base,
                        from_row=from_row,
                        position=position,
                        channels=channels or None,
                        own=stream.opening.own,
                        skip=skip,
                        points_per_chunk=ending.points_per_chunk,
                    )
            _logger.warning("%r ended (%s); its run goes on in a further stream", stream.opening.label, ending.why)
        return None


def _holds(points: Points, chunk: Chunk, column: Column) -> bool:
    """Whether points that were read back, with times to the millisecond, include these of a chunk."""
    _, times, values = points.get(column.name, (None, [], []))
    held = {(round(at * 1000), value) for at, value in zip(times, values, strict=False) if at is not None}
    return all((round(at * 1000), value) in held for at, value in zip(chunk.times, column.values, strict=True))
