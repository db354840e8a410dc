"""How a run gets through when the server, or a person, changes the course."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from event_model import compose_run
from journals import row_at
from msgspec import structs
from runs import growth, held
from waiting import wait_until

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.api.client import Client
from atomscale_bluesky.model.links import Links
from atomscale_bluesky.server import Fault, LocalServer
from atomscale_bluesky.spool.orders import Discard, Edit, OrderLine, Retry
from atomscale_bluesky.spool.spool import Spool

MakeCallback = Callable[..., AtomscaleCallback]


def order(callback: AtomscaleCallback, what: OrderLine) -> None:
    """Ask for something to be done with the one run in the callback's spool, as the command line does."""
    spool = Spool(callback.settings.spool_path)
    (folder,) = spool.run_folders()
    spool.give_order(folder, what)


def test_a_stream_that_the_server_closed_goes_on_in_a_further_one(
    make_callback: MakeCallback, caplog: pytest.LogCaptureFixture
) -> None:
    with LocalServer(control=True, silence_s=3.0) as server:
        callback = make_callback(endpoint=server.url)
        documents = list(growth(points=47))
        for name, doc in documents[:25]:
            callback(name, doc)
        wait_until(lambda: [stream.status for stream in server.streams()] == ["stream_error"])

        for name, doc in documents[25:]:
            callback(name, doc)

        assert callback.drain(timeout_s=15)
        first, *further = server.streams()
        assert (first.status, first.points) == ("stream_error", 40)
        assert {stream.status for stream in further} <= {"success", "stream_error"}
        assert "(2)" in further[0].label
        assert held(server)["k0"] == [float(n) for n in range(47)]
        callback.close()


def close_in_doubt(callback: AtomscaleCallback, server: LocalServer, *then: Fault) -> list[Any]:
    """Stream a run until its second chunk is stored, that was never answered, and the server has closed the stream.

    From then on the server has these faults. The documents that are left are returned.
    """
    documents = list(growth(points=47))
    for name, doc in documents[:12]:
        callback(name, doc)
    assert callback.drain(timeout_s=30)
    server.misbehave(
        Fault(call="chunk_multi", reset_after=True, times=1), Fault(call=("chunk", "chunk_multi"), reset_before=True)
    )
    for name, doc in documents[12:25]:
        callback(name, doc)
    wait_until(lambda: server.streams()[0].points == 40)
    wait_until(lambda: server.streams()[0].status == "stream_error")
    server.unreachable()
    server.behave()
    server.misbehave(*then)
    server.reachable()
    return documents[25:]


def test_a_chunk_in_doubt_is_found_beside_what_the_service_added(make_callback: MakeCallback) -> None:
    with LocalServer(control=True, silence_s=3.0, derived=True) as server:
        callback = make_callback(endpoint=server.url)

        for name, doc in close_in_doubt(callback, server):
            callback(name, doc)

        assert callback.drain(timeout_s=20)
        assert server.streams()[0].points == 40
        assert held(server)["k0"] == [float(n) for n in range(47)]
        assert server.counts().by_call["read"] == 1
        callback.close()


def test_an_answer_far_larger_than_the_stream_keeps_no_chunk_in_doubt_from_going_on(
    make_callback: MakeCallback,
) -> None:
    with LocalServer(control=True, silence_s=3.0) as server:
        callback = make_callback(endpoint=server.url)
        bomb = '{"properties": {"k0": {"unix_timestamp_ms": [' + "0," * 3_000_000 + "0]}}}"

        for name, doc in close_in_doubt(callback, server, Fault(call="read", body=bomb)):
            callback(name, doc)

        assert callback.drain(timeout_s=20)
        first, *further = server.streams()
        arrived = [at for stream in further for at in server.points(stream.data_id)["k0"].values]
        assert (first.points, arrived) == (40, [float(n) for n in range(10, 47)])
        callback.close()


