"""Virtual environments for programs that are not to share this one, each made once and kept."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

import platformdirs
import pytest
from filelock import FileLock

REQUIRE_ALL = "REQUIRE_ALL_TESTS"
INSTALL_TIMEOUT_S = 600


def python_with(name: str, packages: Sequence[str]) -> Path:
    """The interpreter of an environment with these packages; skips, or fails where all is required, without one.

    Made on first use, by one test process at a time. Other packages need another name.
    """
    try:
        return _environment(name, packages)
    except (OSError, subprocess.SubprocessError) as error:
        told = (getattr(error, "stderr", None) or str(error)).strip().splitlines() or [repr(error)]
        reason = f"{name} could not be installed: {told[-1]}"
        if os.environ.get(REQUIRE_ALL, "") not in {"", "0"}:
            pytest.fail(reason)
        pytest.skip(reason)


def _environment(name: str, packages: Sequence[str]) -> Path:
    cache = platformdirs.user_cache_path("atomscale-bluesky") / "environments"
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f"{name}-python-{sys.version_info.major}.{sys.version_info.minor}"
    done = folder / "complete"
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    with FileLock(f"{folder}.lock", timeout=INSTALL_TIMEOUT_S):
        if not done.exists():
            venv.create(folder, with_pip=True, clear=True)
            subprocess.run(
                [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages],
                check=True,
                capture_output=True,
                text=True,
                timeout=INSTALL_TIMEOUT_S,
            )
            done.touch()
    return python
