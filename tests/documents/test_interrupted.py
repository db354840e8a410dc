"""Ctrl-C, time limits and handlers that come at any moment: what a call has taken is kept once, and nothing hangs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import held

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.server import LocalServer
from atomscale_bluesky.spool.spool import Spool

MakeCallback = Callable[..., AtomscaleCallback]
HERE = Path(__file__).parent


def interrupted(
    what: str, every: int, spool_dir: Path, server: LocalServer, *files: str, **settings: Any
) -> dict[str, Any]:
    """Let a process take runs that are interrupted, one for each place, and tell what it gave."""
    given = {
        "endpoint": server.url, "offline": True, "spool_dir": str(spool_dir), "spool_min_free_bytes": 0,
        "points_per_chunk": 2,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(HERE / "interrupting.py"), what, str(every), json.dumps(given | settings), *files],
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def assert_each_reading_is_there_once(told: dict[str, Any], server: LocalServer, spool_dir: Path) -> None:
    """What returned arrived once, and what was interrupted once at most; and every account says so."""
    arrived = Counter(value for values in held(server).values() for value in values)
    assert {value: arrived[value] for value in told["returned"] if arrived[value] != 1} == {}
    assert [value for value, times in arrived.items() if times > 1] == []
    assert set(arrived) <= {*told["returned"], *told["interrupted"]}
    assert min(told["places"]) > 0
    history = Spool(spool_dir).history.entries()
    assert sum(entry["lost"] for entry in history) == 0
    assert sum(entry["delivered"] for entry in history) == len(arrived)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("what", ["raise", "older", "close", "feed", "look"])
def test_each_reading_is_kept_once_wherever_a_signal_comes(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path, what: str
) -> None:
    told = interrupted(what, 43, spool_dir, server)

    assert make_callback().drain(timeout_s=300)
    assert_each_reading_is_there_once(told, server, spool_dir)


@pytest.mark.timeout(600)
def test_each_reading_is_kept_once_wherever_a_signal_comes_while_each_event_is_synced(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path
) -> None:
    told = interrupted("raise", 59, spool_dir, server, durability="event")

    assert make_callback().drain(timeout_s=300)
    assert_each_reading_is_there_once(told, server, spool_dir)


@pytest.mark.timeout(600)
def test_each_reading_is_kept_once_at_every_place_of_the_recorder_itself(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path
) -> None:
    files = ("recorder", "run_taker", "open_runs", "remembered_runs", "event_taker")
    told = interrupted("raise", 1, spool_dir, server, *[f"documents/{name}.py" for name in files])

    assert make_callback().drain(timeout_s=300)
    assert_each_reading_is_there_once(told, server, spool_dir)


@pytest.mark.long
@pytest.mark.timeout(0)
@pytest.mark.parametrize("durability", ["interval", "event"])
@pytest.mark.parametrize("what", ["raise", "older", "close", "feed", "look"])
def test_each_reading_is_kept_once_at_every_single_place(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path, what: str, durability: str
) -> None:
    told = interrupted(what, 1, spool_dir, server, durability=durability)

    assert make_callback().drain(timeout_s=3000)
    assert_each_reading_is_there_once(told, server, spool_dir)


# ---- handlers and values that come back to the callback --------------------------------------------------------------

REENTRANT = """
import logging, os, signal, sys, threading, time, uuid
from pathlib import Path
from atomscale_bluesky import AtomscaleCallback, Settings

which, spool_dir, endpoint = sys.argv[1:]
callback = AtomscaleCallback(settings=Settings.load(
    environ={}, api_key="local-key", endpoint=endpoint, spool_dir=spool_dir, spool_min_free_bytes=0,
    points_per_chunk=2, uploader="none" if which == "elsewhere" else "thread",
))
asked = []
class Panel(logging.Handler):
    def emit(self, record):
        asked.append(record)
        if which == "ignored": dict(callback.ignored)
        if which == "status": callback.status(); callback.streams("x")
        if which == "document": callback("event", {"descriptor": f"nobody's {len(asked)}", "uid": "x"})
        if which in {"close", "elsewhere"}: callback.close(1)
        if which == "raise" and threading.current_thread() is threading.main_thread():
            raise ValueError("a handler of the log that fails")
logger = logging.getLogger("atomscale_bluesky")
logger.setLevel(logging.DEBUG)
logger.addHandler(Panel())
signal.signal(signal.SIGTERM, lambda *_: (callback.close(5), sys.exit(0)))
class Foreign(dict):
    def __getitem__(self, key): self.act(); return super().__getitem__(key)
def foreign(n, act):
    doc = event(n, float(n))
    doc["data"] = Foreign(doc["data"])
    doc["data"].act = act
    return doc
start, run = time.time(), str(uuid.uuid4())
callback("start", {"uid": run, "time": start})
callback("descriptor", {"uid": "d", "run_start": run, "name": "primary", "data_keys": {"a": {"dtype": "number"}}})
def event(n, value): return {
    "uid": f"e{n}", "descriptor": "d", "time": start + n, "data": {"a": value}, "timestamps": {"a": start + n}}
for n in range(3): callback("event", event(n, float(n)))
if which == "value": callback("event", foreign(3, lambda: (callback("event", event(4, 4.0)), callback.ignored)))
if which == "sigterm": callback("event", foreign(3, lambda: os.kill(os.getpid(), signal.SIGTERM)))
callback("event", {"descriptor": "nobody's", "uid": "x"})
callback("stop", {"run_start": run, "time": start + 9, "exit_status": "success"})
callback.close(10)
print("the plan went on", len(asked))
"""


@pytest.mark.parametrize("which", ["ignored", "status", "document", "close", "elsewhere", "raise"])
def test_a_log_handler_may_call_the_callback(server: LocalServer, spool_dir: Path, which: str) -> None:
    done = reentrant(which, server, spool_dir)

    assert "the plan went on" in done.stdout
    if which in {"ignored", "status", "document", "raise"}:
        assert held(server) == {"a": [0, 1, 2]}


def test_a_value_may_feed_a_document_which_is_taken_behind_its_own(server: LocalServer, spool_dir: Path) -> None:
    done = reentrant("value", server, spool_dir)

    assert "the plan went on" in done.stdout
    assert held(server) == {"a": [0, 1, 2, 3, 4]}


def test_a_signal_handler_that_closes_within_a_document_ends_the_process_with_all_that_was_kept(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path
) -> None:
    done = reentrant("sigterm", server, spool_dir)

    assert "the plan went on" not in done.stdout
    assert make_callback().drain(timeout_s=20)
    assert held(server) == {"a": [0, 1, 2]}  # the one that was interrupted before it was written is not taken
    (entry,) = Spool(spool_dir).history.entries()
    assert (entry["interrupted"], entry["lost"]) == (True, 0)


def reentrant(which: str, server: LocalServer, spool_dir: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", REENTRANT, which, str(spool_dir), server.url],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done
