"""Reads from a start document how to initialize the run's streams. Pure.

The keys `synth_source_id`, `physical_sample` or `physical_sample_id`, `project_id`, `tags`, `track_sample`,
`stream_name` and `points_per_chunk` are read either at the top level of the start document, where other keys are
ignored, or in a dict under `atomscale`, which takes precedence and in which an unknown key is an error. None and the
empty text count as absent. Numbers may come as text or numpy integers.

Everything else in a start document stays on this machine, and may be of any kind.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import msgspec
import numpy as np
import orjson

from ..errors import MetadataError
from ..model.identifiers import is_uuid, name_of, tags_of, uuid_of
from ..model.labels import MAX_LOOKED_AT, one_line, shortened
from ..model.links import Links

# A start document with more values than this is digested only in part, with the first `_FIRST` values of larger parts.
MOST_DIGESTED = 20_000
_FIRST = 20
NAMESPACE = "atomscale"


class RunMetadata(msgspec.Struct, frozen=True):
    """What a run's metadata say about its metrology streams."""

    links: Links
    label: str | None  # from the run's metadata; None if the template applies
    points_per_chunk: int | None


def validate_metadata(md: Mapping[str, Any], *, require_synth_source_id: bool = False) -> None:
    """Accept or refuse a run's metadata before the plan begins: `RE.md_validator = validate_metadata`.

    Args:
        md: The metadata that will become the start document.
        require_synth_source_id: Also refuse a run that names no growth instrument:
            `RE.md_validator = functools.partial(validate_metadata, require_synth_source_id=True)`.

    Raises:
        MetadataError: The run's streams could not be initialized with these metadata, or a growth instrument is
            required and missing.
    """
    if read_metadata(md).links.synth_source_id is None and require_synth_source_id:
        raise MetadataError(
            "metadata 'synth_source_id' is missing; name the growth instrument of this run, as in "
            "`RE(plan, synth_source_id=42)`: `atomscale-bluesky instruments` lists them with their numbers"
        )


def read_metadata(start: Mapping[str, Any], defaults: Links | None = None) -> RunMetadata:
    """Return what a start document, or the metadata that will become one, say about the run's streams.

    Args:
        start: The document, or the metadata.
        defaults: The links of a run for which the metadata name none; None if that is not known.

    Raises:
        MetadataError: A value cannot be used, or the `atomscale` dict has an unknown key.
    """
    given = {name: start.get(name) for name in _READERS}
    own = start.get(NAMESPACE)
    if isinstance(own, Mapping):
        unknown = sorted(str(key) for key in own if key not in _READERS)
        if unknown:
            raise MetadataError(
                f"metadata {NAMESPACE!r} holds {_shown(unknown[0])}, which means nothing here; "
                f"it may hold {', '.join(_READERS)}"
            )
        own = {name: value for name, value in own.items() if not _absent(value)}
        if own.keys() & {"physical_sample", "physical_sample_id"}:  # two keys for the same thing
            given |= {"physical_sample": None, "physical_sample_id": None}
        given.update(own)
    elif own is not None:
        raise MetadataError(f"metadata {NAMESPACE!r} is {_shown(own)}; expected a dict, or leave it out")
    read = {name: _READERS[name](name, value) for name, value in given.items() if not _absent(value)}
    return RunMetadata(
        links=_links(read, defaults),
        label=read.get("stream_name"),
        points_per_chunk=read.get("points_per_chunk"),
    )


def _links(read: Mapping[str, Any], defaults: Links | None) -> Links:
    name, sample_id = read.get("physical_sample"), read.get("physical_sample_id")
    if name is not None and is_uuid(name):
        name, sample_id = None, sample_id or name
    if name is not None and sample_id is not None:
        raise MetadataError(
            f"metadata 'physical_sample' is {_shown(name)} and 'physical_sample_id' is {_shown(sample_id)}; "
            f"name one physical sample, in one of them"
        )
    default = defaults or Links()
    links = Links(
        synth_source_id=read.get("synth_source_id", default.synth_source_id),
        physical_sample_id=sample_id,
        project_id=read.get("project_id", default.project_id),
        physical_sample=name,
        tags=read.get("tags", default.tags),
        track_sample=read.get("track_sample", False),
    )
    has_sample = bool(name or sample_id)
    if links.track_sample and not (has_sample and (links.project_id or defaults is None)):
        raise MetadataError(
            f"metadata 'track_sample' is True, and no {'project' if has_sample else 'physical sample'} is named; a "
            f"project tracks a sample: give both `project_id` and `physical_sample`, or leave `track_sample` out"
        )
    return links


def run_label(start: Mapping[str, Any], template: str) -> str:
    """Return a run's readable name by a template such as `"{plan_name} {scan_id} {date}"`. Never fails.

    The name has up to 200 characters. `{date}` is the day of the start document's time in the local time zone. A key
    that is not in the document gives an empty text.
    """
    try:
        text = template.format_map(_Start(start))
    except Exception:  # noqa: BLE001 - formats foreign objects, which may do anything
        plan_name = start.get("plan_name")
        text = plan_name if isinstance(plan_name, str) else ""
    return shortened(one_line(text) or "run", 200)


