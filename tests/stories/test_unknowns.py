"""What nobody says about Atomscale's API, and what we do about it; and that the page about it names its tests."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from event_model import compose_run
from journals import lines_in
from runs import Document, growth, held
from waiting import wait_until

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.__main__ import main
from atomscale_bluesky.server import Fault, LocalServer
from atomscale_bluesky.spool.row_record import is_record
from atomscale_bluesky.spool.segments import segment_path
from atomscale_bluesky.spool.spool import Spool

MakeCallback = Callable[..., AtomscaleCallback]
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "explanations" / "what-is-known-of-the-api.md"


def feed(callback: AtomscaleCallback, documents: Iterator[Document]) -> str:
    """All documents of a run; its uid."""
    uid = ""
    for name, doc in documents:
        uid = uid or doc["uid"]
        callback(name, doc)
    return uid


def at_times(
    times: list[float], *, start: float, unit: str = "K", key: str = "T", event_stream: str = "primary"
) -> Iterator[Document]:
    """A run whose events have these times."""
    run = compose_run(metadata={"synth_source_id": 42, "plan_name": "grow"})
    yield "start", run.start_doc | {"time": start}
    described = {key: {"source": "sim", "dtype": "number", "shape": [], "units": unit}}
    stream = run.compose_descriptor(name=event_stream, data_keys=described)
    yield "descriptor", stream.descriptor_doc
    for n, time in enumerate(times):
        yield "event", stream.compose_event(data={key: float(n)}, timestamps={key: time}, time=time)
    yield "stop", run.compose_stop() | {"time": start + 100.0}


# ---- requests --------------------------------------------------------------------------------------------------------


def test_no_more_requests_are_under_way_than_the_setting_allows(
    make_callback: MakeCallback, server: LocalServer
) -> None:
    server.misbehave(Fault(call=("initialize", "chunk_multi"), delay_s=0.05))
    callback = make_callback(max_connections=2)

    for _ in range(6):
        feed(callback, growth(points=30))

    assert callback.drain(timeout_s=60)
    assert 1 <= server.counts().most_under_way <= 2


def test_bodies_go_out_as_plain_json_over_connections_that_are_kept(
    make_callback: MakeCallback, server: LocalServer
) -> None:
    callback = make_callback(max_connections=1)

    feed(callback, growth(points=95))

    assert callback.drain(timeout_s=20)
    bodies = [record for record in server.requests() if record.call in {"initialize", "chunk_multi"}]
    assert len(bodies) == 11
    assert {record.headers["content-type"] for record in bodies} == {"application/json"}
    assert [record for record in bodies if "content-encoding" in record.headers] == []
    assert len({record.client_port for record in bodies}) == 1


def test_a_multi_that_failed_after_a_part_was_taken_goes_again_whole(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    server.misbehave(Fault(call="chunk_multi", chunk_index=1, partly=1, reset_after=True, times=1))

    feed(callback, growth(points=25, keys=3))

    assert callback.drain(timeout_s=20)
    (stream,) = server.streams()
    assert (stream.status, stream.points, stream.doubled, stream.changed) == ("success", 75, 1, 0)
    again = [record.channels for record in server.requests("chunk_multi") if record.chunk_index == 1]
    assert again == [("k0", "k1", "k2")] * 2


def test_a_catalogue_that_does_not_find_a_label_costs_an_empty_stream_and_no_reading(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    server.misbehave(
        Fault(call="initialize", reset_after=True, times=1),  # it was made, and nobody knows its id
        Fault(call="catalogue", body="[]"),
    )

    feed(callback, growth(points=25))

    assert callback.drain(timeout_s=20)
    assert [(stream.status, stream.points) for stream in server.streams()] == [("stream_active", 0), ("success", 50)]
    assert held(server)["k0"] == [float(n) for n in range(25)]


# ---- times and texts -------------------------------------------------------------------------------------------------


def test_times_that_repeat_or_go_back_arrive_as_they_were_recorded_in_the_order_of_their_events(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    start = 1_760_000_000.0
    times = [start + 1.0, start + 1.0, start + 1.0000002, start + 0.5, start + 3.0, start + 2.9999]

    feed(callback, at_times(times, start=start))

    assert callback.drain(timeout_s=20)
    (stream,) = server.streams()
    series = server.points(stream.data_id)["T"]
    assert (series.times, series.values) == (times, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0])


@pytest.mark.parametrize("start", [0.0, 631_152_000.0, 4_102_444_800.5], ids=["1970", "1990", "2100"])
def test_a_run_of_long_ago_or_of_a_clock_far_ahead_arrives_at_its_own_times(
    callback: AtomscaleCallback, server: LocalServer, start: float
) -> None:
    times = [start + n / 3 for n in range(12)]

    feed(callback, at_times(times, start=start))

    assert callback.drain(timeout_s=20)
    (stream,) = server.streams()
    assert (server.points(stream.data_id)["T"].times, stream.status) == (times, "success")


def test_labels_units_and_channels_of_any_length_leave_as_ones_that_are_below_255(
    make_callback: MakeCallback, server: LocalServer
) -> None:
    callback = make_callback(label="{plan_name}" * 60, event_streams=["*"])

    feed(callback, at_times([1.0, 2.0], start=0.0, unit="µ" * 400, key="温" * 400, event_stream="monitor " * 40))

    assert callback.drain(timeout_s=20)
    (stream,) = [stream for stream in server.streams() if stream.points]
    ((name, series),) = server.points(stream.data_id).items()
    assert {stream.status for stream in server.streams()} == {"success"}
    assert all(0 < len(stream.label or "") < 255 for stream in server.streams())
    assert len(name.encode()) <= 255
    assert len(series.units or "") <= 255


# ---- what the catalogue and the lists leave out ----------------------------------------------------------------------


def test_a_project_that_the_catalogue_does_not_show_is_said_and_keeps_nothing_waiting(
    make_callback: MakeCallback, server: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    project = server.add_project("Nitrides")
    server.misbehave(Fault(call="catalogue", status=503))
    with make_callback() as callback:
        uid = feed(callback, growth(points=15, start_metadata={"project_id": project}))
        wait_until(lambda: callback.streams(uid) and callback.streams(uid)[0].data_id)
        callback.close(timeout_s=0)
    server.behave()
    (stream,) = server.streams()
    entry = [{"data_id": stream.data_id, "raw_name": stream.label, "pipeline_status": "stream_active", "projects": []}]
    server.misbehave(Fault(call="catalogue", body=json.dumps(entry)))

    assert make_callback().drain(timeout_s=20)

    assert [(stream.status, stream.points) for stream in server.streams()] == [("success", 30)]
    said = [record.getMessage() for record in caplog.records if "does not show it there" in record.getMessage()]
    assert len(said) == 1
    assert project in said[0]


def test_a_project_that_the_list_lacks_is_found_by_asking_for_its_samples(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    project = server.add_project("Nitrides")
    others = [{"id": f"{n:08x}-0000-4000-8000-000000000000", "name": f"project {n}"} for n in range(100)]
    server.misbehave(Fault(call="projects", body=json.dumps(others), times=1))  # a first page, perhaps

    feed(callback, growth(points=15, start_metadata={"project_id": project}))

    assert callback.drain(timeout_s=20)
    (stream,) = server.streams()
    assert (stream.project_id, stream.status) == (project, "success")


# ---- what was stored -------------------------------------------------------------------------------------------------


def test_a_run_stays_in_the_spool_until_its_stream_is_finalized_though_every_chunk_was_confirmed(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    spool = Spool(callback.settings.spool_path)
    server.misbehave(Fault(call="finalize", status=503))

    feed(callback, growth(points=25))

    wait_until(lambda: server.requests("finalize"))
    assert [stream.points for stream in server.streams()] == [50]
    (folder,) = spool.run_folders()
    journal = lines_in(segment_path(folder, 1).read_bytes())
    assert sum(map(is_record, journal)) == 25
    server.behave()
    assert callback.drain(timeout_s=20)
    assert spool.run_folders() == []


def test_nothing_in_atomscale_is_ever_deleted_or_taken_back(callback: AtomscaleCallback, server: LocalServer) -> None:
    server.misbehave(Fault(call=("chunk", "chunk_multi"), chunk_index=1, status=422, times=6))
    md = {"physical_sample": "GaN-0417", "tags": ["night shift"]}
    failed = [
        (name, doc | {"exit_status": "fail", "reason": "heater tripped"} if name == "stop" else doc)
        for name, doc in growth(points=25, start_metadata=md)
    ]
    uid = feed(callback, iter(failed))
    assert not callback.drain(timeout_s=20)
    spool = ["--spool-dir", str(callback.settings.spool_path)]

    assert main(["edit", uid[:8], "--no-tags", "--no-sample", *spool]) == 0
    assert main(["discard", uid[:8], "--yes", *spool]) == 0

    wait_until(lambda: not callback.status())
    changed = {(record.method, record.call) for record in server.requests() if record.method not in {"GET", "POST"}}
    assert changed <= {("PATCH", "change_entry")}  # the label, which tells why the run failed
    (stream,) = server.streams()
    assert (stream.points > 0, stream.status, "night shift" in stream.tags) == (True, "stream_active", True)


# ---- the page --------------------------------------------------------------------------------------------------------


def rows(heading: str) -> list[list[str]]:
    """The cells of a table of the page, without its head."""
    section = PAGE.read_text(encoding="utf-8").partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1:]]


def functions() -> set[str]:
    """The names of all tests."""
    return {
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }


def test_each_thing_that_nobody_says_has_what_we_do_about_it_and_a_test_that_exists() -> None:
    found = rows("What is not known, and what we do about it")

    assert len(found) >= 27
    known = functions()
    for unknown, done, shown_by in found:
        names = re.findall(r"`(test_[^`]+)`", shown_by)
        assert done, unknown
        assert names, unknown
        assert [name for name in names if name not in known] == [], unknown


def test_what_the_vendors_client_does_and_no_page_says_is_shown_by_a_test_that_exists() -> None:
    found = rows("What the vendor's client does that no page says")

    known = functions()
    named = {name for row in found for name in re.findall(r"`(test_[^`]+)`", row[-1])}
    assert len(found) >= 10
    assert all(re.search(r"`test_", row[-1]) for row in found)
    assert named - known == set()


def test_the_page_says_plainly_what_was_never_tried_against_the_real_service() -> None:
    section = PAGE.read_text(encoding="utf-8").partition("## What was never tried against the real service\n")[2]

    assert "Nothing of this package was ever tried against the real service" in section.partition("\n## ")[0]
