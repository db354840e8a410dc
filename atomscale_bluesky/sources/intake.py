"""Takes documents from a source into a recorder, and acknowledges them once they are safe on disk.

    intake = Intake(recorder, ending)
    intake.take_all(source)

Safe means synced: even a power cut does not take them. A sync costs some milliseconds however many documents it is
for, so acknowledgements wait for a batch: of `BATCH` documents, of `BATCH_S` seconds, or until the source has nothing
more for the moment.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Set
from contextlib import suppress
from typing import Any, NamedTuple

from ..documents.accepted import Accepted
from ..documents.recorder import DocumentRecorder
from ..errors import DocumentError, SpoolError, StartMissingError
from ..model.text import safe
from .incoming import IDLE, UNREADABLE, Source, SourceError

_logger = logging.getLogger(__name__)

BATCH = 4000
BATCH_S = 0.5
# How often the spool is asked again whether there is disk space.
PAUSE_S = 0.5
# An event whose descriptor has not come is given up after this many further documents: until then the source has to
# keep its place before the event.
MAX_DOCUMENTS_BEHIND = 100_000
# Up to this many reasons, and runs without a start document, are counted one by one. The others are counted together.
MAX_NAMED = 1000
OTHERS = "others"
_NO_ROOM = (
    "the spool has no room: {why}, or wait: what is delivered makes room (if no process delivers, start "
    "`atomscale-bluesky upload`)"
)
_NO_ROOM_FOR_RUN = (
    "the spool has no room, and delivery makes none, since each run stays in it until it has ended: {why} and begin "
    "again, and a run that has begun goes on where it was"
)
_NO_ROOM_FOR_DESCRIPTOR = (
    "the spool has no room for a descriptor, and without it no later event of its event stream could be taken: {why} "
    "and begin again, and the runs go on where they were"
)
_NOT_TAKEN = "the spool cannot be read or written at present, as the log says"


class _HeldAck(NamedTuple):
    """The acknowledgement of a document with events that wait in memory for their descriptors."""

    ack: Callable[[], object]
    descriptors: Set[str]
    until: int  # up to how many documents it waits


class Intake:
    """What was taken from a source so far, and how.

    Args:
        recorder: Where the documents go. Made with `redelivers=True`.
        ending: When it is set, the document in hand is completed and the rest is left to the source.
        leaves_out: What to do if the runs that are being recorded leave no room, as `may_get_room` finds out: count the
            readings that find no room as left out, or end with a `SourceError`. The latter is for a source that can be
            read again.
            A descriptor that finds no room ends any source so. Small ones find room beyond the limit.
        monotonic: The clock of the batches.
    """

    def __init__(
        self,
        recorder: DocumentRecorder,
        ending: threading.Event | None = None,
        *,
        leaves_out: bool = True,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.documents = 0  # that were taken, whatever became of them
        self.runs = 0  # whose start document was taken
        self.known_runs = 0  # that were recorded before
        self.rows = 0
        self.known = 0  # events that were recorded before
        self.left_out: Counter[str] = Counter()  # readings by reason
        self.unusable: Counter[str] = Counter()  # documents by reason
        self.without_start: Counter[str] = Counter()  # documents by the uid of their run
        self.open_runs: set[str] = set()  # uids of runs whose stop document did not come
        self._recorder = recorder
        self._ending = ending or threading.Event()
        self._leaves_out = leaves_out
        self._monotonic = monotonic
        self._acks: list[Callable[[], object]] = []
        self._held_acks: list[_HeldAck] = []
        self._acknowledged_at = monotonic()
        self._run_of: OrderedDict[str, str] = OrderedDict()  # descriptors of runs without a start document
        self._reported_waiting = False

    def take_all(self, source: Source) -> None:
        """Take documents until the source has no more, or `ending` is set, then close the source. Blocks.

        What was taken is acknowledged when this returns or raises. What could not be kept is not. Raises
        what the source raises, and `SourceError` as `leaves_out` says.
        """
        try:
            self._take_all(source)
        finally:
            source.close()

    def _take_all(self, source: Source) -> None:
        try:
            for name, doc, ack in source:
                if name == IDLE:
                    self.acknowledge(source)
                elif self._take(name, doc, source):
                    self._acks.append(ack)
                elif not self._ending.is_set():
                    self._held_acks.append(
                        _HeldAck(ack, _descriptors(name, doc), self.documents + MAX_DOCUMENTS_BEHIND)
                    )
                if len(self._acks) >= BATCH or self._monotonic() - self._acknowledged_at >= BATCH_S:
                    self.acknowledge(source)
                if self._ending.is_set():
                    break
        except BaseException:
            with suppress(SpoolError):
                self._acknowledge()
            raise
        self.acknowledge(source)

    def acknowledge(self, source: Source) -> None:
        """Acknowledge what was taken, once it is safe on disk. Waits while the disk does not take it."""
        while True:
            try:
                return self._acknowledge()
            except SpoolError as error:
                self._report_waiting(f"the spool does not take what was read, and is tried again: {error}")
            if self._ending.is_set():
                return None
            source.pause(PAUSE_S)

    def _acknowledge(self) -> None:
        if self._held_acks:
            self._release_held()  # before the sync, which is for what has been taken by now
        self._recorder.sync()
        acks, self._acks = self._acks, []
        for ack in acks:
            ack()
        self._acknowledged_at = self._monotonic()

    def _release_held(self) -> None:
        """Let documents be acknowledged whose events wait no longer. Give up those that have waited for too long."""
        overdue = [held for held in self._held_acks if held.until <= self.documents]
        if overdue:
            self._recorder.give_up_early_events(descriptor for held in overdue for descriptor in held.descriptors)
        waiting = self._recorder.early_descriptors
        self._acks += [held.ack for held in self._held_acks if waiting.isdisjoint(held.descriptors)]
        self._held_acks = [held for held in self._held_acks if not waiting.isdisjoint(held.descriptors)]

    def _take(self, name: str, doc: Mapping[str, Any], source: Source) -> bool:
        """Take a document. Return True if it may be acknowledged after the next sync."""
        if name == UNREADABLE:
            self.documents += 1
            self._count_unusable(str(doc.get("reason")))
            return True
        try:
            accepted = self._give_to_recorder(name, doc, source)
        except StartMissingError as error:
            self._note_without_start(name, doc, error)
        except DocumentError as error:
            self._count_unusable(str(error))
        else:
            if accepted is None:
                return False
            self._count(name, doc, accepted)
            if accepted.put_off:
                self.documents += 1
                return False
        self.documents += 1
        return True

    def _give_to_recorder(self, name: str, doc: Mapping[str, Any], source: Source) -> Accepted | None:
        """Give a document to the recorder, as often as it takes. Return None if it was told to end meanwhile."""
        while True:
            has_room = self._recorder.has_room
            # A source that can be read again ends rather than wait in vain, even before its first run.
            may_get_room = has_room or self._recorder.may_get_room(also_without_a_run=not self._leaves_out)
            leave_out = not may_get_room
            if leave_out and not self._leaves_out and name != "stop":
                raise SourceError(_NO_ROOM_FOR_RUN.format(why=self._recorder.why_no_room))
            if has_room or leave_out or name == "stop":  # what ends a run is kept, and lets the run leave the spool
                accepted = self._recorder.take(name, doc, leave_out=leave_out)
                if not accepted.try_again or (leave_out and accepted.left_out):
                    if self._reported_waiting:
                        self._reported_waiting = False
                        _logger.warning("documents are taken again")
                    return accepted
                if leave_out and name == "descriptor":
                    raise SourceError(_NO_ROOM_FOR_DESCRIPTOR.format(why=self._recorder.why_no_room))
            no_room = _NO_ROOM.format(why=self._recorder.why_no_room)
            self._report_waiting(_NOT_TAKEN if self._recorder.has_room else no_room)
            if self._ending.is_set():
                return None
            source.pause(PAUSE_S)

    def _report_waiting(self, why: str) -> None:
        if not self._reported_waiting:
            self._reported_waiting = True
            _logger.warning("%s; until then no further document is taken, and none is lost", why)

    def _count(self, name: str, doc: Mapping[str, Any], accepted: Accepted) -> None:
        if name == "start":
            self.known_runs += accepted.known
            if not accepted.known:
                self.runs += 1
                self.open_runs.add(str(doc.get("uid")))
            return
        if name == "stop":
            self.open_runs.discard(str(doc.get("run_start")))
            return
        self.rows += accepted.rows
        if name != "descriptor":
            self.known += accepted.known
        if accepted.left_out:
            self.left_out.update(accepted.left_out)

    def _count_unusable(self, reason: str) -> None:
        reason = safe(reason)
        if reason not in self.unusable:
            if len(self.unusable) < MAX_NAMED:
                _logger.warning("a document cannot be used and is left out: %s", reason)
            else:
                reason = OTHERS
        self.unusable[reason] += 1

    def _note_without_start(self, name: str, doc: Mapping[str, Any], error: StartMissingError) -> None:
        """Count a document of a run whose start document never came, under the run's uid if that is known."""
        uid = error.run_uid
        if name == "descriptor":
            self._run_of[str(doc.get("uid"))] = uid
            if len(self._run_of) > MAX_NAMED:
                self._run_of.popitem(last=False)
        descriptor = safe(str(doc.get("descriptor")))
        uid = safe(uid) if uid else self._run_of.get(descriptor, f"of descriptor {descriptor}")
        if uid not in self.without_start:
            if len(self.without_start) < MAX_NAMED:
                _logger.warning(
                    "run %s: its start document never came, so its documents are left out; `atomscale-bluesky send` "
                    "takes the whole run from a recorded file", uid,
                )  # fmt: skip
            else:
                uid = OTHERS
        self.without_start[uid] += 1


def _descriptors(name: str, doc: Mapping[str, Any]) -> Set[str]:
    """Return the uids of the descriptors to which a document's events belong."""
    if name != "bulk_events":
        return {str(doc.get("descriptor"))}
    lists = [events for events in doc.values() if isinstance(events, list | tuple)]
    return {str(event.get("descriptor")) for events in lists for event in events if isinstance(event, Mapping)}
