"""The vendor's own client against the local server, over real HTTP: both must have read the API alike.

0.16.0 is the last version that speaks `metrology/stream`, 0.21.10 speaks `tool-state/stream`. The names of the tests
tell what these clients do, most of which the API's documents do not say.
"""

from __future__ import annotations

import math
import os
from typing import Any

import pytest

from atomscale_bluesky.server import Fault

pytestmark = [pytest.mark.witness, pytest.mark.timeout(900)]

METROLOGY, TOOL_STATE = "0.16.0", "0.21.10"
BOTH = [METROLOGY, TOOL_STATE]
T0 = 1_760_000_000.0


def chunk(index: int, *channels: str, count: int = 4, **more: Any) -> dict[str, Any]:
    """A chunk with thirds of seconds for times, so that nothing is round."""
    times = [T0 + index * 4 + i / 3 for i in range(count)]
    return {
        "index": index,
        "channels": {
            name: {"timestamps": times, "values": [math.sin(time) * (n + 1) for time in times], "units": "K"}
            for n, name in enumerate(channels)
        },
    } | more


CHUNKS = [chunk(0, "sample_T", "pressure"), chunk(1, "sample_T"), chunk(1, "pressure"), chunk(2, "sample_T", count=3)]


def sent(chunks: list[dict[str, Any]], channel: str) -> tuple[list[float], list[float]]:
    mine = [one["channels"][channel] for one in chunks if channel in one["channels"]]
    return [t for one in mine for t in one["timestamps"]], [v for one in mine for v in one["values"]]


@pytest.mark.parametrize("version", BOTH)
def test_every_point_the_client_sends_is_stored_to_the_last_bit(server, drive, version):
    account = drive(version, server, CHUNKS, initialize={"stream_name": "witness", "synth_source_id": 42})

    assert account["delivered"]
    points = server.points(account["data_id"])
    assert set(points) == {"sample_T", "pressure"}
    for name, channel in points.items():
        assert (channel.times, channel.values) == sent(CHUNKS, name)
        assert channel.units == "K"
    [stream] = server.streams()
    assert (stream.status, stream.label, stream.synth_source_id) == ("success", "witness", 42)
    assert (stream.doubled, stream.changed, stream.finalize_calls) == (0, 0, 1)
    assert "finalize_error" not in account


@pytest.mark.parametrize("version", BOTH)
def test_the_client_hands_an_iterator_over_whole_and_waits_for_its_chunks(server, drive, version):
    chunks = [chunk(0, "sample_T"), chunk(1, "sample_T"), chunk(2, "sample_T", count=3)]
    account = drive(version, server, chunks, run="sample_T", wait=False)

    [stream] = server.streams()
    series = server.points(account["data_id"])["sample_T"]
    assert (series.times, series.values) == sent(chunks, "sample_T")
    assert (series.units, stream.status, stream.points) == ("K", "success", 11)
    last = [record.number for record in server.requests("chunk")][-1]
    assert all(record.number > last for record in server.requests("finalize"))


def test_the_client_reads_back_in_milliseconds_what_it_sent(server, drive):
    account = drive(TOOL_STATE, server, CHUNKS)

    [result] = account["results"]
    assert result["kind"] == "ToolStateResult"
    assert result["columns"] == ["UNIX Timestamp", "Time", "pressure", "sample_T"]
    times, values = sent(CHUNKS, "sample_T")
    assert [row["UNIX Timestamp"] for row in result["rows"]] == [round(time * 1000) for time in times]
    assert [row["sample_T"] for row in result["rows"]] == pytest.approx(values, abs=1e-14)


def test_the_older_client_reads_back_from_a_server_that_calls_the_type_metrology(make_server, drive):
    account = drive(METROLOGY, make_server(families=["metrology"]), CHUNKS)

    [result] = account["results"]
    assert result["kind"] == "MetrologyResult"
    times, values = sent(CHUNKS, "sample_T")
    assert [row["UNIX Timestamp"] for row in result["rows"]] == [round(time * 1000) for time in times]
    assert [row["sample_T"] for row in result["rows"]] == pytest.approx(values, abs=1e-14)


