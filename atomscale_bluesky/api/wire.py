"""The API's paths and the bodies of its requests. Delivery knows them only from here. Pure.

The probe (`checks/probe_streams`) builds requests of its own, which may be odd on purpose.

Each function returns a `Request`. Ids and families come from files that may have been copied from elsewhere: a text
that cannot be an id or a family raises `ApiRefusedError`, and becomes part of no path.

Two path families use the same bodies: `metrology/stream/…`, which is documented, and `tool-state/stream/…`, which newer
clients of the vendor use. A label here is called `stream_name` there. Times are sent in seconds.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlencode

import numpy as np
import orjson
from numpy.typing import NDArray

from ..errors import ApiRefusedError
from ..model.chunk import Chunk, Column
from ..model.identifiers import FAMILIES, is_id
from ..model.links import Links

# Encoding holds the interpreter's lock. With this bound it does so for some tenths of a millisecond at a time.
POINTS_AT_ONCE = 10_000


class Request(NamedTuple):
    """A request to send: a path below the endpoint, with its query, and a JSON body, perhaps in several parts."""

    method: str
    path: str
    parts: tuple[bytes, ...] = ()

    @property
    def body(self) -> bytes | None:
        """The body as one, or None if there is none."""
        return b"".join(self.parts) if self.parts else None


def initialize(family: str, *, label: str, points_per_chunk: int, links: Links) -> Request:
    """Return the request that creates a metrology stream.

    The documented family takes the physical sample too. A stream of the other family is linked to it by `link_sample`.
    """
    body: dict[str, Any] = {"stream_name": label, "points_per_chunk": points_per_chunk}
    if links.synth_source_id is not None:
        body["synth_source_id"] = links.synth_source_id
    if links.project_id is not None:
        body["project_id"] = links.project_id
    if links.physical_sample_id is not None and family == "metrology":
        body["physical_sample_id"] = links.physical_sample_id
    return _request("POST", f"{_family(family)}/stream/initialize", body)


def link_sample(data_id: str, physical_sample_id: str) -> Request:
    """Return the request that links an existing stream to a physical sample. Repeating it changes nothing."""
    body = {"data_ids": [data_id], "physical_sample_id": physical_sample_id}
    return _request("POST", "data_entries/physical_sample", body)


def push(family: str, data_id: str, chunk: Chunk, *, pause: Callable[[], object] = lambda: None) -> Request:
    """Return the request for all channels of a chunk.

    Encodes in steps of about 10 000 points, with a `pause` between.
    """
    path = f"{_family(family)}/stream/chunk/multi"
    times = _array(chunk.times)
    at_once = max(1, POINTS_AT_ONCE // max(1, chunk.points))
    body: dict[str, Any] = {"data_id": data_id, "chunk_index": chunk.index, "channels": {}}
    parts: list[bytes] = []
    for begin in range(0, max(1, len(chunk.names)), at_once):
        if begin:
            pause()
        here = slice(begin, begin + at_once)
        channels = map(_series, itertools.repeat(times), chunk.units[here], chunk.values[here])
        body["channels"] = dict(zip(chunk.names[here], channels, strict=True))
        if at_once >= len(chunk.names):
            return _request("POST", path, body)
        # The text around the channels is in the first and the last part.
        parts += [_dumps(body)[: -len(b"}}")]] if not begin else [b",", _dumps(body["channels"])[1:-1]]
    return Request("POST", path, (*parts, b"}}"))


def push_bytes(chunk: Chunk) -> int:
    """Return the approximate size of the request for a chunk: a time and a value per point, up to 18 digits each."""
    return chunk.points * len(chunk.names) * 38


def push_channel(family: str, data_id: str, chunk: Chunk, column: Column) -> Request:
    """Return the request for one channel of a chunk."""
    body = {
        "data_id": data_id,
        "chunk_index": chunk.index,
        "channel_name": column.name,
        **_series(_array(chunk.times), column.unit, column.values),
    }
    return _request("POST", f"{_family(family)}/stream/chunk", body)


def finalize(family: str, data_id: str) -> Request:
    """Return the request that closes a complete stream. It takes no data afterwards."""
    return Request("POST", f"{_family(family)}/stream/{_part(data_id)}/finalize")


def search(keywords: str) -> Request:
    """Return the request for the catalogue's entries that a text finds, of any status."""
    return Request("GET", "data_entries/?" + urlencode({"keywords": keywords, "status": "all"}))


