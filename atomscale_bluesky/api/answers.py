"""The API's answers: what each of them says. Pure.

Each function reads the body of an answer. An answer that differs from the documentation, or is about something else
than the request, raises `AnswerError`: a status code alone does not count as success.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import orjson

from ..errors import AtomscaleBlueskyError
from ..model.links import Links

# How much of usual answers a client remembers. One has some 100 bytes per channel.
_REMEMBERED_BYTES = 2**19

# Catalogue statuses of a stream that takes no more data. The list of statuses is open. Any other status says nothing.
CLOSED = frozenset({"success", "error", "stream_error", "stream_interrupted", "stream_finalizing"})

# A `data_id` becomes part of a path, so it must look like an id. In the documentation it is a UUID.
DATA_ID = re.compile(r"[0-9A-Za-z_-]{1,64}")


class AnswerError(AtomscaleBlueskyError):
    """An answer is not one that the API gives to this request."""


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
PointsByChannel = dict[str, tuple[str | None, Sequence[float | None], Sequence[float | None]]]


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
    """Recognises the answer that confirms a chunk by comparing it with an earlier one: only the index may differ.

    To read an answer costs some 100 ns per channel, about as much as to encode four points. To compare it with the text
    that is expected costs next to nothing. An answer of another text is read, and so are those to later chunks.
    """

    def __init__(self) -> None:
        # (stream, channels) → the parts of the answer around the index; empty if answers differ in more than the index.
        self._known_parts: dict[tuple[str, tuple[str, ...]], tuple[bytes, ...]] = {}
        self._size = 0

    def check_confirmed(self, body: bytes, data_id: str, index: int, names: tuple[str, ...]) -> None:
        """Check that an answer confirms these channels of the chunk of this index of this stream.

        Raises:
            AnswerError: It does not.
        """
        about = (data_id, names)
        known = self._known_parts.get(about)
        if known and body == (b"%d" % index).join(known):
            return
        check_confirmed(body, data_id, index, names)
        if known is None and self._size + len(body) > _REMEMBERED_BYTES:
            self._known_parts, self._size = {}, 0
        if known is None:
            self._known_parts[about] = _parts_around_index(body, data_id, index, names)
            self._size += len(body)
        elif known:
            self._known_parts[about] = ()


def _parts_around_index(body: bytes, data_id: str, index: int, names: Collection[str]) -> tuple[bytes, ...]:
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


def read_created(body: bytes) -> str:
    """Return the id of the physical sample or tag that was created."""
    answer = _object(body)
    return _id(answer.get("id") or answer.get("physical_sample_id"), "id")


def read_existing_sample(body: bytes) -> str | None:
    """Return the id of the physical sample that already has the name, if a refusal names it."""
    try:
        detail = _object(body).get("detail")
        return _id(detail.get("physical_sample_id"), "physical_sample_id") if isinstance(detail, dict) else None
    except AnswerError:
        return None


def read_clock(body: bytes) -> tuple[float, float]:
    """Return when the server received the request and sent the answer, in Unix seconds."""
    answer = _object(body)
    received, sent = answer.get("receivedAtUnixMs"), answer.get("transmittedAtUnixMs")
    if not isinstance(received, int | float) or not isinstance(sent, int | float):
        raise AnswerError("the clock's answer has no times")
    return received / 1000, sent / 1000


def error_text(body: bytes) -> str:
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


def _json(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise AnswerError(f"the answer is no JSON: {body[:60]!r}") from error


def _object(body: bytes) -> dict[str, Any]:
    answer = _json(body)
    if not isinstance(answer, dict):
        raise AnswerError("the answer is not a JSON object")
    return answer


def _id(value: Any, member: str) -> str:
    if not isinstance(value, str) or not DATA_ID.fullmatch(value):
        shown = repr(value)[:80] if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
        raise AnswerError(f"the answer's {member!r} is {shown}; expected an id")
    return value
