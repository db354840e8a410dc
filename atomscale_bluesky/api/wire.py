"""Atomscale's spelling: paths, bodies and answers of the API, and the only place that knows them. Pure.

Each function gives a `Request`, or reads the body of an answer. Ids and families come from files that somebody may have
copied here: what cannot be one raises `ApiRefusedError`, and is part of no path. An answer that is not what the
documentation describes, or that speaks of something else than was asked, raises `AnswerError`: nothing is taken for
done on a status code alone.

Two path families speak the same bodies: `metrology/stream/…`, which is documented, and `tool-state/stream/…`, which
newer clients of the vendor use. What is called a label here is `stream_name` there. Times go out in seconds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlencode

import numpy as np
import orjson

from ..errors import ApiRefusedError, AtomscaleBlueskyError
from ..model.chunk import Chunk, Column
from ..model.identifiers import FAMILIES, is_id
from ..model.links import Links

# Encoding holds the interpreter's lock: for some tenths of a millisecond in one go, whatever a chunk's size.
POINTS_AT_ONCE = 10_000

# How the paths of chunks end.
PUSHES = ("/stream/chunk", "/stream/chunk/multi")

# Catalogue statuses of a stream that takes no more data. The list of statuses is open; any other one tells nothing.
CLOSED = frozenset({"success", "error", "stream_error", "stream_interrupted", "stream_finalizing"})

# A `data_id` becomes part of a path, so it has to look like one: a UUID in the documentation.
_DATA_ID = re.compile(r"[0-9A-Za-z_-]{1,64}")


class AnswerError(AtomscaleBlueskyError):
    """An answer is not one that the API gives to what was asked."""


class Request(NamedTuple):
    """What to send: a path below the endpoint, with its query, and a JSON body."""

    method: str
    path: str
    body: bytes | None = None


class Entry(NamedTuple):
    """A catalogue entry, as far as a delivery asks for it."""

    data_id: str
    label: str
    status: str
    synth_source_id: int | None = None
    physical_sample_id: str | None = None
    project_ids: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()  # names, or ids where the catalogue gives no names


class Item(NamedTuple):
    """A physical sample, a project or a tag."""

    id: str
    name: str


# Points as they are read back: channel name → unit, times in Unix seconds, values.
Points = dict[str, tuple[str | None, Sequence[float | None], Sequence[float | None]]]


def initialize(family: str, *, label: str, points_per_chunk: int, links: Links) -> Request:
    """Create a metrology stream.

    The documented family takes the physical sample too; the other is linked to it by `link_sample`.
    """
    body: dict[str, Any] = {"stream_name": label, "points_per_chunk": points_per_chunk}
    if links.synth_source_id is not None:
        body["synth_source_id"] = links.synth_source_id
    if links.project_id is not None:
        body["project_id"] = links.project_id
    if links.physical_sample_id is not None and family == "metrology":
        body["physical_sample_id"] = links.physical_sample_id
    return Request("POST", f"{_family(family)}/stream/initialize", orjson.dumps(body))


def link_sample(data_id: str, physical_sample_id: str) -> Request:
    """Link a stream that exists to a physical sample; doing so again changes nothing."""
    body = {"data_ids": [data_id], "physical_sample_id": physical_sample_id}
    return Request("POST", "data_entries/physical_sample", orjson.dumps(body))


def push(family: str, data_id: str, chunk: Chunk, *, pause: Callable[[], object] = lambda: None) -> Request:
    """Every channel of a chunk in one request; encoded in steps of some 10 000 points, with a `pause` between."""
    path = f"{_family(family)}/stream/chunk/multi"
    times = _array(chunk.times)
    at_once = max(1, POINTS_AT_ONCE // max(1, chunk.points))
    body: dict[str, Any] = {"data_id": data_id, "chunk_index": chunk.index, "channels": {}}
    steps: list[bytes] = []
    for begin in range(0, max(1, len(chunk.columns)), at_once):
        if begin:
            pause()
        columns = chunk.columns[begin : begin + at_once]
        body["channels"] = {column.name: _series(times, column) for column in columns}
        if len(columns) == len(chunk.columns):
            return Request("POST", path, _dumps(body))
        # What is around the channels goes out with the first ones and the last ones.
        steps.append(_dumps(body)[: -len(b"}}")] if not begin else _dumps(body["channels"])[1:-1])
    return Request("POST", path, b",".join(steps) + b"}}")


def push_bytes(chunk: Chunk) -> int:
    """About how large the request for a chunk will be: a time and a value per point, up to 18 digits each."""
    return chunk.points * len(chunk.columns) * 38


def push_channel(family: str, data_id: str, chunk: Chunk, column: Column) -> Request:
    """One channel of a chunk."""
    body = {
        "data_id": data_id,
        "chunk_index": chunk.index,
        "channel_name": column.name,
        **_series(_array(chunk.times), column),
    }
    return Request("POST", f"{_family(family)}/stream/chunk", _dumps(body))


def finalize(family: str, data_id: str) -> Request:
    """Close a stream, complete; it takes no data afterwards."""
    return Request("POST", f"{_family(family)}/stream/{_part(data_id)}/finalize")


def search(keywords: str) -> Request:
    """The catalogue's entries that a text finds, whatever their status."""
    return Request("GET", "data_entries/?" + urlencode({"keywords": keywords, "status": "all"}))


