"""What the callback has streamed, as a user of the vendor's client finds it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import bluesky.plans as bp
import pytest
from bluesky import RunEngine
from bluesky.preprocessors import baseline_wrapper
from ophyd.sim import SynSignal, det, motor
from runs import Recorder

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.server import LocalServer

pytestmark = [pytest.mark.witness, pytest.mark.timeout(900)]

OLD, NEW = "0.16.0", "0.21.10"
BOTH = ["metrology", "tool-state"]
# The older client knows the type `metrology` alone, which a server of that family only gives to its streams. The newer
# one reads under `tool-state` alone: on a server with both families it sees what was made there, or all where either
# may be read under the other.
WITNESSES = [
    (OLD, {"families": ["metrology"]}, "auto", "MetrologyResult"),
    (NEW, {"families": ["tool-state"]}, "auto", "ToolStateResult"),
    (NEW, {"families": BOTH}, "tool-state", "ToolStateResult"),
    (NEW, {"families": BOTH, "relax": ["family"]}, "auto", "ToolStateResult"),
]
POINTS = 11


def sensor(name: str, scale: float) -> SynSignal:
    """A device whose every reading is another fraction."""
    count = itertools.count(1)
    return SynSignal(name=name, func=lambda: scale / next(count))


class Streamed:
    """A run of a real engine as the callback has streamed it, and as its documents tell."""

    def __init__(self, server: LocalServer, callback: AtomscaleCallback) -> None:
        self.project = server.add_project("Nitrides")
        self.recorder = Recorder()
        engine = RunEngine({"synth_source_id": 42}, context_managers=[])
        engine.subscribe(self.recorder)
        engine.subscribe(callback)
        engine(
            bp.count([sensor("temperature", 600.1), sensor("pressure", 1e-7)], num=POINTS),
            physical_sample="GaN-0417",
            project_id=self.project,
            tags=["night shift", "recipe 12"],
            track_sample=True,
        )
        self.run_uid: str = self.recorder.documents[0][1]["uid"]
        assert callback.drain(timeout_s=30)
        (self.stream,) = server.streams()

    @property
    def points(self) -> dict[str, list[tuple[float, float]]]:
        return self.recorder.points()


@pytest.mark.parametrize(("version", "options", "api", "kind"), WITNESSES)
def test_the_client_finds_a_run_by_its_uid_and_reads_its_points_label_status_sample_project_tags_and_instrument(
    make_server: Callable[..., LocalServer],
    make_callback: Callable[..., AtomscaleCallback],
    look: Callable[..., dict[str, Any]],
    version: str,
    options: dict[str, Any],
    api: str,
    kind: str,
) -> None:
    server = make_server(**options)
    run = Streamed(server, make_callback(endpoint=server.url, api=api, points_per_chunk=4))
    stream = run.stream

    found = look(version, server, data_ids=[stream.data_id], search=run.run_uid[:8], sample=stream.physical_sample_id)

    # the time series: every point, its time in milliseconds
    [result] = found["results"]
    assert result["kind"] == kind
    assert set(result["columns"]) == {"UNIX Timestamp", "Time", "pressure", "temperature"}
    for name, points in run.points.items():
        assert len(points) == POINTS
        assert [row["UNIX Timestamp"] for row in result["rows"]] == [round(time * 1000) for time, _ in points]
        # pandas writes JSON with at most 15 decimals
        assert [row[name] for row in result["rows"]] == pytest.approx([value for _, value in points], abs=1e-14)
    # the catalogue's entry
    [entry] = found["search"]
    assert (entry["Data ID"], entry["File Name"], entry["Status"]) == (stream.data_id, stream.label, "success")
    assert run.run_uid[:8] in entry["File Name"]
    assert entry["Instrument Source"] == "MBE 42"
    assert (entry["Physical Sample ID"], entry["Physical Sample Name"]) == (stream.physical_sample_id, "GaN-0417")
    assert (entry["Project ID"], entry["Project Name"]) == (run.project, "Nitrides")
    assert sorted(entry["Tags"]) == ["bluesky: success", "night shift", "recipe 12"]
    assert 42 in [instrument["synth_source_id"] for instrument in found["instruments"]]
    # the lab's side
    [sample] = found["samples"]
    assert (sample["Physical Sample ID"], sample["Data Items"]) == (stream.physical_sample_id, 1)
    assert found["of_sample"]["name"] == "GaN-0417"
    assert [one["rows"] for one in found["of_sample"]["results"]] == [result["rows"]]
    counts = {project["Project Name"]: project["Physical Sample Count"] for project in found["projects"]}
    assert counts == {"Local project": 0, "Nitrides": 1}


def test_the_newer_client_looks_for_points_under_tool_state_alone_whichever_family_they_were_streamed_to(
    server: LocalServer, make_callback: Callable[..., AtomscaleCallback], look: Callable[..., dict[str, Any]]
) -> None:
    run = Streamed(server, make_callback(api="metrology"))
    seen = len(server.requests())

    found = look(NEW, server, data_ids=[run.stream.data_id], search=run.run_uid[:8])

    assert [record.path for record in server.requests("read", after=seen)] == [
        f"/tool-state/{run.stream.data_id}/timeseries/"
    ]
    assert found["results"] == [{"kind": "ToolStateResult", "columns": [], "rows": []}]  # this server keeps them apart
    assert [entry["Data ID"] for entry in found["search"]] == [run.stream.data_id]


def test_the_newer_client_reads_each_event_stream_of_a_run_as_a_result_of_its_own(
    server: LocalServer, make_callback: Callable[..., AtomscaleCallback], look: Callable[..., dict[str, Any]]
) -> None:
    callback = make_callback(api="tool-state", event_streams=["*"])
    engine = RunEngine({"synth_source_id": 42}, context_managers=[])
    engine.subscribe(callback)
    engine(baseline_wrapper(bp.count([det], num=3), [motor]))
    assert callback.drain(timeout_s=30)

    found = look(NEW, server, data_ids=[stream.data_id for stream in server.streams()], search="count")

    rows = {len(one["rows"]): set(one["columns"][2:]) for one in found["results"]}  # streams are made in any order
    assert rows == {3: {"det"}, 2: {"motor", "motor_setpoint"}}
    assert len(found["results"]) == 2
    assert len(found["search"]) == 2
