"""The runs that one uploader delivers: taken over from the spool, let go of when they are finished or cannot go on.

A run is claimed through its lock, so no two uploaders have the same one. What goes wrong with one run's files costs
that run its turn and no other's: it is let go of, and a later scan starts again from what its files say.

Bounded: at most `MAX_ACTIVE` runs; more wait in the spool for their turn. A run that waits for a person keeps no other
from its turn: it is set aside, and taken up again when a person orders something, or when there is room.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from .claim import endpoint_of, read_orders
from .courtesy import Courtesy
from .delivery import Delivery
from .errors import SpoolError
from .locks import RunLock
from .reading import read_header
from .spool import Spool

_logger = logging.getLogger(__name__)

# Runs delivered at the same time.
MAX_ACTIVE = 64

T = TypeVar("T")


class Roster:
    """The deliveries of one uploader; belongs to its pump's thread.

    Args:
        spool: Whose runs.
        endpoint: Where they are to go; those for another one are left alone.
        settle: Has the writer in this process complete the run in a folder whose stop document never came.
        courtesy: Makes way for a plan's thread.
        now: The clock that tests hand in.
    """

    def __init__(
        self,
        spool: Spool,
        endpoint: str,
        *,
        settle: Callable[[Path], None] = lambda folder: None,
        courtesy: Courtesy | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.unready = False  # a run that is just beginning had no header yet when the spool was searched
        self.more_runs = False  # the spool holds more than are delivered at a time
        self.own: set[Path] = set()  # runs whose writer is in this process
        self._spool = spool
        self._endpoint = endpoint
        self._settle = settle
        self._courtesy = courtesy
        self._now = now
        self._deliveries: dict[Path, Delivery] = {}
        self._turn: deque[Path] = deque()  # whose task comes next
        self._foreign: set[Path] = set()  # runs for another endpoint, said once
        self._aside: dict[Path, int] = {}  # runs that made way for others, and how many orders they had obeyed
        self._troubled: set[Path] = set()  # runs let go of until a later scan: not drained

    def __iter__(self) -> Iterator[Delivery]:
        """The deliveries of this moment; it may be changed meanwhile."""
        return iter(list(self._deliveries.values()))

    def __len__(self) -> int:
        return len(self._deliveries)

    def holds(self, delivery: Delivery) -> bool:
        """Whether it is still ours, and has not been let go of or begun anew."""
        return self._deliveries.get(delivery.claim.folder) is delivery

    def in_turn(self) -> Delivery:
        """The delivery whose turn it is; the next call gives the one after it."""
        folder = self._turn[0]
        self._turn.rotate(-1)
        return self._deliveries[folder]

    @property
    def anything_left(self) -> bool:
        """Whether a run of these is not delivered as far as it could be; asked when nothing moves any more."""
        return bool(self._troubled or self._aside) or any(
            delivery.stopped
            or delivery.parked
            or any(s.parked or s.refused or s.links_refused for s in delivery.state.streams.values())
            for delivery in self
        )

    @property
    def anything_open(self) -> bool:
        """Whether a run of these may still get readings."""
        return self.unready or any(not (delivery.stopped or delivery.parked) for delivery in self)

    def scan(self) -> None:
        """Take over runs that nobody delivers, and settle those whose writer is gone."""
        for delivery in self:
            folder = delivery.claim.folder
            self.guarded(delivery, delivery.obey)
            if delivery.to_settle and folder in self.own:
                self._settle(folder)
            if folder not in self.own and not delivery.stopped and folder in self._deliveries:
                self.guarded(delivery, delivery.settle_if_interrupted)
        try:
            folders = self._spool.run_folders()
        except OSError as error:
            _logger.warning("spool %s cannot be read: %s", self._spool.path, error)
            return
        self.more_runs = self.unready = False
        self._troubled.intersection_update(folders)
        for gone in self._aside.keys() - set(folders):
            del self._aside[gone]
        for folder in folders:
            if folder in self._deliveries or self._rests(folder):
                continue
            if len(self._deliveries) >= MAX_ACTIVE and not self._make_room():
                self.more_runs = True  # looked at as soon as one is finished
                return
            self._claim(folder)
        for folder in list(self._aside)[: max(0, MAX_ACTIVE - len(self._deliveries))]:
            del self._aside[folder]
            self._claim(folder)

    def begin(self, folder: Path, lock: RunLock | None) -> None:
        """A run begins whose writer is in this process; the lock is that of who delivers it, if it was free."""
        self.own.add(folder)
        self._claim_with(folder, lock)

    def _claim_with(self, folder: Path, lock: RunLock | None) -> None:
        """Begin to deliver a run whose lock is ours already, if there is one; else let go of that."""
        self._claim(folder, lock)
        if lock is not None and folder not in self._deliveries:
            lock.release()

    def _claim(self, folder: Path, lock: RunLock | None = None) -> None:
        """Begin to deliver the run in a folder, unless somebody else does, or it is for another endpoint."""
        if folder in self._deliveries:
            return
        try:
            header = read_header(folder)
            self.unready = self.unready or (header is None and self._spool.is_beginning(folder))
            endpoint = endpoint_of(folder, header) if header else self._endpoint
            if header is not None and endpoint != self._endpoint:
                if folder not in self._foreign:
                    self._foreign.add(folder)
                    _logger.warning(
                        "run %s was %s %s and waits for an uploader with that endpoint",
                        header.run_uid, "spooled for" if endpoint == header.endpoint else "moved to", endpoint,
                    )  # fmt: skip
                return
            claim = self._spool.claim(folder, lock)
            if claim is None:
                return
            if claim.endpoint != self._endpoint:  # moved just now
                claim.close()
                return
            try:
                delivery = Delivery(claim, now=self._now, courtesy=self._courtesy)
                delivery.obey()
                if folder not in self.own:
                    _logger.info("run %s found in the spool; its delivery goes on", claim.header.run_uid)
                    delivery.settle_if_interrupted()
            except BaseException:
                claim.close()  # tried again from scan to scan, so nothing may stay open
                raise
        except Exception as error:  # noqa: BLE001 - one run's files, or a mistake of ours, must not stop all the others
            self._trouble(folder, error)
            return
        self._troubled.discard(folder)
        self._deliveries[folder] = delivery
        self._turn.append(folder)

    @property
    def can_make_room(self) -> bool:
        """Whether runs wait for their turn, and one that waits for a person may make way for them."""
        return self.more_runs and any(map(self._may_make_way, self))

    def _make_room(self) -> bool:
        """Let go of a run that waits for a person; whether there was one."""
        delivery = next(filter(self._may_make_way, self), None)
        if delivery is None:
            return False
        folder = delivery.claim.folder
        self._aside[folder] = delivery.state.orders_obeyed
        self.guarded(delivery, delivery.say_what_is_left)
        if self.holds(delivery):
            delivery.close()
            self._forget(folder)
        return True

    def _may_make_way(self, delivery: Delivery) -> bool:
        return delivery.at_rest and delivery.claim.folder not in self.own

    def _rests(self, folder: Path) -> bool:
        """Whether a run was set aside, and nobody has ordered anything since."""
        if folder not in self._aside:
            return False
        try:
            if len(read_orders(folder)) == self._aside[folder]:
                return True
        except (SpoolError, OSError):
            pass  # said when it is taken up
        del self._aside[folder]
        return False

    def finish_runs(self) -> bool:
        """Move the runs that are finalized whole into the history; whether there is room for others again."""
        finished = False
        for delivery in self:
            if delivery.finished and delivery.in_flight == 0 and self.guarded(delivery, delivery.finish):
                self._forget(delivery.claim.folder)
                finished = True
        return finished and self.more_runs

    def start_again_where_due(self) -> bool:
        """Read the files of runs anew where orders have changed what they mean; whether there were any."""
        again = [delivery.claim.folder for delivery in self if delivery.to_start_again]
        for folder in again:
            lock = self._deliveries.pop(folder).hand_over()
            self._turn.remove(folder)
            self._claim_with(folder, lock)
        return bool(again)

    def guarded(self, delivery: Delivery, step: Callable[[], T]) -> T | None:
        """Take a step of one run; if it cannot go on, let go of it: a later scan starts again from its files."""
        try:
            return step()
        except Exception as error:  # noqa: BLE001 - one run's files, or a mistake of ours, must not stop all the others
            folder = delivery.claim.folder
            self._trouble(folder, error)
            if folder in self._deliveries:
                delivery.close()
                self._forget(folder)
            return None

    def close(self) -> None:
        """Let go of every run as it is."""
        for delivery in self:
            self.guarded(delivery, delivery.say_what_is_left)
            delivery.close()

    def _forget(self, folder: Path) -> None:
        del self._deliveries[folder]
        self._turn.remove(folder)
        self.own.discard(folder)

    def _trouble(self, folder: Path, error: Exception) -> None:
        self._troubled.add(folder)
        if folder not in self._foreign:
            self._foreign.add(folder)
            expected = isinstance(error, OSError)  # a SpoolError is one
            _logger.error("run in %s cannot be delivered now, it is kept: %s", folder, error, exc_info=not expected)
