"""The routes of the local server: paths, keys and status codes around `streams` and `catalogue`.

Every route is a coroutine that never waits while it works on the database, so requests are handled one at a time, and
each is applied whole or not at all. The OpenAPI description is at `/openapi.json`, an HTML page of it at `/docs`.
"""

from __future__ import annotations

import hmac
import time
from datetime import datetime
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response

from .api_description import describe
from .catalogue import Catalogue
from .docs_page import docs_page
from .options import Family, Options
from .request_bodies import (
    AttachBody,
    ChunkBody,
    EntryBody,
    InitializeBody,
    InstrumentBody,
    LinkBody,
    MultiBody,
    SampleBody,
    TagBody,
    TrackBody,
    decode,
    points_of,
)
from .rules import Refusal, Rule, refused
from .streams import Streams

Body = type[msgspec.Struct]
ManyText = Annotated[list[str] | None, Query()]


class Answer(Response):
    """JSON encoded by msgspec, because the read-back of a long run is large."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return the content as JSON."""
        return msgspec.json.encode(content)


def create_app(streams: Streams, catalogue: Catalogue, options: Options) -> FastAPI:
    """Return the application, without the middleware that logs and misbehaves."""
    app = FastAPI(
        title="Local Atomscale",
        summary="A stand-in for Atomscale's streaming API, for tests, demonstrations and dry runs.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.add_exception_handler(Refusal, answer_refusal)
    app.add_exception_handler(RequestValidationError, _answer_validation)

    async def check_key(request: Request) -> None:
        given = request.headers.get("x-api-key")
        if given is None:
            raise Refusal(401, "the header X-API-KEY is missing")
        if not hmac.compare_digest(given.encode(), options.api_key.encode()):
            raise Refusal(401, "the API key is not valid")

    keyed = [Depends(check_key)]
    for family in options.families:
        app.include_router(_stream_routes(family, streams, options), dependencies=keyed)
    app.include_router(_catalogue_routes(catalogue, options), dependencies=keyed)

    @app.get("/gateway/time", tags=["clock"])
    async def read_time() -> Response:
        """The server's clock; needs no key."""
        now = time.time() * 1000
        return Answer({"receivedAtUnixMs": now, "transmittedAtUnixMs": time.time() * 1000})

    plain = app.openapi

    def openapi() -> dict[str, Any]:
        return describe(plain(), tuple(family.value for family in options.families))

    app.openapi = openapi

    @app.get("/docs", include_in_schema=False)
    async def read_docs() -> HTMLResponse:
        return HTMLResponse(docs_page(app.openapi()))

    return app


async def answer_refusal(_: Request, error: Exception) -> Response:
    """Return the response for a refusal."""
    if not isinstance(error, Refusal):
        raise error
    return Answer({"detail": error.detail}, status_code=error.status)


async def _answer_validation(_: Request, error: Exception) -> Response:
    """Return FastAPI's usual body for a wrong parameter of the path or query."""
    if not isinstance(error, RequestValidationError):
        raise error
    detail = [{"type": one["type"], "loc": list(one["loc"]), "msg": one["msg"]} for one in error.errors()]
    return Answer({"detail": detail}, status_code=422)


def _takes(kind: Body) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}}}
    return {"requestBody": {"required": True, "content": content}}


async def _body(request: Request, options: Options) -> bytes:
    if not options.relaxed(Rule.CONTENT_TYPE):
        media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        coding = request.headers.get("content-encoding", "identity").lower()
        if media != "application/json" or coding != "identity":
            raise refused(
                Rule.CONTENT_TYPE, f"the body is declared as {media or 'nothing'} ({coding}), not as plain JSON"
            )
    return await request.body()


def _stream_routes(family: Family, streams: Streams, options: Options) -> APIRouter:
    router = APIRouter(prefix=f"/{family.value}", tags=[family.value])

    @router.post("/stream/initialize", openapi_extra=_takes(InitializeBody))
    async def initialize(request: Request) -> Response:
        """Create a stream."""
        body = decode(await _body(request, options), InitializeBody, options)
        return Answer(streams.initialize(family, body))

    @router.post("/stream/chunk", openapi_extra=_takes(ChunkBody))
    async def chunk(request: Request) -> Response:
        """Take one chunk of one channel."""
        body = decode(await _body(request, options), ChunkBody, options)
        points = points_of(body.channel_name, body.timestamps, body.values, body.units, options)
        return Answer(streams.store_chunk(family, body.data_id, body.chunk_index, [points])[0])

    if options.multi:

        @router.post("/stream/chunk/multi", openapi_extra=_takes(MultiBody))
        async def chunk_multi(request: Request) -> Response:
            """Take one chunk of several channels, all or none."""
            body = decode(await _body(request, options), MultiBody, options)
            parts = [
                points_of(name, channel.timestamps, channel.values, channel.units, options)
                for name, channel in body.channels.items()
            ]
            # the answers' order is not promised, so it differs from the request's
            return Answer(streams.store_chunk(family, body.data_id, body.chunk_index, parts)[::-1])

    @router.post("/stream/{data_id}/finalize")
    async def finalize(data_id: str) -> Response:
        """Close a stream that is whole."""
        return Answer(streams.finalize(family, data_id))

    @router.get("/{data_id}/timeseries/")
    async def read(data_id: str) -> Response:
        """Read a stream's points back, one object per channel, times in milliseconds."""
        return Answer(streams.read(family, data_id))

    return router