def content_digest(start: Mapping[str, Any]) -> str:
    """Return a digest that tells apart two start documents of one uid.

    The digest is the same for a document and its stored copy. Of a document with more than `MOST_DIGESTED` values,
    large parts count only with their size and beginning, because the plan waits meanwhile.
    """
    options = orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS
    text = b""
    left = MOST_DIGESTED
    for key in sorted(start, key=str):
        value = start[key]
        size = _size(value, left)
        if size is None:
            value = _outline(value)
        else:
            left -= size
        try:
            text += orjson.dumps([str(key), value], default=_placeholder, option=options)
        except orjson.JSONEncodeError:  # cyclic, too deep for the encoder, or a number beyond 64 bits
            text += str(key).encode(errors="replace")
    return hashlib.sha256(text).hexdigest()[:16]


def _size(value: object, limit: int) -> int | None:
    """Return how many values an object holds, a text counting one per 64 characters; None if more than `limit`.

    An array counts like the lists that it is stored as. The time taken depends on the limit, not on the object's size.
    """
    size, left = 0, [value]
    while left:
        one = left.pop()
        size += 1
        if isinstance(one, str | bytes | bytearray):
            size += len(one) // 64
        elif isinstance(one, np.ndarray):
            lists = 1
            for length in one.shape:
                lists *= length
                size += lists
        elif isinstance(one, Mapping | list | tuple):
            if len(one) > limit - size:
                return None
            left.extend(one.values() if isinstance(one, Mapping) else one)
        if size > limit:
            return None
    return size


def _outline(value: object, depth: int = 3) -> object:
    """Return what stands for a large object: its size and its beginning. An array gives the same as equal lists."""
    if isinstance(value, str):
        return value if len(value) <= MAX_LOOKED_AT else [len(value), value[:MAX_LOOKED_AT]]
    if isinstance(value, Mapping):
        if not depth or len(value) > _FIRST:
            return ["mapping", len(value)]
        return {str(key): _outline(one, depth - 1) for key, one in value.items()}
    if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim):
        first = [_outline(one, depth - 1) for one in value[:_FIRST]] if depth else []
        return [len(value), *first]
    return value


def _placeholder(value: object) -> object:
    """Return what stands for an object that the encoder does not take.

    Numpy's arrays and numbers give what a stored copy has. Anything else gives its type's name, because its repr may
    contain a memory address.
    """
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else type(value).__name__


class _Start(dict[str, Any]):
    """A start document as a template reads it."""

    def __init__(self, start: Mapping[str, Any]) -> None:
        super().__init__(start)
        time = start.get("time")
        if isinstance(time, int | float):
            self.setdefault("date", datetime.fromtimestamp(time).astimezone().strftime("%Y-%m-%d"))

    def __missing__(self, key: str) -> str:
        return ""


def _shown(value: object) -> str:
    """Return a value as an error shows it: short, on one line, without control characters."""
    try:
        text = repr(value) if _size(value, _FIRST * _FIRST) else f"a {type(value).__name__} of {len(value)}"  # type: ignore[arg-type]
    except Exception:  # noqa: BLE001 - a foreign object's repr may do anything
        text = f"<{type(value).__name__}>"
    return shortened(text, 80)


def _absent(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _integer(name: str, value: object) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        number = int(value.strip()) if isinstance(value, str) else operator.index(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise MetadataError(f"metadata {name!r} is {_shown(value)}; expected a whole number such as 42") from None
    return number


def _source_id(name: str, value: object) -> int:
    number = _integer(name, value)
    if not 0 <= number < 2**31:
        raise MetadataError(f"metadata {name!r} is {_shown(number)}; expected the id of a growth instrument, 0 or more")
    return number


def _points(name: str, value: object) -> int:
    number = _integer(name, value)
    if not 1 <= number <= 100_000:
        raise MetadataError(f"metadata {name!r} is {_shown(number)}; expected 1 to 100000")
    return number


def _checked(read: Callable[[object], Any]) -> Callable[[str, object], Any]:
    """Return a reader whose errors name the metadata's key."""

    def reader(name: str, value: object) -> Any:
        try:
            return read(value)
        except ValueError as error:
            raise MetadataError(f"metadata {name!r} is {_shown(value)}; {error}") from None

    return reader


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise MetadataError(f"metadata {name!r} is {_shown(value)}; expected True or False")
    return bool(value)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise MetadataError(f"metadata {name!r} is {_shown(value)}; expected printable text on one line")
    return shortened(value.strip(), 200)


_READERS: dict[str, Callable[[str, Any], Any]] = {
    "synth_source_id": _source_id,
    "physical_sample": _checked(name_of),
    "physical_sample_id": _checked(uuid_of),
    "project_id": _checked(uuid_of),
    "tags": _checked(tags_of),
    "track_sample": _flag,
    "stream_name": _text,
    "points_per_chunk": _points,
}
