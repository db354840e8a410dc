"""What a recording holds, run by run, without recording any of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from ..documents.descriptor import mapping_of
from ..documents.start_document import header_of, uid_of
from ..errors import ChannelError
from ..model.links import Links
from ..settings import Settings
from .incoming import UNREADABLE, Source


class RecordedRun(msgspec.Struct):
    """One run of a recording, as its documents describe it and as it would be linked in Atomscale."""

    run_uid: str
    label: str
    started: float  # Unix seconds
    links: Links
    problem: str | None  # why it would be parked
    events: Counter[str]  # by event stream
    stopped: bool = False
    # By event stream: the highest number of an event in this copy of the run's documents, and in the copies before.
    newest: Counter[str] = msgspec.field(default_factory=Counter)
    before: Counter[str] = msgspec.field(default_factory=Counter)

    def note_new_copy(self) -> None:
        """Note that what follows may be a further copy of the documents, of which the events are known."""
        self.before = self.newest.copy()

    def count_events(self, event_stream: str, numbers: Iterable[object]) -> None:
        """Count the events with these numbers that no earlier copy had."""
        known = self.before[event_stream]
        for number in numbers:
            at = number if isinstance(number, int) else None
            self.events[event_stream] += at is None or at > known
            self.newest[event_stream] = max(self.newest[event_stream], at or 0)


class Contents:
    """The runs of a recording, and the documents that would not be taken.

    Memory grows with the number of runs, not with their documents. A run that several files hold is counted
    once, by the numbers of its events.

    Args:
        settings: What runs are linked to whose metadata do not say, and how they are called.
        physical_sample: The physical sample of runs that name none.
    """

    def __init__(self, settings: Settings, physical_sample: str | None = None) -> None:
        self.runs: dict[str, RecordedRun] = {}  # by uid
        self.unusable: Counter[str] = Counter()  # documents by reason
        self.without_start = 0  # documents of runs whose start document is not there
        self._settings = settings
        self._physical_sample = physical_sample
        self._streams: dict[str, tuple[str, str]] = {}  # descriptor uid → run uid and event stream, of open runs

    def read(self, source: Source) -> None:
        """Read a source to its end. Acknowledges nothing."""
        for name, doc, _ in source:
            if name == UNREADABLE:
                self.unusable[str(doc.get("reason"))] += 1
                continue
            try:
                self._note(name, doc)
            except (ChannelError, LookupError, TypeError, ValueError) as error:
                self.unusable[f"a {name!r} document cannot be used: {error}"] += 1

    def _note(self, name: str, doc: Mapping[str, Any]) -> None:
        match name:
            case "start":
                uid = uid_of(doc)
                if uid in self.runs:
                    self.runs[uid].note_new_copy()
                    return
                header = header_of(doc, uid, self._settings, physical_sample=self._physical_sample)
                self.runs[uid] = RecordedRun(
                    uid, header.label, header.started, header.links, header.problem, events=Counter()
                )
            case "descriptor":
                run_uid = str(doc["run_start"])
                self._streams[str(doc["uid"])] = run_uid, str(doc.get("name") or "primary")
                self.without_start += run_uid not in self.runs
            case "event":
                self._count(doc["descriptor"], [doc.get("seq_num")])
            case "event_page":
                self._count(doc["descriptor"], _numbers(doc))
            case "bulk_events":
                for descriptor, events in doc.items():
                    self._count(descriptor, [mapping_of(event).get("seq_num") for event in events])
            case "stop":
                run_uid = str(doc["run_start"])
                if run_uid in self.runs:
                    run = self.runs[run_uid]
                    run.stopped = True
                    if all(value[0] != run_uid for value in self._streams.values()):  # start and stop came alone
                        for name, n in mapping_of(doc.get("num_events")).items():
                            if isinstance(n, int):
                                run.events[str(name)] = max(run.events[str(name)], n)
                    run.note_new_copy()
                else:
                    self.without_start += 1
                self._streams = {key: value for key, value in self._streams.items() if value[0] != run_uid}
            case _:
                pass

    def _count(self, descriptor: object, numbers: Iterable[object]) -> None:
        run_uid, event_stream = self._streams.get(str(descriptor), ("", ""))
        if run_uid in self.runs:
            self.runs[run_uid].count_events(event_stream, numbers)
        else:
            self.without_start += 1


def _numbers(page: Mapping[str, Any]) -> Sequence[object]:
    """Return the numbers of a page's events, or None for each if it has none."""
    events, numbers = len(page["uid"]), page.get("seq_num")
    return numbers if isinstance(numbers, list | tuple) and len(numbers) == events else [None] * events
