"""Both generations of the API: a whole run, with all that belongs to it, whatever the server has of the two."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import pytest
from bluesky import RunEngine, SupplementalData
from ophyd import Signal
from ophyd.sim import det1, motor
from runs import Recorder, growth, held
from waiting import wait_until

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.checks.verification import Verification
from atomscale_bluesky.server import Fault, LocalServer
from atomscale_bluesky.spool.spool import Spool

MakeCallback = Callable[..., AtomscaleCallback]
POINTS = 7


def grown(callback: AtomscaleCallback, project_id: str) -> Recorder:
    """A run of a real engine with a baseline and a monitor, linked to everything; as its documents tell."""
    pressure = Signal(name="pressure", value=1.0)
    recorder = Recorder()
    engine = RunEngine({"synth_source_id": 42}, context_managers=[])
    engine.preprocessors.append(SupplementalData(baseline=[motor], monitors=[pressure]))
    engine.subscribe(recorder)
    engine.subscribe(callback)

    def vented(detectors: Any) -> Iterator[Any]:
        yield from bps.mv(pressure, pressure.get() * 1.1)
        yield from bps.trigger_and_read(detectors)

    engine(
        bp.count([det1], num=POINTS, per_shot=vented),
        physical_sample="GaN-0417",
        project_id=project_id,
        tags=["night shift", "recipe 12"],
    )
    return recorder


@pytest.mark.parametrize("multi", [True, False], ids=["multi", "single"])
@pytest.mark.parametrize("families", [("metrology",), ("tool-state",), ("metrology", "tool-state")], ids="+".join)
def test_a_whole_run_arrives_linked_verified_and_finalized_in_whichever_family_the_server_has(
    make_callback: MakeCallback, families: tuple[str, ...], multi: bool
) -> None:
    with LocalServer(control=True, families=families, multi=multi) as server:
        callback = make_callback(endpoint=server.url, event_streams=["*"], points_per_chunk=3, keep="verified")
        project = server.add_project("Nitrides")

        recorder = grown(callback, project)
        assert callback.drain(timeout_s=60)

        uid = recorder.documents[0][1]["uid"]
        became = {one.event_stream: one for one in callback.streams(uid)}
        assert set(became) == {"primary", "pressure_monitor", "baseline"}
        there = {stream.data_id: stream for stream in server.streams()}
        assert set(there) == {one.data_id for one in became.values()}
        for event_stream, one in became.items():
            stream = there[one.data_id or ""]
            assert (one.state, one.label, stream.status) == ("finalized", stream.label, "success")
            assert (stream.family, stream.synth_source_id, stream.project_id) == (families[0], 42, project)
            assert stream.physical_sample_id is not None
            assert set(stream.tags) == {"night shift", "recipe 12", "bluesky: success"}
            held = server.points(stream.data_id)
            told = recorder.points(event_stream)
            assert {name: series.values for name, series in held.items()} == {
                name: [value for _, value in points] for name, points in told.items()
            }
            if event_stream != "pressure_monitor":  # which has the times of its readings, not of its documents
                assert held[next(iter(told))].times == [time for time, _ in next(iter(told.values()))]
        assert len({stream.physical_sample_id for stream in there.values()}) == 1
        (entry,) = Spool(callback.settings.spool_path).history.entries()
        assert (entry["verified"], entry["exit_status"]) == (True, "success")
        assert {record.family for record in server.requests() if record.status == 200} - {None} == {families[0]}
        assert bool([one for one in server.requests("chunk_multi") if one.status == 200]) is multi
        callback.close()


@pytest.mark.parametrize("multi", [True, False], ids=["multi", "single"])
@pytest.mark.parametrize("family", ["metrology", "tool-state"])
def test_a_run_under_way_is_verified_in_the_family_that_its_streams_were_made_in(
    make_callback: MakeCallback, family: str, multi: bool
) -> None:
    with LocalServer(control=True, multi=multi) as server:
        callback = make_callback(endpoint=server.url, api=family, event_streams=["*"], points_per_chunk=3)
        seen: list[Verification] = []

        def look(name: str, doc: dict[str, Any]) -> None:
            if name == "event" and doc["seq_num"] == POINTS and doc["data"].keys() == {"det1"}:
                wait_until(lambda: sum(stream.points for stream in server.streams()) == 6)
                assert callback.drain(timeout_s=20)
                seen.append(callback.verify(started[0]))

        started: list[str] = []
        engine = RunEngine({"synth_source_id": 42}, context_managers=[])
        engine.subscribe(lambda _, doc: started.append(doc["uid"]), "start")
        engine.subscribe(callback)
        engine.subscribe(look)
        engine(bp.count([det1], num=POINTS))

        (found,) = seen
        assert (found.arrived, found.points, found.waiting) == (True, 6, 1)
        assert callback.drain(timeout_s=20)
        assert {record.family for record in server.requests()} - {None} == {family}
        callback.close()


def test_a_family_that_the_server_lacks_is_asked_for_by_the_first_run_of_a_session_alone(
    make_callback: MakeCallback,
) -> None:
    with LocalServer(control=True, families=["tool-state"]) as server:
        callback = make_callback(endpoint=server.url)
        in_vain = []
        for _ in range(3):
            grown(callback, server.add_project("Nitrides"))
            assert callback.drain(timeout_s=30)
            in_vain.append(len([record for record in server.requests() if record.family == "metrology"]))

        assert in_vain[0] >= 1
        assert in_vain == in_vain[:1] * 3
        assert {stream.status for stream in server.streams()} == {"success"}
        callback.close()


@pytest.mark.parametrize("family", ["metrology", "tool-state"])
def test_a_continuation_is_linked_like_the_stream_that_it_goes_on_from(
    make_callback: MakeCallback, family: str
) -> None:
    with LocalServer(control=True, silence_s=1.5) as server:
        callback = make_callback(endpoint=server.url, api=family, points_per_chunk=5)
        project = server.add_project("Nitrides")
        md = {"physical_sample": "GaN-0417", "project_id": project, "tags": ["night shift"]}
        documents = list(growth(25, start_metadata=md))
        for name, doc in documents[:12]:
            callback(name, doc)
        wait_until(lambda: [stream.status for stream in server.streams()] == ["stream_error"])
        for name, doc in documents[12:]:
            callback(name, doc)

        assert callback.drain(timeout_s=30)

        closed, *further = server.streams()
        assert further
        assert {stream.family for stream in server.streams()} == {family}
        assert {stream.physical_sample_id for stream in further} == {closed.physical_sample_id} != {None}
        assert {stream.project_id for stream in server.streams()} == {project}
        assert {stream.tags for stream in server.streams()} == {("bluesky: success", "night shift")}
        assert held(server)["k0"] == [float(n) for n in range(25)]
        callback.close()


def test_streams_that_are_made_at_once_all_find_the_family_that_is_served(make_callback: MakeCallback) -> None:
    with LocalServer(control=True, families=["tool-state"]) as server:
        # The second run's 404 comes when the first one has found out already.
        server.misbehave(Fault(call="initialize", family="metrology", skip=1, delay_s=1.0))
        callback = make_callback(endpoint=server.url, api_key=server.api_key)
        both = zip(growth(20), growth(20), strict=True)
        for one, other in both:
            callback(*one)
            callback(*other)

        assert callback.drain(timeout_s=30)
        assert [(stream.status, stream.points) for stream in server.streams()] == [("success", 40)] * 2
