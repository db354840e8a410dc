"""`max_latency_s`: a slow stream's newest points are shown before their chunk is full, and the chunk replaces them."""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from event_model import compose_run
from runs import growth, held
from waiting import wait_until

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.server import Fault, LocalServer, Rule
from atomscale_bluesky.spool.orders import Retry
from atomscale_bluesky.spool.spool import Spool

MakeCallback = Callable[..., AtomscaleCallback]
CHUNKS = ("chunk", "chunk_multi")
NUMBER = {"source": "sim", "dtype": "number", "shape": []}
SOON_S = 0.05


@pytest.fixture
def server() -> Iterator[LocalServer]:
    """Takes a chunk again that has grown."""
    with LocalServer(control=True, relax=[Rule.GROWN_CHUNK]) as server:
        yield server


@pytest.fixture
def lenient() -> Iterator[LocalServer]:
    """Takes a chunk again with whatever points, also with fewer."""
    with LocalServer(control=True, relax=[Rule.GROWN_CHUNK, Rule.CHANGED_CHUNK, Rule.SHORT_CHUNK]) as server:
        yield server


@pytest.fixture
def strict() -> Iterator[LocalServer]:
    with LocalServer(control=True) as server:
        yield server


class Plan:
    """A plan of two keys, as slow as its test."""

    def __init__(self, callback: AtomscaleCallback, *, keys: tuple[str, ...] = ("a", "b")) -> None:
        self.callback = callback
        self.run = compose_run(metadata={"synth_source_id": 42, "plan_name": "slow"})
        self.uid: str = self.run.start_doc["uid"]
        self.stream = self.run.compose_descriptor(name="primary", data_keys=dict.fromkeys(keys, NUMBER))
        self.keys = keys
        self.n = 0
        callback("start", self.run.start_doc)
        callback("descriptor", self.stream.descriptor_doc)

    def events(self, count: int, **data: float) -> None:
        for _ in range(count):
            time = self.run.start_doc["time"] + self.n
            values = {key: float(self.n) for key in self.keys} | data
            event = self.stream.compose_event(data=values, timestamps=dict.fromkeys(values, time), time=time)
            self.callback("event", event)
            self.n += 1

    def stop(self) -> None:
        self.callback("stop", self.run.compose_stop())


def chunks(server: LocalServer) -> list[list[int]]:
    """Per metrology stream and its first channel, how many points each chunk has."""
    found = []
    for stream in server.streams():
        points = server.points(stream.data_id)
        found.append([n for _, n in points[min(points)].chunks] if points else [])
    return found


def numbers(count: int) -> list[float]:
    return [float(n) for n in range(count)]


def never_shrank(server: LocalServer) -> bool:
    """Whether no request of a chunk was smaller than one before it."""
    sizes: dict[Any, int] = {}
    for request in server.requests():
        if request.call in CHUNKS:
            which = (request.data_id, request.chunk_index, request.channels)
            if request.size < sizes.get(which, 0):
                return False
            sizes[which] = request.size
    return True


def test_points_are_shown_before_their_chunk_is_full_and_the_full_chunk_replaces_them(
    make_callback: MakeCallback, server: LocalServer
) -> None:
    callback = make_callback(max_latency_s=SOON_S)
    plan = Plan(callback)
    for count in (3, 5, 9):
        plan.events(count - plan.n)
        wait_until(lambda count=count: held(server).get("a") == numbers(count))
    plan.events(4)
    wait_until(lambda: held(server)["a"] == numbers(13))
    plan.stop()

    assert callback.drain(timeout_s=30)
    assert held(server) == {"a": numbers(13), "b": numbers(13)}
    assert chunks(server) == [[10, 3]]
    assert [stream.status for stream in server.streams()] == ["success"]
    assert never_shrank(server)


def test_a_preview_confirms_nothing(make_callback: MakeCallback, server: LocalServer) -> None:
    callback = make_callback(max_latency_s=SOON_S)
    plan = Plan(callback)
    plan.events(4)
    wait_until(lambda: held(server).get("a") == numbers(4))

    assert (callback.status().points.delivered, callback.status().points.waiting) == (0, 8)
    plan.events(6)
    wait_until(lambda: callback.status().points.delivered == 20)


