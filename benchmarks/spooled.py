"""A backlog on disk: runs that a callback without network has spooled, ready to be delivered."""

from __future__ import annotations

from pathlib import Path

from atomscale_bluesky import AtomscaleCallback, Settings

from . import documents


def spool_run(folder: Path, url: str, channels: int, events: int, points_per_chunk: int = 100) -> int:
    """Spool one stopped run for the endpoint at `url`; how many points it has."""
    with AtomscaleCallback(settings=offline(folder, url, points_per_chunk=points_per_chunk)) as callback:
        opening, coming, stop = documents.stream(channels, events)
        for name, doc in opening:
            callback(name, doc)
        for doc in coming:
            callback("event", doc)
        callback("stop", stop)
    return channels * events


def offline(folder: Path, url: str, **more: object) -> Settings:
    """Settings of a callback that spools in `folder` for the endpoint at `url`, and delivers nothing."""
    return Settings(spool_dir=str(folder), endpoint=url, offline=True, **more)  # type: ignore[arg-type]


def connected(folder: Path, url: str, **more: object) -> Settings:
    """Settings of a callback that delivers what is in `folder`."""
    return Settings(spool_dir=str(folder), endpoint=url, api_key="none", exit_timeout_s=0.0, **more)  # type: ignore[arg-type]
