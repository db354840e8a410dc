"""What the OpenAPI description says beyond the routes: the key, the type of each answer, and examples.

The types describe what `streams` and `catalogue` answer. They build no answer themselves.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from .request_bodies import BODIES

_ID, _SAMPLE, _TAG = "2f1d7a52-3a0e-4d9f-9f0e-0c7a4d1b8e11", "9b0e6f7c-52c4-4b50-8f0a-6f1c3f6f7a10", "bluesky: success"
_AT = 1764244800.0


class StreamId(Struct):
    """The ids of a metrology stream."""

    data_id: str
    processed_data_id: str


class ChunkTaken(Struct):
    """One channel's part of a chunk, as it was taken."""

    data_id: str
    channel_name: str
    chunk_index: int
    total_points: int  # of the channel, so far


class Series(Struct):
    """The points of one channel."""

    relative_time_seconds: list[float | None]
    unix_timestamp_ms: list[int | None]
    values: list[float | str | None]
    units: str | None


class TimeSeries(Struct):
    """The points of a stream, by channel."""

    properties: dict[str, Series]
    series_max_time: float


class NamedId(Struct):
    """A name and its id."""

    id: str
    name: str


class CatalogueEntry(Struct):
    """A stream in the catalogue. The members that always have the same value here are not listed."""

    data_id: str
    raw_name: str | None
    char_source_type: str
    pipeline_status: str
    source_name: str | None
    physical_sample_id: str | None
    physical_sample_name: str | None
    projects: list[NamedId]
    upload_datetime: str
    last_updated: str
    tags: list[str]
    synth_source_id: int | None


class Instrument(Struct):
    """A growth instrument."""

    synth_source_id: int
    source_name: str
    synth_source_type: str
    source_model: str | None


class InstrumentId(Struct):
    """The number of a growth instrument."""

    synth_source_id: int


class PhysicalSample(Struct):
    """A physical sample."""

    id: str
    name: str
    created_datetime: str
    last_updated: str
    num_data_items: int
    growth_instrument: str | None
    projects: list[NamedId]


class Project(Struct):
    """A project."""

    id: str
    name: str
    physical_sample_count: int
    last_updated: str


class TagsAttached(Struct):
    """How many tags were attached that were not there before."""

    success: bool
    associations_created: int


class Clock(Struct):
    """When a request was received and answered, in Unix milliseconds."""

    receivedAtUnixMs: float  # noqa: N815 - the API's name
    transmittedAtUnixMs: float  # noqa: N815


class Refused(Struct):
    """Why a request was refused: a text, or an object that says more."""

    detail: Any


# The answer of each call, by method and path behind the family.
ANSWERS: dict[tuple[str, str], Any] = {
    ("post", "/stream/initialize"): StreamId,
    ("post", "/stream/chunk"): ChunkTaken,
    ("post", "/stream/chunk/multi"): list[ChunkTaken],
    ("post", "/stream/{data_id}/finalize"): StreamId,
    ("get", "/{data_id}/timeseries/"): TimeSeries,
    ("get", "/data_entries/"): list[CatalogueEntry],
    ("post", "/data_entries/physical_sample"): str,
    ("patch", "/data_entries/{data_id}"): CatalogueEntry,
    ("get", "/instruments/synthesis"): list[Instrument],
    ("post", "/instruments/synthesis"): InstrumentId,
    ("delete", "/instruments/synthesis"): str,
    ("get", "/physical_samples/"): list[PhysicalSample],
    ("post", "/physical_samples/"): PhysicalSample,
    ("get", "/projects/"): list[Project],
    ("get", "/projects/{project_id}/physical_samples"): list[PhysicalSample],
    ("post", "/projects/{project_id}/configuration/tracking_samples"): str,
    ("get", "/tags/"): list[NamedId],
    ("post", "/tags/"): NamedId,
    ("post", "/tags/data-items/"): TagsAttached,
    ("get", "/gateway/time"): Clock,
}
EXAMPLES: dict[str, Any] = {
    "InitializeBody": {"points_per_chunk": 100, "stream_name": "growth 12 [0ef42b8c-24134d7b]", "synth_source_id": 42},
    "ChunkBody": {
        "data_id": _ID, "chunk_index": 0, "channel_name": "T", "timestamps": [_AT, _AT + 1], "values": [873.2, 873.4],
        "units": "K",
    },
    "MultiBody": {
        "data_id": _ID,
        "chunk_index": 0,
        "channels": {"T": {"timestamps": [_AT, _AT + 1], "values": [873.2, 873.4], "units": "K"}},
    },
    "InstrumentBody": {"label": "MBE 43", "name": "maker and model", "type": "mbe"},
    "SampleBody": {"name": "GaN-0417"},
    "EntryBody": {"raw_name": "growth 12 · fail [0ef42b8c-24134d7b]"},
    "LinkBody": {"data_ids": [_ID], "physical_sample_id": _SAMPLE},
    "TrackBody": {"physical_sample_id": _SAMPLE, "set_active": True},
    "TagBody": {"name": _TAG},
    "AttachBody": {"data_ids": [_ID], "tag_ids": [_SAMPLE]},
}  # fmt: skip
_KEY, _JSON = "ApiKey", "application/json"
_NO_KEY = "/gateway/time"
_REFUSED = {"$ref": "#/components/schemas/Refused"}


def describe(schema: dict[str, Any], families: tuple[str, ...]) -> dict[str, Any]:
    """Return an OpenAPI schema with the key, the answers' types and the examples added."""
    answers, components = msgspec.json.schema_components(
        [*ANSWERS.values(), Refused, *BODIES], ref_template="#/components/schemas/{name}"
    )
    types = dict(zip(ANSWERS, answers, strict=False))
    for name, example in EXAMPLES.items():
        components[name] = components[name] | {"example": example}
    parts = schema.setdefault("components", {})
    parts.setdefault("schemas", {}).update(components)
    parts["securitySchemes"] = {_KEY: {"type": "apiKey", "in": "header", "name": "X-API-KEY"}}
    for path, calls in schema["paths"].items():
        behind = next((path.removeprefix(f"/{one}") for one in families if path.startswith(f"/{one}/")), path)
        for method, call in calls.items():
            found = types.get((method, behind))
            if found is not None:
                call["responses"]["200"] = _answer("As asked.", found)
            call["responses"]["4XX"] = _answer("Refused.", _REFUSED)
            if path != _NO_KEY:
                call["security"] = [{_KEY: []}]
                call["responses"]["401"] = _answer("The key is missing or not valid.", _REFUSED)
    return schema


def _answer(text: str, kind: dict[str, Any]) -> dict[str, Any]:
    return {"description": text, "content": {_JSON: {"schema": kind}}}
