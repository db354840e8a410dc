"""The forms in which programs write a document: its shape in JSON or MessagePack, and a bus's message. Pure."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from ..errors import AtomscaleBlueskyError

Document = tuple[str, dict[str, Any]]

_SHAPES = (("name", "doc"), ("type", "document"), ("name", "document"), ("type", "doc"))
KINDS = {
    *("start", "descriptor", "event", "event_page", "bulk_events", "stop"),
    *("resource", "datum", "datum_page", "bulk_datum", "stream_resource", "stream_datum"),
}
# How a pickle begins: the protocols that any Python of today writes.
_PICKLED = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))
# A document as MessagePack, in the shape in which nearly all are sent: an array of two.
_OF_TWO = b"\x92"
_DOCUMENT = msgspec.msgpack.Decoder(Document)
_UNUSUAL = (msgspec.MsgspecError, ValueError, RecursionError)


class MessageError(AtomscaleBlueskyError, ValueError):
    """A message of a bus is no document."""


def as_document(found: object) -> Document | None:
    """Return a document from any of the shapes in which one is written, or None."""
    name: object = None
    doc: object = None
    if isinstance(found, list | tuple) and len(found) == 2:
        name, doc = found
    elif isinstance(found, dict):
        for name_key, doc_key in _SHAPES:
            if name_key in found and doc_key in found:
                name, doc = found[name_key], found[doc_key]
                break
        else:
            if len(found) == 1 and next(iter(found)) in KINDS:
                ((name, doc),) = found.items()
    return (name, doc) if isinstance(name, str) and isinstance(doc, dict) else None


def document_in(body: bytes, *, name: str | None = None, trust_pickle: bool = False) -> Document:
    """Return the document in a message's body: JSON, MessagePack, or a pickle if the sender is trusted.

    Args:
        body: The message.
        name: The document's name, if it stands elsewhere in the message. Then the body may be the document alone, or
            have the name once more.
        trust_pickle: Read pickles. Reading one can run any code, with the rights of this process.

    Raises:
        MessageError: The body is none of these, or holds something else. Says what.
    """
    if name is None and body[:1] == _OF_TWO and not _may_have_numpy(body):
        try:
            return _DOCUMENT.decode(body)
        except _UNUSUAL:
            pass  # another shape, or none
    found = _read(body, trust_pickle=trust_pickle)
    document = as_document(found)
    if name is not None and isinstance(found, dict) and name in KINDS:
        is_whole = document is not None and document[0] in KINDS and "uid" not in found
        return document if document is not None and is_whole else (name, found)
    if document is None:
        raise MessageError(f"a message is no document but a {type(found).__name__}")
    return document


def _read(body: bytes, *, trust_pickle: bool) -> object:
    if body.startswith(_PICKLED):
        if not trust_pickle:
            raise MessageError(
                "a message is pickled, and reading a pickle can run any code: have it sent as JSON or MessagePack, or, "
                "if everybody who can send there is trusted, give --trust-pickle"
            )
        try:
            return pickle.loads(body)  # noqa: S301 - the operator trusts the sender
        except Exception as error:
            raise MessageError(f"a message is a pickle that cannot be read ({type(error).__name__})") from error
    if body[:1] >= b"\x80":
        if not _may_have_numpy(body):
            try:
                return msgspec.msgpack.decode(body)
            except _UNUSUAL:
                pass  # msgpack reads more, such as text that is not UTF-8, and names what it cannot read
        import msgpack

        try:
            return msgpack.unpackb(body, strict_map_key=False, object_hook=from_numpy, unicode_errors="surrogateescape")
        except (msgpack.UnpackException, ValueError, TypeError) as error:
            raise MessageError(f"a message is no MessagePack ({type(error).__name__})") from error
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise MessageError(f"a message is neither JSON nor MessagePack ({type(error).__name__})") from error


def _may_have_numpy(body: bytes) -> bool:
    """Return False if no mapping in a MessagePack has the key `nd`, which `msgpack-numpy` writes into each of its own.

    A text or bytes of two characters begin with 0xA2, or with a length of which the last byte is 2.
    """
    return b"nd" in body and (b"\xa2nd" in body or b"\x02nd" in body)


def from_numpy(found: dict[Any, Any]) -> object:
    """Return the array or number for which `msgpack-numpy` wrote a mapping; any other mapping unchanged.

    An array of objects is a pickle, which may do anything when it is read. It stays a mapping, which is no number.

    Raises:
        ValueError: The mapping says that it is an array or number, and is none.
    """
    is_array = _member(found, "nd")
    if not isinstance(is_array, bool) or _member(found, "kind") in {b"O", "O"}:
        return found
    if _member(found, "data") is None or _member(found, "type") is None:
        return found  # a plan's own key of this name, such as a filter's
    try:
        data = _member(found, "data")
        if isinstance(data, str):  # written by a msgpack that knew no bytes
            data = data.encode(errors="surrogateescape")
        values = np.frombuffer(data, dtype=_dtype(_member(found, "type")))
        return values.reshape(_member(found, "shape")) if is_array else values[0]
    except Exception as error:  # numpy reads some types as Python code, and no number has no bytes
        raise ValueError(f"an array or number of numpy cannot be read: {type(error).__name__}") from error


def _member(found: Mapping[Any, Any], name: str) -> Any:
    return found.get(name.encode(), found.get(name))


def _dtype(described: Any) -> np.dtype[Any]:
    if isinstance(described, list | tuple):
        return np.dtype([(_text(name), _dtype(kind), *map(tuple, shape)) for name, kind, *shape in described])
    dtype = np.dtype(_text(described))
    if dtype.hasobject:
        raise ValueError("an array of objects")
    return dtype


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
