"""The host's clock against the server's: measured, told, and, where a site asks for it, corrected for."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from runs import growth
from waiting import wait_until

from atomscale_bluesky import AtomscaleCallback, Settings
from atomscale_bluesky.api.client import Client
from atomscale_bluesky.api.clock import measure
from atomscale_bluesky.errors import ApiUnavailableError
from atomscale_bluesky.server import Fault, LocalServer
from atomscale_bluesky.spool.spool import Spool
from atomscale_bluesky.status.clock_note import ClockNote, read_note, write_note

MakeCallback = Callable[..., AtomscaleCallback]
AHEAD_S = 3600.0


def ahead(by_s: float = AHEAD_S, **more: object) -> Fault:
    """The server's clock says that it is later by so much."""
    ms = (time.time() + by_s) * 1000
    return Fault(call="time", status=200, body=json.dumps({"receivedAtUnixMs": ms, "transmittedAtUnixMs": ms}), **more)  # type: ignore[arg-type]


@pytest.fixture
def client(server: LocalServer) -> Client:
    return Client(Settings.load(environ={}, endpoint=server.url, api_key=server.api_key))


def shift(server: LocalServer, started: float) -> float:
    """By how much the first point's time differs from the run's start."""
    (stream,) = server.streams()
    return server.points(stream.data_id)["k0"].times[0] - started


def stream_a_run(callback: AtomscaleCallback, points: int = 25) -> float:
    documents = list(growth(points=points))
    for name, doc in documents:
        callback(name, doc)
    assert callback.drain(timeout_s=20)
    return float(documents[0][1]["time"])


# ---- measuring -------------------------------------------------------------------------------------------------------


def test_of_several_exchanges_the_least_delayed_one_is_kept(server: LocalServer, client: Client) -> None:
    server.misbehave(ahead(50.0, delay_s=0.2, times=1))

    reading = measure(client)
    client.close()

    assert abs(reading.offset_s) < 1
    assert 0 <= reading.delay_s < 0.2


def test_an_exchange_with_a_negative_delay_is_skipped(server: LocalServer, client: Client) -> None:
    body = '{"receivedAtUnixMs": 1000, "transmittedAtUnixMs": 100000000}'
    server.misbehave(Fault(call="time", status=200, body=body, times=3))
    assert abs(measure(client).offset_s) < 1

    server.misbehave(Fault(call="time", status=200, body=body))
    with pytest.raises(ApiUnavailableError, match="contradict"):
        measure(client)
    client.close()


# ---- telling ---------------------------------------------------------------------------------------------------------


def test_status_reports_the_clock_offset_that_an_uploader_has_measured(
    callback: AtomscaleCallback, server: LocalServer, spool_dir: Path
) -> None:
    server.misbehave(ahead())
    stream_a_run(callback)
    wait_until(lambda: read_note(spool_dir))

    environment = {"ATOMSCALE_API_ENDPOINT": server.url, "ATOMSCALE_BLUESKY_SPOOL_DIR": str(spool_dir)}
    command = [sys.executable, "-m", "atomscale_bluesky", "status"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | environment)
    told = subprocess.run(
        [*command, "--json"], capture_output=True, text=True, timeout=60, env=os.environ | environment
    )

    assert re.search(r"Clock: this host is 3\d{3}\.\d{3} s behind the server", said.stdout)
    assert json.loads(told.stdout)["clock"]["offset_s"] == pytest.approx(AHEAD_S, abs=30)
    other = environment | {"ATOMSCALE_API_ENDPOINT": "http://127.0.0.1:1"}
    elsewhere = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | other)
    assert "Clock" not in elsewhere.stdout


def test_a_damaged_clock_note_is_ignored(tmp_path: Path) -> None:
    write_note(tmp_path, ClockNote("http://host", 1.5, 0.1, 5.0))
    assert read_note(tmp_path) == ClockNote("http://host", 1.5, 0.1, 5.0)
    (tmp_path / "clock.json").write_bytes(b"{")
    assert read_note(tmp_path) is None
    assert [path.name for path in tmp_path.iterdir()] == ["clock.json"]


def test_a_clock_that_does_not_answer_holds_nothing_up(callback: AtomscaleCallback, server: LocalServer) -> None:
    server.misbehave(Fault(call="time", status=500))

    stream_a_run(callback)

    assert [stream.status for stream in server.streams()] == ["success"]


def test_a_clock_that_hangs_holds_the_next_request_up_for_a_moment_only(
    make_callback: MakeCallback, server: LocalServer
) -> None:
    server.misbehave(Fault(call="time", hang=True))
    callback = make_callback(max_connections=1, request_timeout_s=90)
    for name, doc in growth(points=25):
        callback(name, doc)

    assert callback.drain(timeout_s=30)
    assert server.faults()[0].acted == 1
    assert [stream.status for stream in server.streams()] == ["success"]


# ---- shifting --------------------------------------------------------------------------------------------------------


def test_by_default_times_arrive_as_bluesky_recorded_them(callback: AtomscaleCallback, server: LocalServer) -> None:
    server.misbehave(ahead())

    assert shift(server, stream_a_run(callback)) == pytest.approx(0, abs=1e-3)


