"""Finds out by how much the run's times are to be shifted, before its first chunk leaves."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, ClassVar

from ...api.client import Client, ClockReading
from ...api.clock import measure
from ...errors import ApiError, ApiKeyError, ApiRefusedError, ApiUnavailableError
from ...spool.ledger_format import ClockFixed
from ...spool.stream_state import Life
from .work import Kind, Work, WorkerContext

if TYPE_CHECKING:
    from ..claimed_run import ClaimedRun

_logger = logging.getLogger(__name__)

# After this many attempts the times of a run are not shifted, if the server answers other requests.
CLOCK_ATTEMPTS = 4


class MeasureClock(Work["ClockReading | None"], frozen=True, eq=False):
    """Measure the server's clock. The result is None if it cannot be measured."""

    kind: ClassVar[Kind] = Kind.CLOCK

    data_id: str

    def perform(self, client: Client, context: WorkerContext) -> ClockReading | None:
        """Measure. Return None if the server has no clock, or does not tell it while it answers other requests."""
        try:
            return measure(client)
        except ApiRefusedError:
            return None
        except ApiError as error:
            if context.attempts + 1 < CLOCK_ATTEMPTS:
                raise ApiUnavailableError(str(error), status=error.status) from error
            try:
                client.entry_of(self.data_id)  # raises if the server does not answer this either: then everything waits
            except ApiRefusedError:
                pass  # it does answer
            except ApiKeyError as refused:
                if refused.status == 401:
                    raise  # with a key that works the clock may be told
            return None

    def apply_result(self, run: ClaimedRun, result: ClockReading | None) -> None:
        """Note the shift, which is added to the run's times from here on."""
        offset_s, delay_s = (0.0, None) if result is None else result
        run.ledger.note(ClockFixed(offset_s, run.unix_time(), delay_s))
        if result is None:
            _logger.warning(
                "run %s is sent with the times that this host recorded, because the server's clock cannot be measured",
                run.header.run_uid,
            )
        else:
            _logger.info("run %s is sent with its times shifted by %.6f s", run.header.run_uid, offset_s)


def next_work(run: ClaimedRun) -> MeasureClock | None:
    """Return the measurement if it is still to be made, and a stream exists to ask the server about."""
    if not run.offset_unknown or run.unfinished_tasks.holds_any(Kind.CLOCK):
        return None
    for stream in run.streams.values():
        if stream.life is Life.INITIALIZED:
            return MeasureClock(stream.opening.stream, stream.opening.label, stream.data_id or "")
    return None
