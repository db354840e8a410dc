"""The forms of a bus's message: the quick way of reading MessagePack gives what the general one gives."""

from __future__ import annotations

from typing import Any

import hypothesis
import hypothesis.strategies as st
import msgpack
import msgpack_numpy
import numpy as np
import pytest

from atomscale_bluesky.sources.forms import MessageError, document_in

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.sampled_from(["nd", "wind", "\x02nd", "data"])
    | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.integers(0, 9), inner, max_size=4),
    max_leaves=12,
)
DOCUMENTS = st.dictionaries(st.sampled_from(["data", "timestamps", "uid", "wind", "end"]) | st.text(), VALUES)


@hypothesis.settings(max_examples=50)
@hypothesis.given(DOCUMENTS, st.booleans())
def test_a_document_reads_back_in_either_shape(doc: dict[str, Any], as_array: bool) -> None:
    body = msgpack.packb(["event", doc] if as_array else {"name": "event", "doc": doc})

    assert document_in(body) == ("event", doc)
    assert document_in(msgpack.packb(doc), name="event") == ("event", doc)


@pytest.mark.parametrize("keys", [("name", "doc"), ("type", "document")])
def test_a_body_may_have_the_name_that_its_subject_has(keys: tuple[str, str]) -> None:
    described = {"uid": "d", "name": "primary", "doc": {}}  # a document with a member of its own called so

    for doc in ({"uid": "u"}, described):
        body = msgpack.packb(dict(zip(keys, ("descriptor", doc), strict=True)))
        assert document_in(body, name="descriptor") == ("descriptor", doc)
        assert document_in(msgpack.packb({"descriptor": doc}), name="descriptor") == ("descriptor", doc)
        assert document_in(msgpack.packb(doc), name="descriptor") == ("descriptor", doc)


@pytest.mark.parametrize("value", [np.float32(2.5), np.arange(6.0).reshape(2, 3), np.int16(-3), np.array(["wind"])])
@pytest.mark.parametrize("use_bin_type", [True, False])
def test_a_value_of_numpy_reads_back_with_its_type(value: Any, use_bin_type: bool) -> None:
    body = msgpack.packb(("event", {"data": {"k": value}}), default=msgpack_numpy.encode, use_bin_type=use_bin_type)

    _, doc = document_in(body)
    assert doc["data"]["k"].dtype == value.dtype
    assert np.array_equal(doc["data"]["k"], value)


@pytest.mark.parametrize("mapping", [{"nd": True}, {"nd": False, "data": 1.0}, {b"nd": True, b"type": "<f8"}])
def test_a_mapping_that_has_only_a_key_of_numpys_is_somebodys_own(mapping: dict[Any, Any]) -> None:
    assert document_in(msgpack.packb(["start", {"filters": mapping}])) == ("start", {"filters": mapping})


@pytest.mark.parametrize(
    "value",
    [
        {"nd": False, "type": "<f8", "data": b""},
        {"nd": True, "type": ",", "data": b"\0" * 8, "shape": [1]},
        {"nd": True, "type": "<f8", "data": b"\0" * 8, "shape": [2]},
        {"nd": True, "type": [["a"]], "data": b"\0" * 8, "shape": [1]},
    ],
)
def test_a_value_that_numpy_cannot_read_makes_no_document(value: dict[str, Any]) -> None:
    with pytest.raises(MessageError, match="a message is no MessagePack"):
        document_in(msgpack.packb(["event", {"data": {"k": value}}]))


def test_text_that_is_not_utf_8_is_read_and_kept() -> None:
    name, doc = document_in(b"\x92\xa5event\x81\xa4text\xa2\xff\xfe")

    assert (name, doc["text"].encode(errors="surrogateescape")) == ("event", b"\xff\xfe")


@pytest.mark.parametrize(
    "body", [b"\x92", b"\x92\xa5event", b"\x92\xa5event\x01", b"\x92\x01\x80", b"\x92\xa5event\x80\x00", b"\x91" * 5000]
)
def test_what_is_no_document_is_named(body: bytes) -> None:
    with pytest.raises(MessageError, match="a message is no"):
        document_in(body)
