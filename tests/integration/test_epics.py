"""EPICS: an IOC of its own, real Channel Access over the loopback, and ophyd's signals with either control layer."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from integration.ends import exit_code
from integration.expected import assert_held
from integration.needs import need_module
from integration.recording import recorded
from waiting import wait_until

from atomscale_bluesky.server import LocalServer

pytestmark = pytest.mark.integration

Start = Callable[..., "subprocess.Popen[str]"]

SESSION = """
import os, threading
from bluesky import RunEngine
from bluesky.plan_stubs import abs_set, close_run, create, monitor, open_run, read, save, unmonitor
from integration.recording import FileRecorder
from ophyd import EpicsSignal, EpicsSignalRO, set_cl
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
# Values are put through one signal and monitored through another: the one that puts tells of each value twice.
monitored = {s.name: EpicsSignalRO(s.pvname, name=f"{s.name}_readback", auto_monitor=True) for s in signals}
for signal in monitored.values():
    signal.wait_for_connection(timeout=20)
last = {}
def note_last(name, doc):
    if name == "event":
        last.update(doc["data"])
RE.subscribe(note_last)

def plan():
    yield from open_run()
    for signal in monitored.values():
        yield from monitor(signal, name=f"{signal.name}_monitor")
    # Every value has come back before the next one leaves, and so before the run ends: the engine does not wait for
    # a monitor's event that is under way, and one that comes behind the stop document belongs to no run.
    for n in range(1, 60):
        temperature.put(300.0 + n)
        cycles.put(n)
        shutter.put(n % 3)
        zones.put([n, n + 0.5, n + 0.25])
        wait_until(lambda: last.get("temperature_readback") == 300.0 + n and last.get("cycles_readback") == n
                   and last.get("shutter_readback") == n % 3
                   and list(last.get("zones_readback", [])) == [n, n + 0.5, n + 0.25])
        if n % 10 == 0:
            yield from create()
            yield from read(cycles)
            yield from save()
    for signal in monitored.values():
        yield from unmonitor(signal)
    yield from close_run()

RE(plan())
assert len(threads) > 1, threads
"""

RESTARTED = """
from waiting import wait_until
readback = EpicsSignalRO(cycles.pvname, name="cycles_readback", auto_monitor=True)
readback.wait_for_connection(timeout=20)
values = []
def note_values(name, doc):
    if name == "event":
        values.append(doc["data"]["cycles_readback"])
RE.subscribe(note_values)

def plan():
    yield from open_run()
    yield from monitor(readback, name="cycles_monitor")
    for n in range(1, 20):
        cycles.put(n)
        wait_until(lambda: values[-1:] == [n])
    open("ready", "w").close()
    wait_until(lambda: not readback.connected, 30)
    wait_until(lambda: values[-1:] == [0], 50)  # the IOC that was started again begins anew
    cycles.wait_for_connection(timeout=20)
    for n in range(20, 40):
        cycles.put(n)
        wait_until(lambda: values[-1:] == [n])
    yield from unmonitor(readback)
    yield from close_run()

RE(plan())
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
            "EPICS_CAS_BEACON_PORT": str(repeater.getsockname()[1]),
            "EPICS_CAS_AUTO_BEACON_ADDR_LIST": "NO",
            "EPICS_CAS_BEACON_ADDR_LIST": "127.0.0.1",
        }


@pytest.fixture
def start_ioc(channel_access: dict[str, str], start_process: Start) -> Callable[[], subprocess.Popen[str]]:
    """Starts the IOC; a second one takes the place of the first when that has ended."""
    return lambda: start_process(sys.executable, "-m", "integration.ioc", **channel_access)


@pytest.fixture(params=["caproto", "pyepics"])
def start_session(
    request: pytest.FixtureRequest, channel_access: dict[str, str], start_process: Start
) -> Callable[[str], subprocess.Popen[str]]:
    """Starts a script that has the signals of the IOC, with either control layer of ophyd."""
    need_module({"pyepics": "epics"}.get(request.param, request.param), request.param)
    return lambda script: start_process(
        sys.executable, "-c", SESSION + script, OPHYD_CONTROL_LAYER=request.param, **channel_access
    )


def test_a_plan_that_reads_epics_signals_gives_a_channel_for_each_number(
    start_ioc: Start, start_session: Start, server: LocalServer, documents_file: Path, output: Callable[[], str]
) -> None:
    start_ioc()
    assert exit_code(start_session(COUNTED)) == 0, output()

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
    start_ioc: Start, start_session: Start, server: LocalServer, documents_file: Path, output: Callable[[], str]
) -> None:
    start_ioc()
    assert exit_code(start_session(MONITORED)) == 0, output()

    documents = recorded(documents_file)
    held = assert_held(server, documents)
    streams = {source.event_stream: channels for source, channels in held.items()}
    monitored = {name: f"{name}_readback" for name in ("temperature", "cycles", "shutter", "zones")}
    assert streams.keys() == {"primary", *(f"{name}_monitor" for name in monitored.values())}
    values = {
        name: [point.value for point in points]
        for name in monitored.values()
        for name, points in streams[f"{name}_monitor"].items()
    }
    assert set(values["temperature_readback"]) == {300.0 + n for n in range(60)}
    assert set(values["cycles_readback"]) == set(range(60))
    assert set(values["shutter_readback"]) == {0, 1, 2}
    assert set(values["zones_readback[1]"]) == {2.0, *(n + 0.5 for n in range(1, 60))}


@pytest.mark.parametrize("start_session", ["pyepics"], indirect=True)
def test_a_monitored_signal_goes_on_after_its_ioc_was_started_again(
    start_ioc: Start,
    start_session: Start,
    server: LocalServer,
    documents_file: Path,
    output: Callable[[], str],
    tmp_path: Path,
) -> None:
    ioc = start_ioc()
    session = start_session(RESTARTED)
    wait_until(lambda: session.poll() is not None or (tmp_path / "ready").exists(), timeout_s=30)
    ioc.kill()
    ioc.wait(10)
    start_ioc()

    assert exit_code(session) == 0, output()
    (channels,) = assert_held(server, recorded(documents_file)).values()
    assert {point.value for point in channels["cycles_readback"]} == set(range(40))
