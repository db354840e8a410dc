"""Reading a run back: what counts as equal, what differs and where, and until when a run stays in the spool."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import msgpack
import pytest
from event_model import compose_run
from runs import Document, growth
from waiting import wait_until

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.api.client import Client
from atomscale_bluesky.checks.verification import MAX_DIFFERENCES
from atomscale_bluesky.checks.verify_run import verify_run
from atomscale_bluesky.errors import ApiTooLargeError, ApiUnavailableError, SpoolError
from atomscale_bluesky.server import Fault, LocalServer
from atomscale_bluesky.spool.orders import Retry
from atomscale_bluesky.spool.spool import Spool

MakeCallback = Callable[..., AtomscaleCallback]


def feed(callback: AtomscaleCallback, documents: list[Document]) -> str:
    for name, doc in documents:
        callback(name, doc)
    return str(documents[0][1]["uid"])


def under_way(callback: AtomscaleCallback, points: int = 25, **more: Any) -> str:
    """A run without its stop, all full chunks of which have arrived."""
    uid = feed(callback, list(growth(points=points, **more))[:-1])
    assert callback.drain(timeout_s=30)
    return uid


def read_as(server: LocalServer, change: Callable[[dict[str, Any]], Any]) -> None:
    """Have the only stream read back changed."""
    (stream,) = server.streams()
    points = server.points(stream.data_id)
    properties = {
        name: {
            "unix_timestamp_ms": [round(at * 1000) for at in series.times],
            "values": list(series.values),
            "units": series.units,
        }
        for name, series in points.items()
    }
    body = {"properties": properties}
    server.misbehave(Fault(call="read", status=200, body=json.dumps(change(body) or body)))


# ---- equal -----------------------------------------------------------------------------------------------------------


def test_of_a_run_under_way_what_was_confirmed_is_equal_and_the_rest_waits(callback: AtomscaleCallback) -> None:
    found = callback.verify(under_way(callback))

    assert found.arrived
    assert not found.equal
    assert (found.points, found.waiting, found.differences) == (40, 10, ())
    assert str(found) == "all 40 points that were confirmed are equal; 10 waiting"
    assert str(replace(found, waiting=1200)).endswith("; 1 200 waiting")


@pytest.mark.parametrize(
    ("points", "said"), [(0, "no point is confirmed"), (20, "all 40 points that were confirmed are equal")]
)
def test_verify_is_not_well_until_the_run_has_stopped(
    callback: AtomscaleCallback, server: LocalServer, spool_dir: Path, points: int, said: str
) -> None:
    server.misbehave(Fault(call="finalize", status=503))  # keeps the run in the spool
    *documents, stop = growth(points=points)
    uid = feed(callback, documents)
    callback.drain(timeout_s=30)

    found = callback.verify(uid)
    done = run_verify(server, spool_dir, uid[:8], "--patience", "0")
    told = json.loads(run_verify(server, spool_dir, uid[:8], "--patience", "0", "--json").stdout)

    assert (found.arrived, found.equal, done.returncode) == (True, False, 1)
    assert f"{said}; the run still goes on, or its process has ended without a stop document." in done.stdout
    assert (told["equal"], told["stopped"]) == (False, False)
    if points:
        callback(*stop)
        wait_until(lambda: callback.verify(uid).equal)
        assert run_verify(server, spool_dir, uid[:8], "--patience", "0").returncode == 0


def test_a_run_with_gaps_further_event_streams_and_a_continuation_is_equal(
    make_callback: MakeCallback, spool_dir: Path
) -> None:
    with LocalServer(control=True, silence_s=1.0) as server:
        callback = make_callback(endpoint=server.url, keep="verified", max_connections=1)
        run = compose_run(metadata={"synth_source_id": 42})
        keys = {key: {"source": "sim", "dtype": "number", "shape": [], "units": "K"} for key in ("T", "p")}
        primary = run.compose_descriptor(name="primary", data_keys=keys)
        other = run.compose_descriptor(name="gauge", data_keys={"g": keys["T"]})
        documents: list[Document] = [("start", run.start_doc), ("descriptor", primary.descriptor_doc)]
        documents.append(("descriptor", other.descriptor_doc))
        for n in range(47):
            stamp = run.start_doc["time"] + n / 10
            data = {"T": float(n), "p": float("nan") if n in {13, 14, 31} else n / 3}
            event = primary.compose_event(data=data, timestamps=dict.fromkeys(data, stamp), time=stamp)
            documents.append(("event", event))
            if n % 2:
                more = other.compose_event(data={"g": -n}, timestamps={"g": stamp}, time=stamp)
                documents.append(("event", more))
        for name, doc in documents[:60]:
            callback(name, doc)
        assert callback.drain(timeout_s=30)
        wait_until(lambda: {stream.status for stream in server.streams()} == {"stream_error"})
        assert callback.verify(run.start_doc["uid"]).arrived
        for name, doc in documents[60:]:
            callback(name, doc)
        assert callback.drain(timeout_s=30)
        found = callback.verify(run.start_doc["uid"])
        assert found.arrived, str(found)
        assert len(found.streams) >= 4
        callback("stop", run.compose_stop())

        assert callback.drain(timeout_s=20)
        (entry,) = Spool(spool_dir).history.entries()
        assert (entry["verified"], entry["delivered"]) == (True, 47 + 44 + 23)


def test_a_run_that_is_one_stream_for_all_event_streams_is_compared_as_that(make_callback: MakeCallback) -> None:
    with LocalServer(control=True, relax=["time_base", "late_channel"]) as server:
        callback = make_callback(endpoint=server.url, layout="run")
        run = compose_run(metadata={"synth_source_id": 42})
        key = {"source": "sim", "dtype": "number", "shape": [], "units": "K"}
        primary = run.compose_descriptor(name="primary", data_keys={"T": key})
        other = run.compose_descriptor(name="gauge", data_keys={"g": key})
        callback("start", run.start_doc)
        callback("descriptor", primary.descriptor_doc)
        callback("descriptor", other.descriptor_doc)
        for n in range(20):
            stamp = run.start_doc["time"] + n / 10
            callback("event", primary.compose_event(data={"T": float(n)}, timestamps={"T": stamp}, time=stamp))
            callback("event", other.compose_event(data={"g": -n}, timestamps={"g": stamp}, time=stamp + 0.05))
        assert callback.drain(timeout_s=30)

        found = callback.verify(run.start_doc["uid"])

        assert found.arrived, str(found)
        assert (len(found.streams), found.points) == (1, 40)


def test_null_values_and_dropped_rows_are_compared_as_they_were_sent(make_callback: MakeCallback) -> None:
    with LocalServer(control=True, relax=["non_finite"]) as server:
        for n, policy in enumerate(("null", "drop_row")):
            callback = make_callback(endpoint=server.url, non_finite=policy)
            documents = list(growth(points=40))[:-1]
            documents[7][1]["data"]["k0"] = float("nan")
            uid = feed(callback, documents)
            assert callback.drain(timeout_s=30)

            found = callback.verify(uid)

            assert found.arrived, str(found)
            assert found.points == (80, 60)[n]
            callback.close()


def test_a_run_that_was_delivered_by_an_earlier_process_is_verified_by_its_files_alone(
    callback: AtomscaleCallback, server: LocalServer, spool_dir: Path
) -> None:
    under_way(callback)
    (folder,) = Spool(spool_dir).run_folders()
    client = Client(callback.settings)

    found = verify_run(folder, client)

    client.close()
    assert (found.arrived, found.points) == (True, 40)


def test_of_a_stream_without_a_point_nothing_is_said_to_be_equal(
    callback: AtomscaleCallback, server: LocalServer, spool_dir: Path
) -> None:
    documents = list(growth(points=5))  # its first chunk of ten points is not full
    for document in documents[:-1]:
        callback(*document)
    wait_until(lambda: server.streams())

    done = run_verify(server, spool_dir, documents[0][1]["uid"][:8], "--patience", "0")
    assert "nothing to compare" in done.stdout
    assert "no point is confirmed; 10 waiting." in done.stdout
    assert "equal" not in done.stdout
    assert done.returncode == 1


def test_a_run_without_a_point_is_equal(make_callback: MakeCallback, server: LocalServer, spool_dir: Path) -> None:
    callback = make_callback(keep="verified")
    feed(callback, list(growth(points=0)))

    assert callback.drain(timeout_s=30)
    assert Spool(spool_dir).history.entries()[0]["verified"]


# ---- what differs ----------------------------------------------------------------------------------------------------


def _value(body: dict[str, Any]) -> None:
    body["properties"]["k1"]["values"][3] += 1e-9


def _time(body: dict[str, Any]) -> None:
    body["properties"]["k1"]["unix_timestamp_ms"][3] += 2


def _no_time(body: dict[str, Any]) -> None:
    body["properties"]["k1"]["unix_timestamp_ms"][3] = None


def _null(body: dict[str, Any]) -> None:
    body["properties"]["k1"]["values"][3] = None


def _unit(body: dict[str, Any]) -> None:
    body["properties"]["k1"]["units"] = "degC"


def _short(body: dict[str, Any]) -> None:
    del body["properties"]["k1"]["values"][19]


def _cut(body: dict[str, Any]) -> None:
    for member in ("values", "unix_timestamp_ms"):
        del body["properties"]["k1"][member][15:]


def _doubled(body: dict[str, Any]) -> None:
    for member in ("values", "unix_timestamp_ms"):
        body["properties"]["k1"][member] *= 2


def _gone(body: dict[str, Any]) -> None:
    del body["properties"]["k1"]


@pytest.mark.parametrize(
    ("change", "channel", "what", "index"),
    [
        (_value, "k1", "value", 3),
        (_time, "k1", "time", 3),
        (_no_time, "k1", "time", 3),
        (_null, "k1", "value", 3),
        (_unit, "k1", "unit", None),
        (_short, "k1", "value", 19),
        (_cut, "k1", "points", None),
        (_doubled, "k1", "points", None),
        (_gone, "k1", "channel", None),
    ],
)
def test_what_differs_is_said_with_its_place(
    callback: AtomscaleCallback,
    server: LocalServer,
    change: Callable[[dict[str, Any]], None],
    channel: str,
    what: str,
    index: int | None,
) -> None:
    uid = under_way(callback)
    read_as(server, change)

    found = callback.verify(uid, patience_s=0)

    assert not found.arrived
    (one,) = found.differences
    assert (one.channel, one.what, one.index) == (channel, what, index)
    assert one.data_id == server.streams()[0].data_id


def test_values_of_two_points_that_changed_places_are_two_differences(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    uid = under_way(callback)

    def swap(body: dict[str, Any]) -> None:
        values = body["properties"]["k0"]["values"]
        values[4], values[5] = values[5], values[4]

    read_as(server, swap)

    assert [one.index for one in callback.verify(uid, patience_s=0).differences] == [4, 5]


def test_only_the_first_differences_are_told_and_all_are_counted(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    uid = under_way(callback, points=100)
    read_as(server, lambda body: body["properties"]["k0"].update(values=[0.5] * 100))

    found = callback.verify(uid, patience_s=0)

    assert (len(found.differences), found.different) == (MAX_DIFFERENCES, 100)


def test_the_older_shape_of_rows_is_compared_too_but_tells_no_units(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    uid = under_way(callback)

    def rows(body: dict[str, Any]) -> dict[str, Any]:
        series = body["properties"]
        stamps = series["k0"]["unix_timestamp_ms"]
        return {
            "series": [
                {"unix_timestamp_ms": ms, "relative_time_seconds": 0.0}
                | {name: one["values"][n] for name, one in series.items()}
                for n, ms in enumerate(stamps)
            ]
        }

    read_as(server, rows)

    assert [one.what for one in callback.verify(uid, patience_s=0).differences] == ["unit", "unit"]


@pytest.mark.parametrize(
    "fault",
    [
        Fault(call="read", garble="half"),
        Fault(call="read", garble="empty"),
        Fault(call="read", status=200, body="<html>please sign in</html>", content_type="text/html"),
        Fault(call="read", status=502),
        Fault(call="read", reset_after=True),
    ],
)
def test_what_is_no_answer_of_the_apis_proves_nothing(
    callback: AtomscaleCallback, server: LocalServer, fault: Fault
) -> None:
    uid = under_way(callback)
    server.misbehave(fault)

    with pytest.raises(ApiUnavailableError):
        callback.verify(uid, patience_s=0)


def test_a_stream_that_cannot_be_found_is_no_equal_one(callback: AtomscaleCallback, server: LocalServer) -> None:
    uid = under_way(callback)
    server.misbehave(Fault(call="read", status=404))

    found = callback.verify(uid, patience_s=0)

    assert not found.arrived
    assert "404" in str(found)


def test_reading_waits_for_what_was_stored_but_cannot_be_read_yet(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    uid = under_way(callback)
    server.misbehave(Fault(call="read", status=404, times=1))
    server.misbehave(Fault(call="read", status=503, times=1))
    server.misbehave(Fault(call="read", status=200, body='{"properties": {}}', times=1))

    assert callback.verify(uid).arrived


def test_a_run_that_leaves_the_spool_while_it_is_read_is_not_said_to_be_damaged(
    callback: AtomscaleCallback, server: LocalServer, tmp_path: Path
) -> None:
    run = compose_run(metadata={"synth_source_id": 42})
    callback("start", run.start_doc)
    for name in ("primary", "gauge"):
        keys = {f"{name}_T": {"source": "sim", "dtype": "number", "shape": []}}
        stream = run.compose_descriptor(name=name, data_keys=keys)
        callback("descriptor", stream.descriptor_doc)
        for n in range(10):
            stamp = run.start_doc["time"] + n
            event = stream.compose_event(data=dict.fromkeys(keys, n), timestamps=dict.fromkeys(keys, stamp), time=stamp)
            callback("event", event)
    assert callback.drain(timeout_s=30)
    folder = shutil.copytree(callback.status()[0].folder, tmp_path / "copy")
    server.misbehave(Fault(call="read", status=404, times=1))

    def leave(_pause_s: float) -> None:
        for segment in folder.glob("journal*"):
            segment.unlink()

    with pytest.raises(SpoolError, match="left the spool while it was read"):
        verify_run(folder, Client(callback.settings), wait=leave)


def test_a_line_that_is_damaged_in_the_journal_costs_its_chunk_and_is_said(
    callback: AtomscaleCallback, spool_dir: Path
) -> None:
    uid = under_way(callback)
    (journal,) = spool_dir.glob("*/journal-0001.jsonl")
    text = bytearray(journal.read_bytes())
    text[text.index(struct.pack(">d", 13.0))] ^= 1
    journal.write_bytes(bytes(text))

    found = callback.verify(uid, patience_s=0)

    assert (found.different, found.uncompared, found.points) == (0, 20, 20)
    assert not found.arrived


def test_a_refused_chunk_keeps_a_run_from_being_equal(callback: AtomscaleCallback, server: LocalServer) -> None:
    server.misbehave(Fault(call=("chunk", "chunk_multi"), chunk_index=1, channel="k1", status=422))
    uid = feed(callback, list(growth(points=30)))
    assert not callback.drain(timeout_s=10)

    found = callback.verify(uid, patience_s=0)

    # What came behind the hole was stored, and reads back behind it, which this server shows as adjoining.
    assert not found.equal
    assert found.refused == 10


def test_a_run_that_is_not_in_the_spool_is_said_to_be_elsewhere(callback: AtomscaleCallback) -> None:
    uid = feed(callback, list(growth(points=25)))
    assert callback.drain(timeout_s=30)

    with pytest.raises(SpoolError, match='finished and has left the spool: .* --from api.*keep = "verified"') as told:
        callback.verify(uid)
    assert f"verify {uid[:8]} --file" in str(told.value)
    with pytest.raises(SpoolError, match="no run in the spool begins with 'nothing'"):
        callback.verify("nothing")


# ---- keep ------------------------------------------------------------------------------------------------------------


def test_a_run_that_is_kept_until_verified_leaves_the_spool_once_it_reads_back_equal(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path
) -> None:
    callback = make_callback(keep="verified")
    server.misbehave(Fault(call="read", status=404, times=1))
    feed(callback, list(growth(points=25)))

    assert callback.drain(timeout_s=20)
    assert Spool(spool_dir).history.entries()[0]["verified"] is True
    assert any(request.call == "read" for request in server.requests())


@pytest.mark.parametrize("keeps_time", [True, False])
def test_a_run_that_was_read_back_says_when_wherever_it_is_shown(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path, keeps_time: bool
) -> None:
    before = time.time()
    callback = make_callback(keep="verified")
    uid = feed(callback, list(growth(points=25)))
    assert callback.drain(timeout_s=20)
    history = Spool(spool_dir).history
    (entry,) = history.entries()
    at = entry["verified_at"]
    assert before <= at <= time.time()
    if not keeps_time:  # a line of an earlier version
        at = entry["finished"] = 1_700_000_000.0
        del entry["verified_at"]
        (spool_dir / "history.jsonl").unlink()
        history.add(entry)
    when = f"{datetime.fromtimestamp(at).astimezone():%Y-%m-%d %H:%M:%S}"

    done = run_command(server, spool_dir, "verify", "last")
    told = json.loads(run_command(server, spool_dir, "verify", uid[:8], "--json").stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"it was read back on {when} and was equal" in done.stdout
    assert (told["run_uid"], told["equal"], told["verified_at"]) == (uid, True, at)
    for arguments in (["status", "--all"], ["status", "last"], ["show", "last"]):
        said = " ".join(run_command(server, spool_dir, *arguments).stdout.split())
        assert f"read back equal, on {when}" in said
    with pytest.raises(SpoolError, match=f"was read back on {when} and was equal"):
        callback.verify(uid)


def test_by_default_nothing_is_read_back(callback: AtomscaleCallback, server: LocalServer, spool_dir: Path) -> None:
    feed(callback, list(growth(points=25)))

    assert callback.drain(timeout_s=30)
    assert Spool(spool_dir).history.entries()[0]["verified"] is False
    assert all(request.call != "read" for request in server.requests())


def test_a_run_that_reads_back_different_is_parked_and_a_person_may_have_it_read_again(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atomscale_bluesky.delivery.tasks.verify.MAX_READS", 1)
    callback = make_callback(keep="verified")
    uid = under_way(callback, points=20)
    read_as(server, _value)
    callback("stop", {"run_start": uid, "time": 1.0, "exit_status": "success", "uid": "s"})

    assert not callback.drain(timeout_s=20)
    (run,) = callback.status()
    assert run.state == "parked"
    assert "read back, and not equal: channel 'k1'" in str(run.problem)
    assert [stream.status for stream in server.streams()] == ["success"]

    server.behave()
    Spool(spool_dir).give_order(Path(run.folder), Retry())
    wait_until(lambda: not callback.status())
    assert Spool(spool_dir).history.entries()[0]["verified"] is True


@pytest.mark.parametrize(
    ("bomb", "said"),
    [
        ('{"properties": {' + " " * 6_000_000 + "}}", "an answer of more than"),
        (
            '{"properties": {"k0": {"unix_timestamp_ms": [' + "0," * 3000 + "0]}}}",
            "channel 'k0' has more than 1800 points",
        ),
    ],
    ids=["bytes", "points"],
)
def test_a_stream_that_is_too_large_to_be_read_back_keeps_its_run_and_holds_up_no_other(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path, bomb: str, said: str
) -> None:
    callback = make_callback(keep="verified")
    documents = list(growth(points=400))
    for name, doc in documents[:-1]:
        callback(name, doc)
    assert callback.drain(timeout_s=20)
    server.misbehave(Fault(call="read", data_id=server.streams()[0].data_id, body=bomb))
    callback(*documents[-1])
    wait_until(lambda: [run.state for run in callback.status()] == ["parked"])

    feed(callback, list(growth(points=20)))

    assert not callback.drain(timeout_s=20)
    (run,) = callback.status()
    uid = run.run_uid
    assert (uid, run.points.delivered) == (documents[0][1]["uid"], 800)
    assert f"cannot be read back: {said}" in str(run.problem)
    assert Spool(spool_dir).history.entries()[0]["verified"] is True
    with pytest.raises(ApiTooLargeError, match="cannot be read back"):
        callback.verify(uid)
    server.behave()
    Spool(spool_dir).give_order(Path(run.folder), Retry())
    wait_until(lambda: not callback.status())


# ---- what the service adds -------------------------------------------------------------------------------------------


@pytest.fixture
def deriving() -> Iterator[LocalServer]:
    """A server that gives series of its own back beside those that were streamed, numbers and text."""
    with LocalServer(control=True, derived=True) as server:
        yield server


def test_what_the_service_adds_is_named_and_is_no_difference(
    make_callback: MakeCallback, deriving: LocalServer, spool_dir: Path
) -> None:
    callback = make_callback(endpoint=deriving.url, keep="verified")
    documents = list(growth(points=20))
    for name, doc in documents[:-1]:
        callback(name, doc)
    assert callback.drain(timeout_s=30)

    found = callback.verify(str(documents[0][1]["uid"]), patience_s=0)

    assert found.arrived
    assert (found.points, found.streams[0].channels) == (40, 2)
    assert (found.added["k0_anomaly_score"], found.added["k1_anomaly_class"]) == (20, 20)
    assert found.added["growth_quality_score"] == 1
    assert set(found.added).isdisjoint({"k0", "k1"})
    callback(*documents[-1])
    assert callback.drain(timeout_s=20)
    assert Spool(spool_dir).history.entries()[0]["verified"] is True


def test_the_command_names_what_the_service_added(
    make_callback: MakeCallback, deriving: LocalServer, spool_dir: Path, tmp_path: Path
) -> None:
    callback = make_callback(endpoint=deriving.url)
    documents = list(growth(points=20))
    uid = feed(callback, documents)
    assert callback.drain(timeout_s=30)
    recording = tmp_path / "run.jsonl"
    recording.write_text(lines(documents))

    done = run_verify(deriving, spool_dir, uid[:8], "--file", str(recording))
    told = run_verify(deriving, spool_dir, uid[:8], "--file", str(recording), "--json")

    assert (done.returncode, done.stderr) == (0, "")
    assert "added by the service: " in done.stdout
    assert "k0_anomaly_class (20), k1_anomaly_score (20), and 7 more" in done.stdout
    answer = json.loads(told.stdout)
    assert answer["equal"] is True
    assert answer["added"]["k0_z_score"] == 20
    assert answer["streams"][0]["added"] == answer["added"]


def test_a_channel_that_is_due_and_is_no_series_of_numbers_is_not_taken_for_an_added_one(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    uid = under_way(callback)
    read_as(server, lambda body: body["properties"]["k1"].update(values=["high"] * 20))

    with pytest.raises(ApiUnavailableError, match="is not understood"):
        callback.verify(uid, patience_s=0)


# ---- the command line ------------------------------------------------------------------------------------------------


def run_verify(server: LocalServer, spool_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_command(server, spool_dir, "verify", *arguments)


def run_command(server: LocalServer, spool_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "ATOMSCALE_API_ENDPOINT": server.url,
        "ATOMSCALE_API_KEY": server.api_key,
        "ATOMSCALE_BLUESKY_SPOOL_DIR": str(spool_dir),
        "ATOMSCALE_BLUESKY_SPOOL_MIN_FREE_BYTES": "0",
        "COLUMNS": "200",
    }
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "atomscale_bluesky", *arguments],
        capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, env=os.environ | environment,
    )  # fmt: skip


def test_verify_says_what_differs_and_where(callback: AtomscaleCallback, server: LocalServer, spool_dir: Path) -> None:
    uid = under_way(callback)
    read_as(server, _value)

    done = run_verify(server, spool_dir, uid[:8], "--patience", "0")
    told = run_verify(server, spool_dir, uid[:8], "--patience", "0", "--json")

    assert (done.returncode, done.stderr) == (1, "")
    assert "k1: point 3: 3.1 arrived as 3.100000001" in done.stdout
    answer = json.loads(told.stdout)
    assert answer["equal"] is False
    assert answer["differences"] == [
        {"channel": "k1", "what": "value", "index": 3, "ours": 3.1, "theirs": 3.100000001,
         "data_id": server.streams()[0].data_id}
    ]  # fmt: skip


def suitcase(documents: list[Document]) -> str:
    return "".join(json.dumps([name, doc]) + "\n" for name, doc in documents)


def lines(documents: list[Document]) -> str:
    return "".join(json.dumps({"name": name, "doc": doc}) + "\n" for name, doc in documents)


def array(documents: list[Document]) -> str:
    return "[\n" + ",\n".join(json.dumps({"name": name, "doc": doc}) for name, doc in documents) + "\n]"


def packed_msgpack(documents: list[Document]) -> bytes:
    return gzip.compress(b"".join(msgpack.packb(document) for document in documents))


@pytest.mark.parametrize("written", [suitcase, lines, array, packed_msgpack])
def test_a_run_that_has_left_the_spool_is_compared_with_its_recorded_documents(
    callback: AtomscaleCallback,
    server: LocalServer,
    spool_dir: Path,
    tmp_path: Path,
    written: Callable[[list[Document]], str | bytes],
) -> None:
    documents = list(growth(points=35))
    documents[17][1]["data"]["k1"] = None
    uid = feed(callback, documents)
    assert callback.drain(timeout_s=30)
    recording = tmp_path / "run.jsonl"
    content = written(documents)
    recording.write_bytes(content if isinstance(content, bytes) else content.encode())

    done = run_verify(server, spool_dir, uid[:8], "--file", str(recording))

    assert (done.returncode, done.stderr) == (0, "")
    assert "all 69 points that were confirmed are equal" in done.stdout
    without = run_verify(server, spool_dir, uid[:8])
    assert (without.returncode, "--file" in without.stderr) == (1, True)


@pytest.mark.parametrize("other", [{"status": 404}, {"body": '{"properties": {}}'}], ids=["not found", "empty"])
def test_the_recorded_documents_of_a_run_are_compared_in_the_family_that_holds_it(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path, tmp_path: Path, other: dict[str, Any]
) -> None:
    documents = list(growth(points=15))
    callback = make_callback(api="tool-state")
    uid = feed(callback, documents)
    assert callback.drain(timeout_s=30)
    recording = tmp_path / "run.jsonl"
    recording.write_text(lines(documents))
    server.misbehave(Fault(call="read", family="metrology", **other))

    done = run_verify(server, spool_dir, uid[:8], "--file", str(recording), "--patience", "0")

    assert (done.returncode, done.stderr) == (0, "")
    assert "all 30 points that were confirmed are equal" in done.stdout


def test_a_recorded_run_of_other_values_is_not_equal(
    callback: AtomscaleCallback, server: LocalServer, spool_dir: Path, tmp_path: Path
) -> None:
    documents = list(growth(points=35))
    uid = feed(callback, documents)
    assert callback.drain(timeout_s=30)
    recording = tmp_path / "run.jsonl"
    changed = json.loads(json.dumps(documents))
    changed[12][1]["data"]["k0"] = 1e6
    del changed[30]
    recording.write_text(lines(changed))

    done = run_verify(server, spool_dir, uid[:8], "--file", str(recording), "--patience", "0", "--json")

    answer = json.loads(done.stdout)
    assert done.returncode == 1
    assert (answer["differences"][0]["channel"], answer["differences"][0]["index"]) == ("k0", 10)
    assert {one["what"] for one in answer["differences"]} == {"value", "points"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"name": "start"}\n', "line 1 is no document"),
        ('["start", {"uid": "abc"}]\nnonsense\n', "line 2 is no JSON"),
        ('["start", {"uid": "abc"}]\n["event", {"uid":', "line 2 is cut off"),
        ('["start", 5]\n', "line 1 is no document"),
        ("", "the file has no run"),
        (
            suitcase([*growth(points=1), *growth(points=1)]),
            "the file has 2 runs; give more of the uid of one: its runs are ",
        ),
    ],
)
def test_a_file_that_is_no_recorded_run_is_said_so(
    server: LocalServer, spool_dir: Path, tmp_path: Path, text: str, said: str
) -> None:
    recording = tmp_path / "run.jsonl"
    recording.write_text(text)

    done = run_verify(server, spool_dir, "", "--file", str(recording))

    assert done.returncode == 2
    assert said in done.stderr


def test_a_run_that_is_not_in_the_file_is_named_with_the_runs_of_the_file(
    server: LocalServer, spool_dir: Path, tmp_path: Path
) -> None:
    recording = tmp_path / "run.jsonl"
    documents = list(growth(points=1))
    recording.write_text(suitcase(documents))

    done = run_verify(server, spool_dir, "nosuch", "--file", str(recording))

    assert done.returncode == 2
    uid = documents[0][1]["uid"][:8]
    assert f"no run of the file begins with 'nosuch'; its runs are {uid}" in done.stderr
