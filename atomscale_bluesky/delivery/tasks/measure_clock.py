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
# No clock of a lab is off by more: a host whose time zone was set wrong is off by up to 14 hours.
MAX_SHIFT_S = 86400.0


class MeasureClock(Work["ClockReading | None"], frozen=True, eq=False):
    """Measure the server's clock. Without a result, or with one beyond `MAX_SHIFT_S`, times are not shifted."""

    kind: ClassVar[Kind] = Kind.CLOCK

    data_id: str

    def perform(self, client: Client, context: WorkerContext) -> ClockReading | None:
        """Measure. Return None if the server has no clock, or does not tell it while it answers other requests.

        A clock that is off by more than `MAX_SHIFT_S` is measured as often as one that does not answer.
        """
        reading = None
        try:
            reading = measure(client)
            if _is_possible(reading):
                return reading
            raise ApiUnavailableError(f"the server's clock cannot be right: {_in_words(reading)}")
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
            return reading

    def apply_result(self, run: ClaimedRun, result: ClockReading | None) -> None:
        """Note the shift, which is added to the run's times from here on."""
        if result is not None and _is_possible(result):
            run.ledger.note(ClockFixed(result.offset_s, run.unix_time(), result.delay_s))
            _logger.info("run %s is sent with its times shifted by %.6f s", run.header.run_uid, result.offset_s)
            return
        run.ledger.note(ClockFixed(0.0, run.unix_time()))
        _logger.warning(
            "run %s is sent with the times that this host recorded, because the server's clock %s",
            run.header.run_uid,
            "cannot be measured" if result is None else f"cannot be right: {_in_words(result)}",
        )


def _is_possible(reading: ClockReading) -> bool:
    return abs(reading.offset_s) <= MAX_SHIFT_S


def _in_words(reading: ClockReading) -> str:
    side = "ahead of" if reading.offset_s > 0 else "behind"
    return f"it is {abs(reading.offset_s):.6g} s {side} this host's, and at most {MAX_SHIFT_S:.0f} s are possible"


def next_work(run: ClaimedRun) -> MeasureClock | None:
    """Return the measurement if it is still to be made, and a stream exists to ask the server about."""
    if not run.offset_unknown or run.unfinished_tasks.holds_any(Kind.CLOCK):
        return None
    for stream in run.streams.values():
        if stream.life is Life.INITIALIZED:
            return MeasureClock(stream.opening.stream, stream.opening.label, stream.data_id or "")
    return None
