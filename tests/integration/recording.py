"""A subscriber that writes down what a RunEngine emits, for a test to read in another process."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

Document = tuple[str, dict[str, Any]]


class FileRecorder:
    """Keeps every document as a line of JSON, in the file when the call returns.

    Subscribed behind the callback it is told of no document that the callback has not returned from.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        where = path or os.environ["RECORDED_DOCUMENTS"]
        self._file = os.open(where, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        os.write(self._file, json.dumps([name, doc], default=_plain).encode() + b"\n")


def recorded(path: Path) -> list[Document]:
    """What was written down so far; a line that is not whole yet is not there."""
    text = path.read_text() if path.exists() else ""
    return [tuple(json.loads(line)) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _plain(value: object) -> object:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else repr(value)
