"""`send` of a recording of 2 GB whose process is killed ten times: little memory, and each reading once.

`RECORDING_MB` sets another size: with `RECORDING_MB=50` it takes a minute or two.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import orjson
import psutil
import pytest
from runs import growth
from waiting import wait_until

from atomscale_bluesky.spool.spool import Spool
from atomscale_bluesky.status.run_rows import RunRows
from atomscale_bluesky.status.spool_status import SpoolStatus

pytestmark = [pytest.mark.integration, pytest.mark.long, pytest.mark.timeout(7200)]

KEYS = 100
KILLS = 10
MB = 10**6
MAX_MEMORY = 100 * MB  # over that of the imports
SEND = [sys.executable, "-m", "atomscale_bluesky", "send", "--spool-only"]
IMPORTS = """
import os, psutil
import atomscale_bluesky.cli.send, atomscale_bluesky.sources.intake, atomscale_bluesky.sources.recordings
print(psutil.Process().memory_info().rss)
"""


@pytest.fixture
def recording(tmp_path: Path, spool_dir: Path) -> Iterator[tuple[Path, int]]:
    """A file with one run, and the number of its events. The file and the spool are removed at the end."""
    size = int(os.environ.get("RECORDING_MB", "2000")) * MB
    if shutil.disk_usage(tmp_path).free < 3 * size:
        pytest.skip(f"needs {3 * size // MB} MB of free space in {tmp_path}")
    path = tmp_path / "recording.jsonl"
    events = size // next(len(orjson.dumps(document)) for document in growth(1, keys=KEYS) if document[0] == "event")
    with path.open("wb") as file:
        for document in growth(points=events, keys=KEYS):
            file.write(orjson.dumps(document) + b"\n")
    yield path, events
    path.unlink()
    shutil.rmtree(spool_dir)


@pytest.mark.parametrize("seed", [1])
def test_a_large_recording_is_kept_once_with_little_memory_though_its_process_is_killed(
    recording: tuple[Path, int], spool_dir: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    path, events = recording
    monkeypatch.setenv("ATOMSCALE_BLUESKY_SPOOL_DIR", str(spool_dir))
    monkeypatch.setenv("ATOMSCALE_BLUESKY_SPOOL_MIN_FREE_BYTES", "0")
    chance = random.Random(seed)
    begin = int(subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, check=True).stdout)
    at_least = events * KEYS * 8  # bytes of the journals in the end
    moments = sorted(chance.uniform(0, at_least) for _ in range(KILLS))
    most = 0
    for moment in [*moments, None]:
        with subprocess.Popen([*SEND, str(path)], stdout=subprocess.DEVNULL) as process:
            seen = psutil.Process(process.pid)

            def is_there(
                moment: float | None = moment, process: subprocess.Popen[bytes] = process, seen: psutil.Process = seen
            ) -> bool:
                nonlocal most
                if process.poll() is not None:
                    return True
                most = max(most, seen.memory_info().rss)
                return moment is not None and _kept_bytes(spool_dir) >= moment

            wait_until(is_there, 3600)
            if moment is None:
                assert process.wait() == 0
            else:
                assert process.poll() is None, "it ended before it was killed"
                process.kill()

    assert most - begin < MAX_MEMORY, (most, begin)
    points = SpoolStatus(Spool(spool_dir, read_only=True)).status().points
    assert (points.waiting, points.lost, dict(points.left_out)) == (events * KEYS, 0, {})
    firsts = np.concatenate([_first_values(folder) for folder in {file.parent for file in _journals(spool_dir)}])
    assert np.array_equal(np.sort(firsts), np.arange(events, dtype=np.float64))


def _journals(spool_dir: Path) -> list[Path]:
    return list(spool_dir.glob("*/journal-*"))


def _kept_bytes(spool_dir: Path) -> int:
    return sum(file.stat().st_size for file in _journals(spool_dir))


def _first_values(folder: Path) -> np.ndarray:
    """The values of `k0` in a run's folder, after those of the other keys of each row have been compared with it."""
    found = [np.empty(0)]
    for block in RunRows(folder).read():
        values = block.values
        steps = np.array([int(channel.name[1:]) / 10 for channel in block.layout.channels])
        assert len(steps) == KEYS
        firsts = values[:, np.flatnonzero(steps == 0)]
        assert np.allclose(values, firsts + steps, rtol=0, atol=1e-6)
        found.append(firsts[:, 0])
    return np.concatenate(found)
