"""Find out by how much the run's times are to be shifted, before its first chunk leaves."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, ClassVar

from ...api.client import Client, ClockReading
from ...api.clock import measure
from ...errors import ApiError, ApiKeyError, ApiRefusedError, ApiUnavailableError
from ...spool.ledger_format import ClockFixed
from ...spool.ledger_state import Life
from .work import Attempt, Kind, Work

if TYPE_CHECKING:
    from ..run import Run

_logger = logging.getLogger(__name__)

# After so many attempts a run whose times are to be shifted goes without, if the server answers other requests.
CLOCK_ATTEMPTS = 4


class MeasureClock(Work["ClockReading | None"], frozen=True, eq=False):
    """Measure the server's clock; brings None where it cannot be measured."""

    kind: ClassVar[Kind] = Kind.CLOCK

    data_id: str

    def perform(self, client: Client, attempt: Attempt) -> ClockReading | None:
        """Measure; do without where the server has no clock, or does not tell it while it answers other requests."""
        try:
            return measure(client)
        except ApiRefusedError:
            return None
        except ApiError as error:
            if attempt.attempts + 1 < CLOCK_ATTEMPTS:
                raise ApiUnavailableError(str(error), status=error.status) from error
            try:
                client.entry(self.data_id)  # raises where the server does not answer this either: then all waits anyway
            except ApiRefusedError:
                pass  # it does answer
            except ApiKeyError as refused:
                if refused.status == 401:
                    raise  # with a key that works the clock may be told
            return None

    def apply(self, run: Run, result: ClockReading | None) -> None:
        """Note the shift: from here on the run's times go out later by that."""
        offset_s, delay_s = (0.0, None) if result is None else result
        run.ledger.note(ClockFixed(offset_s, run.now(), delay_s), sync=True)
        if result is None:
            _logger.warning(
                "the server's clock cannot be measured: the times of run %s go out as this host recorded them",
                run.header.run_uid,
            )
        else:
            _logger.info("the times of run %s go out later by %.6f s", run.header.run_uid, offset_s)


def plan(run: Run) -> MeasureClock | None:
    """Return the measurement if it is still to be made, and a stream is there to ask the server about."""
    if not run.clock_is_open or run.book.holds_any(Kind.CLOCK):
        return None
    for stream in run.streams.values():
        if stream.life is Life.INITIALIZED:
            return MeasureClock(stream.opening.stream, stream.opening.label, stream.data_id or "")
    return None
