"""Stories end to end: a real RunEngine, real files, real HTTP, real kills."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from bluesky import RunEngine
from bluesky.plan_stubs import close_run, create, open_run, read, save
from bluesky.plans import count, scan
from bluesky.preprocessors import set_run_key_wrapper
from ophyd.sim import det1, det2, motor
from runs import Recorder, growth, held
from waiting import wait_until

from atomscale_bluesky import AtomscaleCallback, SettingsError
from atomscale_bluesky.server import Fault, LocalServer

MakeCallback = Callable[..., AtomscaleCallback]


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def engine(callback: AtomscaleCallback, recorder: Recorder) -> RunEngine:
    engine = RunEngine({"synth_source_id": 42}, context_managers=[])
    engine.subscribe(callback)
    engine.subscribe(recorder)
    return engine


def test_every_reading_of_a_plan_arrives_in_one_finalized_stream_linked_to_its_instrument(
    engine: RunEngine, callback: AtomscaleCallback, recorder: Recorder, server: LocalServer
) -> None:
    engine(scan([det1, det2], motor, -1, 1, 25))

    assert callback.drain(timeout_s=30)

    (stream,) = server.streams()
    assert (stream.status, stream.synth_source_id, stream.finalize_calls) == ("success", 42, 1)
    points = server.points(stream.data_id)
    expected = recorder.points()
    assert points.keys() == expected.keys()
    for name, series in points.items():
        assert list(zip(series.times, series.values, strict=True)) == expected[name]
        assert series.chunks == [(0, 10), (1, 10), (2, 5)]
    assert callback.status() == ()


def test_each_run_of_a_plan_gets_its_own_stream(
    engine: RunEngine, callback: AtomscaleCallback, server: LocalServer
) -> None:
    for n in (3, 12):
        engine(count([det1], num=n))

    assert callback.drain(timeout_s=30)

    assert sorted(stream.points for stream in server.streams()) == [3, 12]


def test_interleaved_runs_do_not_mix(
    engine: RunEngine, callback: AtomscaleCallback, recorder: Recorder, server: LocalServer
) -> None:
    def point(detector, key):
        def steps():
            yield from create()
            yield from read(detector)
            yield from save()

        return set_run_key_wrapper(steps(), key)

    def both():
        yield from set_run_key_wrapper(open_run(md={"stream_name": "a"}), "a")
        yield from set_run_key_wrapper(open_run(md={"stream_name": "b"}), "b")
        for _ in range(12):
            yield from point(det1, "a")
            yield from point(det2, "b")
        yield from set_run_key_wrapper(close_run(), "a")
        yield from set_run_key_wrapper(close_run(), "b")

    engine(both())

    assert callback.drain(timeout_s=30)
    assert {stream.label[:1]: stream.channels for stream in server.streams()} == {"a": ("det1",), "b": ("det2",)}
    assert {key: len(values) for key, values in held(server).items()} == {"det1": 12, "det2": 12}


def test_an_outage_during_a_whole_run_costs_nothing_but_time(
    engine: RunEngine, callback: AtomscaleCallback, recorder: Recorder, server: LocalServer
) -> None:
    server.unreachable()
    engine(count([det1, det2], num=35))
    assert not callback.drain(timeout_s=0.3)
    assert callback.status().points.waiting == 70

    server.reachable()

    assert callback.drain(timeout_s=30)
    assert held(server) == {key: [value for _, value in points] for key, points in recorder.points().items()}


def test_a_chunk_that_is_refused_is_kept_and_its_stream_stays_open(
    callback: AtomscaleCallback, server: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.misbehave(Fault(call=("chunk", "chunk_multi"), chunk_index=1, channel="k1", status=422))

    for name, doc in growth(points=30):
        callback(name, doc)

    assert not callback.drain(timeout_s=10)
    (run,) = callback.status()
    assert run.state == "parked"
    assert run.channels["k0"].delivered == 30
    assert (run.channels["k1"].delivered, run.channels["k1"].refused) == (20, 10)
    (stream,) = server.streams()
    assert (stream.status, stream.finalize_calls) == ("stream_active", 0)
    assert "chunk 1 of channel 'k1'" in caplog.text


@pytest.mark.parametrize("families", [("metrology",), ("tool-state",), ("metrology", "tool-state")])
@pytest.mark.parametrize("multi", [True, False])
def test_either_path_family_is_found_and_used_with_and_without_chunk_multi(
    make_callback: MakeCallback, families: tuple[str, ...], multi: bool
) -> None:
    with LocalServer(control=True, families=families, multi=multi) as server:
        callback = make_callback(endpoint=server.url)
        documents = list(growth(points=25))
        for name, doc in documents[:12]:
            callback(name, doc)
        assert callback.drain(timeout_s=30)
        for name, doc in documents[12:]:
            callback(name, doc)

        assert callback.drain(timeout_s=30)
        (stream,) = server.streams()
        assert (stream.status, stream.points, stream.family) == ("success", 50, families[0])
        # The first chunk shows that there is no chunk/multi; from then on none is tried.
        assert len(server.requests("chunk_multi")) == (3 if multi else 1)
        callback.close()


def test_a_lost_answer_to_initialize_does_not_make_a_second_stream(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    server.misbehave(Fault(call="initialize", reset_after=True, times=1))

    for name, doc in growth(points=15):
        callback(name, doc)

    assert callback.drain(timeout_s=30)
    assert [(stream.status, stream.points) for stream in server.streams()] == [("success", 30)]


def test_a_lost_answer_to_finalize_parks_no_run_while_the_catalogue_lags(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    server.misbehave(Fault(call="finalize", reset_after=True, times=1), Fault(call="catalogue", body="[]", times=2))
    for name, doc in growth(points=25):
        callback(name, doc)

    assert callback.drain(timeout_s=30)
    assert [stream.status for stream in server.streams()] == ["success"]
    assert server.faults()[1].acted == 2


def test_a_lost_answer_to_finalize_counts_as_done_when_the_catalogue_says_so(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    server.misbehave(Fault(call="finalize", reset_after=True, times=1))

    for name, doc in growth(points=15):
        callback(name, doc)

    assert callback.drain(timeout_s=30)
    (stream,) = server.streams()
    assert stream.status == "success"


def test_a_server_that_asks_to_be_left_alone_is_left_alone(callback: AtomscaleCallback, server: LocalServer) -> None:
    server.misbehave(Fault(call="initialize", status=429, headers={"Retry-After": "1"}, times=1))

    for name, doc in growth(points=5):
        callback(name, doc)

    assert callback.drain(timeout_s=30)
    first, second = server.requests("initialize")
    assert second.time - first.time >= 1.0


def test_an_answer_about_something_else_confirms_nothing(callback: AtomscaleCallback, server: LocalServer) -> None:
    server.misbehave(
        Fault(call="chunk_multi", body="<html>Please sign in</html>", times=1),
        Fault(call="chunk_multi", garble="other_chunk", times=1),
        Fault(call="chunk_multi", garble="half", times=1),
    )

    for name, doc in growth(points=10):
        callback(name, doc)

    assert callback.drain(timeout_s=20)
    assert [len(values) for values in held(server).values()] == [10, 10]


def test_several_event_streams_get_a_metrology_stream_each(make_callback: MakeCallback, server: LocalServer) -> None:
    callback, recorder = make_callback(event_streams=["*"]), Recorder()
    from bluesky.preprocessors import baseline_wrapper, monitor_during_wrapper
    from ophyd import Signal

    pressure = Signal(name="pressure", value=1e-9)

    def plan():
        yield from open_run()
        for n in range(12):
            yield from create()
            yield from read(det1)
            yield from save()
            pressure.put(n * 1e-9)
        yield from close_run()

    engine = RunEngine(context_managers=[])
    engine.subscribe(callback)
    engine.subscribe(recorder)
    engine(baseline_wrapper(monitor_during_wrapper(plan(), [pressure]), [motor]))

    assert callback.drain(timeout_s=30)
    channels = {stream.label.partition(" · ")[2].partition(" [")[0]: stream.channels for stream in server.streams()}
    assert channels == {
        "": ("det1",),
        "pressure_monitor": ("pressure",),
        "baseline": ("motor", "motor_setpoint"),
    }
    assert all(stream.status == "success" for stream in server.streams())
    assert held(server)["pressure"] == [value for _, value in recorder.points("pressure_monitor")["pressure"]]


def test_a_bad_synth_source_id_parks_the_run_and_leaves_the_plan_alone(
    engine: RunEngine, callback: AtomscaleCallback, server: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    engine(count([det1], num=15), synth_source_id="GEN-II")

    assert not callback.drain(timeout_s=5)
    (run,) = callback.status()
    assert (run.state, run.points.seen, run.points.waiting) == ("parked", 15, 15)
    assert "'GEN-II'; expected a whole number" in (run.problem or "")
    assert "atomscale-bluesky edit" in caplog.text
    assert server.streams() == []


def test_an_instrument_that_is_not_known_parks_the_run(callback: AtomscaleCallback, server: LocalServer) -> None:
    for name, doc in growth(points=5, start_metadata={"synth_source_id": 999}):
        callback(name, doc)

    assert not callback.drain(timeout_s=10)
    (run,) = callback.status()
    assert run.state == "parked"
    assert "999" in (run.problem or "")


def test_without_a_key_readings_are_spooled_and_the_next_session_with_a_key_sends_them(
    make_callback: MakeCallback, server: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    keyless = make_callback(api_key="")
    for name, doc in growth(points=25):
        keyless(name, doc)
    assert not keyless.drain(timeout_s=5)
    assert keyless.status().points.waiting == 50
    assert caplog.text.count("no API key") == 1
    keyless.close()

    assert make_callback().drain(timeout_s=30)
    assert [stream.status for stream in server.streams()] == ["success"]


def test_a_wrong_key_makes_everything_wait_and_the_right_one_sends_it(
    make_callback: MakeCallback, server: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = make_callback(api_key="not-this-one")
    for name, doc in growth(points=25):
        wrong(name, doc)
    wait_until(lambda: "check the API key" in caplog.text)
    assert not wrong.drain(timeout_s=0.1)
    wrong.close(timeout_s=0)

    assert make_callback().drain(timeout_s=30)
    assert [stream.points for stream in server.streams()] == [50]
    assert "not-this-one" not in caplog.text


def test_runs_spooled_for_another_endpoint_stay_where_they_are(
    make_callback: MakeCallback, server: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = make_callback(endpoint="https://atomscale.invalid", offline=True)
    for name, doc in growth(points=5):
        elsewhere(name, doc)
    elsewhere.close()

    here = make_callback()
    wait_until(lambda: "was spooled for https://atomscale.invalid" in caplog.text)

    assert server.streams() == []
    assert here.drain(timeout_s=30)


CHILD = """
    import os, signal, sys
    sys.path.insert(0, {tests!r})
    from runs import growth
    from atomscale_bluesky import AtomscaleCallback
    callback = AtomscaleCallback(points_per_chunk=10)
    for name, doc in growth(points=10_000):
        callback(name, doc)
        if name == "event":
            print(doc["data"]["k0"], flush=True)