def _catalogue_routes(catalogue: Catalogue, options: Options) -> APIRouter:
    router = APIRouter()

    @router.get("/data_entries/", tags=["catalogue"])
    async def read_catalogue(
        keywords: ManyText = None,
        status: str = "all",
        data_type: str | None = None,
        data_ids: ManyText = None,
        physical_sample_ids: ManyText = None,
        project_ids: ManyText = None,
        upload_datetime_min: datetime | None = None,
        upload_datetime_max: datetime | None = None,
        last_updated_min: datetime | None = None,
        last_updated_max: datetime | None = None,
    ) -> Response:
        """Search the catalogue."""
        return Answer(
            catalogue.entries(
                keywords=keywords or (),
                status=status,
                data_type=data_type,
                data_ids=data_ids or (),
                physical_sample_ids=physical_sample_ids or (),
                project_ids=project_ids or (),
                uploaded=(upload_datetime_min, upload_datetime_max),
                updated=(last_updated_min, last_updated_max),
            )
        )

    @router.post("/data_entries/physical_sample", tags=["physical samples"], openapi_extra=_takes(LinkBody))
    async def link_sample(request: Request) -> Response:
        """Tie data items to a physical sample."""
        return Answer(catalogue.link_sample(decode(await _body(request, options), LinkBody, options)))

    @router.patch("/data_entries/{data_id}", tags=["catalogue"], openapi_extra=_takes(EntryBody))
    async def change_entry(data_id: str, request: Request) -> Response:
        """Give an entry another label."""
        return Answer(catalogue.change_entry(data_id, decode(await _body(request, options), EntryBody, options)))

    @router.get("/instruments/synthesis", tags=["instruments"])
    async def read_instruments() -> Response:
        """List the growth instruments."""
        return Answer(catalogue.instruments())

    @router.post("/instruments/synthesis", tags=["instruments"], openapi_extra=_takes(InstrumentBody))
    async def create_instrument(request: Request) -> Response:
        """Create a growth instrument."""
        return Answer(catalogue.add_instrument(decode(await _body(request, options), InstrumentBody, options)))

    @router.delete("/instruments/synthesis", tags=["instruments"])
    async def delete_instruments(synthesis_instrument_ids: Annotated[list[int], Query()]) -> Response:
        """Delete growth instruments."""
        return Answer(catalogue.remove_instruments(synthesis_instrument_ids))

    @router.get("/physical_samples/", tags=["physical samples"])
    async def read_samples(physical_sample_id: str | None = None, has_data_item: bool | None = None) -> Response:
        """List the physical samples."""
        return Answer(catalogue.samples(sample_id=physical_sample_id, has_data_item=has_data_item))

    @router.post("/physical_samples/", tags=["physical samples"], openapi_extra=_takes(SampleBody))
    async def create_sample(request: Request) -> Response:
        """Create a physical sample; 409 with the id of the one that has the name."""
        return Answer(catalogue.add_sample(decode(await _body(request, options), SampleBody, options)))

    @router.get("/projects/", tags=["projects"])
    async def read_projects() -> Response:
        """List the projects."""
        return Answer(catalogue.projects())

    @router.get("/projects/{project_id}/physical_samples", tags=["projects"])
    async def read_project_samples(project_id: str) -> Response:
        """List a project's physical samples."""
        return Answer(catalogue.project_samples(project_id))

    @router.post(
        "/projects/{project_id}/configuration/tracking_samples", tags=["projects"], openapi_extra=_takes(TrackBody)
    )
    async def track_sample(project_id: str, request: Request) -> Response:
        """Let a project track a physical sample."""
        return Answer(catalogue.track(project_id, decode(await _body(request, options), TrackBody, options)))

    @router.get("/tags/", tags=["tags"])
    async def read_tags() -> Response:
        """List the tags."""
        return Answer(catalogue.tags())

    @router.post("/tags/", tags=["tags"], openapi_extra=_takes(TagBody))
    async def create_tag(request: Request) -> Response:
        """Create a tag; 400 when the name exists."""
        return Answer(catalogue.add_tag(decode(await _body(request, options), TagBody, options)))

    @router.post("/tags/data-items/", tags=["tags"], openapi_extra=_takes(AttachBody))
    async def attach_tags(request: Request) -> Response:
        """Attach tags to data items."""
        return Answer(catalogue.attach(decode(await _body(request, options), AttachBody, options)))

    return router
