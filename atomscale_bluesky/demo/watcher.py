"""Reads the state of the delivery ten times a second in a thread of its own, and shows it.

When it is asked to, it makes the local server unreachable for a while, and waits until it is reachable again.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace

from ..callback import AtomscaleCallback
from ..errors import ApiError
from ..server import Control
from ..spool.spool import Spool
from .display import Display, Moment

LOOK_PERIOD_S = 0.1


class Watcher:
    """Reads the state regularly, and makes the local server unreachable for a while."""

    def __init__(
        self,
        callback: AtomscaleCallback,
        spool: Spool,
        display: Display,
        control: Control | None,
        outage_s: float,
    ) -> None:
        self.outage: tuple[float, float] | None = None  # Unix seconds
        self._callback = callback
        self._spool = spool
        self._display = display
        self._control = control
        self._outage_s = outage_s
        self._to_take_away = threading.Event()
        self._stopping = threading.Event()
        self._began = time.time()
        self._moments: list[tuple[float, Moment]] = []
        self._last = (0, 0, 0)  # seen, confirmed, waiting
        self._data_ids: tuple[str, ...] = ()
        self._gone_since: float | None = None
        self._thread = threading.Thread(target=self._loop, name="demo watcher", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._began = time.time()
        self._thread.start()

    def stop(self) -> None:
        """Stop, and return when the thread has ended. Idempotent."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(20.0)

    def take_server_away(self) -> None:
        """Make the local server unreachable from the next poll on. Any other server is left alone."""
        self._to_take_away.set()

    def moments(self, since: float) -> list[Moment]:
        """Return all states seen, with times in seconds since `since`."""
        return [_at(moment, now - since) for now, moment in list(self._moments)]

    def finish(self) -> None:
        """Stop, and show the last state. An outage whose end was not noticed yet ends with this.

        Raises:
            ApiError: The local server does not answer.
        """
        self.stop()
        self._outage()
        self._read_state()

    def _read_state(self) -> None:
        """Read the state once, and pass it to the display."""
        now = time.time()
        status = self._callback.status()
        if status:
            points = status.points
            self._last = (points.seen, points.delivered, points.waiting)
            self._data_ids = tuple(data_id for run in status for data_id in run.data_ids)
        elif finished := self._spool.history.entries():  # it has left the spool, so all of it is confirmed
            delivered = sum(entry["delivered"] for entry in finished)
            self._last = (delivered, delivered, 0)
        reachable, held = None, None
        if self._control is not None:
            reachable = self._control.info().reachable
            held = sum(stream.points for stream in self._control.streams())
        seen, confirmed, waiting = self._last
        moment = Moment(
            elapsed_s=now - self._began,
            seen=seen,
            confirmed=confirmed,
            waiting=waiting,
            data_ids=self._data_ids,
            reachable=reachable,
            away_s=now - self._gone_since if self._gone_since is not None else 0.0,
            held=held,
        )
        self._moments.append((now, moment))
        self._display.moment(moment)

    def _loop(self) -> None:
        while not self._stopping.is_set():
            try:
                self._outage()
                self._read_state()
            except ApiError as error:  # the server process was ended from outside; the plan goes on
                self._display.step(str(error))
                self._control = None
            self._stopping.wait(LOOK_PERIOD_S)

    def _outage(self) -> None:
        control = self._control
        if control is None or not self._to_take_away.is_set() or self.outage is not None:
            return
        if self._gone_since is None:
            control.unreachable(self._outage_s)
            self._gone_since = time.time()
            self._display.step(f"the server is made unreachable for {self._outage_s:g} s; the plan goes on")
        elif control.info().reachable:
            self.outage = (self._gone_since, time.time())
            self._gone_since = None
            self._display.step("the server can be reached again")


def _at(moment: Moment, elapsed_s: float) -> Moment:
    return replace(moment, elapsed_s=elapsed_s)