"""


@pytest.mark.parametrize("after", [0, 1, 57, 800])
def test_what_was_accepted_before_a_kill_arrives_once_after_the_restart(
    after: int, make_callback: MakeCallback, server: LocalServer, spool_dir: Path
) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD.format(tests=str(Path(__file__).parents[1])))],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ
        | {
            "ATOMSCALE_API_ENDPOINT": server.url,
            "ATOMSCALE_API_KEY": server.api_key,
            "ATOMSCALE_BLUESKY_SPOOL_DIR": str(spool_dir),
            "ATOMSCALE_BLUESKY_SPOOL_MIN_FREE_BYTES": "0",
        },
    )
    assert child.stdout is not None
    accepted = [float(child.stdout.readline()) for _ in range(after + 1)]
    child.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    accepted += [float(line) for line in child.stdout.read().splitlines() if line.endswith(".0")]
    child.wait()
    child.stdout.close()

    assert make_callback().drain(timeout_s=30)

    values = held(server)
    assert values["k0"][: len(accepted)] == accepted
    assert len(values["k0"]) <= len(accepted) + 1  # the call under way may have got as far as the disk
    (stream,) = server.streams()
    assert (stream.status, stream.changed) == ("success", 0)


def test_an_open_run_of_a_living_process_is_delivered_while_it_runs(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    documents = list(growth(points=35))
    for name, doc in documents[:-1]:
        callback(name, doc)

    assert callback.drain(timeout_s=30)
    assert [stream.points for stream in server.streams()] == [60]
    (run,) = callback.status()
    assert (run.state, run.points.delivered, run.points.waiting) == ("running", 60, 10)

    callback(*documents[-1])
    assert callback.drain(timeout_s=30)
    assert [(stream.points, stream.status) for stream in server.streams()] == [(70, "success")]


def test_documents_after_close_are_still_kept_and_delivered_by_the_next_callback(
    make_callback: MakeCallback, server: LocalServer
) -> None:
    documents = list(growth(points=25))
    first = make_callback()
    for name, doc in documents[:12]:
        first(name, doc)
    first.close()
    for name, doc in documents[12:]:
        first(name, doc)

    assert make_callback().drain(timeout_s=30)
    assert [len(values) for values in held(server).values()] == [25, 25]


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("points_per_chunk", 0, "'points_per_chunk' (argument) is 0: expected a whole number >= 1"),
        ("endpoint", "atomscale", "'endpoint' (argument) is 'atomscale': expected an address"),
        ("endpoint", "http://atomscale.invalid", "plain http would carry the API key readable"),
        ("spool_dir", "/proc/nowhere", "spool folder '/proc/nowhere' cannot be written"),
    ],
)
def test_a_setting_that_cannot_be_used_is_refused_at_construction(setting: str, value: object, expected: str) -> None:
    with pytest.raises(SettingsError) as raised:
        AtomscaleCallback(**{setting: value})

    assert expected in str(raised.value)


def test_the_key_is_in_no_log_line_repr_or_file(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.misbehave(Fault(call="initialize", status=500, times=2))
    callback = make_callback()
    for name, doc in growth(points=25):
        callback(name, doc)
    callback.drain(timeout_s=10)

    files = "".join(path.read_text(errors="replace") for path in spool_dir.rglob("*") if path.is_file())
    for text in (caplog.text, repr(callback), repr(callback.settings), str(callback.status()), files):
        assert server.api_key not in text


def test_an_event_behind_its_runs_stop_is_left_out_and_said_so(
    callback: AtomscaleCallback, server: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    *documents, late, stop = growth(points=12)
    for name, doc in [*documents, stop, late]:
        callback(name, doc)

    assert callback.drain(timeout_s=30)
    assert [stream.points for stream in server.streams()] == [22]
    assert callback.ignored == {"event behind its run's stop": 1}
    assert "came behind its stop document" in caplog.text


@pytest.mark.parametrize("uid", [object(), 7, None, ""])
def test_a_start_document_without_a_uid_begins_no_run(
    callback: AtomscaleCallback, server: LocalServer, uid: object
) -> None:
    callback("start", {"uid": uid, "time": 1.0})
    for name, doc in growth(points=3):
        callback(name, doc)

    assert callback.drain(timeout_s=30)
    assert [stream.points for stream in server.streams()] == [6]
    assert callback.ignored == {"malformed document": 1}