def test_a_stream_that_the_server_closed_after_its_last_chunk_keeps_no_run_waiting(make_callback: MakeCallback) -> None:
    with LocalServer(control=True, silence_s=1.0) as server:
        callback = make_callback(endpoint=server.url)
        *documents, stop = growth(points=20)
        for name, doc in documents:
            callback(name, doc)
        wait_until(lambda: [(stream.status, stream.points) for stream in server.streams()] == [("stream_error", 40)])

        callback(*stop)

        assert callback.drain(timeout_s=15)
        assert callback.status() == ()
        callback.close()


def test_what_a_closed_stream_took_without_answering_is_not_sent_again(make_callback: MakeCallback) -> None:
    with LocalServer(control=True) as server:
        callback = make_callback(endpoint=server.url, max_connections=1)
        # The second chunk is applied but its answer is lost; then the stream is finalized from outside.
        server.misbehave(Fault(call="chunk_multi", chunk_index=1, reset_after=True, times=1))
        documents = list(growth(points=35))
        for name, doc in documents[:12]:
            callback(name, doc)
        (stream,) = wait_until(server.streams)
        wait_until(lambda: server.streams()[0].points == 20)
        server.misbehave(Fault(call="chunk_multi", chunk_index=1, delay_s=0.5, status=409, times=1))
        for name, doc in documents[12:22]:
            callback(name, doc)
        wait_until(lambda: server.streams()[0].points == 40)
        import requests

        requests.post(
            f"{server.url}/metrology/stream/{stream.data_id}/finalize",
            headers={"X-API-KEY": server.api_key},
            timeout=5,
        ).raise_for_status()
        for name, doc in documents[22:]:
            callback(name, doc)

        assert callback.drain(timeout_s=15)
        assert held(server)["k0"] == [float(n) for n in range(35)]
        callback.close()


def test_a_chunk_too_large_for_one_request_is_split_by_channels(make_callback: MakeCallback) -> None:
    with LocalServer(control=True, max_body_bytes=2000) as server:
        callback = make_callback(endpoint=server.url)
        for name, doc in growth(points=25, keys=12):
            callback(name, doc)

        assert callback.drain(timeout_s=30)
        (stream,) = server.streams()
        assert (stream.status, stream.points) == ("success", 25 * 12)
        callback.close()


def test_channels_too_large_alone_go_on_with_fewer_points_per_chunk(make_callback: MakeCallback) -> None:
    with LocalServer(control=True, max_body_bytes=2000) as server:
        callback = make_callback(endpoint=server.url, points_per_chunk=200)
        for name, doc in growth(points=450):
            callback(name, doc)

        assert callback.drain(timeout_s=30)
        assert [stream.points_per_chunk for stream in server.streams()] == [200, 100, 50]
        assert [stream.status for stream in server.streams()] == ["success"] * 3
        assert held(server)["k0"] == [float(n) for n in range(450)]
        callback.close()


def test_only_points_that_are_too_large_go_again_with_fewer_points_per_chunk(make_callback: MakeCallback) -> None:
    with LocalServer(control=True, max_body_bytes=1500) as server:
        callback = make_callback(endpoint=server.url, points_per_chunk=50)
        thirds = []
        for name, doc in growth(points=120):
            if name == "event":
                doc["data"]["k1"] += 1 / 3  # 17 digits: 50 points of it are above the limit, and 50 of k0 below
                thirds.append(doc["data"]["k1"])
            callback(name, doc)

        assert callback.drain(timeout_s=30)
        first, *further = server.streams()
        assert first.status == "success"  # a channel is not in it at all, and what there is has no hole
        assert {*server.points(first.data_id)} == {"k0"}
        assert {(stream.points_per_chunk, stream.status) for stream in further} == {(25, "success")}
        assert held(server) == {"k0": [float(n) for n in range(120)], "k1": thirds}
        callback.close()


