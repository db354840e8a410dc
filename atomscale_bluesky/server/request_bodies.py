"""Turns the bytes of request bodies into checked types, or refuses them and names the wrong member.

Decoding and checking happen in one pass of msgspec, since a body may carry ten thousand numbers. Only what the body
alone shows is checked here. What depends on the stream is checked in `streams`.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Sequence
from math import isfinite, nan
from typing import Annotated, TypeVar, cast
from uuid import UUID

import msgspec
from msgspec import Meta, Struct

from .options import Options
from .rules import Refusal, Rule, refused

Count = Annotated[int, Meta(gt=0, le=2**31 - 1)]
Index = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Identity = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Numbers = list[float | None]

MAX_TEXT = 255


class InitializeBody(Struct):
    """`POST /{family}/stream/initialize`."""

    points_per_chunk: Count
    stream_name: str | None = None
    synth_source_id: Identity | None = None
    physical_sample_id: UUID | None = None
    project_id: UUID | None = None


class ChunkBody(Struct):
    """`POST /{family}/stream/chunk`; timestamps in Unix seconds."""

    data_id: str
    chunk_index: Index
    channel_name: str
    timestamps: Numbers
    values: Numbers
    units: str | None = None


class ChannelBody(Struct):
    """One channel of a `chunk/multi` body."""

    timestamps: Numbers
    values: Numbers
    units: str | None = None


class MultiBody(Struct):
    """`POST /{family}/stream/chunk/multi`."""

    data_id: str
    chunk_index: Index
    channels: dict[str, ChannelBody]


class InstrumentBody(Struct):
    """`POST /instruments/synthesis`."""

    label: str
    name: str
    type: str
    serial_id: str | None = None


class SampleBody(Struct):
    """`POST /physical_samples/`."""

    name: str
    growth_instrument_id: Identity | None = None
    sample_id: Identity | None = None
    detail_notes_id: UUID | None = None


class EntryBody(Struct):
    """`PATCH /data_entries/{data_id}`."""

    raw_name: str | None = None
    char_source_type: str | None = None
    pipeline_status: str | None = None


class LinkBody(Struct):
    """`POST /data_entries/physical_sample`."""

    data_ids: list[UUID]
    physical_sample_id: UUID


class TrackBody(Struct):
    """`POST /projects/{id}/configuration/tracking_samples`."""

    physical_sample_id: UUID
    set_active: bool = False


class TagBody(Struct):
    """`POST /tags/`."""

    name: str


class AttachBody(Struct):
    """`POST /tags/data-items/`."""

    data_ids: list[UUID]
    tag_ids: list[UUID]


BODIES: tuple[type[Struct], ...] = (
    InitializeBody,
    ChunkBody,
    MultiBody,
    InstrumentBody,
    SampleBody,
    EntryBody,
    LinkBody,
    TrackBody,
    TagBody,
    AttachBody,
)

B = TypeVar("B", bound=Struct)


class Points(Struct, frozen=True):
    """One channel's part of one chunk, as it is stored: few Python objects, eight bytes per number."""

    channel: str
    times: bytes
    values: bytes
    units: str | None

    @property
    def count(self) -> int:
        """How many points there are. The times decide, if a relaxed rule allowed the lengths to differ."""
        return len(self.times) // 8


