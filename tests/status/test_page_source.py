"""What the page costs where a spool has many runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from runs import growth

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.spool.spool import Spool
from atomscale_bluesky.status.page_source import SpoolSource


def test_the_list_of_runs_is_shared_by_many_requests_and_read_now_and_then(
    make_callback: Callable[..., AtomscaleCallback], spool_dir: Path
) -> None:
    callback = make_callback(offline=True)
    for _ in range(60):
        for name, doc in growth(2):
            callback(name, doc)
    callback.close()
    source = SpoolSource(lambda: [Spool(spool_dir, read_only=True)], [spool_dir])
    asyncio.run(source.overview())  # from the beginning of all files

    begin = time.monotonic()
    reads, last = 0, None
    while time.monotonic() - begin < 2.0:
        overview = asyncio.run(source.overview())
        reads, last = reads + (overview is not last), overview

    assert last is not None
    assert len(last.streams) == 60
    assert 1 <= reads <= 2.0 / 0.3 + 2
