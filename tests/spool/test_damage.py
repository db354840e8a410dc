"""Odd documents and damaged spools: each costs itself and no other, and nothing pretends that all is well."""

from __future__ import annotations

import math
import os
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from event_model import compose_run
from journals import row_at, row_mark
from runs import growth, held
from waiting import wait_until

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.server import Fault, LocalServer
from atomscale_bluesky.spool.segments import segment_path
from atomscale_bluesky.spool.spool import Spool

MakeCallback = Callable[..., AtomscaleCallback]
NUMBER = {"source": "sim", "dtype": "number", "shape": []}


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("start", {"time": math.nan}),
        ("start", {"time": "noon"}),
        ("stop", {"time": math.nan}),
        ("stop", {"time": math.inf}),
        ("stop", {"time": "noon"}),
        ("stop", {"reason": "no file b\udcff"}),
        ("stop", {"exit_status": "\ud800"}),
        ("stop", {"reason": "x" * 10**7}),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_a_run_with_an_odd_start_or_stop_is_delivered_all_the_same(
    callback: AtomscaleCallback, server: LocalServer, kind: str, change: dict[str, Any]
) -> None:
    for name, doc in growth(points=3):
        callback(name, doc | change if name == kind else doc)

    assert callback.drain(timeout_s=30)
    assert [(stream.status, stream.points) for stream in server.streams()] == [("success", 6)]


def spooled(make_callback: MakeCallback, spool_dir: Path, points: int = 25) -> Path:
    """The journal of a run of 25 points that waits in the spool."""
    with make_callback(offline=True) as callback:
        for name, doc in growth(points=points):
            callback(name, doc)
    (folder,) = [path for path in spool_dir.iterdir() if path.is_dir()]
    return segment_path(folder, 1)


def flip(path: Path, needle: bytes, *, nth: int = 0) -> None:
    """Change one bit of the nth place where these bytes stand."""
    content = bytearray(path.read_bytes())
    at = -1
    for _ in range(nth + 1):
        at = content.index(needle, at + 1)
    content[at + len(needle) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["header", "layout"])
def test_a_flipped_bit_in_what_all_rows_need_costs_nothing(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path, kind: str
) -> None:
    flip(spooled(make_callback, spool_dir), b'"kind":"%s"' % kind.encode())

    assert make_callback().drain(timeout_s=30)
    assert [(stream.status, stream.points) for stream in server.streams()] == [("success", 50)]


@pytest.mark.parametrize("kind", ["header", "layout"])
def test_drain_is_not_true_while_a_run_that_is_damaged_is_undelivered(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path, kind: str
) -> None:
    journal = spooled(make_callback, spool_dir)
    for path in (journal, journal, journal.with_name("head.jsonl")):
        flip(path, b'"kind":"%s"' % kind.encode())

    callback = make_callback()
    assert not callback.drain(timeout_s=5)
    assert [run.state for run in callback.status()] == ["unreadable"]


@pytest.mark.parametrize("block", [0, 1, 2, "last"])
def test_a_block_that_the_disk_has_lost_costs_its_rows_and_is_counted(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path, block: int | str
) -> None:
    journal = spooled(make_callback, spool_dir, points=250)
    content = bytearray(journal.read_bytes())
    begin = 4096 * (len(content) // 4096 if block == "last" else int(block))
    end = min(begin + 4096, len(content))
    content[begin:end] = bytes(end - begin)
    journal.write_bytes(content)

    callback = make_callback()
    assert callback.drain(timeout_s=30)
    values = held(server)["k0"]
    assert 150 < len(values) < 250
    assert values == sorted(set(values))
    (entry,) = Spool(spool_dir).history.entries()
    # Where the stop went too, nobody knows how many rows there were behind the last one that is left.
    assert entry["delivered"] + (0 if block == "last" else entry["lost"]) == (
        2 * len(values) if block == "last" else 500
    )


@pytest.mark.parametrize("kind", ["header", "layout"])
def test_what_a_power_cut_took_the_beginning_of_is_given_up(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    journal = spooled(make_callback, spool_dir)
    content = journal.read_bytes()
    first_row = row_at(content, 0)
    begin = 0 if kind == "header" else content.index(b'{"kind":"layout"') - 9
    journal.write_bytes(content[:begin] + bytes(first_row - begin) + content[first_row:])
    copies = journal.with_name("head.jsonl").read_bytes().splitlines(keepends=True)
    journal.with_name("head.jsonl").unlink()  # it is written when the journal has been synced, which never came to be
    if kind == "layout":
        journal.with_name("head.jsonl").write_bytes(copies[0])
    for path in (journal.parent, *journal.parent.iterdir()):
        os.utime(path, (0, 0))

    callback = make_callback()
    assert callback.drain(timeout_s=30)
    assert held(server) == {}
    wait_until(lambda: not journal.parent.exists())
    if kind == "header":
        assert "whose beginning a power cut took" in caplog.text
        assert server.streams() == []
    else:
        (entry,) = Spool(spool_dir).history.entries()
        assert (entry["delivered"], entry["lost"]) == (0, 25)  # rows: nobody knows of which channels


def without_a_layout(folder: Path, time_base: bytes) -> None:
    """Take a layout out of a journal and its copy, as if it had never been written."""
    for path in (segment_path(folder, 1), folder / "head.jsonl"):
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(one for one in lines if b'"time_base":"%s"' % time_base not in one))


@pytest.mark.parametrize("keep", ["finalized", "verified"])
@pytest.mark.parametrize("killed", [False, True], ids=["stopped", "without its stop"])
def test_a_missing_layout_costs_its_own_rows_and_not_the_run(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path, killed: bool, keep: str
) -> None:
    # As a version before this one has left runs that were replayed.
    with make_callback(offline=True, keep=keep) as callback:
        run = compose_run(metadata={"synth_source_id": 42})
        gauge = run.compose_descriptor(name="gauge_monitor", data_keys={"fast": NUMBER, "slow": NUMBER})
        callback("start", run.start_doc)
        callback("descriptor", gauge.descriptor_doc)
        for n in range(25):
            at = run.start_doc["time"] + 1 + n
            stamps = {"fast": at, "slow": run.start_doc["time"]}
            event = gauge.compose_event(data={"fast": n, "slow": -n}, timestamps=stamps, time=at)
            callback("event", event)
        callback("stop", run.compose_stop())
    (folder,) = [path for path in spool_dir.iterdir() if path.is_dir()]
    without_a_layout(folder, b"gauge_monitor/slow")
    if killed:
        journal = segment_path(folder, 1)
        journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:-1]))

    callback = make_callback()
    (status,) = callback.status()
    assert (status.points.seen, status.points.lost) == (50, 25)
    if keep == "finalized":
        assert callback.drain(timeout_s=20)
        (entry,) = Spool(spool_dir).history.entries()
        assert (entry["delivered"], entry["lost"]) == (25, 25)
    else:  # it stays, since not all of it is there
        wait_until(lambda: [run.state for run in callback.status()] == ["finalized"])
        found = callback.verify(run.start_doc["uid"])
        assert (found.arrived, found.points, found.lost) == (True, 25, 25)
    assert held(server) == {"fast": [float(n) for n in range(25)]}


