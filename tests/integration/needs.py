"""What a test needs beside Python's own: skipped where it is not installed, unless everything is required."""

from __future__ import annotations

import importlib.util
import os
import shutil

import pytest

REQUIRE_ALL = "REQUIRE_ALL_TESTS"


def need_module(module: str, package: str) -> None:
    """Skip, or fail where all is required, unless a module can be imported."""
    if importlib.util.find_spec(module) is None:
        _missing(f"the Python package {package!r} is not installed: pip install {package}")


def need_program(program: str, package: str) -> str:
    """The path of a program; skips, or fails where all is required, when there is none."""
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin")  # not in every user's PATH
    if path is None:
        _missing(f"the program {program!r} is not installed: apt install {package}")
    return str(path)


def _missing(reason: str) -> None:
    if os.environ.get(REQUIRE_ALL, "") not in {"", "0"}:
        pytest.fail(f"{reason} ({REQUIRE_ALL} is set)")
    pytest.skip(reason)
