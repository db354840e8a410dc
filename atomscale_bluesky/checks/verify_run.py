"""Compares a run in Atomscale with what must have arrived, point by point, while the spool still has the run.

The run's files alone say what must have arrived. Nothing is noted and nothing is sent, so it does not matter which
process delivers the run, or whether any does.

Reading disturbs no process and may be done at any time: of a run in progress, the chunks confirmed so far are compared.
Memory holds one metrology stream at a time, both the expected points and those found in the same channels. The journal
is read once per stream. Series that Atomscale adds to a stream, such as scores and forecasts, are named and counted,
and are not differences.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from ..api.client import Client
from ..errors import SpoolError
from ..model.uids import shown_uid
from ..spool.segments import segments
from ..spool.stream_state import MetrologyStreamState
from ..status.run_parts import RunParts
from ..status.run_summary import verified_at
from .comparison import Series, differences
from .expected_points import ExpectedPoints, expected_series, is_long_enough
from .stream_reading import PATIENCE_S, read_back
from .verification import MAX_DIFFERENCES, StreamDifference, StreamVerified, Verification, add_differences


def check_in_spool(run: RunParts) -> None:
    """Raise unless some part of the run is in the spool.

    Raises:
        SpoolError: The whole run has left it. The text says whether it was read back.
    """
    if run.in_spool:
        return
    uid = shown_uid(run.run_uid)
    if (at := run.read_back_at) is not None:
        when = f"{datetime.fromtimestamp(at).astimezone():%Y-%m-%d %H:%M:%S}"
        gone = {name: sum(int(entry.get(name) or 0) for entry in run.finished) for name in ("discarded", "lost")}
        more = "".join(f"; {count} {name}" for name, count in gone.items() if count)
        raise SpoolError(f"run {uid} was read back on {when} and was equal, and has left the spool{more}")
    raise SpoolError(
        f"run {uid} is finished and has left the spool: compare it with its recorded documents "
        f"(`atomscale-bluesky verify {uid} --file FILE`), or look at what Atomscale has (`atomscale-bluesky show {uid} "
        f'--from api`); with the setting keep = "verified" a run is read back before it leaves the spool'
    )


def verify_parts(run: RunParts, client: Client, *, patience_s: float = PATIENCE_S) -> Verification:
    """Compare what Atomscale holds of all parts of a run with what must have arrived.

    Of parts that have left the spool, it is only known whether they were read back before.

    Args:
        run: The run. Some part of it is in the spool.
        client: Sends the requests.
        patience_s: How long to go on reading while points are missing or there is no answer.

    Raises:
        SpoolError: A part cannot be read, or has left the spool meanwhile.
        ApiKeyError: The key may not read.
        ApiUnavailableError: The API did not answer within `patience_s`.
        ApiTooLargeError: An answer is far larger than its stream can be.
    """
    end = time.monotonic() + patience_s
    found = [
        verify_run(Path(status.folder), client, patience_s=max(0.0, end - time.monotonic())) for status in run.in_spool
    ]
    gone = Counter[str]()
    for entry in run.finished:
        gone["read_before" if verified_at(entry) is not None else "unread"] += int(entry.get("delivered") or 0)
        gone.update({name: int(entry.get(name) or 0) for name in ("discarded", "lost")})
    return Verification(
        run_uid=run.run_uid,
        label=found[-1].label,
        streams=tuple(stream for one in found for stream in one.streams),
        differences=tuple(different for one in found for different in one.differences)[:MAX_DIFFERENCES],
        waiting=sum(one.waiting for one in found),
        refused=sum(one.refused for one in found),
        discarded=sum(one.discarded for one in found) + gone["discarded"],
        lost=sum(one.lost for one in found) + gone["lost"],
        read_before=gone["read_before"],
        unread=gone["unread"],
        stopped=all(one.stopped for one in found),
    )


def verify_run(
    folder: Path,
    client: Client,
    *,
    patience_s: float = PATIENCE_S,
    wait: Callable[[float], object] | None = None,
    monotonic: Callable[[], float] = time.monotonic,
) -> Verification:
    """Compare what Atomscale holds of the run in a spool's folder with what must have arrived.

    Args:
        folder: The run's folder. Nothing in it is changed.
        client: Sends the requests.
        patience_s: How long to go on reading while points are missing or there is no answer.
        wait: Waits for this many seconds between two polls.
        monotonic: The clock that `patience_s` is measured by.

    Raises:
        SpoolError: The folder holds no run that can be read, or the run left the spool meanwhile.
        ApiKeyError: The key may not read.
        ApiUnavailableError: The API did not answer within `patience_s`.
        ApiTooLargeError: An answer is far larger than its stream can be.
    """
    wait = wait or threading.Event().wait
    try:
        journal = set(segments(folder))
        run = ExpectedPoints(folder)
        end = monotonic() + patience_s
        told: list[StreamDifference] = []
        streams = tuple(
            _verify_stream(run, stream, client, told, lambda: end - monotonic(), wait)
            for stream in run.state.streams.values()
            if stream.data_id is not None and stream.opening.joins is None
        )
        if not journal <= set(segments(folder)):
            raise FileNotFoundError(folder)
    except FileNotFoundError as error:
        raise SpoolError(f"the run in {folder} left the spool while it was read") from error
    counts = run.counts
    return Verification(
        run_uid=run.header.run_uid,
        label=run.header.label,
        streams=streams,
        differences=tuple(told),
        waiting=counts.waiting,
        refused=counts.refused,
        discarded=counts.discarded,
        lost=counts.lost,
        stopped=run.stopped,
    )


def _verify_stream(
    run: ExpectedPoints,
    stream: MetrologyStreamState,
    client: Client,
    told: list[StreamDifference],
    left_s: Callable[[], float],
    wait: Callable[[float], object],
) -> StreamVerified:
    data_id, family = stream.data_id or "", stream.family or ""
    due = run.must_be_there(stream)
    found, problem = read_back(
        client,
        (family,),
        data_id,
        {name: sum(part.points for part in parts) for name, parts in due.parts.items()},
        is_whole=lambda points: is_long_enough(due.parts, points),
        left_s=left_s,
        wait=wait,
    )
    different, compared = 0, 0
    for name, parts in due.parts.items() if problem is None else ():
        theirs = Series.of(*found.points[name]) if name in found.points else None
        ours = expected_series(parts, theirs or Series())
        ours = Series(due.units.get(name), ours.times, ours.values)
        compared += min(len(ours), len(theirs or ()))
        if ours or theirs:  # a channel without a point may be shown or not
            different += add_differences(data_id, differences(name, ours or None, theirs), told)
    return StreamVerified(
        data_id=data_id,
        label=stream.opening.label,
        channels=len(due.parts),
        points=max(0, compared - due.uncompared),
        different=different,
        uncompared=due.uncompared if problem is None else 0,
        problem=problem,
        added=found.added,
    )