def test_with_the_reference_clock_all_times_of_a_run_are_shifted_by_the_same(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path
) -> None:
    server.misbehave(ahead())
    callback = make_callback(clock="reference", keep="verified")
    documents = list(growth(points=35))
    for name, doc in documents[:15]:
        callback(name, doc)
    assert callback.drain(timeout_s=30)
    server.behave()
    server.misbehave(ahead(-9000.0))
    for name, doc in documents[15:]:
        callback(name, doc)
    assert callback.drain(timeout_s=20)

    times = server.points(server.streams()[0].data_id)["k0"].times
    shifts = {round(at - doc["time"], 5) for at, (name, doc) in zip(times, documents[2:], strict=False)}
    assert len(shifts) == 1
    assert shifts.pop() == pytest.approx(AHEAD_S, abs=30)
    assert Spool(spool_dir).history.entries()[0]["verified"] is True


def test_the_shift_of_a_run_is_in_its_ledger_and_holds_for_the_next_process_too(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path
) -> None:
    server.misbehave(ahead())
    callback = make_callback(clock="reference")
    *documents, stop = growth(points=25)
    for name, doc in documents:
        callback(name, doc)
    assert callback.drain(timeout_s=30)
    (ledger,) = spool_dir.glob("*/ledger.jsonl")
    (noted,) = {text for text in ledger.read_text().splitlines() if '"clock_fixed"' in text}  # each line stands twice
    fixed = json.loads(noted[9:])
    assert fixed["offset_s"] == pytest.approx(AHEAD_S, abs=30)
    assert callback.verify(documents[0][1]["uid"]).arrived

    server.behave()
    callback(*stop)
    assert callback.drain(timeout_s=30)
    times = server.points(server.streams()[0].data_id)["k0"].times
    assert [at - fixed["offset_s"] for at in times] == pytest.approx(
        [doc["time"] for _, doc in documents[2:]], abs=1e-3
    )


def test_a_server_without_a_clock_gets_the_times_of_the_host_and_a_warning(
    make_callback: MakeCallback, server: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    server.misbehave(Fault(call="time", status=404))

    assert shift(server, stream_a_run(make_callback(clock="reference"))) == pytest.approx(0, abs=1e-3)
    assert "the server's clock cannot be measured" in caplog.text


@pytest.mark.parametrize(("ms", "side"), [("0", "behind"), ("1e308", "ahead of")])
def test_a_run_keeps_the_host_times_and_a_warning_names_the_offset_if_the_server_clock_cannot_be_right(
    make_callback: MakeCallback, server: LocalServer, caplog: pytest.LogCaptureFixture, ms: str, side: str
) -> None:
    caplog.set_level(logging.WARNING)
    server.misbehave(Fault(call="time", body=f'{{"receivedAtUnixMs":{ms},"transmittedAtUnixMs":{ms}}}'))

    assert shift(server, stream_a_run(make_callback(clock="reference"))) == pytest.approx(0, abs=1e-3)
    said = [one.getMessage() for one in caplog.records if "is sent with the times" in one.getMessage()]
    assert len(said) == 1
    assert re.search(rf"clock cannot be right: it is \S+ s {side} this host's", said[0])


def test_a_server_clock_that_is_wrong_for_a_moment_does_not_cost_the_run_its_shift(
    make_callback: MakeCallback, server: LocalServer
) -> None:
    server.misbehave(ahead(-86460.0, times=9))  # an uploader measures for `status` too, by four exchanges
    server.misbehave(ahead())

    assert shift(server, stream_a_run(make_callback(clock="reference"))) == pytest.approx(AHEAD_S, abs=30)


def test_a_host_whose_clock_is_hours_off_gets_the_server_times(
    make_callback: MakeCallback, server: LocalServer
) -> None:
    server.misbehave(ahead(-86000.0))

    assert shift(server, stream_a_run(make_callback(clock="reference"))) == pytest.approx(-86000, abs=30)


def test_a_clock_that_fails_while_all_else_works_holds_a_run_up_for_four_attempts(
    make_callback: MakeCallback, server: LocalServer
) -> None:
    server.misbehave(Fault(call="time", status=503, headers={"Retry-After": "0"}))

    assert shift(server, stream_a_run(make_callback(clock="reference"))) == pytest.approx(0, abs=1e-3)


def test_an_outage_does_not_make_a_run_go_without_the_reference_clock(
    make_callback: MakeCallback, server: LocalServer
) -> None:
    server.misbehave(ahead())
    server.misbehave(Fault(call="time", status=503, headers={"Retry-After": "0"}, times=6))
    server.misbehave(Fault(call="catalogue", status=503, headers={"Retry-After": "0"}, times=3))

    callback = make_callback(clock="reference")
    documents = list(growth(points=25))
    for name, doc in documents:
        callback(name, doc)
    assert callback.drain(timeout_s=20)

    assert shift(server, documents[0][1]["time"]) == pytest.approx(AHEAD_S, abs=30)


def test_a_parked_run_waits_for_the_operator_and_not_for_the_clock(
    make_callback: MakeCallback, server: LocalServer
) -> None:
    callback = make_callback(clock="reference")
    for name, doc in growth(points=25, start_metadata={"synth_source_id": 999}):
        callback(name, doc)

    assert not callback.drain(timeout_s=10)
    assert callback.status()[0].state == "parked"
