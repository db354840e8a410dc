"""The runs that one uploader delivers: taken over from the spool, let go of when they are finished or cannot go on.

A run is claimed through its lock, so no two uploaders have the same one. What goes wrong with one run's files costs
that run its turn and no other's: it is let go of, and a later scan starts again from what its files say.

Bounded: at most `MAX_ACTIVE` runs have their files open, those of this process among them. The others wait (see
`waiting_runs`), and nothing of them is open. A run gives up its place when another one waits for its turn and

    nothing can be done for it: it waits for a person, or has nothing to send until more is written
    nothing has come of its attempts for a minute
    a run that is being written here waits, and more than a quarter of the places have others; or the other way round
"""

from __future__ import annotations

import logging
import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from ..spool.gil_yield import GilYield
from ..spool.leftovers import is_beginning
from ..spool.locks import RunLock
from ..spool.orders import Settle, endpoint_of, read_orders
from ..spool.run_reader import read_header
from ..spool.spool import Spool
from .run_delivery import RunDelivery
from .tasks.work import Kind, Knowledge
from .waiting_runs import Rest, Waiting, Why, marks_of

_logger = logging.getLogger(__name__)

# Runs delivered at the same time. Each has up to three files open: its lock, its ledger and its journal.
MAX_ACTIVE = 48
# How long one call may go on opening runs before the uploader sees to its messages again.
FILL_S = 0.05
# A run that has got nowhere for so long makes way, one run per so many seconds.
STUCK_S, STUCK_PERIOD_S = 60.0, 10.0
# How many runs that could go on make way in one scan for others that have waited.
TURNS_PER_SCAN = 4
# A folder's time of change may be as coarse as 2 s: what changes within that time of a listing is listed again.
COARSE_S = 3.0
# How often the spool's folder is listed where nothing says that it has changed.
LIST_S = 60.0

T = TypeVar("T")


