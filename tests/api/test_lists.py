"""The API's lists, a piece at a time: each element is read as JSON has it, and a plan is not held up meanwhile."""

from __future__ import annotations

import json
import re
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atomscale_bluesky import ApiTooLargeError, Settings
from atomscale_bluesky.api import lists
from atomscale_bluesky.api.answers import AnswerError, Entry, Item, read_initialized
from atomscale_bluesky.api.client import Client
from atomscale_bluesky.api.json_parts import STEP_BYTES, JsonParts, TooMuchError
from atomscale_bluesky.server import Fault, LocalServer

SAMPLES = [{"id": f"{n:032x}", "name": f"GaN-{n}", "notes": 'x, "[y]"', "projects": []} for n in range(10_000)]
MakeClient = Callable[[Callable[[], None]], Client]
Ask = Callable[[Client], object]
TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
ANYTHING = st.recursive(st.none() | st.booleans() | st.integers(-5, 2**53) | TEXT, lambda inner: st.lists(inner))
ITEMS = st.fixed_dictionaries({"id": st.from_regex(r"[0-9a-z-]{1,30}", fullmatch=True)}, optional={"name": TEXT})


@pytest.fixture
def make_client(server: LocalServer) -> Iterator[MakeClient]:
    made: list[Client] = []

    def make(make_way: Callable[[], None]) -> Client:
        settings = Settings.load(environ={}, endpoint=server.url, api_key=server.api_key)
        made.append(Client(settings, make_way=make_way))
        return made[-1]

    yield make
    for client in made:
        client.close()


def parts_of(body: bytes, size: int = 2**16) -> Iterator[bytes]:
    return (body[at : at + size] for at in range(0, len(body), size))


# ---- a plan is not held up -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "ask", "found"),
    [
        ("samples", lambda client: len(client.samples()), 10_000),
        ("projects", lambda client: len(client.projects()), 10_000),
        ("tags", lambda client: len(client.tags()), 10_000),
        ("instruments", lambda client: client.instruments(), {}),
        ("catalogue", lambda client: client.find_entry("a label"), None),
    ],
)
def test_a_long_list_is_read_with_a_pause_after_every_step(
    make_client: MakeClient, server: LocalServer, call: Any, ask: Ask, found: object
) -> None:
    body = json.dumps(SAMPLES)
    server.misbehave(Fault(call=call, body=body))
    pauses: list[int] = []

    assert ask(make_client(lambda: pauses.append(1))) == found
    assert len(pauses) > 0.7 * len(body) / STEP_BYTES


def test_a_list_of_a_million_elements_is_not_read_to_its_end(make_client: MakeClient, server: LocalServer) -> None:
    server.misbehave(Fault(call="catalogue", body="[" + "{}," * 1_000_000 + "{}]"))

    with pytest.raises(ApiTooLargeError, match="more than 100000 elements"):
        make_client(lambda: None).find_entry("a label")


def test_what_is_not_kept_of_a_long_list_takes_no_memory() -> None:
    element = b'{"data_id": "no id!", "tags": [%b 7]},' % (b"{}," * 30)
    parts = [b"["] + [element * 500] * 199 + [b"7]"]
    tracemalloc.start()
    try:
        assert list(lists.read_entries(parts)) == []
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 2**20


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_an_element_that_is_too_large_is_passed_over_and_said(at: int) -> None:
    small = [b'{"data_id": "a"}', b'{"data_id": "b", "x": [1, [2]]}', b'{"data_id": "c"}']
    large = b'{"data_id": "d", "x": [%b 7], "y": "%b"}' % (b"{}," * 2**17, b"," * 2**18)
    read: list[Entry] = []
    body = b"[" + b" , ".join([*small[:at], large, large, *small[at:]]) + b"]"

    with pytest.raises(TooMuchError, match="more than 262144 bytes"):
        read.extend(lists.read_entries(parts_of(body, 5000)))  # keeps what came before the error
    assert [entry.data_id for entry in read] == ["a", "b", "c"]


def test_an_entry_is_found_beside_one_that_is_too_large(make_client: MakeClient, server: LocalServer) -> None:
    large = {"data_id": "another", "raw_name": "another label", "notes": "x" * 2**19}
    wanted = {"data_id": "wanted", "raw_name": "a label"}
    server.misbehave(Fault(call="catalogue", times=1, body=json.dumps([large, wanted, large])))
    server.misbehave(Fault(call="catalogue", body=json.dumps([large])))
    client = make_client(lambda: None)

    found = client.find_entry("a label")
    assert found is not None
    assert found.data_id == "wanted"
    with pytest.raises(ApiTooLargeError, match="more than 262144 bytes"):
        client.find_entry("a label")


# ---- what is read ----------------------------------------------------------------------------------------------------


@given(
    elements=st.lists(ITEMS | ANYTHING | st.dictionaries(TEXT.map("_".__add__), ANYTHING, max_size=3), max_size=30),
    size=st.integers(1, 40),
    indent=st.none() | st.integers(0, 2),
    ascii_only=st.booleans(),
)
def test_any_list_in_any_parts_reads_as_json_does(
    elements: list[Any], size: int, indent: int | None, ascii_only: bool
) -> None:
    body = json.dumps(elements, indent=indent, ensure_ascii=ascii_only).encode()
    items = [one for one in elements if isinstance(one, dict) and "id" in one]

    assert lists.read_items(parts_of(body, size)) == [Item(one["id"], one.get("name", "")) for one in items]


def test_a_list_of_a_hundred_thousand_elements_is_read_and_no_longer_one() -> None:
    body = b"[" + b'{"id":"a"},' * 99_999 + b'{"id":"b"}]'

    assert lists.read_items(parts_of(body))[-2:] == [Item("a", ""), Item("b", "")]
    with pytest.raises(TooMuchError):
        lists.read_items(parts_of(b"[7," + body[1:]))


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[", b"]", b"{}", b"7", b"null", b"<html>", b"[,]", b"[7,]", b"[,7]", b"[7,,7]", b"[7 7]", b"[7]]",
        b"[7}", b'[{"id": "a"]', b'[{"id": "a"}', b"[7] 7", b'["\xff"]', b"[" * 2000 + b"]" * 2000, b"[oops]",
    ],
)  # fmt: skip
def test_what_is_no_list_in_json_is_no_answer(body: bytes) -> None:
    for size in (1, 2**16):
        with pytest.raises(AnswerError):
            lists.read_items(parts_of(body, size))


def test_an_object_has_up_to_so_many_members_and_all_objects_together_no_more() -> None:
    def names(text: bytes, max_members: int) -> list[list[str]]:
        parts = JsonParts([text], lambda: None, max_members)
        found: list[list[str]] = []
        for _ in parts.elements():
            found.append([])
            for name in parts.members():
                found[-1].append(name)
                parts.skip()
        return found

    text = b'[{"a": 1, "b": [2]}, {}, {"a": "x"}]'
    assert names(text, 3) == [["a", "b"], [], ["a"]]
    with pytest.raises(TooMuchError, match="more series than a stream can have"):
        names(text, 2)


def test_an_answer_that_is_no_json_is_shown_by_its_first_sixty_bytes() -> None:
    body = b"<html>" + bytes(range(97, 123)) * 4
    with pytest.raises(AnswerError, match=re.escape(f"the answer is no JSON: {body[:60]!r}") + "$"):
        read_initialized(body)
