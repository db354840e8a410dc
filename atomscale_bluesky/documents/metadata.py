"""Reads from a start document how to initialize the run's streams. Pure.

The keys are `synth_source_id`, `physical_sample` or `physical_sample_id`, `project_id`, `tags`, `track_sample`,
`stream_name` and `points_per_chunk`. They are read in two places:

    the dict under `atomscale`         all of it is ours; None and the empty text mean that there is none
    the top level of the document      a facility may use the same words for its own purposes, so a value is ours only
                                       if it can be; None, the empty text and the NaN of an empty cell count as absent

The dict wins. Numbers may come as text, whole floats or numpy's.

Everything else in a start document stays on this machine, and may be of any kind.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

import msgspec
import numpy as np

from ..errors import MetadataError
from ..model.identifiers import is_nearly_uuid, is_uuid, name_of, tags_of, uuid_of
from ..model.labels import one_line, shortened
from ..model.links import Links
from ..model.metadata_keys import ALL_OTHERS, METADATA_KEYS, NAMESPACE, nearest_key

# A value with more values than this is shown only by its type and size.
_MAX_VALUE_SHOWN = 400
# A number beyond this is no sample's name.
_MAX_NUMBER_AS_NAME = 10**18
_SAMPLE = frozenset({"physical_sample", "physical_sample_id"})
# Keys whose value is an id, or may be one.
_IDS = _SAMPLE | {"project_id"}
# Up to this many unknown keys of the dict are reported.
_MAX_UNKNOWN_KEYS = 5


class RunMetadata(msgspec.Struct, frozen=True):
    """What a run's metadata say about its metrology streams."""

    links: Links
    label: str | None  # from the run's metadata; None if the template applies
    points_per_chunk: int | None
    # Keys of the start document whose values are another program's, each with what was expected of it.
    not_ours: tuple[tuple[str, str], ...] = ()
    # Our keys whose values cannot be used, each with the reason. A key of the dict `atomscale` that we do not know is
    # listed under `atomscale`. No default replaces such a value.
    unusable: tuple[tuple[str, str], ...] = ()

    @property
    def problem(self) -> str | None:
        """Why the metadata cannot be used as they are; None if they can."""
        return "; and ".join(why for _, why in self.unusable) or None


def read_metadata(
    start: Mapping[str, Any], defaults: Links | None = None, keys: Mapping[str, str] | None = None
) -> RunMetadata:
    """Return what a start document, or the metadata that will become one, say about the run's streams.

    Args:
        start: The document, or the metadata.
        defaults: The links of a run for which the metadata name none; None if that is not known.
        keys: The setting `metadata_keys`.

    Raises:
        MetadataError: A value that is certainly meant for us cannot be used: one in the dict `atomscale`, of a key that
            `keys` names, of `synth_source_id`, or one that is nearly a UUID. Or the dict has an unknown key.
    """
    metadata = read_what_is_usable(start, defaults, keys)
    if metadata.problem is not None:
        raise MetadataError(metadata.problem)
    return metadata


def read_what_is_usable(
    start: Mapping[str, Any], defaults: Links | None = None, keys: Mapping[str, str] | None = None
) -> RunMetadata:
    """Return the same as `read_metadata`, but refuse nothing: `unusable` names what cannot be used."""
    keys = keys or {}
    found = _Findings()
    nested = _our_dict(start, found)
    # Two keys for the same thing: whichever of them the dict has, it decides about both.
    decided = nested.keys() | (_SAMPLE if nested.keys() & _SAMPLE else set())
    for name in METADATA_KEYS:
        if name in decided:
            found.read_strictly(name, nested.get(name))
            continue
        key = keys.get(name, keys.get(ALL_OTHERS, name))
        value = None if key == NAMESPACE else start.get(key)
        if _is_absent(value):
            continue
        if name in keys:
            found.read_strictly(name, value, key)
        else:
            found.read_if_ours(name, value, key)
    for name in found.unusable:
        found.values.setdefault(name, None)  # what was meant is not the default
    return RunMetadata(
        links=_links(found, defaults),
        label=found.values.get("stream_name"),
        points_per_chunk=found.values.get("points_per_chunk"),
        not_ours=tuple(found.not_ours.items()),
        unusable=tuple(found.unusable.items()),
    )


class _Findings:
    """What was found in a start document."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}  # what was read; None where the dict says that there is none
        self.surely_ours: set[str] = set()  # what is certainly meant for us
        self.not_ours: dict[str, str] = {}  # key of the start document → why its value is not ours
        self.unusable: dict[str, str] = {}  # key of ours → why its value, which is ours, cannot be used

    def read_strictly(self, name: str, value: object, key: str = "") -> None:
        """Read a value that is meant for us."""
        self.surely_ours.add(name)
        try:
            self.values[name] = None if _is_absent(value) else _READERS[name](key or name, value)
        except MetadataError as error:
            self.unusable[name] = str(error)
        except Exception as error:  # noqa: BLE001 - a foreign object may do anything when it is asked for its value
            self.unusable[name] = _unreadable(key or name, error)

    def read_if_ours(self, name: str, value: object, key: str) -> None:
        """Read a value at the top level, which may be another program's."""
        try:
            self.values[name] = _READERS[name](key, value)
        except Exception as error:  # noqa: BLE001 - a foreign object may do anything when it is asked for its value
            why = str(error) if isinstance(error, MetadataError) else _unreadable(key, error)
            if name == "synth_source_id" or (name in _IDS and is_nearly_uuid(value)):
                self.unusable[name] = why  # no other program uses the word, or it is a typing error
            else:
                self.not_ours[key] = why

    def reject(self, name: str, why: str) -> None:
        """Reject a value that contradicts another: as unusable if it is certainly ours, else as another program's."""
        if name in self.surely_ours:
            self.unusable[name] = why
        else:
            self.not_ours[name] = why
            self.values.pop(name, None)


