"""What an import loads, and what it leaves to those who need it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

# Each takes milliseconds to load, and is needed by a spool, a notebook, a worker of multiprocessing or a settings file.
LATER = ("psutil", "filelock", "html", "multiprocessing", "tomllib")


@pytest.mark.parametrize("name", LATER)
def test_the_import_leaves_out_what_not_every_session_needs(name: str) -> None:
    code = "import requests, sys; before = set(sys.modules); import atomscale_bluesky; print(set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)

    assert repr(name) not in done.stdout


def test_psutil_is_loaded_when_a_callback_is_made_so_that_no_fork_meets_half_a_module(tmp_path: Path) -> None:
    code = (
        "import json, sys; from atomscale_bluesky import AtomscaleCallback, Settings\n"
        f"AtomscaleCallback(settings=Settings(spool_dir={str(tmp_path / 'spool')!r}, offline=True))\n"
        "print(json.dumps('psutil' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)

    assert json.loads(done.stdout) is True


def test_the_version_is_that_of_the_installed_package() -> None:
    import importlib.metadata

    import atomscale_bluesky

    assert atomscale_bluesky.__version__ == importlib.metadata.version("atomscale-bluesky")
    assert not hasattr(atomscale_bluesky, "no_such_name")
