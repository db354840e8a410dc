"""IPython with a startup file in a profile, as beamlines have it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from integration.expected import assert_held
from integration.needs import need_module
from integration.recording import recorded

from atomscale_bluesky.server import Fault, LocalServer

pytestmark = pytest.mark.integration

STARTUP = """
from bluesky import RunEngine
from bluesky.plans import count, scan
from integration.recording import FileRecorder
from ophyd.sim import det1, det2, motor
from atomscale_bluesky import AtomscaleCallback

RE = RunEngine({"synth_source_id": 42})
RE.subscribe(AtomscaleCallback())
RE.subscribe(FileRecorder())
"""


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    need_module("IPython", "ipython")
    folder = tmp_path / "profile_beamline"
    (folder / "startup").mkdir(parents=True)
    (folder / "startup" / "00-engine.py").write_text(STARTUP)
    return folder


def type_into_ipython(profile: Path, environment: dict[str, str], typed: str) -> subprocess.CompletedProcess[str]:
    """What a person types, to the end of it."""
    options = [f"--profile-dir={profile}", "--simple-prompt", "--no-banner", "--no-confirm-exit"]
    return subprocess.run(
        [sys.executable, "-m", "IPython", *options],
        input=typed,
        capture_output=True,
        text=True,
        timeout=60,
        env=environment | {"IPYTHONDIR": str(profile.parent), "TERM": "dumb"},
        cwd=profile.parent,
    )


@pytest.mark.parametrize("end", ["exit\n", "", "import sys\nsys.exit()\n"], ids=["exit", "end of input", "sys.exit"])
def test_all_runs_of_an_ipython_session_are_delivered_when_it_ends(
    end: str, profile: Path, environment: dict[str, str], server: LocalServer, documents_file: Path
) -> None:
    server.misbehave(Fault(call=("chunk", "chunk_multi"), delay_s=0.5))  # so that the end has something to wait for
    done = type_into_ipython(
        profile, environment, "RE(scan([det1, det2], motor, -1, 1, 25))\nRE(count([det1], num=3))\n" + end
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    documents = recorded(documents_file)
    assert sum(name == "stop" for name, _ in documents) == 2
    assert_held(server, documents)


def test_a_line_that_fails_leaves_the_session_and_its_runs_well(
    profile: Path, environment: dict[str, str], server: LocalServer, documents_file: Path
) -> None:
    done = type_into_ipython(
        profile,
        environment,
        "def stuck():\n    yield from count([det1], num=11)\n    raise RuntimeError('stuck')\n\n\n"
        "RE(stuck())\nRE(count([det2], num=12))\nexit\n",
    )

    assert "RuntimeError" in done.stdout + done.stderr
    assert [stream.points for stream in server.streams()] == [11, 12]
    assert_held(server, recorded(documents_file))
