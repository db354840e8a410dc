"""Compares a run that another program recorded, in a file of documents, with what Atomscale holds of it.

For runs that have left the spool, and for users who want an independent witness. The documents are recorded in a spool
of their own, with the given settings, and are cut as they would be for sending. Nothing is sent. Outages and closed
streams influence how a run's points are spread over metrology streams, so that may differ from how it would be now. So
the comparison goes channel by channel: every point is in one of the run's streams, once, and each stream has its points
in the run's order.

Memory holds the run's points and the points read back.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress

from ..api.answers import PointsByChannel
from ..api.client import Client
from ..api.stream_content import StreamContent
from ..chunking.run_chunker import RunChunker
from ..documents.recorder import DocumentRecorder
from ..errors import DocumentError
from ..model.identifiers import FAMILIES
from ..model.points import packed_column
from ..model.uids import shown_uid
from ..settings import Settings
from ..sources.forms import Document
from ..sources.recordings import RecordingError
from ..spool.run_claim import RunClaim
from ..spool.segments import START
from ..spool.spool import Spool
from .comparison import Difference, Series, same_time
from .stream_reading import PATIENCE_S, read_back
from .verification import StreamDifference, StreamVerified, Verification, add_differences


def one_run(documents: Iterable[Document], run: str = "") -> tuple[str, list[Document]]:
    """Return the uid and the documents of the run whose uid begins with `run`, or of the only run.

    An export that is sorted by time may have a descriptor behind its events. Here it comes before them.

    Raises:
        RecordingError: There is no such run, or more than one.
    """
    uids: list[str] = []
    ours: dict[str, list[Document]] = {}
    run_of: dict[str, str] = {}  # descriptor uid → run uid
    held: dict[str, list[Document]] = {}  # documents by the uid of a descriptor that did not come yet
    for name, doc in documents:
        uid = str(doc.get("uid"))
        if name == "start":
            uids.append(uid)
            if uid.startswith(run):
                ours.setdefault(uid, []).append((name, doc))
        elif name == "bulk_events":
            for descriptor in doc:
                _keep_events(ours, held, run_of, str(descriptor), (name, {descriptor: doc[descriptor]}))
        elif "descriptor" in doc and name in {"event", "event_page"}:
            _keep_events(ours, held, run_of, str(doc["descriptor"]), (name, doc))
        else:
            run_uid = str(doc.get("run_start"))
            if name == "descriptor":
                run_of[uid] = run_uid
            if run_uid in ours:
                ours[run_uid] += [(name, doc), *held.pop(uid, ())]
            else:
                held.pop(uid, None)
    found = [uid for uid in uids if uid in ours and (uid == run or run not in ours)]  # a whole uid means this run only
    if len(found) != 1:
        raise RecordingError(_not_one(run, uids, len(found)))
    # A stop that came before events which were held is no end yet.
    theirs = ours[found[0]]
    return found[0], [one for one in theirs if one[0] != "stop"] + [one for one in theirs if one[0] == "stop"]


def _not_one(run: str, uids: Sequence[str], found: int) -> str:
    """Return why it is not clear which run of a recording is meant."""
    shown = ", ".join(shown_uid(uid) for uid in uids[:10]) + (", …" if len(uids) > 10 else "")
    if not uids:
        return "the file has no run"
    if not found:
        return f"no run of the file begins with {run!r}; its runs are {shown}"
    which = f" that begin with {run!r}" if run else ""
    return f"the file has {found} runs{which}; give more of the uid of one: its runs are {shown}"


def _keep_events(
    ours: dict[str, list[Document]],
    held: dict[str, list[Document]],
    run_of: dict[str, str],
    descriptor: str,
    document: Document,
) -> None:
    """Keep a document of events where it belongs; one of a run that is not asked for is dropped."""
    run_uid = run_of.get(descriptor)
    if run_uid is None:
        held.setdefault(descriptor, []).append(document)
    elif run_uid in ours:
        ours[run_uid].append(document)


def verify_recorded(
    documents: Iterable[Document],
    data_ids: Sequence[str],
    settings: Settings,
    *,
    run: str = "",
    patience_s: float = PATIENCE_S,
    wait: Callable[[float], object] | None = None,
    monotonic: Callable[[], float] = time.monotonic,
) -> Verification:
    """Compare what Atomscale holds in some metrology streams with a recorded run.

    Args:
        documents: The documents of one run, or of several, from start document to stop document.
        data_ids: The metrology streams that the run became.
        settings: The settings that the run was streamed with: they decide about data keys and gaps.
        run: The beginning of the run's uid, if there are several runs.
        patience_s: How long to go on reading while points are missing or there is no answer.
        wait: Waits for this many seconds between two polls.
        monotonic: The clock that `patience_s` is measured by.

    Raises:
        RecordingError: There is no such run, or more than one.
        ApiKeyError: The key may not read.
        ApiUnavailableError: The API did not answer in time.
    """
    uid, ours = one_run(documents, run)
    label, due = _expected(ours, settings)
    end = monotonic() + patience_s
    client = Client(settings)
    held: list[_HeldStream] = []
    counts = Counter[str]()  # a channel of several time bases occurs several times
    for name, series in due:
        counts[name] += len(series)
    try:
        for data_id in dict.fromkeys(data_ids):

            def is_whole(points: PointsByChannel, data_id: str = data_id) -> bool:
                return _long_enough(due, [*held, _HeldStream(data_id, StreamContent(dict(points), {}), None)])

            # Only the last stream can show that points are missing. By then the others have had enough time.
            patient = data_id == list(data_ids)[-1]
            found, problem = read_back(
                client,
                FAMILIES,
                data_id,
                counts,
                is_whole=is_whole if patient else bool,
                left_s=lambda: end - monotonic(),
                wait=wait or threading.Event().wait,
            )
            held.append(_HeldStream(data_id, found, problem))
    finally:
        client.close()
    told: list[StreamDifference] = []
    for name, series in due:
        _compare(name, series, held, told)
    for one in held:
        one.add_surplus_points(told)
    return Verification(
        run_uid=uid, label=label, streams=tuple(one.verified() for one in held), differences=tuple(told)
    )


class _HeldStream:
    """The points that a metrology stream was found to hold, and how far they were compared."""

    def __init__(self, data_id: str, found: StreamContent, problem: str | None) -> None:
        self.data_id = data_id
        self.added = found.added
        self.channels = {name: Series.of(*series) for name, series in found.points.items()}
        self.at = dict.fromkeys(self.channels, 0)  # the next point of each channel
        self.compared = self.different = 0
        self.problem = problem

    def has_next(self, name: str) -> bool:
        """Return True if there is a further point of a channel."""
        return name in self.at and self.at[name] < len(self.channels[name])

    def is_next(self, name: str, at: float | None, value: float | None) -> bool:
        """Return True if the next point of a channel is this one."""
        series, nth = self.channels[name], self.at[name]
        return series.values[nth] == value and same_time(at, series.times[nth])

    def add_differences(self, found: Iterator[Difference], told: list[StreamDifference]) -> None:
        """Record the differences found in this stream."""
        self.different += add_differences(self.data_id, found, told)

    def add_surplus_points(self, told: list[StreamDifference]) -> None:
        """Record the points that are in no recording."""
        for name, series in self.channels.items():
            if self.has_next(name):
                self.add_differences(iter([Difference(name, "points", None, self.at[name], len(series))]), told)

    def verified(self) -> StreamVerified:
        """Return the result for this stream."""
        return StreamVerified(
            data_id=self.data_id,
            label="",
            channels=len(self.channels),
            points=self.compared,
            different=self.different,
            problem=self.problem,
            added=self.added,
        )


def _compare(name: str, due: Series, held: list[_HeldStream], told: list[StreamDifference]) -> None:
    """Find every point of a channel in one of the streams, in order."""
    ours = [one for one in held if name in one.channels]
    for one in ours:
        if one.channels[name].unit != due.unit:
            one.add_differences(iter([Difference(name, "unit", None, due.unit, one.channels[name].unit)]), told)
    found = 0
    for index, (at, value) in enumerate(zip(due.times, due.values, strict=True)):
        open_ones = [one for one in ours if one.has_next(name)]
        if not open_ones:
            break
        one = next((one for one in open_ones if one.is_next(name, at, value)), open_ones[0])
        if not one.is_next(name, at, value):
            series, nth = one.channels[name], one.at[name]
            what = "time" if series.values[nth] == value else "value"
            mine, other = (at, series.times[nth]) if what == "time" else (value, series.values[nth])
            one.add_differences(iter([Difference(name, what, index, mine, other)]), told)
        one.at[name] += 1
        one.compared += 1
        found += 1
    if found < len(due) and not any(one.problem for one in held):
        last = (ours or held)[-1]
        what = Difference(name, "points" if ours else "channel", None, len(due), found if ours else None)
        last.add_differences(iter([what]), told)


def _long_enough(due: list[tuple[str, Series]], held: list[_HeldStream]) -> bool:
    need, have = Counter[str](), Counter[str]()
    for name, series in due:
        need[name] += len(series)
    for one in held:
        have.update({name: len(series) for name, series in one.channels.items()})
    return need <= have


def _expected(documents: list[Document], settings: Settings) -> tuple[str, list[tuple[str, Series]]]:
    """Return a run's label, and the points of each of its channels, time base after time base."""
    with tempfile.TemporaryDirectory(prefix="atomscale-") as folder:
        here = settings.replaced(spool_dir=folder, spool_min_free_bytes=0)
        with DocumentRecorder(here) as recorder:
            for name, doc in documents:
                with suppress(DocumentError):  # an unusable document was not sent either
                    recorder.take(name, doc)
        spool = Spool(here.spool_path)
        for run_folder in spool.run_folders():
            claim = spool.claim(run_folder)
            if claim is not None:
                try:
                    return claim.header.label, _cut_all(claim)
                finally:
                    claim.close()
    raise RecordingError("the documents make no run")


def _cut_all(claim: RunClaim) -> list[tuple[str, Series]]:
    run_chunker = RunChunker(claim.folder, claim.header, claim.ledger)
    due: dict[tuple[str, str], Series] = {}
    try:
        run_chunker.openings.open(
            why="run start", time_base=claim.header.primary, from_row=0, position=START, channels=None
        )
        while not run_chunker.all_cut:
            run_chunker.read_on()
            while (chunk := run_chunker.results.pop_ready(lambda _: True)) is not None:
                time_base = claim.ledger.state.streams[chunk.stream].opening.time_base
                for column in chunk.columns:
                    series = due.setdefault((time_base, column.name), Series(column.unit))
                    series.times.extend(chunk.times)
                    series.values.extend(packed_column(column.values))
    finally:
        run_chunker.close()
    return [(name, series) for (_, name), series in due.items()]