def look_up(data_id: str) -> Request:
    """The catalogue's entry of one stream."""
    return Request("GET", "data_entries/?" + urlencode({"data_ids": data_id, "status": "all"}))


def read_back(family: str, data_id: str) -> Request:
    """All points of a stream."""
    return Request("GET", f"{_family(family)}/{_part(data_id)}/timeseries/")


def instruments() -> Request:
    """The growth instruments of the organisation."""
    return Request("GET", "instruments/synthesis")


def samples(physical_sample_id: str | None = None) -> Request:
    """The physical samples of the organisation, or the one with this id."""
    query = {} if physical_sample_id is None else {"physical_sample_id": physical_sample_id}
    return Request("GET", "physical_samples/" + (f"?{urlencode(query)}" if query else ""))


def create_sample(name: str) -> Request:
    """Create a physical sample; refused with 409 where the name is taken, whatever its case."""
    return Request("POST", "physical_samples/", orjson.dumps({"name": name}))


def projects() -> Request:
    """The projects of the organisation."""
    return Request("GET", "projects/")


def project_samples(project_id: str) -> Request:
    """The physical samples of a project; not found where there is no such project."""
    return Request("GET", f"projects/{_part(project_id)}/physical_samples")


def track_sample(project_id: str, physical_sample_id: str, *, active: bool) -> Request:
    """Add a sample to those that a project tracks, and make it *the* one that growth monitoring follows."""
    body = {"physical_sample_id": physical_sample_id, "set_active": active}
    return Request("POST", f"projects/{_part(project_id)}/configuration/tracking_samples", orjson.dumps(body))


def tags() -> Request:
    """The tags of the organisation."""
    return Request("GET", "tags/")


def create_tag(name: str) -> Request:
    """Create a tag; refused with 400 where the name exists, whatever its case."""
    return Request("POST", "tags/", orjson.dumps({"name": name}))


def attach_tags(data_id: str, tag_ids: Iterable[str]) -> Request:
    """Attach tags to a stream; doing so again changes nothing."""
    return Request("POST", "tags/data-items/", orjson.dumps({"data_ids": [data_id], "tag_ids": list(tag_ids)}))


def rename(data_id: str, label: str) -> Request:
    """Give a stream's entry another label."""
    return Request("PATCH", f"data_entries/{_part(data_id)}", orjson.dumps({"raw_name": label}))


def clock() -> Request:
    """The server's reference clock; public, so no key is needed."""
    return Request("GET", "gateway/time")


def read_initialized(body: bytes) -> str:
    """The id of the stream that was created."""
    return _id(_object(body).get("data_id"), "data_id")


def check_confirmed(body: bytes, data_id: str, chunk: Chunk, names: Collection[str]) -> None:
    """Make sure that an answer confirms these channels of this chunk of this stream, and no other.

    Raises:
        AnswerError: It does not.
    """
    answer = _json(body)
    confirmations = answer if isinstance(answer, list) else [answer]
    confirmed = {
        name
        for one in confirmations
        if isinstance(one, dict) and one.get("data_id") == data_id and one.get("chunk_index") == chunk.index
        if not isinstance(one["chunk_index"], bool)  # which equals 0 or 1
        if isinstance(name := one.get("channel_name"), str)
    }
    if not confirmed.issuperset(names):
        missing = next(name for name in names if name not in confirmed)
        raise AnswerError(f"the answer does not confirm chunk {chunk.index} of channel {missing!r}")


def check_finalized(body: bytes, data_id: str) -> None:
    """Make sure that an answer speaks of this stream.

    Raises:
        AnswerError: It does not.
    """
    if _object(body).get("data_id") != data_id:
        raise AnswerError("the answer does not name the stream that was to be finalized")


def read_entries(body: bytes) -> list[Entry]:
    """The entries of a catalogue answer; one without an id is left out."""
    answer = _json(body)
    if not isinstance(answer, list):
        raise AnswerError("the catalogue's answer is no list")
    return [
        Entry(
            one["data_id"],
            _text(one.get("raw_name")),
            _text(one.get("pipeline_status")),
            source if isinstance(source := one.get("synth_source_id"), int) else None,
            sample if isinstance(sample := one.get("physical_sample_id"), str) else None,
            tuple(item.id for item in _items(one.get("projects"))),
            _tags(one.get("tags")),
        )
        for one in answer
        if isinstance(one, dict) and isinstance(one.get("data_id"), str) and _DATA_ID.fullmatch(one["data_id"])
    ]


