"""A disk that refuses some files: for tests that run as root, from whom no mode keeps anything."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest


def refuse(monkeypatch: pytest.MonkeyPatch, call: str, path: Path, code: int = errno.EIO) -> None:
    """Let a call of the system fail for what is at or below a path, until the test ends or `undo` is called."""
    real = getattr(os, call)

    def refused(given: Any, *arguments: Any, **more: Any) -> Any:
        if not isinstance(given, int) and path in (Path(os.fspath(given)), *Path(os.fspath(given)).parents):
            raise OSError(code, os.strerror(code), os.fspath(given))
        return real(given, *arguments, **more)

    monkeypatch.setattr(os, call, refused)