def test_a_run_whose_journal_is_gone_is_kept_and_said_so(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path
) -> None:
    journal = spooled(make_callback, spool_dir)
    journal.unlink()

    callback = make_callback()
    assert not callback.drain(timeout_s=5)
    assert [run.state for run in callback.status()] == ["unreadable"]


@pytest.mark.parametrize("row", [0, 7, 24])
def test_a_flipped_bit_in_a_row_costs_that_row_and_is_counted_as_lost(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path, row: int
) -> None:
    journal = spooled(make_callback, spool_dir)
    flip(journal, row_mark(row))

    callback = make_callback()
    assert callback.drain(timeout_s=30)
    assert held(server)["k0"] == [float(n) for n in range(25) if n != row]
    (entry,) = Spool(spool_dir).history.entries()
    assert (entry["delivered"], entry["lost"]) == (48, 2)


def test_a_row_damaged_after_its_chunk_was_tried_costs_itself_and_doubles_nothing(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path
) -> None:
    # Chunk 1 is refused and so stays unconfirmed, the others go through; then a row of it is damaged.
    server.misbehave(Fault(call=("chunk", "chunk_multi"), chunk_index=1, status=503))
    callback = make_callback()
    for name, doc in growth(points=45):
        callback(name, doc)
    assert not callback.drain(timeout_s=2)
    callback.close(timeout_s=0)
    (folder,) = [path for path in spool_dir.iterdir() if path.is_dir()]
    flip(segment_path(folder, 1), row_mark(13))
    server.behave()

    assert make_callback().drain(timeout_s=15)
    assert sorted(held(server)["k0"]) == [float(n) for n in range(45) if n != 13]
    assert all(stream.changed == 0 for stream in server.streams())


# ---- zeros where lines should be -------------------------------------------------------------------------------------

ZEROS = 100 * 10**6
MAX_LINE = 64 * 2**20
ENDS_IN_ZEROS = ["journal-0001.jsonl", "ledger.jsonl", "orders.jsonl", "head.jsonl", "../history.jsonl"]


def bytes_read() -> int:
    """How much this process has read from files so far, from the cache too."""
    with open("/proc/self/io") as file:
        return int(file.readline().removeprefix("rchar:"))


@pytest.mark.skipif(sys.platform != "linux", reason="what was read is told by Linux alone")
@pytest.mark.parametrize(
    "name", ["journal-0001.jsonl", "ledger.jsonl", "orders.jsonl", "head.jsonl", "../history.jsonl"]
)
def test_a_file_that_ends_in_zeros_is_read_in_linear_time_and_bounded_memory(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path, name: str
) -> None:
    file = spooled(make_callback, spool_dir).parent / name
    with file.open("ab") as opened:
        opened.truncate(opened.tell() + ZEROS)
    before = bytes_read()

    tracemalloc.start()
    try:
        (run,) = make_callback(offline=True).status()
        assert (run.state, run.points.waiting) == ("waiting", 50)
        assert make_callback().drain(timeout_s=30)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert bytes_read() - before < 20 * ZEROS
    assert peak < 3 * MAX_LINE
    assert [(stream.status, stream.points) for stream in server.streams()] == [("success", 50)]


def test_zeros_in_the_middle_of_a_journal_cost_themselves_and_are_counted(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path
) -> None:
    journal = spooled(make_callback, spool_dir)
    lines = journal.read_bytes().splitlines(keepends=True)
    whole = len(b"".join(lines[:-5]))
    os.truncate(journal, whole)  # the last four rows and the stop are gone
    os.truncate(journal, whole + ZEROS)
    with journal.open("ab") as file:
        file.write(b"\n" + b"".join(lines[-4:]))

    callback = make_callback()
    assert callback.drain(timeout_s=30)

    (entry,) = Spool(spool_dir).history.entries()
    assert (entry["delivered"], entry["lost"]) == (48, 2)
    assert sum(map(len, held(server).values())) == 48