def read_items(body: bytes) -> list[Item]:
    """Physical samples, projects or tags; one without an id that looks like one is left out.

    Raises:
        AnswerError: It is no list.
    """
    answer = _json(body)
    if not isinstance(answer, list):
        raise AnswerError("the answer is no list")
    return _items(answer)


def read_created(body: bytes) -> str:
    """The id of the physical sample or tag that was created."""
    answer = _object(body)
    return _id(answer.get("id") or answer.get("physical_sample_id"), "id")


def read_taken(body: bytes) -> str | None:
    """The id of the physical sample that has the name already, where a refusal names it."""
    try:
        detail = _object(body).get("detail")
        return _id(detail.get("physical_sample_id"), "physical_sample_id") if isinstance(detail, dict) else None
    except AnswerError:
        return None


def read_instruments(body: bytes) -> dict[int, str]:
    """Growth instruments: id → name."""
    answer = _json(body)
    if not isinstance(answer, list):
        raise AnswerError("the list of instruments is none")
    return {
        one["synth_source_id"]: _text(one.get("source_name"))
        for one in answer
        if isinstance(one, dict) and isinstance(one.get("synth_source_id"), int)
    }


def read_clock(body: bytes) -> tuple[float, float]:
    """When the server received the question and sent the answer, Unix seconds."""
    answer = _object(body)
    received, sent = answer.get("receivedAtUnixMs"), answer.get("transmittedAtUnixMs")
    if not isinstance(received, int | float) or not isinstance(sent, int | float):
        raise AnswerError("the clock's answer has no times")
    return received / 1000, sent / 1000


def detail(body: bytes) -> str:
    """Return what an error's answer says, in one short line; it came from outside, so it is quoted.

    It never raises: whatever the body is, the status code tells what the answer means.
    """
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        answer = body[:200].decode(errors="replace")
    if isinstance(answer, dict):
        answer = answer.get("detail", answer)
    try:
        text = answer if isinstance(answer, str) else orjson.dumps(answer).decode(errors="replace")
    except (TypeError, ValueError, RecursionError):  # orjson reads deeper nesting than it writes
        text = "an answer that cannot be read"
    return repr(text if len(text) <= 300 else text[:299] + "…")


def is_about_the_route(detail: str, links: Links) -> bool:
    """Whether a 404 or 405 may mean that the path does not exist, rather than something that the request named."""
    named = [links.synth_source_id, links.physical_sample_id, links.project_id]
    text = detail.lower()
    return not any(str(one).lower() in text for one in named if one is not None) and not any(
        word in text for word in ("instrument", "synth", "sample", "project")
    )


def _family(family: str) -> str:
    """Return a path family, as the beginning of a path."""
    if family not in FAMILIES:
        raise ApiRefusedError(
            f"{family!r:.80} is no path family; expected one of {', '.join(FAMILIES)}; nothing was sent"
        )
    return family


def _part(identifier: str) -> str:
    """Return an id, as part of a path."""
    if not is_id(identifier):
        raise ApiRefusedError(f"{identifier!r:.80} cannot be an id; expected one such as a UUID; nothing was sent")
    return identifier


def _series(times: orjson.Fragment, column: Column) -> dict[str, Any]:
    values = column.values
    if not isinstance(values, np.ndarray) and None not in values:
        values = np.array(values, dtype=np.float64)  # the same text for a number, whichever way it came
    series: dict[str, Any] = {"timestamps": times, "values": values}
    if column.unit is not None:
        series["units"] = column.unit
    return series


def _dumps(body: dict[str, Any]) -> bytes:
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def _array(values: Iterable[float]) -> orjson.Fragment:
    """Numbers encoded once, to stand in several places of a body."""
    return orjson.Fragment(orjson.dumps(values))


def _json(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise AnswerError(f"the answer is no JSON: {body[:60]!r}") from error


def _object(body: bytes) -> dict[str, Any]:
    answer = _json(body)
    if not isinstance(answer, dict):
        raise AnswerError("the answer is no JSON object")
    return answer


def _id(value: Any, member: str) -> str:
    if not isinstance(value, str) or not _DATA_ID.fullmatch(value):
        given = repr(value)[:80] if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
        raise AnswerError(f"the answer's {member!r} is {given}, which looks like none")
    return value


def _text(value: Any) -> str:
    """Return a member that should be text; anything but text and numbers is none."""
    return str(value) if isinstance(value, str | int | float) else ""


def _items(answer: Any) -> list[Item]:
    return [
        Item(one["id"], _text(one.get("name")))
        for one in (answer if isinstance(answer, list) else ())
        if isinstance(one, dict) and isinstance(one.get("id"), str) and _DATA_ID.fullmatch(one["id"])
    ]


def _tags(answer: Any) -> tuple[str, ...]:
    """The tags of a catalogue entry, of which nobody says whether each is text or an object."""
    given = answer if isinstance(answer, list) else ()
    tags = (tag.get("name") or tag.get("id") if isinstance(tag, dict) else tag for tag in given)
    return tuple(tag for tag in tags if isinstance(tag, str))