def _unreadable(key: str, error: Exception) -> str:
    return f"metadata {key!r} cannot be read: {type(error).__name__}"


def _our_dict(start: Mapping[str, Any], found: _Findings) -> Mapping[str, Any]:
    """Return the dict of our keys within a start document, empty if there is none."""
    nested = start.get(NAMESPACE)
    if nested is None:
        return {}
    if not isinstance(nested, Mapping):
        found.unusable[NAMESPACE] = f"metadata {NAMESPACE!r} is {_shown(nested)}; expected a dict, or leave it out"
        return {}
    for key in sorted(str(key) for key in nested if key not in _READERS)[:_MAX_UNKNOWN_KEYS]:
        meant = nearest_key(key)
        why = f"metadata {NAMESPACE!r} holds {_shown(key)}, which means nothing here; "
        if meant is None or meant in nested:
            found.unusable.setdefault(NAMESPACE, f"{why}it may hold {', '.join(_READERS)}")
        else:
            found.unusable.setdefault(meant, f"{why}was {meant!r} meant?")
    return nested


def _links(found: _Findings, defaults: Links | None) -> Links:
    values, default = found.values, defaults or Links()
    if values.keys() & _SAMPLE:
        name, sample_id = _one_sample(found)
    else:
        name, sample_id = default.physical_sample, default.physical_sample_id
    links = Links(
        synth_source_id=values.get("synth_source_id", default.synth_source_id),
        physical_sample_id=sample_id,
        project_id=values.get("project_id", default.project_id),
        physical_sample=name,
        tags=values.get("tags", default.tags) or (),
        track_sample=values.get("track_sample") or False,
    )
    if found.unusable.keys() & _IDS:
        return links  # whether the project can track the sample is seen when both can be read
    return _with_checked_tracking(links, found, any_project=defaults is None)


def _one_sample(found: _Findings) -> tuple[str | None, str | None]:
    """Return the name and the id of the physical sample, of which at most one is not None.

    An id in the place of the name counts as an id. Of two that contradict each other, the one that may be another
    program's is rejected. If both are ours, neither is used: it is not known which of them was meant.
    """
    name, sample_id = found.values.get("physical_sample"), found.values.get("physical_sample_id")
    if name is not None and sample_id is not None and name != sample_id:
        why = (
            f"metadata 'physical_sample' is {_shown(name)} and 'physical_sample_id' is {_shown(sample_id)}; "
            f"name one physical sample, in one of them"
        )
        doubtful = "physical_sample" if "physical_sample" not in found.surely_ours else "physical_sample_id"
        found.reject(doubtful, why)
        if doubtful in found.unusable:
            return None, None
        name, sample_id = found.values.get("physical_sample"), found.values.get("physical_sample_id")
    return (None, name) if name is not None and is_uuid(name) else (name, sample_id)


def _with_checked_tracking(links: Links, found: _Findings, *, any_project: bool) -> Links:
    """Return links that track the sample only if they name one, and a project, which `any_project` supplies."""
    has_sample = bool(links.physical_sample or links.physical_sample_id)
    if not links.track_sample or (has_sample and (links.project_id or any_project)):
        return links
    found.reject(
        "track_sample",
        f"metadata 'track_sample' is True, and no {'project' if has_sample else 'physical sample'} is named; a "
        f"project tracks a sample: give both `project_id` and `physical_sample`, or leave `track_sample` out",
    )
    return links if "track_sample" in found.unusable else msgspec.structs.replace(links, track_sample=False)


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
        text = repr(value) if _size(value, _MAX_VALUE_SHOWN) else f"a {type(value).__name__} of {len(value)}"  # type: ignore[arg-type]
    except Exception:  # noqa: BLE001 - a foreign object's repr may do anything
        text = f"<{type(value).__name__}>"
    return shortened(text, 80)


def _is_absent(value: object) -> bool:
    """Return True for None, blank text, and the NaN that a spreadsheet's empty cell gives."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def _integer(name: str, value: object) -> int:
    try:
        number = _whole_number(value)
    except (TypeError, ValueError, ArithmeticError):
        raise MetadataError(f"metadata {name!r} is {_shown(value)}; expected a whole number such as 42") from None
    return number


def _whole_number(value: object) -> int:
    """Return a whole number, which a spreadsheet may have made a float: 42.0 is 42."""
    if isinstance(value, bool | np.bool_):
        raise TypeError
    if isinstance(value, str):
        text = value.strip()
        whole, point, rest = text.partition(".")
        return int(whole if point and rest and not rest.strip("0") else text)
    if isinstance(value, float | np.floating | Decimal):
        if value != int(value):
            raise ValueError
        return int(value)
    return operator.index(value)  # type: ignore[arg-type]


def _name(value: object) -> str:
    """Return the name of a sample. A number is a name too: a spreadsheet makes 1234 of the name "1234"."""
    if isinstance(value, Decimal | np.floating):
        value = float(value)
    if isinstance(value, int | float | np.integer) and not isinstance(value, bool):
        if isinstance(value, float) and not value.is_integer():
            return name_of(str(value) if math.isfinite(value) else None)
        return name_of(str(int(value)) if abs(value) < _MAX_NUMBER_AS_NAME else None)
    return name_of(value)


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


def _naming_key(read: Callable[[object], Any]) -> Callable[[str, object], Any]:
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
    "physical_sample": _naming_key(_name),
    "physical_sample_id": _naming_key(uuid_of),
    "project_id": _naming_key(uuid_of),
    "tags": _naming_key(tags_of),
    "track_sample": _flag,
    "stream_name": _text,
    "points_per_chunk": _points,
}
