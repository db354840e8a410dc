"""An answer to `initialize` with the id of another stream, as a cache between here and the server might give it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import growth

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.server import Fault, LocalServer
from atomscale_bluesky.spool.orders import Retry
from atomscale_bluesky.spool.spool import Spool

Documents = list[tuple[str, dict[str, Any]]]


def pushes(server: LocalServer) -> int:
    return sum("chunk" in request.call for request in server.requests())


def two_runs() -> list[Documents]:
    return [list(growth(points=20, keys=1)), list(growth(points=15, keys=1, first=100))]


def run_with_a_monitor() -> list[Documents]:
    """A run's documents before those of its second event stream, and the rest."""
    first, second = two_runs()
    uid, descriptor = first[0][1]["uid"], first[1][1]["uid"] + "2"
    side = [("descriptor", second[1][1] | {"name": "side", "run_start": uid, "uid": descriptor})]
    side += [("event", doc | {"descriptor": descriptor}) for name, doc in second if name == "event"]
    return [first[:-1], [*side, first[-1]]]


@pytest.mark.parametrize("feeds", [two_runs, run_with_a_monitor])
def test_a_stream_that_is_given_the_id_of_another_one_is_parked_and_replaces_none_of_its_points(
    callback: AtomscaleCallback,
    server: LocalServer,
    spool_dir: Path,
    feeds: Callable[[], list[Documents]],
) -> None:
    before, after = feeds()
    for name, doc in before:
        callback(name, doc)
    assert callback.drain(timeout_s=20)
    (first,) = server.streams()
    pushed = pushes(server)
    server.misbehave(Fault(call="initialize", status=200, body=json.dumps({"data_id": first.data_id}), times=1))
    for name, doc in after:
        callback(name, doc)

    assert not callback.drain(timeout_s=20)
    (run,) = callback.status()
    assert (run.state, run.points.waiting) == ("parked", 15)
    assert first.data_id in (run.problem or "")
    assert (len(server.streams()), pushes(server)) == (1, pushed)

    Spool(spool_dir).give_order(Path(run.folder), Retry())
    assert callback.drain(timeout_s=20)
    told = [list(server.points(stream.data_id)["k0"].values) for stream in server.streams()]
    assert told == [[float(n) for n in range(20)], [float(n) for n in range(100, 115)]]