def decode(body: bytes, kind: type[B], options: Options) -> B:
    """Return the body as `kind`.

    Raises:
        Refusal: The body is no JSON object of that kind, or has members that the API does not name.
    """
    try:
        value = msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise Refusal(422, f"the body is not understood: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        value = _decode_lenient(body, kind, options, error)
    if not options.relaxed(Rule.UNKNOWN_MEMBER):
        _only_known(body, kind)
    return value


def _decode_lenient(body: bytes, kind: type[B], options: Options, error: Exception) -> B:
    """Decode a body with the words NaN or Infinity, which Python writes and JSON does not allow."""
    if b"NaN" not in body and b"Infinity" not in body:
        raise Refusal(422, f"the body is not JSON: {error}") from error
    if not options.relaxed(Rule.NON_FINITE):
        raise refused(Rule.NON_FINITE, "NaN and Infinity are not JSON; send finite numbers") from error
    try:
        return msgspec.convert(json.loads(body), kind)
    except (ValueError, msgspec.ValidationError) as further:
        raise Refusal(422, f"the body is not understood: {further}") from further


def _only_known(body: bytes, kind: type[Struct]) -> None:
    try:
        members = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except msgspec.DecodeError:  # the words NaN or Infinity, accepted above since that rule is relaxed
        members = json.loads(body)
    _name_unknown(members.keys() - set(kind.__struct_fields__), "")
    if kind is MultiBody and isinstance(raw := members["channels"], msgspec.Raw):
        known = set(ChannelBody.__struct_fields__)
        for name, channel in msgspec.json.decode(raw, type=dict[str, dict[str, msgspec.Raw]]).items():
            _name_unknown(channel.keys() - known, f" in channel {name!r}")


def _name_unknown(unknown: Iterable[str], where: str) -> None:
    if names := ", ".join(repr(name) for name in sorted(unknown)):
        raise refused(Rule.UNKNOWN_MEMBER, f"the API names no member {names}{where}")


def points_of(
    channel: str, times: Sequence[float | None], values: Sequence[float | None], units: str | None, options: Options
) -> Points:
    """Return one channel's numbers, packed.

    Raises:
        Refusal: By a rule that needs no knowledge of the stream.
    """
    if not 1 <= len(channel) <= MAX_TEXT or len(channel.encode()) > MAX_TEXT:
        _demand(
            options,
            Rule.CHANNEL_NAME,
            f"the channel name {_short(channel)} has {len(channel)} characters, not 1 to 255",
        )
    if units is not None:
        check_text("units", units, options)
    if len(times) != len(values):
        _demand(
            options,
            Rule.UNEQUAL_LENGTHS,
            f"channel {_short(channel)} has {len(times)} timestamps and {len(values)} values",
        )
    if not times or not values:
        _demand(options, Rule.EMPTY_CHUNK, f"channel {_short(channel)} has no points")
    return Points(
        channel=channel,
        times=_pack(channel, "timestamps", times, options),
        values=_pack(channel, "values", values, options),
        units=units,
    )


def check_text(member: str, text: str, options: Options) -> None:
    """Refuse a text that is longer than a careful client would send."""
    if len(text) > MAX_TEXT:
        _demand(options, Rule.TEXT_LENGTH, f"{member} has {len(text)} characters, more than {MAX_TEXT}")


def _pack(channel: str, member: str, numbers: Sequence[float | None], options: Options) -> bytes:
    try:
        packed = array("d", cast("Sequence[float]", numbers))  # raises for a None
    except TypeError:
        at = numbers.index(None)
        _demand(options, Rule.NON_FINITE, f"{member}[{at}] of channel {_short(channel)} is null")
        packed = array("d", (nan if number is None else number for number in numbers))
    # JSON cannot express one, so only a body read with the rule relaxed can have one. The sum finds any, and is fast.
    if not isfinite(sum(packed)) and not all(isfinite(number) for number in packed):
        _demand(options, Rule.NON_FINITE, f"{member} of channel {_short(channel)} has a number that is not finite")
    return packed.tobytes()


def unpack(packed: bytes) -> list[float | None]:
    """Return the stored numbers, with None for each that is not finite, since JSON cannot express it."""
    numbers: array[float] = array("d")
    numbers.frombytes(packed)
    if isfinite(sum(numbers)):
        return list(numbers)
    return [number if isfinite(number) else None for number in numbers]


def _demand(options: Options, rule: Rule, detail: str) -> None:
    if not options.relaxed(rule):
        raise refused(rule, detail)


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:60] + "…")
