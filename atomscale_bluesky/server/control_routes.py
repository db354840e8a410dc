"""The routes behind `control`: streams and points as stored, the request log, faults, and the port's reachability."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from fastapi import FastAPI, Request
from fastapi.responses import Response

from .control_client import ChannelPoints, Project, ServerInfo, StreamState, Unreachable
from .faults import Fault
from .instance import ServerInstance
from .routes import Answer, answer_refusal
from .rules import Refusal, Rule

T = TypeVar("T")


def create_control(instance: ServerInstance) -> FastAPI:
    """Return the control's application. It has no key, and belongs on a loopback port."""
    app = FastAPI(title="Control of the local Atomscale", docs_url=None, redoc_url=None)
    app.add_exception_handler(Refusal, answer_refusal)
    store, streams, options = instance.store, instance.streams, instance.options

    @app.get("/control")
    async def read_info() -> Response:
        """What the server is set to."""
        info = ServerInfo(
            url=instance.listener.url,
            reachable=instance.listener.is_open,
            families=tuple(family.value for family in options.families),
            multi=options.multi,
            max_body_bytes=options.max_body_bytes,
            relaxed=tuple(sorted(rule.value for rule in options.relax)),
            rules={rule.value: rule.doc for rule in Rule},
        )
        return Answer(info)

    @app.get("/control/streams")
    async def read_streams() -> Response:
        """Every stream."""
        streams.close_silent()
        found = []
        for row in store.all("SELECT * FROM streams ORDER BY id"):
            channels = store.all("SELECT name, points FROM channels WHERE stream = ? ORDER BY id", row["id"])
            sums = store.one(
                "SELECT count(*), coalesce(sum(doubled), 0), coalesce(sum(changed), 0) FROM chunks WHERE stream = ?",
                row["id"],
            )
            tags = store.all(
                "SELECT name FROM tags JOIN stream_tags ON tag = tags.id WHERE stream = ? ORDER BY name", row["id"]
            )
            found.append(
                StreamState(
                    **{key: row[key] for key in row.keys() if key != "id"},  # noqa: SIM118 - iterating gives values
                    tags=tuple(tag["name"] for tag in tags),
                    channels=tuple(channel["name"] for channel in channels),
                    points=sum(channel["points"] for channel in channels),
                    chunks=sums[0],
                    doubled=sums[1],
                    changed=sums[2],
                )
            )
        return Answer(found)

    @app.get("/control/streams/{data_id}/points")
    async def read_points(data_id: str) -> Response:
        """A stream's points as stored."""
        row = streams.row(data_id)
        if row is None:
            raise Refusal(404, f"there is no stream {data_id!r}")
        return Answer({name: ChannelPoints(**channel) for name, channel in streams.points(row).items()})

    @app.get("/control/requests")
    async def read_requests(call: str | None = None, after: int = 0) -> Response:
        """The newest requests."""
        return Answer(instance.log.records(call=call, after=after))

    @app.get("/control/counts")
    async def read_counts() -> Response:
        """The counts of all requests."""
        return Answer(instance.log.counts())

    @app.post("/control/faults")
    async def add_faults(request: Request) -> Response:
        """Put faults in force."""
        return Answer(instance.faults.add(await _read(request, list[Fault])))

    @app.get("/control/faults")
    async def read_faults() -> Response:
        """The faults in force."""
        return Answer(instance.faults.states())

    @app.delete("/control/faults")
    async def clear_faults() -> Response:
        """Take every fault back."""
        instance.faults.clear()
        return Answer({})

    @app.post("/control/unreachable")
    async def make_unreachable(request: Request) -> Response:
        """Stop listening and reset every connection."""
        await instance.unreachable((await _read(request, Unreachable)).seconds)
        return Answer({})

    @app.post("/control/reachable")
    async def make_reachable() -> Response:
        """Listen again."""
        await instance.reachable()
        return Answer({})

    @app.post("/control/projects")
    async def add_project(request: Request) -> Response:
        """Create a project."""
        return Answer({"id": store.add_project((await _read(request, Project)).name)})

    return app


async def _read(request: Request, kind: type[T]) -> T:
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json":  # a web page may send any other type without permission
        raise Refusal(415, f"the body is declared as {media or 'nothing'}, not as application/json")
    try:
        return msgspec.json.decode(await request.body(), type=kind)
    except (msgspec.DecodeError, ValueError) as error:
        raise Refusal(422, str(error)) from error
