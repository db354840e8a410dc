"""What the tests share: a local server, callbacks that are closed again, and no thread left behind."""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from atomscale_bluesky import AtomscaleCallback, Settings
from atomscale_bluesky.server import LocalServer

# How long an example takes depends on what else the machine does.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")

# A shell starts a program in the background with Ctrl-C ignored, and so are then all programs that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """More processes than cores, where those are few: most tests wait for something."""
    cores = os.cpu_count() or 1
    return max(cores, min(2 * cores, 8))


@pytest.fixture(autouse=True)
def _a_long_test_takes_its_time(request: pytest.FixtureRequest) -> None:
    """Keep the limit that ends the whole process from a long test, which has a time-out of its own."""
    if request.node.get_closest_marker("long") is not None:
        faulthandler.cancel_dump_traceback_later()


@pytest.fixture(autouse=True)
def _no_thread_of_ours_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    end = time.monotonic() + 10
    while time.monotonic() < end:
        left = [t for t in threading.enumerate() if t not in before and t.name.startswith("atomscale")]
        if not left:
            return
        left[0].join(0.1)
    raise AssertionError(f"threads left behind: {left}")


@pytest.fixture(autouse=True)
def _no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever the machine's user has set or configured does not reach a test, and no test reaches it."""
    for name in ("ATOMSCALE_API_KEY", "AS_API_KEY", "ATOMSCALE_API_ENDPOINT", "AS_API_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def server() -> Iterator[LocalServer]:
    with LocalServer(control=True) as server:
        yield server


@pytest.fixture
def spool_dir(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def make_callback(server: LocalServer, spool_dir: Path) -> Iterator[Callable[..., AtomscaleCallback]]:
    """Callbacks for the local server with the settings given; closed when the test ends."""
    made: list[AtomscaleCallback] = []

    def make(**settings: Any) -> AtomscaleCallback:
        given = {
            "endpoint": server.url,
            "api_key": server.api_key,
            "spool_dir": str(spool_dir),
            "spool_min_free_bytes": 0,
            "points_per_chunk": 10,
        } | settings
        callback = AtomscaleCallback(settings=Settings.load(environ={}, **given))
        made.append(callback)
        return callback

    yield make
    for callback in made:
        callback.close(timeout_s=0)


@pytest.fixture
def callback(make_callback: Callable[..., AtomscaleCallback]) -> AtomscaleCallback:
    return make_callback()
