"""One run on its way: its journal read on, cut into chunks, and each next thing to do handed out as a task.

A `Delivery` owns a claimed run and belongs to one thread. `next_task` says what can be done now, and notes in the
ledger what must be known before it is done; `initialized`, `pushed` and the others note what came of it. Nothing here
waits, sends or decides when to try again: that is the uploader's trade.

    the run is to be linked to something           → RESOLVE  (once, before its first stream is made)
    metrology stream 0 opens with the run          → INITIALIZE
    a stream exists, and its links do not          → LINK     (beside the chunks, each noted once it is made)
    a full chunk of an initialized stream          → PUSH     (rows synced, range of rows noted first)
    points that wait too long for a full one       → PREVIEW  (if wanted; likewise, and the note synced)
    stopped, every chunk confirmed, all linked     → FINALIZE (noted and synced first; once the account adds up)

Whoever opens the run next, after any crash, reads the same two files and goes on from there.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence

from ..api.client import ClockReading
from ..chunking.run_chunker import Cutting
from ..errors import ApiRefusedError
from ..model.chunk import Chunk
from ..model.links import Links
from ..spool.gil_yield import Courtesy
from ..spool.journal import START
from ..spool.ledger_format import (
    ClockFixed,
    Confirmed,
    Discarded,
    Edited,
    Finalized,
    Finalizing,
    Initialized,
    Initializing,
    Linked,
    LinkRefused,
    Obeyed,
    Parked,
    Refused,
    Resolved,
    Tried,
    Unparked,
    Unresolved,
    Verified,
    Why,
)
from ..spool.ledger_state import LedgerState, Life, StreamState
from ..spool.locks import RunLock
from ..spool.orders import Discard, Edit, Move, Retry, Settle
from ..spool.run_claim import Claim
from ..spool.run_reader import stop_of
from ..status.account import RunStatus
from ..status.run_summary import history_entry, say
from .backoff import Patience
from .continuation import Endings
from .pending_links import Linking
from .previews import Previews, cut_short_in_doubt
from .tasks import RUN, Kind, Link, Points, Task

_logger = logging.getLogger(__name__)

# How many chunks of a run may have failed and wait for another attempt before no further one is begun.
MAX_FAILED = 8


class Delivery:
    """A claimed run, from where its files say it stands.

    Raises:
        SpoolError: From every method: the run's files cannot be read or written, or contradict each other.
    """

    def __init__(self, claim: Claim, *, now: Callable[[], float] = time.time, courtesy: Courtesy | None = None) -> None:
        self.claim = claim
        self.header = claim.header
        self.in_flight = 0
        self.let_go = False  # its files are closed: what still lies ready of it is not to be begun
        self.to_settle = False  # a person says that the stop document will never come
        self.failed: deque[Task] = deque()
        self._idle = False  # asked for a task it had none, and nothing has come since
        self._now = now
        self._courtesy = courtesy
        self._apart: dict[int, set[str]] = {}
        self._flying: Counter[int] = Counter()  # tasks under way, by stream
        self._under_way: set[int] = set()  # streams being initialized or finalized, failed attempts included
        self._out: set[Kind] = set()  # what is under way about the whole run
        self._being_linked: set[int] = set()  # likewise
        self._pushing: Counter[int] = Counter()  # chunks under way, by stream
        self._patience = Patience()
        self.linking = Linking(claim.header, claim.ledger.state)
        self._again = False  # something was noted that changes what this object has read already
        self._add_up: set[int] = set()  # streams that may be finalized by the account
        if self.state.broken is None:
            cut_short_in_doubt(claim.ledger)
        self.cutting = Cutting(claim.folder, claim.header, claim.ledger, courtesy)
        self.previews = Previews(claim.header, claim.ledger, self.cutting, now)
        self.endings = Endings(claim.ledger, self.cutting, now)
        if self.state.broken is not None:
            _logger.error("run %s is parked and stays in the spool: %s", self.header.run_uid, self.state.broken)
        elif self._clock_is_open and self.parked is None and self._has_sent_times:
            self._park_run(
                "the line of its ledger that tells the shift of its times is damaged, and a part of it was sent",
                "`move` it to the same endpoint, which delivers all of it again as new streams, or `discard` it",
            )
        if not (self.state.streams or self.parked):
            self.cutting.open_stream(
                why="run start", time_base=self.header.primary, from_row=0, position=START, channels=None, own=False
            )

    @property
    def state(self) -> LedgerState:
        """What the ledger tells."""
        return self.claim.ledger.state

    @property
    def finished(self) -> bool:
        """Whether every metrology stream of the stopped run is finalized, and read back if that is to be."""
        if self._again:
            return False
        if self.state.discarded:
            return self.stopped and self.in_flight == 0
        if self.state.stuck:
            return False
        return self._delivered and (self.header.keep != "verified" or self.state.verified is not None)

    @property
    def _delivered(self) -> bool:
        return (
            self.cutting.read_all
            and all(stream.over for stream in self.state.streams.values())
            and not self.linking.to_resolve
            and not any(self._links_open(stream) for stream in self.state.streams.values())
        )

    @property
    def parked(self) -> str | None:
        """Why the whole run waits for a person, if it does."""
        return self._parked_by_hand or (None if self.state.exists else self.state.unresolved)

    @property
    def _parked_by_hand(self) -> str | None:
        """The same, where nothing but a person can mend it."""
        return self.state.stuck or (self.header.problem if self.state.edited is None else None)

    @property
    def to_start_again(self) -> bool:
        """Whether the files now say something that has to be read anew, and nothing is under way."""
        return self._again and self.in_flight == 0

    @property
    def more_to_read(self) -> bool:
        """Whether the last look did not reach the journal's present end, and another may be taken at once."""
        return self.cutting.more_to_read and not self._again

    @property
    def stopped(self) -> bool:
        """Whether the journal, as far as it was read, holds the run's stop."""
        return self.cutting.account.stop is not None

    @property
    def idle(self) -> bool:
        """Return True if nothing can be done until more is written, the operator acts, or a good while has passed."""
        moves = self.in_flight or self.failed or self.finished or self._again or not self.cutting.at_end
        return self._idle and not moves and self.previews.due() is None

    def look_again(self) -> None:
        """Note that more may have been written, so that the run is not taken for idle before it was asked."""
        self._idle = False

    def close_files(self) -> None:
        """Close what is open of the run until it is needed again, but not its lock."""
        self.cutting.close()
        self.claim.ledger.rest()

    def status(self) -> RunStatus:
        """The run as people and programs see it."""
        return self.cutting.account.status(self.state)

    def settle_if_interrupted(self) -> bool:
        """If the run's writer is gone without a stop, note that; whether it was so."""
        if self.stopped or not self.claim.settle_if_interrupted():
            return False
        _logger.info("run %s was interrupted: no stop document came; it is being completed", self.header.run_uid)
        return True

    def next_task(self, now: float) -> Task | None:
        """What can be done at this moment, if anything; the caller has it done and reports to `done`.

        Args:
            now: Monotonic time; failed tasks come back when their time has come.
        """
        self.previews.asked_at = now
        task = None if self._again else self._next_task(now)
        self._idle = task is None
        return task

    def _next_task(self, now: float) -> Task | None:
        if self.parked or self.state.discarded:
            if not (self.stopped and self.cutting.at_end):
                self.cutting.look(count_only=True)
            return self._taken(self._resolve(now) or self._failed_again(now))
        self._end_damaged_streams()
        task = self._end_streams() or self._resolve(now) or self._initialize(now)
        task = task or self._failed_again(now) or self._measure_clock() or self._link(now)
        if task is None and len(self.failed) < MAX_FAILED:
            # Reading on may have opened a stream, or brought the stop, which is told by a tag.
            task = self._push(now) or self._initialize(now) or self._link(now) or self._preview(now)
        return self._taken(task or self._end_outgrown_streams() or self._finalize() or self._verify())

    def due(self) -> float | None:
        """When the next failed task may be tried again, or a preview leave, monotonic; None if there is none."""
        if self._again:
            return None
        times = [task.not_before for task in self.failed]
        preview = self.previews.due()
        return min(times if preview is None else [*times, preview], default=None)

    # ---- outcomes --------------------------------------------------------------------------------------------------

    def resolved(self, task: Task, links: Links) -> None:
        """Atomscale has told what the names of the run's links stand for."""
        self._returned(task)
        self._under_way.discard(RUN)
        if task.order == self.linking.order:
            # What was only counted while the run waited for this has to be read for its chunks.
            self._again = self._again or self.state.unresolved is not None
            self.claim.ledger.note(Resolved(links, task.order), sync=True)

    def linked(self, task: Task, made: list[Link], refused: dict[Link, str]) -> None:
        """Atomscale has answered for these links of a stream."""
        self._returned(task)
        self._being_linked.discard(task.stream)
        self._note_links(task, made)
        known = self.state.streams[task.stream].links_refused
        new = {link: reason for link, reason in refused.items() if known.get(link) != reason}
        for link, reason in new.items():
            self.claim.ledger.note(LinkRefused(task.stream, link.kind, link.to, reason), sync=True)
        if new:
            _logger.error(
                "%r is not linked (%s), its readings are delivered and it stays unfinalized: %s; "
                "mend it with `atomscale-bluesky edit` or `retry`",
                task.label, ", ".join(link.kind for link in new), next(iter(new.values())),
            )  # fmt: skip

    def about_to_initialize(self, task: Task, family: str) -> None:
        """The request is about to leave for this path family."""
        if self.state.streams[task.stream].family != family:
            self.claim.ledger.note(Initializing(task.stream, family), sync=True)
        task.family = family

    def initialized(self, task: Task, data_id: str, family: str) -> None:
        """Atomscale has created the stream."""
        self._returned(task)
        if self.state.streams[task.stream].parked:
            self._again = True  # its chunks were passed over meanwhile
        self.claim.ledger.note(Initialized(task.stream, data_id, family), sync=True)
        self._under_way.discard(task.stream)

    def pushed(self, task: Task, confirmed: tuple[str, ...], refused: dict[str, ApiRefusedError]) -> None:
        """Atomscale has answered for these channels of a chunk."""
        self._returned(task)
        chunk = task.chunk
        if chunk is None:
            return
        whole = set(confirmed) >= set(chunk.names)
        if refused and not confirmed and set(refused) >= set(chunk.names):
            reason = str(next(iter(refused.values())))
            if self.previews.chunk_refused(self.state.streams[task.stream], chunk.index, reason):
                self._again = True
                return
        for name, error in refused.items():
            self.claim.ledger.note(Refused(task.stream, chunk.index, (name,), error.status, str(error)))
            self._apart.setdefault(task.stream, set()).add(name)
            _logger.error(
                "chunk %d of channel %r in %r was refused and is kept: %s; see `atomscale-bluesky status`",
                chunk.index, name, task.label, error,
            )  # fmt: skip
        if confirmed:
            self.claim.ledger.note(Confirmed(task.stream, chunk.index, self._now(), None if whole else confirmed))
            self._apart.get(task.stream, set()).difference_update(confirmed)  # it is taken again, so with the others

    def previewed(self, task: Task) -> None:
        """Atomscale shows what there is so far of a chunk."""
        self._returned(task)
        self.previews.taken(task.stream)

    def preview_refused(self, task: Task, error: ApiRefusedError, confirmed: tuple[str, ...]) -> None:
        """Atomscale does not take a chunk that is not full, or not again with more points."""
        if confirmed:  # of some channels it does: that cannot be taken back, so it is the chunk
            self.preview_failed(task, in_doubt=True)
            return
        self._returned(task)
        self._again = self.previews.refused(task.stream, str(error)) or self._again

    def preview_failed(self, task: Task, *, in_doubt: bool) -> None:
        """A preview was not answered; in doubt if it may be applied all the same."""
        self._returned(task)
        self._again = self.previews.failed(task.stream, in_doubt=in_doubt) or self._again

    def finalized(self, task: Task) -> None:
        """Atomscale has closed the stream."""
        self._returned(task)
        self.claim.ledger.note(Finalized(task.stream, self._now()), sync=True)
        self._under_way.discard(task.stream)

    def clock_fixed(self, task: Task, reading: ClockReading | None) -> None:
        """The server's clock was measured, or cannot be: from here on the run's times go out shifted by that."""
        self._returned(task)
        offset_s, delay_s = (0.0, None) if reading is None else reading
        self.claim.ledger.note(ClockFixed(offset_s, self._now(), delay_s), sync=True)
        if reading is None:
            _logger.warning(
                "the server's clock cannot be measured: the times of run %s go out as this host recorded them",
                self.header.run_uid,
            )
        else:
            _logger.info("the times of run %s go out later by %.6f s", self.header.run_uid, offset_s)

    def verified(self, task: Task) -> None:
        """The run was read back whole, and is equal."""
        self._returned(task)
        self.claim.ledger.note(Verified(self._now()), sync=True)

    def park_run(self, task: Task, reason: str) -> None:
        """The run stays in the spool until a person has looked."""
        self._returned(task)
        self._park_run(reason, "after a look, `atomscale-bluesky retry` has it read again")

    def _park_run(self, reason: str, remedy: str) -> None:
        self.claim.ledger.note(Parked(f"{reason}; {remedy}"), sync=True)
        _logger.error("run %s is parked and stays in the spool: %s; %s", self.header.run_uid, reason, remedy)

    def _park_for_its_account(self, contradiction: str) -> None:
        self._park_run(
            f"its account does not add up ({contradiction}), so it is not finalized",
            "compare it by `atomscale-bluesky verify`, then `move` it, which delivers all of it again, or `discard` it",
        )

    def failed_attempt(
        self,
        task: Task,
        not_before: float,
        error: Exception,
        *,
        confirmed: tuple[str, ...] = (),
        made: Sequence[Link] = (),
    ) -> None:
        """An attempt failed in a way that can clear; the task comes back from `next_task` when its time has come."""
        self._returned(task)
        if confirmed and task.chunk is not None:
            self.claim.ledger.note(Confirmed(task.stream, task.chunk.index, self._now(), confirmed))
            task.chunk = task.chunk.only(name for name in task.chunk.names if name not in confirmed)
        self._note_links(task, made)
        task.to_link = tuple(link for link in task.to_link if link not in made)
        task.attempts += 1
        task.not_before = not_before
        self.failed.append(task)

    def put_back(self, task: Task) -> None:
        """A task was not begun after all; it comes back from `next_task`."""
        if task.kind is Kind.PREVIEW:
            self.preview_failed(task, in_doubt=False)
        else:
            self._returned(task)
            self.failed.append(task)

    def park(self, task: Task, reason: str) -> None:
        """The stream cannot go on without a person, or what is missing in Atomscale; its data are kept."""
        if task.kind is Kind.LINK:
            self.linked(task, [], dict.fromkeys(task.to_link, reason))
            return
        self._returned(task)
        if task.kind is Kind.RESOLVE:
            self._unresolved(task, reason)
            return
        if self.state.streams[task.stream].parked == reason:  # asked for again, and answered as before
            self._under_way.discard(task.stream)
            return
        self.claim.ledger.note(Parked(reason, task.stream), sync=True)
        self._under_way.discard(task.stream)
        together = {one.opening.stream for one in self.state.streams[task.stream].group}
        self.cutting.ready = deque(chunk for chunk in self.cutting.ready if chunk.stream not in together)
        self.failed = deque(other for other in self.failed if other.stream not in together)
        _logger.error(
            "%r is parked, its readings are kept: %s; mend it with `atomscale-bluesky edit` or `retry`",
            task.label, reason,
        )  # fmt: skip

    def _unresolved(self, task: Task, reason: str) -> None:
        self._under_way.discard(RUN)
        if task.order != self.linking.order or self.state.unresolved == reason:
            return
        self.claim.ledger.note(Unresolved(reason), sync=True)
        _logger.error(
            "run %s is parked, its readings are kept: %s; it is looked for again by itself, now and then",
            self.header.run_uid, reason,
        )  # fmt: skip

    def _note_links(self, task: Task, made: Sequence[Link]) -> None:
        for link in made:
            self.claim.ledger.note(Linked(task.stream, link.kind, link.to), sync=True)

    def end_stream(self, task: Task, why: Why, points_per_chunk: int | None = None) -> None:
        """The stream takes no more: as soon as nothing of it is under way, the rest goes on in a continuation."""
        self._returned(task)
        for stream in self.state.streams[task.stream].group:
            if stream.ended:
                continue
            number = stream.opening.stream
            ours = [other for other in [task, *self.failed] if other.stream == number]
            self.failed = deque(other for other in self.failed if other.stream != number)
            doubtful: list[Chunk] = []
            if why != "closed by the server":
                # Pushed again they tell whether they were taken, and the stream ends after that.
                self.failed += [other for other in ours if other is not task and (other.attempts or other.may_exist)]
            else:
                self._cut_what_was_tried(stream)
                doubtful += [
                    other.chunk for other in ours if other.chunk is not None and (other.attempts or other.may_exist)
                ]
                ready = [c for c in self.cutting.ready if c.stream == number and c.index < stream.next_index]
                doubtful += map(self._as_sent, ready)
                self.cutting.ready = deque(chunk for chunk in self.cutting.ready if chunk.stream != number)
            self.endings.begin(number, why, points_per_chunk or task.points_per_chunk, doubtful)

    def _cut_what_was_tried(self, stream: StreamState) -> None:
        """Have every chunk at hand that a process before this one may have pushed."""
        last_row = max((tried.last_row for tried in stream.tried.values()), default=-1)
        while self.cutting.account.next_row.get(stream.opening.time_base, 0) <= last_row:
            self.cutting.look()
            if self.cutting.at_end:
                return

    def read_back(self, task: Task, points: Points) -> None:
        """Atomscale has told what the ended stream holds: what is there of the chunks in doubt counts as confirmed."""
        self._returned(task)
        self.endings.read_back(task.stream, points)

    def obey(self) -> None:
        """Note what people have ordered since; `to_start_again` says when that takes effect.

        Raises:
            SpoolError: The run's files cannot be read or written.
        """
        orders = self.claim.orders()
        for number, order in enumerate(orders[self.state.orders_obeyed :], start=self.state.orders_obeyed + 1):
            match order:
                case Discard():
                    self.claim.ledger.note(Discarded(self._now(), number), sync=True)
                case Edit():
                    self.claim.ledger.note(Edited(order.links, number, order.points_per_chunk), sync=True)
                case Retry():
                    self.claim.ledger.note(Unparked(number), sync=True)
                case Settle():
                    self.claim.ledger.note(Obeyed(number), sync=True)
                    self.to_settle = True
                case Move():
                    self._again = True  # whoever delivers to that endpoint notes it, and begins anew
                    return
            _logger.info("run %s: %s, as ordered", self.header.run_uid, type(order).__name__.lower())
            self._again = self._again or not isinstance(order, Settle)

    def close(self) -> None:
        """Let go of the run as it is."""
        self.let_go = True
        self.cutting.close()
        self.claim.close()

    def hand_over(self) -> RunLock:
        """Let go of the run as it is, but not of the lock of who delivers it."""
        self.let_go = True
        self.cutting.close()
        return self.claim.hand_over()

    def finish(self) -> bool:
        """Move the finished run into the history; False while its writer still has files open, or it has to stay."""
        contradictions = {} if self.state.discarded else self.cutting.account.contradiction(self.state)
        for contradiction in contradictions.values():
            self._park_for_its_account(contradiction)
            return False
        self.cutting.close()
        status = self.status()
        entry = history_entry(
            status, self.cutting.account, self.state, self.header, endpoint=self.claim.endpoint, finished=self._now()
        )
        if not self.claim.finish(entry, self._courtesy):
            return False
        say(status, self.state)
        return True

    def say_what_is_left(self) -> None:
        """One line about a run that has stopped and is let go of before it is finalized whole."""
        if self.stopped and not self.finished:
            say(self.status(), self.state)

    # ---- what can be done ------------------------------------------------------------------------------------------

    def _resolve(self, now: float) -> Task | None:
        """What the names of the run's links stand for; asked once, and again now and then where one is not there."""
        if not self.linking.to_resolve or RUN in self._under_way or self._parked_by_hand or self.state.discarded:
            return None
        if self.state.unresolved and not self._patience.is_over(RUN, now):
            return None
        self._under_way.add(RUN)
        return Task(Kind.RESOLVE, RUN, self.header.label, self.linking.given, 0, order=self.linking.order)

    def _initialize(self, now: float) -> Task | None:
        if not self.linking.may_initialize:
            return None
        for number, stream in self.state.streams.items():
            if stream.life not in {Life.OPENED, Life.INITIALIZING} or number in self._under_way:
                continue
            if stream.opening.joins is not None:
                continue  # initialized with the one that it joins
            if stream.parked and not self._patience.is_over(number, now):
                continue
            self._under_way.add(number)
            return self._task(Kind.INITIALIZE, stream, may_exist=stream.life is Life.INITIALIZING)
        return None

    def _links_open(self, stream: StreamState) -> list[Link]:
        return self.linking.open(stream, self.cutting.account.stop)

    def _link(self, now: float) -> Task | None:
        for number, stream in self.state.streams.items():
            if number in self._being_linked or number in self.endings:
                continue
            to_link = tuple(
                link
                for link in self._links_open(stream)
                if link not in stream.links_refused or self._patience.is_over((number, link), now)
            )
            if to_link:
                self._being_linked.add(number)
                task = self._task(Kind.LINK, stream)
                task.to_link = to_link
                stop = stop_of(self.claim.folder)  # which this object may not have read yet
                task.stopped_at = stop.time if stop else None
                return task
        return None

    def _failed_again(self, now: float) -> Task | None:
        for task in self.failed:
            if task.not_before <= now:
                self.failed.remove(task)
                return task
        return None

    def _push(self, now: float) -> Task | None:
        if not (self.cutting.ready or self.cutting.read_all):
            self.cutting.look()
            if self.cutting.at_end:
                self.previews.looked(now)
        if self._clock_is_open:
            return None  # what a chunk is to be shifted by is noted before its first attempt
        for chunk in self.cutting.ready:
            stream = self.state.streams[chunk.stream]
            if stream.life is not Life.INITIALIZED or chunk.stream in self.endings:
                continue  # its time comes with its data_id, or with that of its continuation
            if self.previews.is_out(chunk.stream) or stream.may_be_cut_short_before(chunk.index):
                continue
            if not stream.answered and (self._pushing[chunk.stream] or self._has_failed(chunk.stream)):
                continue  # the first chunk goes alone: it shows whether the server takes chunks of this kind and size
            self.cutting.ready.remove(chunk)
            self.cutting.sync()
            tried_before = chunk.index < stream.next_index
            if not tried_before:
                # After a power cut that took this note, what was shown before would be sent again, which is less.
                self.claim.ledger.note(chunk.noted_as(Tried), sync=stream.previewed is not None)
            chunk = self._as_sent(self._unconfirmed(stream, chunk))
            return self._task(Kind.PUSH, stream, chunk=chunk, may_exist=tried_before)
        return None

    def _preview(self, now: float) -> Task | None:
        if self._clock_is_open or self.cutting.ready or not self.cutting.at_end:
            return None
        chunk = self.previews.next_chunk(now, self._is_quiet)
        if chunk is None:
            return None
        return self._task(Kind.PREVIEW, self.state.streams[chunk.stream], chunk=self._as_sent(chunk))

    def _is_quiet(self, stream: int) -> bool:
        """Whether nothing of a stream is under way."""
        return not (self._flying[stream] or self._has_failed(stream) or stream in self.endings)

    @property
    def _clock_is_open(self) -> bool:
        """Whether it is not known yet by how much the run's times are to be shifted."""
        return self.header.clock == "reference" and self.state.clock is None

    @property
    def _has_sent_times(self) -> bool:
        """Whether a part of the run was pushed, or may have been."""
        return any(stream.last or stream.previewed for stream in self.state.streams.values())

    def _as_sent(self, chunk: Chunk) -> Chunk:
        """A chunk with its times as they go out."""
        return chunk.shifted(self.state.clock.offset_s) if self.state.clock else chunk

    def _measure_clock(self) -> Task | None:
        if not self._clock_is_open or self._is_out(Kind.CLOCK):
            return None
        for stream in self.state.streams.values():
            if stream.life is Life.INITIALIZED:
                self._out.add(Kind.CLOCK)
                return self._task(Kind.CLOCK, stream)
        return None

    def _verify(self) -> Task | None:
        if self.header.keep != "verified" or not self._delivered or self.state.verified or self._is_out(Kind.VERIFY):
            return None
        for stream in self.state.streams.values():
            self._out.add(Kind.VERIFY)
            task = self._task(Kind.VERIFY, stream)
            task.folder = str(self.claim.folder)
            return task
        return None

    def _is_out(self, kind: Kind) -> bool:
        return kind in self._out or any(task.kind is kind for task in self.failed)

    def _has_failed(self, stream: int) -> bool:
        return any(task.stream == stream and task.kind is Kind.PUSH for task in self.failed)

    def _finalize(self) -> Task | None:
        if self._again or not self.cutting.read_all or self.cutting.ready or self.failed:
            return None  # `_again`: a stream was opened whose rows are read next
        ready = [stream for number, stream in self.state.streams.items() if self._may_be_finalized(number, stream)]
        unknown = [stream for stream in ready if stream.opening.stream not in self._add_up]
        contradictions: dict[int, str] = {}
        if unknown:
            beyond = {*self.cutting.outgrown, *(number for number in self.state.streams if number in self.endings)}
            contradictions = self.cutting.account.contradiction(self.state, unknown, beyond)
            self._add_up.update({stream.opening.stream for stream in unknown} - contradictions.keys())
        for stream in ready:
            number = stream.opening.stream
            if number in contradictions:
                continue
            if stream.life is Life.INITIALIZED:
                self.claim.ledger.note(Finalizing(number), sync=True)
            self._under_way.add(number)
            return self._task(Kind.FINALIZE, stream)
        if contradictions and not self.in_flight:
            self._park_for_its_account(next(iter(contradictions.values())))
        return None

    def _may_be_finalized(self, number: int, stream: StreamState) -> bool:
        """Return True if nothing of a stream is left to do but to finalize it, whatever the account says."""
        if number in self._under_way or stream.opening.joins is not None:
            return False
        if stream.blocked or any(not one.settled or one.life is Life.CLOSED for one in stream.group):
            return False
        if number in self._being_linked or self.linking.to_resolve or self._links_open(stream):
            return False
        if any(one.opening.stream in self.cutting.outgrown for one in stream.group):
            return False  # what comes after it has no stream yet
        return stream.life in {Life.INITIALIZED, Life.FINALIZING}

    def _end_damaged_streams(self) -> None:
        """A chunk that was tried and is no longer whole in the journal can go out under its index no more."""
        for chunk in self.cutting.damaged:
            points = self.state.streams[chunk.stream].opening.points_per_chunk
            self.endings.begin(chunk.stream, "damaged", points, [self._as_sent(chunk)])
        self.cutting.damaged = []
        if not self.cutting.read_all or self.cutting.ready or self.failed or self.in_flight:
            return
        for number, stream in self.state.streams.items():
            if stream.life is Life.INITIALIZED and not stream.parked and stream.tried.keys() - stream.refused.keys():
                # All has been read and pushed, and yet it waits: not one of its rows is left.
                self.endings.begin(number, "damaged", stream.opening.points_per_chunk)

    def _end_outgrown_streams(self) -> Task | None:
        """Where a chunk ends with what was shown of it, what comes after goes on in a further stream."""
        for number in [one for one in self.cutting.to_cut_short if not self.previews.is_out(one)]:
            self.cutting.to_cut_short.discard(number)
            if not self.previews.cut_short(self.state.streams[number]):
                self._again = True  # the preview was not taken, so nothing keeps the chunk from being cut as usual
        for number in self.cutting.outgrown:
            stream = self.state.streams[number]
            cut_short = stream.last is not None and stream.last.cut_short
            if cut_short and stream.settled and not (stream.ended or stream.blocked):
                self.endings.begin(number, "preview", stream.opening.points_per_chunk)
        return self._end_streams()

    def _end_streams(self) -> Task | None:
        """Let streams end of which nothing is under way; one whose chunks are in doubt is read back first."""
        in_doubt = self.endings.settle(self._is_under_way, self._stream_ended)
        if in_doubt is None:
            return None
        task = self._task(Kind.READ_BACK, self.state.streams[in_doubt])
        task.due = self.endings.due(in_doubt)
        return task

    def _is_under_way(self, stream: int) -> bool:
        """Whether an answer that tells what the stream holds is still to come."""
        kinds = {Kind.PUSH, Kind.READ_BACK}
        return self._flying[stream] > 0 or any(task.stream == stream and task.kind in kinds for task in self.failed)

    def _stream_ended(self, number: int) -> None:
        self.previews.cut_short(self.state.streams[number])
        self._again = True

    def _task(self, kind: Kind, stream: StreamState, *, chunk: Chunk | None = None, may_exist: bool = False) -> Task:
        return Task(
            kind=kind,
            stream=stream.opening.stream,
            label=stream.opening.label,
            links=self.linking.links,
            points_per_chunk=stream.opening.points_per_chunk,
            data_id=stream.data_id or "",
            family=stream.family or "",
            chunk=chunk,
            may_exist=may_exist,
            apart=frozenset(self._apart.get(stream.opening.stream, ())),
        )

    def _taken(self, task: Task | None) -> Task | None:
        if task is not None:
            self.in_flight += 1
            self._flying[task.stream] += 1
            self._pushing[task.stream] += task.kind is Kind.PUSH
        return task

    def _returned(self, task: Task) -> None:
        self.in_flight -= 1
        self._idle = False
        self._out.discard(task.kind)
        self._flying[task.stream] -= 1
        self._pushing[task.stream] -= task.kind is Kind.PUSH

    def _unconfirmed(self, stream: StreamState, chunk: Chunk) -> Chunk:
        """What is left to push of a chunk that was pushed in part before."""
        confirmed = stream.confirmed_channels.get(chunk.index)
        return chunk.only(name for name in chunk.names if name not in confirmed) if confirmed else chunk
