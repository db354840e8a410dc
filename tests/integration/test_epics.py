"""EPICS: an IOC of its own, real Channel Access over the loopback, and ophyd's signals with either control layer."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from integration.expected import assert_held
from integration.needs import need_module
from integration.recording import recorded

from atomscale_bluesky.server import LocalServer

pytestmark = pytest.mark.integration

StartProcess = Callable[..., "subprocess.Popen[str]"]

SESSION = """
import os, threading
import numpy as np
from bluesky import RunEngine
from bluesky.plan_stubs import abs_set, close_run, create, monitor, open_run, read, save, unmonitor, null
from bluesky.plans import count
from integration.recording import FileRecorder
from ophyd import EpicsSignal, set_cl
from atomscale_bluesky import AtomscaleCallback

set_cl(os.environ["OPHYD_CONTROL_LAYER"])
EpicsSignal.set_defaults(connection_timeout=20, timeout=10)
names = ["temperature", "cycles", "shutter", "material", "zones", "spectrum"]
signals = [EpicsSignal(f"chamber:{name}", name=name, auto_monitor=True) for name in names]
for signal in signals:
    signal.wait_for_connection(timeout=20)
temperature, cycles, shutter, material, zones, spectrum = signals

threads = set()
def note_thread(name, doc):
    if name == "event":
        threads.add(threading.current_thread().name)

RE = RunEngine({"synth_source_id": 42}, context_managers=[])
RE.subscribe(AtomscaleCallback())
RE.subscribe(FileRecorder())
RE.subscribe(note_thread)
"""

COUNTED = """
def plan():
    yield from open_run()
    for n in range(14):
        yield from abs_set(temperature, 300.0 + n / 4, wait=True)
        yield from abs_set(cycles, n, wait=True)
        yield from abs_set(shutter, n % 3, wait=True)
        yield from abs_set(material, f"layer {n}", wait=True)
        yield from abs_set(zones, [n, n + 0.5, n + 0.25], wait=True)
        yield from create()
        for signal in signals:
            yield from read(signal)
        yield from save()
    yield from close_run()

RE(plan())
"""

MONITORED = """
from waiting import wait_until
monitored = [temperature, cycles, shutter, material, zones, spectrum]
last = {}
def note_last(name, doc):
    if name == "event":
        last.update(doc["data"])
RE.subscribe(note_last)

def plan():
    yield from open_run()
    for signal in monitored:
        yield from monitor(signal, name=f"{signal.name}_monitor")
    for n in range(1, 60):
        temperature.put(300.0 + n)
        cycles.put(n)
        shutter.put(n % 3)
        zones.put([n, n + 0.5, n + 0.25])
        if n % 10 == 0:
            yield from create()
            yield from read(cycles)
            yield from save()
    # Every value sent has come back before the run ends; one that comes later belongs to no run.
    wait_until(lambda: last.get("temperature") == 359.0 and last.get("cycles") == 59
               and last.get("shutter") == 2 and list(last.get("zones", [])) == [59.0, 59.5, 59.25])
    for signal in monitored:
        yield from unmonitor(signal)
    yield from close_run()

RE(plan())
assert len(threads) > 1, threads
"""


@pytest.fixture
def channel_access(free_port: Callable[[], int]) -> Iterator[dict[str, str]]:
    """Environment for Channel Access that stays on the loopback, on ports of its own.

    The repeater's port is held, so that neither client library starts a repeater: it would outlive the test.
    """
    need_module("caproto", "caproto")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as repeater:
        repeater.bind(("", 0))
        yield {
            "EPICS_CA_ADDR_LIST": "127.0.0.1",
            "EPICS_CA_AUTO_ADDR_LIST": "NO",
            "EPICS_CA_SERVER_PORT": str(free_port()),
            "EPICS_CA_REPEATER_PORT": str(repeater.getsockname()[1]),
            "EPICS_CAS_AUTO_BEACON_ADDR_LIST": "NO",
            "EPICS_CAS_BEACON_ADDR_LIST": "127.0.0.1",
        }


@pytest.fixture(params=["caproto", "pyepics"])
def session(
    request: pytest.FixtureRequest,
    channel_access: dict[str, str],
    start_process: StartProcess,
    output: Callable[[], str],
) -> Callable[[str], None]:
    """Runs a script with the signals of an IOC, with either control layer of ophyd, to its good end."""
    need_module({"pyepics": "epics"}.get(request.param, request.param), request.param)
    start_process(sys.executable, "-m", "integration.ioc", **channel_access)

    def run(script: str) -> None:
        client = start_process(
            sys.executable, "-c", SESSION + script, OPHYD_CONTROL_LAYER=request.param, **channel_access
        )
        assert client.wait(60) == 0, output()

    return run


def test_a_plan_that_reads_epics_signals_gives_a_channel_for_each_number(
    session: Callable[[str], None], server: LocalServer, documents_file: Path
) -> None:
    session(COUNTED)

    (channels,) = assert_held(server, recorded(documents_file)).values()
    assert {name: [point.value for point in points] for name, points in channels.items()} == {
        "temperature": [300.0 + n / 4 for n in range(14)],
        "cycles": list(range(14)),
        "shutter": [n % 3 for n in range(14)],
        "zones[0]": list(range(14)),
        "zones[1]": [n + 0.5 for n in range(14)],
        "zones[2]": [n + 0.25 for n in range(14)],
    }
    assert {name: points[0].units for name, points in channels.items()}["temperature"] == "K"


def test_monitored_epics_signals_arrive_from_the_devices_threads_at_their_own_times(
    session: Callable[[str], None], server: LocalServer, documents_file: Path
) -> None:
    session(MONITORED)

    documents = recorded(documents_file)
    held = assert_held(server, documents)
    streams = {source.event_stream: channels for source, channels in held.items()}
    assert streams.keys() == {"primary", *(f"{name}_monitor" for name in ("temperature", "cycles", "shutter", "zones"))}
    assert {point.value for point in streams["cycles_monitor"]["cycles"]} >= {0, 59}
    assert {point.value for point in streams["shutter_monitor"]["shutter"]} == {0, 1, 2}
    assert streams["zones_monitor"].keys() == {"zones[0]", "zones[1]", "zones[2]"}
