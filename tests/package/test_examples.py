"""Each example as a person runs it: a process of its own, with endpoint and key in its environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from runs import growth, held

from atomscale_bluesky.server import LocalServer, StreamState

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def run(server: LocalServer, spool_dir: Path, tmp_path: Path) -> Callable[..., str]:
    """Run Python with these arguments; what it printed."""

    def run(*arguments: str) -> str:
        environment = os.environ | {
            "ATOMSCALE_API_ENDPOINT": server.url,
            "ATOMSCALE_API_KEY": server.api_key,
            "ATOMSCALE_BLUESKY_SPOOL_DIR": str(spool_dir),
            "ATOMSCALE_BLUESKY_SPOOL_MIN_FREE_BYTES": "0",
        }
        ended = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    return run


def of_event_stream(server: LocalServer, name: str | None) -> list[StreamState]:
    """The streams of an event stream; of the primary one for None."""
    return [s for s in server.streams() if (name in s.label if name else "_monitor" not in s.label)]


def test_the_minimal_example_delivers_its_count(server: LocalServer, run: Callable[..., str]) -> None:
    run(str(EXAMPLES / "minimal.py"))

    (stream,) = server.streams()
    assert (stream.status, stream.synth_source_id, stream.points) == ("success", 42, 250)
    assert stream.channels == ("det",)
    assert [n for _, n in server.points(stream.data_id)["det"].chunks] == [100, 100, 50]


def test_the_growth_example_takes_its_links_and_name_from_the_runs_metadata(
    server: LocalServer, run: Callable[..., str]
) -> None:
    printed = run(str(EXAMPLES / "growth.py"))

    (stream,) = server.streams()
    assert "All that was kept is delivered." in printed
    assert "layer 2 of 2: 6 s AlGaAs" in printed
    assert stream.label.startswith("W1234 first growth")
    assert (stream.status, stream.synth_source_id, stream.points_per_chunk) == ("success", 42, 50)
    assert len(stream.channels) == 21
    thickness = server.points(stream.data_id)["film_thickness"]
    assert thickness.units == "nm"
    assert thickness.values[0] == 0.0
    assert thickness.values[-1] > 1.5


def test_the_example_with_a_monitor_gives_it_a_stream_of_its_own_in_each_run(
    server: LocalServer, run: Callable[..., str]
) -> None:
    printed = run(str(EXAMPLES / "several_runs_and_a_monitor.py"))

    runs, monitored = of_event_stream(server, None), of_event_stream(server, "chamber_pressure_monitor")
    assert "delivered" in printed
    assert len(runs) == len(monitored) == 3
    assert {stream.status for stream in [*runs, *monitored]} == {"success"}
    assert [len(server.points(stream.data_id)["substrate_thermocouple"].times) for stream in runs] == [60, 60, 60]
    for stream in monitored:
        assert stream.channels == ("chamber_pressure",)
        times = server.points(stream.data_id)["chamber_pressure"].times
        assert len(times) > 1  # in order of arrival, which two threads of a device may mix


def test_the_start_up_file_gives_a_runengine_that_streams_and_refuses_unusable_metadata(
    server: LocalServer, run: Callable[..., str]
) -> None:
    session = f"""
import runpy
made = runpy.run_path({str(EXAMPLES / "startup.py")!r})
RE, count, det = made["RE"], made["count"], made["det"]
RE(count([det], num=30))
try:
    RE(count([det], num=30), synth_source_id="the big one")
except Exception as error:
    print(type(error).__name__)
print(made["atomscale"].drain(timeout_s=30.0))
"""
    printed = run("-c", session)

    assert printed.split() == ["MetadataError", "True"]
    (stream,) = server.streams()
    assert (stream.status, stream.points) == ("success", 30)


def test_the_example_with_recorded_documents_acknowledges_each_and_goes_on_where_it_was(
    server: LocalServer, run: Callable[..., str], tmp_path: Path
) -> None:
    documents = list(growth(points=30, keys=1))
    recorded = tmp_path / "documents.jsonl"
    lines = [
        json.dumps({"name": name, "doc": doc} if n % 2 else [name, doc]) for n, (name, doc) in enumerate(documents)
    ]
    for count in (20, len(documents)):
        recorded.write_text("".join(f"{line}\n" for line in lines[:count]))
        printed = run(str(EXAMPLES / "record_documents.py"), str(recorded))
        assert (tmp_path / "documents.done").read_text() == str(count)
    assert "12 rows are in the spool" in printed
    run("-m", "atomscale_bluesky", "upload", "--timeout", "30")

    # The run's two parts are streams of their own, which may be made in any order.
    assert sorted(held(server)["k0"]) == [float(n) for n in range(30)]