def test_the_older_client_does_not_know_the_type_tool_state(server, drive):
    assert drive(METROLOGY, server, CHUNKS)["results"] == [{"kind": "UnknownResult"}]


def test_the_client_fills_a_channel_that_ended_early_with_its_last_value(server, drive):
    rows = drive(TOOL_STATE, server, CHUNKS)["results"][0]["rows"]
    assert {row["pressure"] for row in rows[-3:]} == {rows[-4]["pressure"]}
    assert len(server.points(server.streams()[0].data_id)["pressure"].values) == 8


@pytest.mark.parametrize("version", BOTH)
def test_the_client_finds_its_stream_by_a_part_of_the_name(server, drive, version):
    account = drive(version, server, CHUNKS, initialize={"stream_name": "growth a3f9c1d2"}, search="a3f9c1d2")
    [found] = account["search"]
    assert (found["Data ID"], found["File Name"], found["Status"]) == (account["data_id"], "growth a3f9c1d2", "success")


@pytest.mark.parametrize("version", BOTH)
def test_the_client_lists_the_instruments(server, drive, version):
    assert [one["synth_source_id"] for one in drive(version, server, CHUNKS)["instruments"]] == [7, 42]


def test_the_older_client_sends_a_multi_as_one_chunk_per_channel(server, drive):
    drive(METROLOGY, server, [chunk(0, "a", "b")])
    assert server.requests("chunk_multi") == []
    assert sorted(record.channels for record in server.requests("chunk")) == [("a",), ("b",)]


def test_the_newer_client_sends_a_multi_whole_with_its_channels_in_sorted_order(server, drive):
    drive(TOOL_STATE, server, [chunk(0, "b", "a", "C")])
    assert [record.channels for record in server.requests("chunk_multi")] == [("C", "a", "b")]
    assert server.requests("chunk") == []


@pytest.mark.parametrize("version", BOTH)
def test_the_streamer_names_no_user_agent_and_the_client_does(server, drive, version):
    drive(version, server, CHUNKS)
    assert {record.headers.get("user-agent") for record in server.requests("initialize")} == {None}
    assert {record.headers["user-agent"].split()[0] for record in server.requests("catalogue")} == {
        f"atomscale/{version}"
    }


@pytest.mark.parametrize("version", BOTH)
def test_the_client_sends_integers_as_floats_and_leaves_missing_units_out(server, drive, version):
    times = [T0, T0 + 1, T0 + 2, T0 + 3]
    channels = {"n": {"timestamps": times, "values": [1, 2, 3, 4]}}
    account = drive(version, server, [{"index": 0, "channels": channels}])
    assert server.points(account["data_id"])["n"].values == [1.0, 2.0, 3.0, 4.0]
    assert server.points(account["data_id"])["n"].units is None


@pytest.mark.parametrize("version", BOTH)
def test_the_client_sends_null_for_what_is_not_finite_and_a_strict_server_refuses_it(server, drive, version):
    bad = chunk(0, "a")
    bad["channels"]["a"]["values"][1] = math.nan
    account = drive(version, server, [bad], wait=False)
    assert {record.status for record in server.requests("chunk")} == {422}
    assert server.points(account["data_id"]) == {}


@pytest.mark.parametrize("version", BOTH)
def test_what_the_client_sends_for_not_finite_is_null_where_the_rule_is_relaxed(make_server, drive, version):
    server = make_server(relax={"non_finite"})
    bad = chunk(0, "a")
    bad["channels"]["a"]["values"][1:3] = [math.nan, math.inf]
    account = drive(version, server, [bad])
    assert account["delivered"]
    assert server.points(account["data_id"])["a"].values[1:3] == [None, None]


@pytest.mark.parametrize(("version", "attempts", "delivered"), [(METROLOGY, 1, False), (TOOL_STATE, 3, True)])
def test_the_newer_client_tries_a_chunk_three_times_and_the_older_once(server, drive, version, attempts, delivered):
    server.misbehave(Fault(call=("chunk", "chunk_multi"), status=503, times=2))
    account = drive(version, server, [chunk(0, "a")], limit_s=3)
    assert account["delivered"] is delivered
    assert len(server.requests("chunk")) == attempts


