"""Reads from a descriptor document what is used of it, in the form in which the journal keeps it. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

from ..model.text import cut_to_bytes, encodable
from ..spool.journal_format import DataKey, Described
from ..spool.lines import encode
from .descriptor import choices_of, hinted, mapping_of

# No array is so long. A number with thousands of digits could not be written.
MAX_LENGTH = 2**53
MAX_NAME = 255  # characters, and also bytes, since the API does not say which it counts


class Description(NamedTuple):
    """What a descriptor says about the data keys of its event stream. Other descriptors may say the same."""

    event_stream: str
    data_keys: dict[str, DataKey]
    hinted: tuple[str, ...] = ()
    nameless: tuple[str, ...] = ()  # the types of data keys that are no text, and so cannot be kept

    @property
    def content(self) -> Hashable:
        """All of it, as a key of a dictionary."""
        return self.event_stream, tuple(self.data_keys.items()), self.hinted, self.nameless


def description_of(descriptor: Mapping[str, Any], name: str) -> Description:
    """Return what is used of a descriptor. A malformed member counts as missing."""
    data_keys: dict[str, DataKey] = {}
    nameless: list[str] = []
    for key, described in mapping_of(descriptor.get("data_keys")).items():
        if isinstance(key, str):
            data_keys[key] = _data_key(mapping_of(described))
        else:
            nameless.append(type(key).__name__)
    return Description(name, data_keys, tuple(sorted(hinted(descriptor))), tuple(nameless))


def descriptor_lines(uid: str, description: Description) -> list[bytes]:
    """Return the line for a journal of the descriptor with this uid, twice: a run cannot be resumed without it."""
    line = Described(
        uid=encodable(uid),
        event_stream=encodable(description.event_stream),
        data_keys={encodable(key): _writable(described) for key, described in description.data_keys.items()},
        hinted=tuple(map(encodable, description.hinted)),
    )
    return [encode(line)] * 2


def _writable(described: DataKey) -> DataKey:
    """Return the same, of texts that a file can hold: plain ones, without lone surrogates."""
    return DataKey(
        dtype=None if described.dtype is None else encodable(described.dtype),
        units=described.units,
        length=described.length,
        choices=tuple(map(encodable, described.choices)),
        external=described.external,
    )


def _data_key(described: Mapping[str, Any]) -> DataKey:
    units, dtype, shape = described.get("units"), described.get("dtype"), described.get("shape")
    length = shape[0] if isinstance(shape, list | tuple) and len(shape) == 1 else None
    return DataKey(
        dtype=dtype if isinstance(dtype, str) else None,
        units=cut_to_bytes(encodable(units), MAX_NAME) if isinstance(units, str) and units.strip() else None,
        length=length if type(length) is int and dtype == "array" and 0 <= length < MAX_LENGTH else None,
        choices=tuple(choices_of(described)),
        external=bool(described.get("external")),
    )
