"""Each benchmark runs in its short form and prints its tables. What it measured is nobody's business here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = (
    "event", "plan", "drain", "memory", "outage", "latency", "link", "worst", "startup", "scale", "parts", "idle",
    "recording", "consume",
    "connections", "scraped",
)  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_benchmark_runs_in_its_short_form_and_prints_its_tables(name, tmp_path):
    command = [sys.executable, "-m", "benchmarks", name, "--short", "--without-peers"]
    command += ["--json", str(tmp_path / "found.json"), "--markdown", str(tmp_path / "found.md")]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, env=dict(os.environ))

    assert done.returncode == 0, done.stderr
    assert "AtomscaleCallback" in done.stdout
    assert "----" in done.stdout
    assert (tmp_path / "found.json").stat().st_size > 0
    assert "|---|" in (tmp_path / "found.md").read_text(encoding="utf-8")