class ActiveRuns:
    """The deliveries of one uploader; belongs to its deciding thread.

    Args:
        spool: Whose runs.
        endpoint: Where they are to go; those for another one are left alone.
        knowledge: What has been found out about the server.
        settle: Has the writer in this process complete the run in a folder whose stop document never came.
        gil_yield: Makes way for a plan's thread.
        now, monotonic: The clocks that tests hand in.
    """

    def __init__(
        self,
        spool: Spool,
        endpoint: str,
        *,
        knowledge: Knowledge | None = None,
        settle: Callable[[Path], None] = lambda folder: None,
        gil_yield: GilYield | None = None,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.own: set[Path] = set()  # runs whose writer is in this process
        self._begun: set[Path] = set()  # runs that began in this process and are still in the spool
        self._spool = spool
        self._endpoint = endpoint
        self._knowledge = knowledge or Knowledge()
        self._settle = settle
        self._gil_yield = gil_yield or GilYield()
        self._now = now
        self._monotonic = monotonic
        self._deliveries: dict[Path, RunDelivery] = {}
        self._turn: deque[Path] = deque()  # whose task comes next
        self._waiting = Waiting()
        self._said: set[Path] = set()  # runs of which was said that they are not delivered now
        self._found: set[Path] = set()  # runs of which was said that they were found
        self._listed: set[str] = set()  # names of the runs in the spool when it was listed last
        self._listed_at = float("-inf")
        self._list_until = float("-inf")
        self._changed_at = self._ordered_at = -1
        self._check_all = True
        self._moved: dict[Path, tuple[int, float]] = {}  # how long each ledger was, and since when
        self._stuck_at = float("-inf")

    def __iter__(self) -> Iterator[RunDelivery]:
        """The deliveries of this moment; it may be changed meanwhile."""
        return iter(list(self._deliveries.values()))

    def __len__(self) -> int:
        return len(self._deliveries)

    def holds(self, delivery: RunDelivery) -> bool:
        """Whether it is still ours, and has not been let go of or begun anew."""
        return self._deliveries.get(delivery.claim.folder) is delivery

    def in_turn(self) -> RunDelivery:
        """The delivery whose turn it is; the next call gives the one after it."""
        folder = self._turn[0]
        self._turn.rotate(-1)
        return self._deliveries[folder]

    @property
    def places(self) -> int:
        """Return how many further runs can be taken up at once. Any thread may ask."""
        return MAX_ACTIVE - len(self._deliveries)

    @property
    def more_runs(self) -> bool:
        """Return True if runs wait for their turn."""
        return self._waiting.live or self._waiting.backlog

    @property
    def unready(self) -> bool:
        """Return True if a run that is just beginning had no header yet."""
        return self._waiting.count(Why.UNREADY) > 0

    @property
    def others_deliver_ours(self) -> bool:
        """Return True if another process delivers a run that began in this one. Looks at every run that it has."""
        return any(folder in self._begun for folder in self._waiting.resting(Why.HELD))

    @property
    def anything_left(self) -> bool:
        """Whether a run of these is not delivered as far as it could be; asked when nothing moves any more."""
        return self._waiting.anything_left or any(map(_leaves_something, self))

    @property
    def anything_open(self) -> bool:
        """Whether a run of these may still get readings."""
        return (
            self.unready
            or self._waiting.count(Why.QUIET) > 0
            or any(not (delivery.run.stopped or delivery.run.parked) for delivery in self)
        )

    def check_all(self) -> None:
        """Have the next scan look at every run, because somebody waits to be told that nothing can move."""
        self._check_all = True

    def scan(self, *, calm: bool = True) -> None:
        """Obey orders, settle runs whose writer is gone, and find out which runs can be delivered.

        Args:
            calm: Whether the server answers; while it does not, no run is preferred to another.
        """
        for delivery in self:
            folder = delivery.claim.folder
            self.guarded(delivery, delivery.obey)
            if delivery.to_settle and folder in self.own:
                self._settle(folder)
            if folder not in self.own and not delivery.run.stopped and folder in self._deliveries:
                self.guarded(delivery, delivery.settle_if_interrupted)
            if self.holds(delivery) and delivery.idle:
                delivery.close_files()
        try:
            self._list()
        except OSError as error:
            _logger.warning("spool %s cannot be read: %s", self._spool.path, error)
            return
        self._check()
        self._note_what_moves()
        self.fill()
        if self.more_runs and self.places <= 0:
            self._give_turns(calm)
            self.fill()

    def begin(self, folder: Path, lock: RunLock | None) -> None:
        """A run begins whose writer is in this process; the lock is that of who delivers it, if it was taken."""
        self.own.add(folder)
        self._begun.add(folder)
        if folder in self._deliveries:  # found by a scan before this was told
            return
        self._waiting.forget(folder)
        if self.places > 0 or self._make_room():
            self._claim_with(folder, lock)
            return
        if lock is not None:
            lock.release()
        self._waiting.queue(folder, live=True)

    def written(self, folder: Path) -> None:
        """A run of this process has something to send."""
        delivery = self._deliveries.get(folder)
        if delivery is not None:
            delivery.look_again()
        elif self._waiting.why(folder) is Why.QUIET:
            self._waiting.queue(folder, live=folder in self.own)

    def writer_gone(self, folder: Path) -> None:
        """The writer in this process is done with a run."""
        self.own.discard(folder)
        delivery = self._deliveries.get(folder)
        if delivery is not None:
            delivery.look_again()
        elif folder in self._waiting and self._waiting.why(folder) in {None, Why.QUIET}:
            self._waiting.queue(folder, live=False)

    def writers_gone(self) -> None:
        """Nobody writes in this process any more: what was being written is completed."""
        for folder in list(self.own):
            self.writer_gone(folder)
        for delivery in self:
            self.guarded(delivery, delivery.settle_if_interrupted)

    def fill(self) -> bool:
        """Take up runs whose turn it is, as long as there are places and for a moment only; whether it took up any."""
        end, any_taken = self._monotonic() + FILL_S, False
        while self.more_runs and (self.places > 0 or self._make_room()):
            others = len(self._deliveries) - sum(map(self._is_live, self))
            folder = self._waiting.next(live_first=not self._waiting.backlog or others >= self._for_others)
            if folder is None:
                break
            self._claim(folder)
            any_taken = True
            self._gil_yield.make_way()
            if self._monotonic() >= end:
                return True
        while self.places > 0 and (folder := self._waiting.next_resting()) is not None:
            self._claim(folder)
            any_taken = True
            if self._monotonic() >= end:
                break
        return any_taken

    def finish_runs(self) -> None:
        """Move the runs that are finalized whole into the history."""
        for delivery in self:
            if delivery.finished and delivery.run.book.in_flight == 0 and self.guarded(delivery, delivery.finish):
                self._forget(delivery.claim.folder)
                self._drop(delivery.claim.folder)

    def start_again_where_due(self) -> bool:
        """Read the files of runs anew where orders have changed what they mean; whether there were any."""
        again = [delivery.claim.folder for delivery in self if delivery.to_start_again]
        for folder in again:
            lock = self._deliveries.pop(folder).hand_over()
            self._turn.remove(folder)
            self._claim_with(folder, lock)
        return bool(again)

    def guarded(self, delivery: RunDelivery, step: Callable[[], T]) -> T | None:
        """Take a step of one run; if it cannot go on, let go of it: a later scan starts again from its files."""
        try:
            return step()
        except Exception as error:  # noqa: BLE001 - one run's files, or a mistake of ours, must not stop all the others
            folder = delivery.claim.folder
            if folder in self._deliveries:
                delivery.close()
                self._forget(folder)
            self._trouble(folder, error)
            return None

    def close(self) -> None:
        """Let go of every run as it is."""
        for delivery in self:
            self.guarded(delivery, delivery.say_what_is_left)
            delivery.close()

    # ---- which runs there are --------------------------------------------------------------------------------------

    def _list(self) -> None:
        """Note the runs that have come and gone.

        Raises:
            OSError: The spool cannot be read.
        """
        now, changed_at = self._monotonic(), self._spool.changed_at()
        if changed_at != self._changed_at:
            self._list_until = now + COARSE_S
        elif now >= self._list_until and now < self._listed_at + LIST_S:
            return
        names = set(self._spool.run_names())
        self._changed_at, self._listed_at = changed_at, now
        for name in sorted(names - self._listed):
            folder = self._spool.path / name
            if folder not in self._deliveries and folder not in self._waiting:
                self._waiting.queue(folder, live=folder in self.own)
        for name in [*self._listed - names]:
            self._drop(self._spool.path / name)
        self._listed = names

    def _drop(self, folder: Path) -> None:
        """Forget a run that has left the spool."""
        self._waiting.forget(folder)
        self._listed.discard(folder.name)
        for known in (self.own, self._begun, self._said, self._found):
            known.discard(folder)

    def _check(self) -> None:
        """Have runs wait for their turn whose files look different from when they were let go of."""
        ordered_at = self._spool.ordered_at()
        all_cheap = self._check_all or ordered_at != self._ordered_at
        all_dear, self._check_all, self._ordered_at = self._check_all, False, ordered_at
        for folder in self._waiting.check(self._is_due, all_cheap=all_cheap, all_dear=all_dear):
            self._waiting.queue(folder, live=folder in self.own)

    def _is_due(self, folder: Path, rest: Rest) -> bool:
        """Return True if something can be done for a run that rests."""
        if rest.why is Why.HELD:
            if folder in self.own:
                self._settle_if_ordered(folder)
            return not self._spool.uploader_alive(folder)
        if rest.why in {Why.UNREADY, Why.BROKEN} or marks_of(folder) != rest.marks:
            return True
        return rest.written_elsewhere and not self._spool.writer_alive(folder)

    def _settle_if_ordered(self, folder: Path) -> None:
        """Obey the one order that only the writer can obey, also where another process delivers the run."""
        try:
            ordered = any(isinstance(order, Settle) for order in read_orders(folder))
        except OSError:  # whoever delivers it says so
            return
        if ordered:
            self._settle(folder)

    # ---- which of them are delivered -------------------------------------------------------------------------------

    def _claim_with(self, folder: Path, lock: RunLock | None) -> None:
        """Begin to deliver a run whose lock is ours already, if there is one; else let go of that."""
        self._claim(folder, lock)
        if lock is not None and folder not in self._deliveries:
            lock.release()

    def _claim(self, folder: Path, lock: RunLock | None = None) -> None:
        """Begin to deliver the run in a folder, unless somebody else does, or it is for another endpoint."""
        if folder in self._deliveries:
            return
        marks = marks_of(folder)
        try:
            header = read_header(folder)
            endpoint = endpoint_of(folder, header) if header else self._endpoint
            if header is not None and endpoint != self._endpoint:
                if folder not in self._said:
                    self._said.add(folder)
                    _logger.warning(
                        "run %s was %s %s and waits for an uploader with that endpoint",
                        header.run_uid, "spooled for" if endpoint == header.endpoint else "moved to", endpoint,
                    )  # fmt: skip
                self._waiting.rest(folder, Rest(Why.ENDPOINT, marks))
                return
            claim = self._spool.claim(folder, lock)
            if claim is None:
                if not folder.exists():
                    self._drop(folder)
                elif header is None and not is_beginning(folder):
                    self._waiting.rest(folder, Rest(Why.EMPTY, marks))
                else:
                    self._waiting.rest(folder, Rest(Why.UNREADY if header is None else Why.HELD))
                return
            if claim.endpoint != self._endpoint:  # moved just now
                claim.close()
                self._waiting.queue(folder, live=folder in self.own)
                return
            try:
                delivery = RunDelivery(claim, knowledge=self._knowledge, now=self._now, gil_yield=self._gil_yield)
                delivery.obey()
                if folder not in self.own:
                    if folder not in self._found and folder not in self._begun:
                        self._found.add(folder)
                        _logger.info("run %s found in the spool; its delivery goes on", claim.header.run_uid)
                    delivery.settle_if_interrupted()
            except BaseException:
                claim.close()  # tried again from scan to scan, so nothing may stay open
                raise
        except Exception as error:  # noqa: BLE001 - one run's files, or a mistake of ours, must not stop all the others
            self._trouble(folder, error)
            return
        self._waiting.forget(folder)
        self._deliveries[folder] = delivery
        self._turn.append(folder)
        self._moved[folder] = (claim.ledger.size, self._monotonic())

    @property
    def _for_others(self) -> int:
        """How many places runs that are not being written here can count on."""
        return max(1, MAX_ACTIVE // 4)

    def _is_live(self, delivery: RunDelivery) -> bool:
        return delivery.claim.folder in self.own

    def _make_room(self) -> bool:
        """Set a run aside for which nothing can be done now; whether there was one.

        Which one is left to chance: where a few more are being written than there are places, and each has its turn
        in the same order, the one let go of longest ago would always be the one that comes next.
        """
        idle = [delivery for delivery in self if delivery.idle]
        return bool(idle) and self._set_aside(random.choice(idle))  # noqa: S311 - no secret

    def _set_aside(self, delivery: RunDelivery) -> bool:
        """Let go of a run until its files change; False if something can be done for it after all."""
        folder = delivery.claim.folder
        marks = marks_of(folder)
        self.guarded(delivery, delivery.obey)
        if not self.holds(delivery):
            return True  # its files cannot be used
        if not delivery.idle or not delivery.run.run_chunker.everything_read():
            delivery.look_again()
            return False
        self.guarded(delivery, delivery.say_what_is_left)
        if self.holds(delivery):
            delivery.close()
            self._forget(folder)
            why = Why.PERSON if delivery.run.stopped or delivery.run.parked else Why.QUIET
            elsewhere = not delivery.run.stopped and folder not in self.own
            self._waiting.rest(folder, Rest(why, marks, elsewhere, _leaves_something(delivery)))
        return True

    def _note_what_moves(self) -> None:
        now = self._monotonic()
        for delivery in self:
            folder, size = delivery.claim.folder, delivery.claim.ledger.size
            if self._moved.get(folder, (-1, 0.0))[0] != size:
                self._moved[folder] = (size, now)

    def _give_turns(self, calm: bool) -> None:
        """Have runs make way that could go on, so that none waits for ever and those being written wait least."""
        live = [delivery for delivery in self if self._is_live(delivery)]
        others = [delivery for delivery in self if not self._is_live(delivery)]
        spare = len(others) - self._for_others
        if calm and self._waiting.live and spare > 0:  # the youngest of the others give theirs back
            for delivery in [one for one in reversed(others) if _may_stop(one)][: min(spare, TURNS_PER_SCAN)]:
                self._put_back(delivery, first=True)
        elif calm and (self._waiting.live or spare < 0):  # those that have had theirs longest
            for delivery in [one for one in live if _may_stop(one)][:TURNS_PER_SCAN]:
                self._put_back(delivery)
        now = self._monotonic()
        if self.places > 0 or now - self._stuck_at < STUCK_PERIOD_S:
            return
        for delivery in self:
            _, since = self._moved[delivery.claim.folder]
            verifies = any(task.kind is Kind.VERIFY for task in delivery.run.book.failed)
            if now - since >= STUCK_S and delivery.run.book.failed and _may_stop(delivery) and not verifies:
                self._stuck_at = now
                self._put_back(delivery)
                return

    def _put_back(self, delivery: RunDelivery, *, first: bool = False) -> None:
        """Let go of a run until it has its turn again."""
        folder = delivery.claim.folder
        delivery.close()
        self._forget(folder)
        self._waiting.queue(folder, live=folder in self.own, first=first)

    def _forget(self, folder: Path) -> None:
        del self._deliveries[folder]
        self._turn.remove(folder)
        self._moved.pop(folder, None)

    def _trouble(self, folder: Path, error: Exception) -> None:
        self._waiting.rest(folder, Rest(Why.BROKEN))
        if folder not in self._said:
            self._said.add(folder)
            expected = isinstance(error, OSError)  # a SpoolError is one
            _logger.error("run in %s cannot be delivered now, it is kept: %s", folder, error, exc_info=not expected)


def _may_stop(delivery: RunDelivery) -> bool:
    """Return True if a run can be let go of: nothing of it is under way, and it is not about to be finished."""
    return delivery.run.book.in_flight == 0 and not delivery.finished and not delivery.to_start_again


def _leaves_something(delivery: RunDelivery) -> bool:
    """Return True if a person has to do something before all of the run is delivered."""
    return bool(
        delivery.run.stopped
        or delivery.run.parked
        or any(s.parked or s.refused or s.links_refused for s in delivery.run.state.streams.values())
    )