def test_the_newer_client_sends_a_chunk_again_after_its_answer_was_lost(server, drive):
    server.misbehave(
        Fault(call="chunk_multi", chunk_index=0, reset_after=True, times=1),
        Fault(call="chunk_multi", chunk_index=1, status=503, times=2),  # so that the streamer lives long enough
    )
    chunks = [chunk(0, "a", "b"), chunk(1, "a", "b")]
    account = drive(TOOL_STATE, server, chunks)
    assert account["delivered"]
    assert server.points(account["data_id"])["a"].values == sent(chunks, "a")[1]
    assert server.streams()[0].doubled == 2


@pytest.mark.parametrize("version", BOTH)
def test_the_client_finalizes_without_waiting_for_its_chunks(server, drive, version):
    server.misbehave(Fault(call=("chunk", "chunk_multi"), delay_s=0.5))
    account = drive(version, server, [chunk(0, "a", "b")], wait=False)
    assert "finalize_error" not in account
    assert server.streams()[0].status == "success"
    assert server.streams()[0].points == 0


@pytest.mark.parametrize("version", BOTH)
def test_the_client_reports_a_refused_finalize(server, drive, version):
    account = drive(version, server, [chunk(0, "a"), chunk(2, "a")])
    assert "409" in account["finalize_error"]
    assert server.streams()[0].status == "stream_active"


@pytest.mark.parametrize("version", BOTH)
def test_the_client_reports_an_unknown_instrument(server, drive, version):
    account = drive(version, server, [], initialize={"synth_source_id": 999})
    assert "404" in account["error"]
    assert server.streams() == []


@pytest.mark.parametrize("version", BOTH)
def test_the_client_creates_and_links_sample_and_tags_by_name_and_tracks_the_sample(server, drive, version):
    project = server.add_project("Nitrides")
    account = drive(
        version,
        server,
        CHUNKS,
        initialize={"physical_sample": "GaAs 1", "project_id": project, "tags": ["anneal", " Anneal ", "new"]},
    )

    [found] = account["search"]
    assert found["Physical Sample Name"] == "GaAs 1"
    assert found["Project ID"] == project
    [stream] = server.streams()
    assert {tag.casefold() for tag in stream.tags} == {"anneal", "new"}
    assert stream.physical_sample_id == found["Physical Sample ID"]
    assert [record.status for record in server.requests("track_sample")] == [200]


@pytest.mark.parametrize("version", BOTH)
def test_the_client_takes_the_sample_that_has_the_name_already(server, drive, version):
    for _ in range(2):
        drive(version, server, CHUNKS, initialize={"physical_sample": "GaAs 1"})
    first, second = server.streams()
    assert first.physical_sample_id == second.physical_sample_id is not None


def test_the_older_client_links_after_the_stream_exists_and_the_newer_resolves_names_before(server, drive):
    order = {}
    for version in BOTH:
        seen = len(server.requests())
        drive(version, server, CHUNKS, initialize={"physical_sample": f"sample of {version}"})
        calls = [record.call for record in server.requests(after=seen)]
        order[version] = calls.index("samples") - calls.index("initialize")
        assert calls.index("link_sample") > calls.index("initialize")
    assert order[METROLOGY] > 0
    assert order[TOOL_STATE] < 0


def test_the_newer_client_asks_the_clock_without_a_key_and_shifts_its_timestamps(server, drive):
    account = drive(TOOL_STATE, server, [chunk(0, "a")], sync_clock=True, clock=True)

    clock = server.requests("time")
    assert {record.key for record in clock} == {"absent"}
    assert {record.status for record in clock} == {200}
    assert clock[0].headers["cache-control"] == "no-store"
    stored = server.points(account["data_id"])["a"].times
    shifts = {round(held - told, 6) for held, told in zip(stored, sent([chunk(0, "a")], "a")[0], strict=True)}
    assert max(abs(shift) for shift in shifts) < 0.1  # the same host's clock: only the measurement's error


def test_the_clients_are_installed_where_everything_is_required(python_with):
    assert all(os.access(python_with(version), os.X_OK) for version in BOTH)
