"""The API's paths, bodies and answers. This is the only module that knows them. Pure.

Each function returns a `Request`, or reads the body of an answer. Ids and families come from files that may have been
copied from elsewhere: a text that cannot be an id or a family raises `ApiRefusedError`, and becomes part of no path. An
answer that differs from the documentation, or is about something else than the request, raises `AnswerError`: a status
code alone does not count as success.

Two path families use the same bodies: `metrology/stream/…`, which is documented, and `tool-state/stream/…`, which newer
clients of the vendor use. A label here is called `stream_name` there. Times are sent in seconds.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlencode

import numpy as np
import orjson
from numpy.typing import NDArray

from ..errors import ApiRefusedError, AtomscaleBlueskyError
from ..model.chunk import Chunk, Column
from ..model.identifiers import FAMILIES, is_id
from ..model.links import Links

# Encoding holds the interpreter's lock. With this bound it does so for some tenths of a millisecond at a time.
POINTS_AT_ONCE = 10_000

# How much of usual answers a client remembers. One has some 100 bytes per channel.
_REMEMBERED_BYTES = 2**19

# The ends of the paths that push chunks.
PUSHES = ("/stream/chunk", "/stream/chunk/multi")

# Catalogue statuses of a stream that takes no more data. The list of statuses is open. Any other status says nothing.
CLOSED = frozenset({"success", "error", "stream_error", "stream_interrupted", "stream_finalizing"})

# A `data_id` becomes part of a path, so it must look like an id. In the documentation it is a UUID.
_DATA_ID = re.compile(r"[0-9A-Za-z_-]{1,64}")


class AnswerError(AtomscaleBlueskyError):
    """An answer is not one that the API gives to this request."""


class Request(NamedTuple):
    """A request to send: a path below the endpoint, with its query, and a JSON body, perhaps in several parts."""

    method: str
    path: str
    parts: tuple[bytes, ...] = ()

    @property
    def body(self) -> bytes | None:
        """The body as one, or None if there is none."""
        return b"".join(self.parts) if self.parts else None


class Entry(NamedTuple):
    """The parts of a catalogue entry that a delivery uses."""

    data_id: str
    label: str
    status: str
    synth_source_id: int | None = None
    physical_sample_id: str | None = None
    project_ids: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()  # names, or ids if the catalogue gives no names


class Item(NamedTuple):
    """A physical sample, a project or a tag."""

    id: str
    name: str


# Points that were read back: channel name → unit, times in Unix seconds, values.
Points = dict[str, tuple[str | None, Sequence[float | None], Sequence[float | None]]]


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


def read_initialized(body: bytes) -> str:
    """Return the id of the stream that was created."""
    return _id(_object(body).get("data_id"), "data_id")


def check_confirmed(body: bytes, data_id: str, index: int, names: Collection[str]) -> None:
    """Check that an answer confirms these channels of the chunk of this index of this stream.

    Raises:
        AnswerError: It does not.
    """
    answer = _json(body)
    confirmations = answer if isinstance(answer, list) else [answer]
    confirmed = {
        name
        for one in confirmations
        if isinstance(one, dict) and one.get("data_id") == data_id and one.get("chunk_index") == index
        if not isinstance(one["chunk_index"], bool)  # a boolean equals 0 or 1
        if isinstance(name := one.get("channel_name"), str)
    }
    if not confirmed.issuperset(names):
        missing = next(name for name in names if name not in confirmed)
        raise AnswerError(f"the answer does not confirm chunk {index} of channel {missing!r}")


class UsualAnswers:
    """Knows the answers that confirm chunks by an earlier one, which differs from them in the chunk's index alone.

    To read an answer costs some 100 ns per channel, about as much as to encode four points. To compare it with the text
    that is expected costs next to nothing. An answer of another text is read, and so are those to later chunks.
    """

    def __init__(self) -> None:
        # Stream, channels → the text between the places of the index, nothing if the text changes otherwise too.
        self._known: dict[tuple[str, tuple[str, ...]], tuple[bytes, ...]] = {}
        self._size = 0

    def check_confirmed(self, body: bytes, data_id: str, index: int, names: tuple[str, ...]) -> None:
        """Check that an answer confirms these channels of the chunk of this index of this stream.

        Raises:
            AnswerError: It does not.
        """
        about = (data_id, names)
        known = self._known.get(about)
        if known and body == (b"%d" % index).join(known):
            return
        check_confirmed(body, data_id, index, names)
        if known is None and self._size + len(body) > _REMEMBERED_BYTES:
            self._known, self._size = {}, 0
        if known is None:
            self._known[about] = _around_index(body, data_id, index, names)
            self._size += len(body)
        elif known:
            self._known[about] = ()


def _around_index(body: bytes, data_id: str, index: int, names: Collection[str]) -> tuple[bytes, ...]:
    """Return the parts of an answer between the places where it names a chunk's index.

    With another index between them, they are the answer that confirms that chunk. Return nothing if that is not so.
    """
    for key in (b'"chunk_index":', b'"chunk_index": '):
        first, *further = body.split(b"%b%d" % (key, index))
        parts = tuple([part + key for part in (first, *further[:-1])] + further[-1:])
        with contextlib.suppress(AnswerError):
            if further:
                check_confirmed((b"%d" % (index + 1)).join(parts), data_id, index + 1, names)
                return parts
    return ()


def check_finalized(body: bytes, data_id: str) -> None:
    """Check that an answer is about this stream.

    Raises:
        AnswerError: It is not.
    """
    if _object(body).get("data_id") != data_id:
        raise AnswerError("the answer does not name the stream that was to be finalized")


def read_entries(body: bytes) -> list[Entry]:
    """Return the entries of a catalogue answer, without those that have no id."""
    answer = _json(body)
    if not isinstance(answer, list):
        raise AnswerError("the answer of the catalogue is no list")
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
    """Return the physical samples, projects or tags of an answer, without those that have no valid id.

    Raises:
        AnswerError: The answer is no list.
    """
    answer = _json(body)
    if not isinstance(answer, list):
        raise AnswerError("the answer is no list")
    return _items(answer)


def read_created(body: bytes) -> str:
    """Return the id of the physical sample or tag that was created."""
    answer = _object(body)
    return _id(answer.get("id") or answer.get("physical_sample_id"), "id")


def read_taken(body: bytes) -> str | None:
    """Return the id of the physical sample that already has the name, if a refusal names it."""
    try:
        detail = _object(body).get("detail")
        return _id(detail.get("physical_sample_id"), "physical_sample_id") if isinstance(detail, dict) else None
    except AnswerError:
        return None


def read_instruments(body: bytes) -> dict[int, str]:
    """Return the growth instruments of an answer: id → name."""
    answer = _json(body)
    if not isinstance(answer, list):
        raise AnswerError("the answer about instruments is no list")
    return {
        one["synth_source_id"]: _text(one.get("source_name"))
        for one in answer
        if isinstance(one, dict) and isinstance(one.get("synth_source_id"), int)
    }


def read_clock(body: bytes) -> tuple[float, float]:
    """Return when the server received the request and sent the answer, in Unix seconds."""
    answer = _object(body)
    received, sent = answer.get("receivedAtUnixMs"), answer.get("transmittedAtUnixMs")
    if not isinstance(received, int | float) or not isinstance(sent, int | float):
        raise AnswerError("the clock's answer has no times")
    return received / 1000, sent / 1000


def detail(body: bytes) -> str:
    """Return the message of an error's answer as one short line. It comes from outside, so it is quoted.

    Never raises: whatever the body is, the status code says what the answer means.
    """
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        answer = body[:200].decode(errors="replace")
    if isinstance(answer, dict):
        answer = answer.get("detail", answer)
    try:
        text = answer if isinstance(answer, str) else orjson.dumps(answer).decode(errors="replace")
    except (TypeError, ValueError, RecursionError):  # orjson can read deeper nesting than it can write
        text = "an answer that cannot be read"
    return repr(text if len(text) <= 300 else text[:299] + "…")


def is_about_the_route(detail: str, links: Links) -> bool:
    """Return True if a 404 or 405 may mean that the path does not exist, not something that the request named."""
    named = [links.synth_source_id, links.physical_sample_id, links.project_id]
    text = detail.lower()
    return not any(str(one).lower() in text for one in named if one is not None) and not any(
        word in text for word in ("instrument", "synth", "sample", "project")
    )


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
        raise AnswerError(f"the answer's {member!r} is {given}; expected an id")
    return value


def _text(value: Any) -> str:
    """Return a member that should be text, or an empty text if it is neither text nor a number."""
    return str(value) if isinstance(value, str | int | float) else ""


def _items(answer: Any) -> list[Item]:
    return [
        Item(one["id"], _text(one.get("name")))
        for one in (answer if isinstance(answer, list) else ())
        if isinstance(one, dict) and isinstance(one.get("id"), str) and _DATA_ID.fullmatch(one["id"])
    ]


def _tags(answer: Any) -> tuple[str, ...]:
    """Return the tags of a catalogue entry. It is not documented whether each is text or an object."""
    given = answer if isinstance(answer, list) else ()
    tags = (tag.get("name") or tag.get("id") if isinstance(tag, dict) else tag for tag in given)
    return tuple(tag for tag in tags if isinstance(tag, str))