def test_a_stream_that_fills_its_chunks_in_time_makes_no_previews(
    make_callback: MakeCallback, server: LocalServer
) -> None:
    callback = make_callback(max_latency_s=600)
    documents = list(growth(points=40))
    callback(*documents[0])
    wait_until(server.streams)
    for name, doc in documents[1:]:
        callback(name, doc)

    assert callback.drain(timeout_s=30)
    assert server.counts().by_call["chunk_multi"] == 4


@pytest.mark.parametrize("multi", [True, False])
def test_a_server_that_takes_no_grown_chunk_ends_the_previews_and_gets_every_point_once(
    make_callback: MakeCallback, caplog: pytest.LogCaptureFixture, multi: bool
) -> None:
    with LocalServer(control=True, multi=multi) as server:
        callback = make_callback(endpoint=server.url, max_latency_s=SOON_S)
        plan = Plan(callback)
        plan.events(3)
        wait_until(lambda: held(server) == {"a": numbers(3), "b": numbers(3)})
        plan.events(2)
        wait_until(lambda: "makes no more previews" in caplog.text)
        plan.events(20)
        plan.stop()

        assert callback.drain(timeout_s=30)
        assert held(server) == {"a": numbers(25), "b": numbers(25)}
        assert chunks(server) == [[3], [10, 10, 2]]
        assert [stream.status for stream in server.streams()] == ["success", "success"]
        warnings = [record for record in caplog.records if "makes no more previews" in record.getMessage()]
        assert [record.levelno for record in warnings] == [logging.WARNING]
        assert "max_latency_s" in caplog.text
        callback.close()


def test_a_full_chunk_that_is_refused_because_it_was_shown_ends_there_and_the_rest_goes_on(
    make_callback: MakeCallback, strict: LocalServer
) -> None:
    callback = make_callback(endpoint=strict.url, max_latency_s=SOON_S, points_per_chunk=2)
    plan = Plan(callback)
    plan.events(1)
    wait_until(lambda: held(strict).get("a") == [0])
    plan.events(6)
    plan.stop()

    assert callback.drain(timeout_s=30)
    assert held(strict) == {"a": numbers(7), "b": numbers(7)}
    assert chunks(strict) == [[1], [2, 2, 2]]
    assert callback.status() == ()


