"""The order in which the tasks of a run come.

Each kind of task has a file in `tasks`, which says whether a task may run now. The first one that may is taken:

    a stream takes no more, with chunks in doubt   → READ_BACK
    the run is to be linked to something           → RESOLVE  (once, before its first stream is made)
    metrology stream 0 opens with the run          → INITIALIZE
    an earlier attempt failed                      → that task again, when its pause is over
    the run's times are to be shifted              → CLOCK
    a stream exists, and links of it do not        → LINK     (beside the chunks, each noted once it is made)
    a full chunk of an initialized stream          → PUSH     (rows synced, range of rows noted first)
    points that wait too long for a full one       → PREVIEW  (if wanted; rows synced, range noted and synced first)
    an earlier attempt at links failed             → LINK     (after the chunks, which may well be taken)
    stopped, every chunk confirmed, all linked     → FINALIZE (noted and synced first; once the account adds up)
    all of it delivered                            → VERIFY   (if wanted)
"""

from __future__ import annotations

from typing import Any

from .claimed_run import ClaimedRun
from .stream_end_rules import end_damaged_streams, end_outgrown_streams, end_streams_without_a_point
from .tasks import finalize, initialize, make_links, measure_clock, preview, push, read_back, resolve, verify
from .tasks.work import Work
from .unfinished_tasks import Task


def next_task(run: ClaimedRun, now: float) -> Task | None:
    """Return the first task that can run now, or None. It counts as unfinished from then on.

    Notes in the ledger what must be known after a crash. Reads the journal on, and ends streams that take no more
    points. Sends nothing, and waits for nothing but the disk.

    Args:
        run: Whose task. There is none while the run has to be read again from its files.
        now: Monotonic. Failed tasks come again when their pause is over.

    Raises:
        SpoolError: The run's files cannot be read or written, or contradict each other.
    """
    if run.must_reload:
        return None
    tasks = run.unfinished_tasks
    if run.parked or run.state.discarded:
        return _next_while_parked(run, now)
    end_damaged_streams(run)
    work = read_back.next_work(run)
    if work is None and run.must_reload:
        return None  # a stream has ended just now, and what is ready of it belongs to another one
    work = work or resolve.next_work(run, now) or initialize.next_work(run, now)
    if work is not None:
        return tasks.begin(work)
    task = tasks.give_out_failed(now, links=False)
    if task is not None:
        return task
    work = measure_clock.next_work(run)
    if work is None and not tasks.links_fail:
        work = make_links.next_work(run, now)
    work = work or _next_chunk(run, now)
    if work is None and (task := tasks.give_out_failed(now, links=True)) is not None:
        return task
    if work is None:
        work = _next_without_chunks(run)
    return None if work is None else tasks.begin(work)


def _next_while_parked(run: ClaimedRun, now: float) -> Task | None:
    """Count the rows of a parked or discarded run, and look for what its links name. Nothing is sent."""
    if not (run.stopped and run.run_chunker.at_end):
        run.run_chunker.read_on(count_only=True)
    work = resolve.next_work(run, now)
    return run.unfinished_tasks.give_out_failed(now) if work is None else run.unfinished_tasks.begin(work)


def _next_chunk(run: ClaimedRun, now: float) -> Work[Any] | None:
    """Return a chunk to send, or a task that reading the journal on has made possible."""
    if not run.unfinished_tasks.may_begin_chunk:
        return None
    # Reading on may have opened a stream, or found the stop, for which a tag is made.
    return (
        push.next_work(run, now)
        or initialize.next_work(run, now)
        or make_links.next_work(run, now)
        or preview.next_work(run, now)
    )


def _next_without_chunks(run: ClaimedRun) -> Work[Any] | None:
    """Return what can be done while no chunk can be sent: end streams, finalize, verify."""
    end_damaged_streams(run)  # again, because the journal was read on
    end_outgrown_streams(run)
    end_streams_without_a_point(run)
    work = read_back.next_work(run)
    if work is not None or run.must_reload:
        return work
    return finalize.next_work(run) or verify.next_work(run)
