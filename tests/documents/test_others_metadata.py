"""Facilities whose start documents use our words for their own purposes: with a real RunEngine, to a real server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from bluesky import RunEngine
from bluesky.plans import count
from ophyd.sim import det1

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.server import LocalServer

MakeCallback = Callable[..., AtomscaleCallback]
PROJECT = "6f0e2c1a-93c4-4b7e-8d55-0a1b2c3d4e5f"


@pytest.mark.parametrize(
    ("metadata", "ours", "said"),
    [
        ({"project_id": "GUP-77123"}, {}, "project_id"),
        ({"project_id": "GUP-77123", "atomscale": {"project_id": None}}, {}, ""),
        ({"project_id": "GUP-77123", "atomscale": {"project_id": "ours"}}, {"project_id": "ours"}, ""),
        ({"tags": {"campaign": "A", "shift": 2}}, {}, "tags"),
        ({"tags": {"campaign": "A"}, "atomscale": {"tags": []}}, {}, ""),
        ({"tags": [1, 2, 3]}, {}, "tags"),
        ({"physical_sample": {"name": "W1", "diameter": 50}}, {}, "physical_sample"),
        ({"physical_sample": 1234}, {"physical_sample": True}, ""),
        ({"synth_source_id": 42.0}, {"synth_source_id": 42}, ""),
        ({"stream_name": ["a", "b"]}, {}, "stream_name"),
        ({"points_per_chunk": "many"}, {}, "points_per_chunk"),
        ({"track_sample": "yes"}, {}, "track_sample"),
        ({"track_sample": True}, {}, "track_sample"),
    ],
)
def test_a_run_whose_metadata_mean_something_else_is_streamed_and_that_is_logged_once(
    make_callback: MakeCallback,
    server: LocalServer,
    caplog: pytest.LogCaptureFixture,
    metadata: dict[str, Any],
    ours: dict[str, Any],
    said: str,
) -> None:
    project = server.add_project("nitrides")
    if metadata.get("atomscale", {}).get("project_id") == "ours":
        metadata = metadata | {"atomscale": {"project_id": project}}
    callback = make_callback(synth_source_id=7)
    engine = RunEngine(context_managers=[])
    engine.subscribe(callback)

    for _ in range(2):
        engine(count([det1], num=15), **metadata)

    assert callback.drain(20)
    assert [(stream.status, stream.points) for stream in server.streams()] == [("success", 15)] * 2
    for stream in server.streams():
        assert stream.synth_source_id == ours.get("synth_source_id", 7)
        assert stream.project_id == (project if "project_id" in ours else None)
        assert (stream.physical_sample_id is not None) is ("physical_sample" in ours)
    logged = [record.getMessage() for record in caplog.records if "another program" in record.getMessage()]
    assert [f"without its {said!r}" in text for text in logged] == ([True] if said else [])
    assert all("metadata_keys" in text for text in logged)


def test_the_setting_says_which_of_the_facilitys_keys_are_read(
    make_callback: MakeCallback, server: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    callback = make_callback(metadata_keys={"synth_source_id": "chamber", "*": "atomscale"})
    engine = RunEngine(context_managers=[])
    engine.subscribe(callback)

    engine(count([det1], num=15), chamber=42, project_id="GUP-77123", tags={"shift": 2}, synth_source_id="GEN-II")

    assert callback.drain(20)
    (stream,) = server.streams()
    assert (stream.status, stream.points, stream.synth_source_id) == ("success", 15, 42)
    assert "another program" not in caplog.text


@pytest.mark.parametrize("metadata", [{"project_id": PROJECT[:-1]}, {"synth_source_id": "GEN-II"}])
def test_a_value_that_looks_meant_for_us_parks_the_run(
    callback: AtomscaleCallback, server: LocalServer, metadata: dict[str, Any]
) -> None:
    engine = RunEngine(context_managers=[])
    engine.subscribe(callback)

    engine(count([det1], num=15), **metadata)

    assert not callback.drain(5)
    (run,) = callback.status()
    assert (run.state, run.points.waiting, server.streams()) == ("parked", 15, [])