def test_a_server_that_takes_no_chunk_before_it_is_full_gets_it_when_it_is(
    make_callback: MakeCallback, strict: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    strict.misbehave(Fault(call=CHUNKS, status=422, times=1))
    callback = make_callback(endpoint=strict.url, max_latency_s=SOON_S)
    plan = Plan(callback)
    plan.events(3)
    wait_until(lambda: "makes no more previews" in caplog.text)
    plan.events(12)
    plan.stop()

    assert callback.drain(timeout_s=30)
    assert held(strict) == {"a": numbers(15), "b": numbers(15)}
    assert chunks(strict) == [[10, 5]]


@pytest.mark.parametrize("lost", [{"reset_after": True}, {"reset_before": True}, {"garble": "half"}])
def test_a_preview_that_is_never_answered_is_the_end_of_its_chunk_and_the_rest_goes_on(
    make_callback: MakeCallback, server: LocalServer, lost: dict[str, Any]
) -> None:
    server.misbehave(Fault(call=CHUNKS, times=1, **lost))
    callback = make_callback(max_latency_s=SOON_S)
    plan = Plan(callback)
    plan.events(3)
    wait_until(lambda: callback.status().points.delivered >= 2)
    shown = len(held(server)["a"])
    plan.events(20)
    plan.stop()

    assert callback.drain(timeout_s=30)
    assert held(server) == {"a": numbers(23), "b": numbers(23)}
    assert chunks(server)[0] == [shown]
    assert len(server.streams()) == 2
    assert never_shrank(server)


@pytest.mark.parametrize("rows", [1, 3])
def test_what_comes_after_a_chunk_that_was_cut_short_goes_on_in_the_next_session(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path, rows: int
) -> None:
    server.misbehave(Fault(call=CHUNKS, hang=True))
    first = make_callback(max_latency_s=SOON_S)
    plan = Plan(first, keys=("a",))
    plan.events(rows)
    wait_until(lambda: any("previewed" in path.read_text() for path in spool_dir.glob("*/ledger.jsonl")))
    plan.events(4)
    plan.stop()
    first.close(0.0)
    server.behave()

    second = make_callback()
    assert second.drain(timeout_s=30)
    assert held(server) == {"a": numbers(rows + 4)}
    assert {stream.status for stream in server.streams()} == {"success"}


def test_a_preview_that_is_applied_after_everything_else_changes_nothing(
    make_callback: MakeCallback, lenient: LocalServer
) -> None:
    # It takes fewer points under an index that it holds, so a full chunk would shrink.
    (number,) = lenient.misbehave(Fault(call=CHUNKS, apply_later_s=1.0, skip=1, times=1))
    callback = make_callback(endpoint=lenient.url, max_latency_s=SOON_S)
    plan = Plan(callback)
    plan.events(2)
    wait_until(lambda: held(lenient).get("a") == numbers(2))
    plan.events(2)
    wait_until(lambda: lenient.faults()[0].acted)
    plan.events(20)
    wait_until(lambda: callback.status().points.waiting < 20)

    wait_until(lambda: any(r.fault == number and r.handled == 200 for r in lenient.requests()))
    plan.stop()
    assert callback.drain(timeout_s=30)
    assert held(lenient) == {"a": numbers(24), "b": numbers(24)}
    assert {stream.status for stream in lenient.streams()} == {"success"}


def test_a_gap_beyond_what_was_shown_lets_nothing_vanish(make_callback: MakeCallback, server: LocalServer) -> None:
    callback = make_callback(max_latency_s=SOON_S)
    plan = Plan(callback)
    plan.events(3)
    wait_until(lambda: held(server) == {"a": numbers(3), "b": numbers(3)})
    plan.events(1, b=math.nan)
    plan.events(19)
    plan.stop()

    assert callback.drain(timeout_s=30)
    assert held(server) == {"a": numbers(23), "b": [n for n in numbers(23) if n != 3]}
    assert chunks(server)[0] == [3]
    assert never_shrank(server)


def test_a_channel_with_a_gap_that_was_not_shown_yet_costs_the_others_no_further_stream(
    make_callback: MakeCallback, server: LocalServer
) -> None:
    callback = make_callback(max_latency_s=SOON_S)
    plan = Plan(callback)
    plan.events(10)
    plan.events(1, b=math.nan)
    plan.events(2)
    wait_until(lambda: held(server) == {"a": numbers(13), "b": [n for n in numbers(13) if n != 10]})
    plan.events(10)
    plan.stop()

    assert callback.drain(timeout_s=30)
    assert held(server) == {"a": numbers(23), "b": [n for n in numbers(23) if n != 10]}
    assert chunks(server) == [[10, 10, 3], [10, 2]]


def test_a_run_whose_process_was_killed_ends_with_what_was_shown_and_what_came_after(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path
) -> None:
    program = (
        "import json, os, sys\n"
        "from atomscale_bluesky import AtomscaleCallback, Settings\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "from runs import growth\n"
        "callback = AtomscaleCallback(settings=Settings.load(environ={}, **json.loads(sys.argv[1])))\n"
        "for name, doc in list(growth(points=4))[:-1]:\n"
        "    callback(name, doc)\n"
        "print(flush=True)\n"
        "sys.stdin.read()\n"
    )
    settings = {
        "endpoint": server.url,
        "api_key": server.api_key,
        "spool_dir": str(spool_dir),
        "spool_min_free_bytes": 0,
        "max_latency_s": SOON_S,
    }
    with subprocess.Popen(
        [sys.executable, "-c", program, json.dumps(settings), os.path.dirname(os.path.dirname(__file__))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        wait_until(lambda: len(held(server).get("k0", ())) == 4, timeout_s=60)
        child.kill()

    callback = make_callback()
    wait_until(lambda: not callback.status(), timeout_s=30)
    assert held(server)["k0"] == numbers(4)
    assert {stream.status for stream in server.streams()} == {"success"}


def test_a_further_process_keeps_a_run_s_latency_and_shows_what_is_new(
    make_callback: MakeCallback, server: LocalServer
) -> None:
    first = make_callback(max_latency_s=SOON_S)
    plan = Plan(first)
    plan.events(3)
    wait_until(lambda: held(server).get("a") == numbers(3))
    wait_until(lambda: "preview_answered" in next(first._spool.path.glob("*/ledger.jsonl")).read_text())
    assert first._uploader is not None
    first._uploader.stop()
    plan.events(2)

    second = make_callback(max_latency_s=0)
    wait_until(lambda: held(server)["a"] == numbers(5))
    plan.events(8)
    plan.stop()
    assert second.drain(timeout_s=30)
    assert held(server) == {"a": numbers(13), "b": numbers(13)}
    assert chunks(server) == [[10, 3]]


def test_event_streams_that_share_a_metrology_stream_are_shown_each_at_its_pace(make_callback: MakeCallback) -> None:
    with LocalServer(control=True, relax=[Rule.GROWN_CHUNK, Rule.TIME_BASE]) as server:
        callback = make_callback(endpoint=server.url, layout="run", max_latency_s=SOON_S)
        plan = Plan(callback)
        side = plan.run.compose_descriptor(name="side", data_keys={"x": NUMBER})
        callback("descriptor", side.descriptor_doc)
        plan.events(3)
        callback("event", side.compose_event(data={"x": 7.0}, timestamps={"x": 1.0}))
        wait_until(lambda: held(server) == {"a": numbers(3), "b": numbers(3), "side/x": [7]})
        plan.events(9)
        plan.stop()

        assert callback.drain(timeout_s=30)
        assert held(server) == {"a": numbers(12), "b": numbers(12), "side/x": [7]}
        assert [stream.status for stream in server.streams()] == ["success"]
        callback.close()


def test_an_uploader_in_a_process_of_its_own_shows_points_too(make_callback: MakeCallback, server: LocalServer) -> None:
    callback = make_callback(max_latency_s=SOON_S, uploader="process")
    plan = Plan(callback)
    plan.events(3)
    wait_until(lambda: held(server).get("a") == numbers(3), timeout_s=60)
    plan.events(2)
    wait_until(lambda: held(server)["a"] == numbers(5), timeout_s=30)
    plan.stop()

    assert callback.drain(timeout_s=30)
    assert chunks(server) == [[5]]


def test_a_run_under_way_is_verified_with_what_is_shown_of_it(make_callback: MakeCallback, server: LocalServer) -> None:
    callback = make_callback(max_latency_s=SOON_S)
    plan = Plan(callback)
    plan.events(13)
    wait_until(lambda: held(server).get("a") == numbers(13))

    found = callback.verify(plan.uid, patience_s=5)
    assert found.arrived, str(found)
    assert found.points >= 20


def test_a_stream_that_the_server_closed_after_it_showed_points_holds_them_once(make_callback: MakeCallback) -> None:
    with LocalServer(control=True, relax=[Rule.GROWN_CHUNK], silence_s=1.5) as server:
        callback = make_callback(endpoint=server.url, max_latency_s=SOON_S)
        plan = Plan(callback)
        plan.events(3)
        wait_until(lambda: held(server).get("a") == numbers(3))
        wait_until(lambda: server.streams()[0].status == "stream_error")
        plan.events(15)
        plan.stop()

        assert callback.drain(timeout_s=15)
        assert held(server) == {"a": numbers(18), "b": numbers(18)}
        callback.close()


def test_a_run_that_previews_have_cost_many_streams_makes_no_more(
    make_callback: MakeCallback, server: LocalServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atomscale_bluesky.delivery.previews.MAX_CONTINUATIONS", 2)
    callback = make_callback(max_latency_s=SOON_S)
    plan = Plan(callback)
    while "makes no more previews" not in caplog.text:
        server.misbehave(Fault(call=CHUNKS, reset_after=True, times=1))  # the next preview, unless the last one waits
        plan.events(1)
        wait_until(lambda: "makes no more previews" in caplog.text or len(held(server).get("a", ())) == plan.n)
    plan.events(12)
    plan.stop()

    assert callback.drain(timeout_s=15)
    assert held(server) == {"a": numbers(plan.n), "b": numbers(plan.n)}
    assert len(server.streams()) == 3


def test_a_shown_chunk_of_which_one_channel_is_too_large_waits_and_nothing_is_there_twice(
    make_callback: MakeCallback, server: LocalServer
) -> None:
    callback = make_callback(max_latency_s=SOON_S)
    plan = Plan(callback)
    plan.events(5)
    wait_until(lambda: chunks(server) == [[5]])
    server.misbehave(*(Fault(call=CHUNKS, channel="b", chunk_index=n, status=413) for n in (0, 1)))
    plan.events(25)
    plan.stop()
    wait_until(lambda: callback.status().points.refused == 20)
    assert not callback.drain(20)

    server.behave()
    spool = Spool(callback.settings.spool_path)
    spool.give_order(Path(callback.status()[0].folder), Retry())
    wait_until(lambda: callback.drain(20))
    assert held(server) == {key: [float(n) for n in range(30)] for key in ("a", "b")}
