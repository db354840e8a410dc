"""What these tests share: an engine with a recorder behind the callback, and processes that end with their test."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bluesky import RunEngine
from runs import Recorder

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.server import LocalServer

TESTS = Path(__file__).parents[1]


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def make_engine(recorder: Recorder) -> Callable[..., RunEngine]:
    """Engines with the callback given and then the recorder subscribed."""

    def make(callback: AtomscaleCallback, **metadata: Any) -> RunEngine:
        engine = RunEngine({"synth_source_id": 42} | metadata, context_managers=[])
        engine.subscribe(callback)
        engine.subscribe(recorder)
        return engine

    return make


@pytest.fixture
def engine(callback: AtomscaleCallback, make_engine: Callable[..., RunEngine]) -> RunEngine:
    return make_engine(callback)


@pytest.fixture
def documents_file(tmp_path: Path) -> Path:
    """Where a `FileRecorder` in a process of the test's writes what its engine emits."""
    return tmp_path / "documents.jsonl"


@pytest.fixture
def environment(server: LocalServer, spool_dir: Path, documents_file: Path, tmp_path: Path) -> dict[str, str]:
    """The environment of a process whose callback sends to the test's server."""
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PYTHONFAULTHANDLER": "1",
        "HOME": str(tmp_path),
        "ATOMSCALE_API_ENDPOINT": server.url,
        "ATOMSCALE_API_KEY": server.api_key,
        "ATOMSCALE_BLUESKY_SPOOL_DIR": str(spool_dir),
        "ATOMSCALE_BLUESKY_SPOOL_MIN_FREE_BYTES": "0",
        "ATOMSCALE_BLUESKY_POINTS_PER_CHUNK": "10",
        "RECORDED_DOCUMENTS": str(documents_file),
    }


@pytest.fixture
def start_process(environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Processes whose output goes to a file; they and what they started are ended with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*command: str, **more: str) -> subprocess.Popen[str]:
        with (tmp_path / f"output-{len(started)}.txt").open("w") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                env=environment | more,
                cwd=tmp_path,
                start_new_session=True,
            )
        started.append(process)
        return process

    yield start
    for process in reversed(started):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its own session: nothing else is in it
        process.wait(10)


@pytest.fixture
def start_script(start_process: Callable[..., subprocess.Popen[str]]) -> Callable[..., subprocess.Popen[str]]:
    """A script of a user's in a process of its own."""

    def start(script: str, **more: str) -> subprocess.Popen[str]:
        return start_process(sys.executable, "-c", textwrap.dedent(script), **more)

    return start


def output_of(folder: Path) -> str:
    """Everything that the test's processes said so far."""
    return "\n".join(path.read_text(errors="replace") for path in sorted(folder.glob("output-*.txt")))


@pytest.fixture
def output(tmp_path: Path) -> Callable[[], str]:
    return lambda: output_of(tmp_path)


@pytest.fixture
def free_port() -> Callable[[], int]:
    """A TCP port of the loopback that nobody listened on just now."""

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return probe.getsockname()[1]

    return find
