"""Peers, fetched from PyPI into a cache folder once, so that a benchmark needs nothing installed by hand."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import platformdirs

SUITCASE_JSONL = ("suitcase-jsonl==0.2.2", "suitcase-utils==0.5.4")
ATOMSCALE = ("atomscale==0.21.10",)
# The last version that pushes channel by channel to the documented paths.
ATOMSCALE_OLD = ("atomscale==0.16.0",)


def cache() -> Path:
    """Where peers are kept; may be removed at any time."""
    return platformdirs.user_cache_path("atomscale-bluesky", appauthor=False) / "benchmarks"


def add_suitcase_jsonl() -> str | None:
    """Make `suitcase.jsonl` importable here, beside the event-model that is installed; else the reason why not.

    It is small and needs nothing that bluesky does not bring, so it can run in this very process.
    """
    folder = cache() / f"suitcase-jsonl-{sys.version_info.major}.{sys.version_info.minor}"
    if not (folder / "complete").exists():
        problem = _pip(sys.executable, "--no-deps", "--target", str(folder), *SUITCASE_JSONL)
        if problem:
            return problem
        (folder / "complete").touch()
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    return None


def environment(name: str, *requirements: str) -> tuple[Path | None, str]:
    """An environment of its own with these requirements: its interpreter, or None and the reason."""
    folder = cache() / f"{name}-{sys.version_info.major}.{sys.version_info.minor}"
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not (folder / "complete").exists():
        venv.EnvBuilder(with_pip=True, clear=True).create(folder)
        problem = _pip(str(python), *requirements)
        if problem:
            return None, problem
        (folder / "complete").touch()
    return python, ""


def _pip(python: str, *arguments: str) -> str | None:
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["pip failed"])[-1]