def look_up(data_id: str) -> Request:
    """Return the request for the catalogue's entry of one stream."""
    return Request("GET", "data_entries/?" + urlencode({"data_ids": data_id, "status": "all"}))


def read_back(family: str, data_id: str) -> Request:
    """Return the request for all points of a stream."""
    return Request("GET", f"{_family(family)}/{_part(data_id)}/timeseries/")


def instruments() -> Request:
    """Return the request for the organisation's growth instruments."""
    return Request("GET", "instruments/synthesis")


def samples(physical_sample_id: str | None = None) -> Request:
    """Return the request for the organisation's physical samples, or the one with this id."""
    query = {} if physical_sample_id is None else {"physical_sample_id": physical_sample_id}
    return Request("GET", "physical_samples/" + (f"?{urlencode(query)}" if query else ""))


def create_sample(name: str) -> Request:
    """Return the request that creates a physical sample. Refused with 409 if the name is taken, ignoring case."""
    return _request("POST", "physical_samples/", {"name": name})


def projects() -> Request:
    """Return the request for the organisation's projects."""
    return Request("GET", "projects/")


def project_samples(project_id: str) -> Request:
    """Return the request for a project's physical samples. Not found if there is no such project."""
    return Request("GET", f"projects/{_part(project_id)}/physical_samples")


def track_sample(project_id: str, physical_sample_id: str, *, active: bool) -> Request:
    """Return the request that makes a project track a sample; with `active`, growth monitoring follows it."""
    body = {"physical_sample_id": physical_sample_id, "set_active": active}
    return _request("POST", f"projects/{_part(project_id)}/configuration/tracking_samples", body)


def tags() -> Request:
    """Return the request for the organisation's tags."""
    return Request("GET", "tags/")


def create_tag(name: str) -> Request:
    """Return the request that creates a tag. Refused with 400 if the name exists, ignoring case."""
    return _request("POST", "tags/", {"name": name})


def attach_tags(data_id: str, tag_ids: Iterable[str]) -> Request:
    """Return the request that attaches tags to a stream. Repeating it changes nothing."""
    return _request("POST", "tags/data-items/", {"data_ids": [data_id], "tag_ids": list(tag_ids)})


def rename(data_id: str, label: str) -> Request:
    """Return the request that gives a stream's entry another label."""
    return _request("PATCH", f"data_entries/{_part(data_id)}", {"raw_name": label})


def clock() -> Request:
    """Return the request for the server's reference clock. The clock is public, so no key is needed."""
    return Request("GET", "gateway/time")


def _request(method: str, path: str, body: dict[str, Any]) -> Request:
    return Request(method, path, (_dumps(body),))


def _family(family: str) -> str:
    """Return a path family as the beginning of a path."""
    if family not in FAMILIES:
        raise ApiRefusedError(
            f"{family!r:.80} is no path family; expected one of {', '.join(FAMILIES)}; nothing was sent"
        )
    return family


def _part(identifier: str) -> str:
    """Return an id as part of a path."""
    if not is_id(identifier):
        raise ApiRefusedError(f"{identifier!r:.80} cannot be an id; expected one such as a UUID; nothing was sent")
    return identifier


def _series(times: orjson.Fragment, unit: str | None, values: Sequence[float | None] | NDArray[np.float64]) -> Any:
    if not isinstance(values, np.ndarray) and None not in values:
        values = np.array(values, dtype=np.float64)  # a number has the same text, from whichever source it came
    if unit is None:
        return {"timestamps": times, "values": values}
    return {"timestamps": times, "values": values, "units": unit}


def _dumps(body: dict[str, Any]) -> bytes:
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def _array(values: Iterable[float]) -> orjson.Fragment:
    """Return numbers encoded once, to be used in several places of a body."""
    return orjson.Fragment(orjson.dumps(values))
