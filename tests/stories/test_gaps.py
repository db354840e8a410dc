"""Gaps as detectors and controllers make them: which metrology streams a grower sees, and what they hold."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bluesky import RunEngine
from bluesky import plan_stubs as bps
from click.testing import CliRunner
from event_model import compose_run
from ophyd import Component, Device, Signal
from waiting import wait_until

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.cli import commands
from atomscale_bluesky.server import LocalServer

MakeCallback = Callable[..., AtomscaleCallback]


class Gauge(Device):
    """A gauge of four channels, of which all fail together."""

    voltage = Component(Signal, value=0.0, kind="hinted")
    current = Component(Signal, value=0.0, kind="hinted")
    temperature = Component(Signal, value=0.0, kind="hinted")
    pressure = Component(Signal, value=0.0, kind="hinted")


@pytest.fixture
def engine(callback: AtomscaleCallback) -> RunEngine:
    engine = RunEngine({"synth_source_id": 42}, context_managers=[])
    engine.subscribe(callback)
    return engine


def read_out(device: Device, values: list[dict[str, Any]]) -> Iterator[Any]:
    """A plan that reads a device once for each set of values."""
    yield from bps.open_run()
    for given in values:
        for name, value in given.items():
            getattr(device, name).put(value)
        yield from bps.trigger_and_read([device])
    yield from bps.close_run()


def names_and_points(server: LocalServer) -> list[tuple[tuple[str, ...], int]]:
    """Of each stream its channels and its points; two streams may be made in any order."""
    return sorted((tuple(sorted(stream.channels)), stream.points) for stream in server.streams())


def test_a_gauge_that_fails_in_two_rows_stays_in_one_stream_without_them(
    engine: RunEngine, callback: AtomscaleCallback, server: LocalServer
) -> None:
    gauge = Gauge(name="gauge")
    names = gauge.component_names
    engine(read_out(gauge, [dict.fromkeys(names, math.nan if n in {4, 9} else float(n)) for n in range(25)]))

    assert callback.drain(timeout_s=20)
    ((channels, points),) = names_and_points(server)
    assert channels == ("gauge_current", "gauge_pressure", "gauge_temperature", "gauge_voltage")
    assert points == 4 * 23


def test_channels_that_fail_together_share_a_stream_that_its_label_and_status_name(
    engine: RunEngine, callback: AtomscaleCallback, server: LocalServer, spool_dir: Path
) -> None:
    gauge = Gauge(name="gauge")
    (uid,) = engine(
        read_out(
            gauge,
            [
                {"voltage": 1.0, "current": 2.0, "temperature": value, "pressure": value}
                for value in [math.nan if n in {4, 9} else float(n) for n in range(25)]
            ],
        )
    )

    assert callback.drain(timeout_s=20)
    assert names_and_points(server) == [
        (("gauge_current", "gauge_voltage"), 2 * 25),
        (("gauge_pressure", "gauge_temperature"), 2 * 23),
    ]
    first, second = callback.streams(str(uid))
    assert "gauge_temperature, gauge_pressure [" in second.label
    assert "gauge" not in first.label
    assert second.channels == ("gauge_temperature", "gauge_pressure")
    shown = CliRunner().invoke(commands, ["status", "--all", "--spool-dir", str(spool_dir)], env={"COLUMNS": "200"})
    lines = [" ".join(line.split()) for line in shown.output.splitlines()]
    for stream, names in ((first, "gauge_voltage, gauge_current"), (second, "gauge_temperature, gauge_pressure")):
        assert lines[lines.index(f"stream {stream.data_id}") + 1] == f"channels {names}"


def test_one_dropped_frame_of_64_channels_leaves_the_run_in_one_stream(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    names = [f"roi{n:02d}" for n in range(64)]
    for name, doc in documents([dict.fromkeys(names, math.nan if n == 5 else 100.0 + n) for n in range(25)]):
        callback(name, doc)

    assert callback.drain(timeout_s=20)
    ((channels, points),) = names_and_points(server)
    assert (len(channels), points) == (64, 64 * 24)


def test_a_controller_that_reads_text_or_a_number_makes_no_empty_stream(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    power = ["N/A"] * 4 + [12.5, 13.0, "N/A", 14.0] + [15.0] * 10
    for name, doc in documents([{"power": value, "temperature": 300.0 + n} for n, value in enumerate(power)]):
        callback(name, doc)

    assert callback.drain(timeout_s=20)
    assert names_and_points(server) == [(("power",), 13), (("temperature",), 18)]


def test_a_further_event_stream_without_a_number_makes_no_stream(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    run = compose_run(metadata={"synth_source_id": 42})
    key = {"source": "sim", "dtype": "number", "shape": []}
    primary, monitor = (run.compose_descriptor(name=name, data_keys={name: key}) for name in ("primary", "monitor"))
    callback("start", run.start_doc)
    for stream, value in ((primary, 1.0), (monitor, math.nan)):
        (name,) = stream.descriptor_doc["data_keys"]
        callback("descriptor", stream.descriptor_doc)
        for n in range(12):
            time = run.start_doc["time"] + n
            callback("event", stream.compose_event(data={name: value}, timestamps={name: time}, time=time))
    callback("stop", run.compose_stop())

    assert callback.drain(timeout_s=20)
    assert names_and_points(server) == [(("primary",), 12)]


def documents(rows: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """A run of these rows, one a second."""
    key = {"source": "sim", "dtype": "number", "shape": []}
    run = compose_run(metadata={"synth_source_id": 42, "plan_name": "gaps"})
    stream = run.compose_descriptor(name="primary", data_keys=dict.fromkeys(rows[0], key))
    yield "start", run.start_doc
    yield "descriptor", stream.descriptor_doc
    for n, row in enumerate(rows):
        time = run.start_doc["time"] + n
        yield "event", stream.compose_event(data=row, timestamps=dict.fromkeys(row, time), time=time)
    yield "stop", run.compose_stop()


def test_a_process_killed_among_gaps_leaves_each_pattern_one_stream_and_each_value_once(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path
) -> None:
    # Which rows each channel lacks.
    lacks = [set(), {5, 33}, {5, 33}, {12, 13, 14}, set(range(20)), {5, 33}, set(range(60))]
    rows = [{f"c{c}": math.nan if n in gaps else n + c / 10 for c, gaps in enumerate(lacks)} for n in range(60)]
    program = (
        "import json, sys, threading\n"
        "from atomscale_bluesky import AtomscaleCallback, Settings\n"
        "callback = AtomscaleCallback(settings=Settings.load(environ={}, **json.loads(sys.argv[1])))\n"
        "for line in sys.stdin:\n"
        "    callback(*json.loads(line))\n"
        "print('taken', flush=True)\n"
        "threading.Event().wait()\n"
    )
    settings = {
        "endpoint": server.url,
        "api_key": server.api_key,
        "spool_dir": str(spool_dir),
        "spool_min_free_bytes": 0,
        "points_per_chunk": 10,
    }
    child = subprocess.Popen(
        [sys.executable, "-c", program, json.dumps(settings)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.writelines(json.dumps(one) + "\n" for one in documents(rows) if one[0] != "stop")
        child.stdin.close()
        assert child.stdout.readline() == "taken\n"
        wait_until(lambda: sum(stream.points for stream in server.streams()) > 0)
    finally:
        child.kill()
        child.wait()
        if child.stdout is not None:
            child.stdout.close()

    callback = make_callback()
    wait_until(lambda: callback.status() == ())

    assert len(server.streams()) == 4  # one for each pattern of a channel that has any value
    arrived: Counter[tuple[str, float | None]] = Counter()
    for stream in server.streams():
        assert stream.status == "success"
        assert stream.points > 0
        for name, series in server.points(stream.data_id).items():
            arrived.update((name, value) for value in series.values)
    assert arrived == Counter((name, value) for row in rows for name, value in row.items() if not math.isnan(value))