def test_one_refused_channel_of_many_is_found_by_halves_and_pushed_apart_while_it_is_refused(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    server.misbehave(
        *(Fault(call=("chunk", "chunk_multi"), chunk_index=n, channel="k13", status=422) for n in (0, 1, 2))
    )
    documents = list(growth(points=60, keys=32))
    for part in (documents[:42], documents[42:52], documents[52:]):  # two of start and descriptor, and 40 events
        for name, doc in part:
            callback(name, doc)
        assert not callback.drain(timeout_s=10)

    points = callback.status().points
    assert (points.delivered, points.refused, points.waiting) == (60 * 32 - 30, 30, 0)
    pushes = [request for request in server.requests() if request.call in {"chunk", "chunk_multi"}]
    by_chunk = [sum(request.chunk_index == n for request in pushes) for n in range(6)]
    assert by_chunk[0] == 1 + 2 * 5  # the whole, and two halves of each of five halvings
    assert by_chunk[1:4] == [2, 2, 2]  # the others together, and it alone
    assert by_chunk[5] == 1  # it was taken, so it goes with the others again


@pytest.mark.parametrize("failure", [{"status": 429}, {"status": 401}, {"reset_before": True}], ids=str)
def test_parts_of_a_chunk_that_were_taken_are_not_sent_again_after_a_part_that_failed(
    make_callback: MakeCallback, server: LocalServer, failure: dict[str, Any]
) -> None:
    callback = make_callback(max_body_bytes=10_000)
    server.misbehave(Fault(call="chunk_multi", skip=2, times=1, **failure))
    for name, doc in growth(points=10, keys=100):
        callback(name, doc)

    assert callback.drain(timeout_s=60)
    pushes = server.requests("chunk_multi")
    assert len(pushes) > 4
    taken = [channel for request in pushes if request.status == 200 for channel in request.channels]
    assert sorted(taken) == sorted(f"k{n}" for n in range(100))  # each once
    assert held(server) == {f"k{i}": [n + i / 10 for n in range(10)] for i in range(100)}


@pytest.mark.parametrize("index", [0, 1, 4])
@pytest.mark.parametrize("status", [403, 404, 422])
def test_a_refused_chunk_holds_up_no_other_when_the_catalogue_is_refused_too(
    callback: AtomscaleCallback, server: LocalServer, status: int, index: int
) -> None:
    server.misbehave(
        Fault(call=("chunk", "chunk_multi"), chunk_index=index, status=422, body='{"detail":"out of range"}'),
        Fault(call="catalogue", status=status, body='{"detail":"no rights"}'),
    )

    for name, doc in growth(points=60, keys=1):
        callback(name, doc)
    assert not callback.drain(timeout_s=10)

    (run,) = callback.status()
    assert (run.points.delivered, run.points.refused, run.points.waiting) == (50, 10, 0)
    assert "out of range" in (run.problem or "")


def test_many_refused_channels_are_each_found_and_the_others_go_through(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    bad = {f"k{n}" for n in (0, 3, 4, 11)}
    server.misbehave(*(Fault(call=("chunk", "chunk_multi"), channel=name, status=422) for name in bad))
    for name, doc in growth(points=25, keys=12):
        callback(name, doc)
    assert not callback.drain(timeout_s=10)

    (run,) = callback.status()
    assert {name for name, counts in run.channels.items() if counts.refused == 25} == bad
    assert {name for name, counts in run.channels.items() if counts.delivered == 25} == set(run.channels) - bad


def test_bodies_are_kept_below_the_limit_of_the_settings(make_callback: MakeCallback, server: LocalServer) -> None:
    callback = make_callback(max_body_bytes=10_000, points_per_chunk=100)

    for name, doc in growth(points=100, keys=10):
        callback(name, doc)

    assert callback.drain(timeout_s=30)
    assert max(len(request.channels) for request in server.requests("chunk_multi")) == 2
    assert [stream.points for stream in server.streams()] == [1000]


def test_a_channel_with_gaps_goes_on_in_a_stream_of_its_own_and_the_others_stay_whole(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    documents = list(growth(points=40))
    for name, doc in documents:
        if name == "event" and 13 <= doc["data"]["k0"] < 17:
            doc["data"]["k1"] = float("nan")
        callback(name, doc)

    assert callback.drain(timeout_s=30)
    whole, own = server.streams()
    assert {name: len(series.values) for name, series in server.points(whole.data_id).items()} == {"k0": 40, "k1": 10}
    assert {name: len(series.values) for name, series in server.points(own.data_id).items()} == {"k1": 26}
    assert held(server)["k1"] == [n + 0.1 for n in range(40) if not 13 <= n < 17]


def test_a_refused_chunk_is_pushed_again_after_an_order_to_retry(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    server.misbehave(Fault(call=("chunk", "chunk_multi"), chunk_index=1, channel="k1", status=422))
    for name, doc in growth(points=30):
        callback(name, doc)
    assert not callback.drain(timeout_s=10)
    server.behave()

    order(callback, Retry())

    wait_until(lambda: not callback.status())
    assert held(server)["k1"] == [n + 0.1 for n in range(30)]
    assert [(stream.status, stream.changed) for stream in server.streams()] == [("success", 0)]


def test_a_run_with_unusable_metadata_goes_through_once_they_are_edited(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    for name, doc in growth(points=30, start_metadata={"synth_source_id": "GEN-II"}):
        callback(name, doc)
    assert not callback.drain(timeout_s=10)

    order(callback, Edit(Links(synth_source_id=42)))

    wait_until(lambda: not callback.status())
    assert [(stream.status, stream.points, stream.synth_source_id) for stream in server.streams()] == [
        ("success", 60, 42)
    ]


def test_a_discarded_run_leaves_the_spool_and_its_stream_stays_unfinalized(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    server.misbehave(Fault(call=("chunk", "chunk_multi"), chunk_index=1, status=422))
    for name, doc in growth(points=30):
        callback(name, doc)
    assert not callback.drain(timeout_s=10)

    order(callback, Discard())

    wait_until(lambda: not callback.status())
    assert [(stream.status, stream.points) for stream in server.streams()] == [("stream_active", 40)]
    (entry,) = Spool(callback.settings.spool_path).history.entries()
    assert (entry["delivered"], entry["discarded"]) == (40, 20)


def test_one_stream_that_is_forbidden_does_not_hold_up_the_others(
    callback: AtomscaleCallback, server: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.misbehave(Fault(call=("chunk", "chunk_multi"), label="forbidden", status=403))

    for name, doc in growth(points=12, start_metadata={"stream_name": "forbidden"}):
        callback(name, doc)
    wait_until(lambda: "was answered 403" in caplog.text)
    for stream in ("welcome", "too"):  # only what is accepted after the 403 shows that the key is not its reason
        for name, doc in growth(points=12, start_metadata={"stream_name": stream}):
            callback(name, doc)

    wait_until(lambda: sorted(stream.points for stream in server.streams()) == [0, 24, 24], timeout_s=40)
    wait_until(lambda: [run.state for run in callback.status()] == ["parked"], timeout_s=40)


@pytest.mark.parametrize("families", [("metrology",), ("tool-state",), ("metrology", "tool-state")])
def test_an_unknown_instrument_parks_with_its_reason_and_can_be_mended_in_any_family(
    make_callback: MakeCallback, families: tuple[str, ...]
) -> None:
    with LocalServer(control=True, families=families) as server:
        callback = make_callback(endpoint=server.url)
        for name, doc in growth(points=12, start_metadata={"synth_source_id": 999}):
            callback(name, doc)
        assert not callback.drain(timeout_s=10)
        (run,) = callback.status()
        assert "999" in (run.problem or "")

        order(callback, Edit(Links(synth_source_id=42)))

        wait_until(lambda: not callback.status())
        assert [(stream.status, stream.family) for stream in server.streams()] == [("success", families[0])]
        callback.close()


def test_a_run_that_began_without_room_is_kept_from_when_there_is(
    make_callback: MakeCallback, server: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    full = make_callback(offline=True, spool_max_bytes=1_000_000)
    for name, doc in growth(points=1500, keys=100):
        full(name, doc)
    full.close()

    callback = make_callback(spool_max_bytes=1_000_000)
    documents = list(growth(points=40, start_metadata={"stream_name": "late"}))
    for name, doc in documents[:12]:
        callback(name, doc)
    assert "is not recorded until there is room" in caplog.text
    wait_until(lambda: callback._spool.writers.has_room, timeout_s=30)
    for name, doc in documents[12:]:
        callback(name, doc)

    assert callback.drain(timeout_s=30)
    late = next(stream for stream in server.streams() if stream.label.startswith("late"))
    assert late.status == "success"
    assert late.points == 60


# ---- a stream that ends while answers are missing --------------------------------------------------------------------


@pytest.mark.parametrize(
    "unanswered", [Fault(reset_after=True, delay_s=0.5), Fault(status=503, delay_s=0.5)], ids=["reset", "503"]
)
def test_a_chunk_that_was_not_answered_when_its_stream_grew_too_large_is_there_once(
    make_callback: MakeCallback, server: LocalServer, unanswered: Fault
) -> None:
    callback = make_callback(max_connections=2)
    documents = list(growth(points=55, keys=1))
    for name, doc in documents[:12]:
        callback(name, doc)
    assert callback.drain(timeout_s=30)
    server.misbehave(
        Fault(call="chunk_multi", chunk_index=1, status=413, delay_s=0.2, times=3),
        structs.replace(unanswered, call="chunk_multi", chunk_index=2, times=1),
    )

    for name, doc in documents[12:]:
        callback(name, doc)

    wait_until(lambda: callback.drain(timeout_s=30))
    assert sorted(held(server)["k0"]) == list(range(55))


def test_a_chunk_that_was_applied_and_not_answered_is_there_once_though_its_stream_was_closed(
    make_callback: MakeCallback, server: LocalServer
) -> None:
    callback = make_callback(max_connections=2, request_timeout_s=1.5)
    documents = list(growth(points=55, keys=1))
    for name, doc in documents[:12]:
        callback(name, doc)
    assert callback.drain(timeout_s=30)
    (stream,) = server.streams()
    server.misbehave(
        Fault(call="chunk_multi", chunk_index=1, drip_s=5, times=1),  # its answer takes longer than a request may
        Fault(call="chunk_multi", chunk_index=2, delay_s=0.6, times=1),
    )

    for name, doc in documents[12:]:
        callback(name, doc)
    wait_until(lambda: server.streams()[0].points == 20)
    client = Client(callback.settings)
    client.finalize(stream.family, stream.data_id)
    client.close()

    wait_until(lambda: callback.drain(timeout_s=40))
    assert sorted(held(server)["k0"]) == list(range(55))


@pytest.mark.parametrize("applied", [True, False], ids=["applied", "not applied"])
@pytest.mark.parametrize("ahead", [0, 1, 2], ids=lambda count: f"{count} confirmed behind it")
@pytest.mark.parametrize("step_s", [0.0, 1e-5, 0.01])
def test_a_chunk_in_doubt_is_found_among_chunks_with_the_same_points(
    make_callback: MakeCallback, applied: bool, ahead: int, step_s: float
) -> None:
    """A flyer may give many rows one time, and a channel may be constant: then chunks are equal to the millisecond."""
    with LocalServer(control=True, relax=["hole"]) as server:  # so that it can be closed with one
        _close_with_a_chunk_in_doubt(make_callback, server, applied=applied, ahead=ahead, step_s=step_s)


def _close_with_a_chunk_in_doubt(
    make_callback: MakeCallback, server: LocalServer, *, applied: bool, ahead: int, step_s: float
) -> None:
    callback = make_callback(endpoint=server.url, max_connections=2)
    documents = list(growth(points=55, keys=1))
    start = documents[0][1]["time"]
    events = [doc for name, doc in documents if name == "event"]
    for n, event in enumerate(events):
        event["data"]["k0"] = 7.0
        event["time"] = event["timestamps"]["k0"] = start + n * step_s
    for name, doc in documents[:12]:
        callback(name, doc)
    assert callback.drain(timeout_s=30)
    server.misbehave(
        # Late enough for the chunks behind it, which wait for the other connection alone.
        Fault(
            call="chunk_multi", chunk_index=1, reset_after=applied, reset_before=not applied, delay_s=1.0 * (ahead > 0),
            times=1,
        ),
        Fault(call="chunk_multi", chunk_index=1, status=503),
    )  # fmt: skip

    for name, doc in documents[12 : 22 + 10 * ahead]:
        callback(name, doc)
    asked = len(server.requests("chunk_multi"))
    wait_until(lambda: len(server.requests("chunk_multi")) > asked + 1 and server.streams()[0].points >= 10 * ahead)
    wait_until(lambda: server.streams()[0].points == 10 * (1 + applied + ahead))
    (stream,) = server.streams()
    client = Client(callback.settings)
    client.finalize(stream.family, stream.data_id)
    client.close()
    server.behave()
    for name, doc in documents[22 + 10 * ahead :]:
        callback(name, doc)

    assert callback.drain(timeout_s=40)
    times = [at for one in server.streams() for at in server.points(one.data_id)["k0"].times]
    assert len(times) == 55
    # The server keeps the milliseconds of each of them: none is missing, none is there twice.
    given = sorted(round(event["time"] * 1000) for event in events)
    assert all(abs(a - b) <= 1 for a, b in zip(sorted(round(at * 1000) for at in times), given, strict=True))
    callback.close(timeout_s=1)


def test_a_drain_waits_for_the_end_of_a_stream_whose_last_chunk_has_lost_its_rows(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path
) -> None:
    server.misbehave(Fault(call=("chunk", "chunk_multi"), skip=1, reset_before=True))
    before = make_callback()
    for name, doc in growth(points=20):
        before(name, doc)
    wait_until(lambda: server.faults()[0].acted > 0)  # its first chunk is there, and its second was tried
    before.close(timeout_s=0)
    (journal,) = spool_dir.glob("*/journal-0001.jsonl")
    content = journal.read_bytes()
    stop = content.rindex(b"\n", 0, -1) + 1
    journal.write_bytes(content[: row_at(content, 10)] + content[stop:])
    server.behave()

    after = make_callback()

    assert after.drain(timeout_s=20)
    assert not after.status().runs


def test_a_stream_that_may_have_been_made_is_found_and_closed_though_a_power_cut_took_its_points(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path
) -> None:
    chunks = ("chunk", "chunk_multi")
    server.misbehave(Fault(call="initialize", skip=1, reset_after=True), Fault(call=chunks, reset_before=True))
    before = make_callback()
    run = compose_run(metadata={"synth_source_id": 42})
    before("start", run.start_doc)
    for name in ("primary", "shutter"):
        stream = run.compose_descriptor(name=name, data_keys={name: {"source": "s", "dtype": "number", "shape": []}})
        before("descriptor", stream.descriptor_doc)
        before("event", stream.compose_event(data={name: 1.0}, timestamps={name: run.start_doc["time"]}))
    wait_until(lambda: len(server.streams()) == 2)
    before.close(timeout_s=0)
    (journal,) = spool_dir.glob("*/journal-0001.jsonl")
    content = journal.read_bytes()
    journal.write_bytes(content[: row_at(content, 0)])
    server.behave()

    after = make_callback()

    assert after.drain(timeout_s=20)
    assert not after.status().runs
    assert [(stream.status, stream.points) for stream in server.streams()] == [("success", 0)] * 2


def test_an_order_that_comes_during_the_last_request_is_obeyed(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    callback = make_callback()
    finalize, ordered = Client.finalize, []

    def finalize_and_order(client: Client, family: str, data_id: str) -> None:
        finalize(client, family, data_id)
        if not ordered:
            ordered.append(Edit(Links(synth_source_id=42, physical_sample="the right wafer")))
            order(callback, ordered[0])

    monkeypatch.setattr(Client, "finalize", finalize_and_order)
    for name, doc in growth(points=5):
        callback(name, doc)

    assert callback.drain(timeout_s=30)
    (stream,) = server.streams()
    assert stream.status == "success"
    assert stream.physical_sample_id is not None
    (entry,) = Spool(spool_dir).history.entries()
    assert entry["linked_to"]["physical_sample"] == "the right wafer"
