"""What the tests of the commands share: the local server's settings, and a way to run a command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import growth

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.__main__ import main
from atomscale_bluesky.server import LocalServer


@pytest.fixture(autouse=True)
def _of_this_server(monkeypatch: pytest.MonkeyPatch, server: LocalServer, spool_dir: Path) -> None:
    monkeypatch.setenv("ATOMSCALE_API_ENDPOINT", server.url)
    monkeypatch.setenv("ATOMSCALE_API_KEY", server.api_key)
    monkeypatch.setenv("ATOMSCALE_BLUESKY_SPOOL_DIR", str(spool_dir))
    monkeypatch.setenv("ATOMSCALE_BLUESKY_SPOOL_MIN_FREE_BYTES", "0")
    monkeypatch.setenv("COLUMNS", "140")


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command; its exit code, what it said with line breaks as spaces, and its complaints."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(list(arguments))
        said, complaint = capsys.readouterr()
        return code, " ".join(said.replace("\N{NO-BREAK SPACE}", "").split()), complaint

    return run


@pytest.fixture
def spooled(make_callback: Callable[..., AtomscaleCallback]) -> Callable[..., str]:
    """Leave a run in the spool that nobody delivers, with these settings and metadata, and return its uid."""

    def spool(points: int = 25, settings: dict[str, Any] | None = None, **metadata: Any) -> str:
        callback = make_callback(**{"offline": True} | (settings or {}))
        uid = ""
        for name, doc in growth(points, start_metadata=metadata):
            uid = uid or doc["uid"]
            callback(name, doc)
        callback.close()
        return uid

    return spool
