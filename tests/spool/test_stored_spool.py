"""A spool of an earlier version is read, delivered and verified; `tests/stored_spool` tells what it holds."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from waiting import wait_until

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.cli import commands
from atomscale_bluesky.server import LocalServer
from atomscale_bluesky.status.run_status import StreamStatus

STORED = Path(__file__).parent / "stored_spool"
RUNS: dict[str, Any] = json.loads((STORED / "runs.json").read_text())


@pytest.fixture
def stored(spool_dir: Path, server: LocalServer) -> Path:
    """The stored spool in a folder of its own, its runs spooled for the test's server."""
    shutil.copytree(STORED / "spool", spool_dir)
    for path in spool_dir.glob("*/*.jsonl"):
        path.write_bytes(b"".join(_for_server(line, server.url) for line in path.read_bytes().splitlines()))
    return spool_dir


def _for_server(line: bytes, url: str) -> bytes:
    """A line of a spool's file with another endpoint in it, if it has one, and its checksum."""
    payload = line[9:]
    if payload.startswith(b'{"kind":"header"'):
        header = json.loads(payload)
        payload = json.dumps(header | {"endpoint": url}).encode()
    return b"%08x %b\n" % (zlib.crc32(payload), payload)


def _state(callback: AtomscaleCallback, run: str) -> str | None:
    return next((one.state for one in callback.status() if one.run_uid == RUNS[run]), None)


def _values(server: LocalServer, streams: tuple[StreamStatus, ...], channel: str) -> list[float | None]:
    """What the server holds of a channel, over all of a run's streams."""
    known = {stream.data_id for stream in server.streams()}
    held = [server.points(stream.data_id) for stream in streams if stream.data_id in known]
    return [value for points in held if channel in points for value in points[channel].values]


def test_a_stored_finished_run_is_in_the_history(stored: Path, make_callback: Callable[..., AtomscaleCallback]) -> None:
    (stream,) = make_callback(api_key="").streams(RUNS["finished"])

    assert stream.state == "finalized"
    assert stream.data_id is not None


def test_a_stored_interrupted_run_is_delivered_and_verified(
    stored: Path, make_callback: Callable[..., AtomscaleCallback], server: LocalServer
) -> None:
    callback = make_callback()
    wait_until(lambda: _state(callback, "interrupted") is None)

    streams = callback.streams(RUNS["interrupted"])
    assert [stream.state for stream in streams] == ["finalized", "finalized"]  # the second has the channel with gaps
    assert sorted(_values(server, streams, "k0")) == sorted(RUNS["interrupted_values"])
    assert len(_values(server, streams, "k1")) == 35


def test_a_stored_parked_run_is_delivered_after_an_edit(
    stored: Path, make_callback: Callable[..., AtomscaleCallback], server: LocalServer
) -> None:
    callback = make_callback()
    assert wait_until(lambda: _state(callback, "parked")) == "parked"

    command = ["edit", RUNS["parked"][:8], "--synth-source-id", "42", "--spool-dir", str(stored)]
    ordered = CliRunner().invoke(commands, command)

    assert ordered.exit_code == 0, ordered.output
    assert "give all that the run needs" in ordered.stderr
    wait_until(lambda: _state(callback, "parked") is None)
    assert _values(server, callback.streams(RUNS["parked"]), "k0") == [float(n) for n in range(12)]


def test_a_stored_run_with_a_continuation_goes_on_behind_its_confirmed_chunk(
    stored: Path, make_callback: Callable[..., AtomscaleCallback], server: LocalServer
) -> None:
    callback = make_callback()
    wait_until(lambda: _state(callback, "continued") is None)

    streams = callback.streams(RUNS["continued"])
    assert [stream.state for stream in streams] == ["closed", "finalized"]
    assert _values(server, streams, "k0") == [float(n) for n in range(10, 30)]
