"""Requests and answers are spelled as the bodies in `tests/api/wire`, which are written from the API's reference."""

from __future__ import annotations

import json
import math
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import orjson
import pytest
from chunks import chunk_of
from hypothesis import given
from hypothesis import strategies as st

from atomscale_bluesky.api import answers, lists, wire
from atomscale_bluesky.api.stream_content import read_points
from atomscale_bluesky.model.chunk import Chunk, Column
from atomscale_bluesky.model.links import Links

WIRE = Path(__file__).parent / "wire"
DATA_ID = "5c1d7e02-9a44-4f0b-8c3e-2b6f1d0a7e35"
SAMPLE = "6f0e2c1a-93c4-4b7e-8d55-0a1b2c3d4e5f"
FAMILIES = pytest.mark.parametrize("family", wire.FAMILIES)


def exchange(name: str) -> dict[str, Any]:
    return json.loads((WIRE / f"{name}.json").read_text())


def assert_spelled(request: wire.Request, exchange: dict[str, Any]) -> None:
    """The request asks what the file says, in the same place."""
    asked, expected = urlsplit("/" + request.path), urlsplit(exchange["path"])
    assert (request.method, asked.path) == (exchange["method"], expected.path)
    assert parse_qs(asked.query) == parse_qs(expected.query)
    assert (None if request.body is None else json.loads(request.body)) == exchange["request"]


def answer(exchange: dict[str, Any]) -> bytes:
    return json.dumps(exchange["response"]).encode()


@pytest.mark.parametrize(("channels", "points"), [(1, 30_000), (3, 10_000), (101, 100), (250, 199), (7, 3)])
def test_a_body_that_is_encoded_in_steps_is_that_of_one_step(channels: int, points: int) -> None:
    columns = [
        Column(f"T{n}", "K" if n % 2 else None, tuple(n + k / 7 for k in range(points))) for n in range(channels)
    ]
    chunk = chunk_of(3, [1.7e9 + k for k in range(points)], columns)
    pauses: list[int] = []

    request = wire.push("metrology", DATA_ID, chunk, pause=lambda: pauses.append(1))

    body = json.loads(request.body or b"")
    assert {name: value for name, value in body.items() if name != "channels"} == {"data_id": DATA_ID, "chunk_index": 3}
    assert [*body["channels"]] == [column.name for column in columns]
    for column in columns:
        series = {"timestamps": list(chunk.times), "values": list(column.values)}
        assert body["channels"][column.name] == series | ({"units": "K"} if column.unit else {})
    at_once = max(1, 10_000 // points)
    assert len(pauses) == (channels - 1) // at_once


def chunk_in(request: dict[str, Any]) -> Chunk:
    """The chunk that a body speaks of."""
    channels = request.get("channels") or {request.get("channel_name"): request}
    times = next(iter(channels.values()))["timestamps"]
    columns = [Column(name, one.get("units"), tuple(one["values"])) for name, one in channels.items()]
    return chunk_of(request["chunk_index"], times, columns)


# ---- requests --------------------------------------------------------------------------------------------------------


@FAMILIES
def test_a_stream_is_initialized_as_the_reference_says(family: str) -> None:
    said = exchange(f"{family}-initialize")
    body = said["request"]

    request = wire.initialize(
        family,
        label=body["stream_name"],
        points_per_chunk=body["points_per_chunk"],
        links=Links(body.get("synth_source_id"), body.get("physical_sample_id"), body.get("project_id")),
    )

    assert_spelled(request, said)
    assert answers.read_initialized(answer(said)) == said["response"]["data_id"]


@FAMILIES
def test_links_that_a_run_does_not_have_are_not_in_the_body(family: str) -> None:
    request = wire.initialize(family, label="growth", points_per_chunk=100, links=Links())

    assert json.loads(request.body or b"") == {"stream_name": "growth", "points_per_chunk": 100}


def test_only_the_documented_family_is_given_the_physical_sample_at_once() -> None:
    for family, expected in (("metrology", SAMPLE), ("tool-state", None)):
        request = wire.initialize(family, label="x", points_per_chunk=1, links=Links(physical_sample_id=SAMPLE))

        assert json.loads(request.body or b"").get("physical_sample_id") == expected


def test_a_source_whose_number_is_zero_is_a_source() -> None:
    request = wire.initialize("metrology", label="x", points_per_chunk=1, links=Links(synth_source_id=0))

    assert json.loads(request.body or b"")["synth_source_id"] == 0


def test_a_physical_sample_is_linked_as_the_reference_says() -> None:
    said = exchange("data-entries-physical-sample")

    assert_spelled(wire.link_sample(said["request"]["data_ids"][0], said["request"]["physical_sample_id"]), said)


def test_samples_projects_and_tags_are_listed_as_the_reference_says() -> None:
    for name, request in (
        ("physical-samples-list", wire.samples()),
        ("projects-list", wire.projects()),
        ("projects-physical-samples", wire.project_samples("0b9c7c52-4a55-4d0e-9a53-2c1f4b8e7d60")),
        ("tags-list", wire.tags()),
    ):
        said = exchange(name)
        assert_spelled(request, said)
        assert lists.read_items([answer(said)]) == [answers.Item(one["id"], one["name"]) for one in said["response"]]


def test_samples_and_tags_are_created_as_the_reference_says() -> None:
    for name, request in (("physical-samples-create", wire.create_sample), ("tags-create", wire.create_tag)):
        said = exchange(name)
        assert_spelled(request(said["request"]["name"]), said)
        assert answers.read_created(answer(said)) == said["response"]["id"]


def test_a_created_sample_is_read_with_either_name_of_its_id() -> None:
    assert answers.read_created(json.dumps({"physical_sample_id": SAMPLE}).encode()) == SAMPLE


def test_the_refusal_of_a_taken_sample_name_gives_the_existing_samples_id() -> None:
    assert answers.read_existing_sample(answer(exchange("physical-samples-conflict"))) == SAMPLE
    for body in (
        b'{"detail": "taken"}',
        b'{"detail": {}}',
        b"[]",
        b"no",
        b'{"detail": {"physical_sample_id": "../x"}}',
    ):
        assert answers.read_existing_sample(body) is None


def test_tags_tracking_and_names_go_out_as_the_reference_says() -> None:
    attach = exchange("tags-data-items")
    track = exchange("projects-tracking-samples")
    rename = exchange("data-entries-rename")
    assert_spelled(wire.attach_tags(attach["request"]["data_ids"][0], attach["request"]["tag_ids"]), attach)
    assert_spelled(wire.track_sample("0b9c7c52-4a55-4d0e-9a53-2c1f4b8e7d60", SAMPLE, active=False), track)
    assert_spelled(wire.rename(rename["path"].split("/")[-1], rename["request"]["raw_name"]), rename)


@pytest.mark.parametrize(
    ("body", "items"),
    [
        ([], []),
        ([{"id": "../x", "name": "a"}, {"name": "b"}, 7, None, {"id": 5, "name": "c"}], []),
        ([{"id": SAMPLE}], [answers.Item(SAMPLE, "")]),
    ],
)
def test_items_without_a_usable_id_are_skipped(body: Any, items: list[answers.Item]) -> None:
    assert lists.read_items([json.dumps(body).encode()]) == items


@pytest.mark.parametrize("tags", [["anneal"], [{"id": SAMPLE, "name": "anneal"}], [{"name": "anneal"}, None, 7]])
def test_an_entry_has_its_links_in_every_known_shape_of_tags(tags: list[Any]) -> None:
    body = [
        {"data_id": DATA_ID, "synth_source_id": 42, "physical_sample_id": SAMPLE, "projects": [{"id": SAMPLE}],
         "tags": tags}
    ]  # fmt: skip

    (entry,) = lists.read_entries([json.dumps(body).encode()])

    assert entry == answers.Entry(DATA_ID, "", "", 42, SAMPLE, (SAMPLE,), ("anneal",))


@FAMILIES
def test_all_channels_of_a_chunk_are_pushed_as_the_reference_says(family: str) -> None:
    said = exchange(f"{family}-chunk-multi")
    chunk = chunk_in(said["request"])
    data_id = said["request"]["data_id"]

    assert_spelled(wire.push(family, data_id, chunk), said)
    answers.check_confirmed(answer(said), data_id, chunk.index, chunk.names)


@FAMILIES
def test_one_channel_of_a_chunk_is_pushed_as_the_reference_says(family: str) -> None:
    said = exchange(f"{family}-chunk")
    chunk = chunk_in(said["request"])
    data_id = said["request"]["data_id"]

    assert_spelled(wire.push_channel(family, data_id, chunk, chunk.columns[0]), said)
    answers.check_confirmed(answer(said), data_id, chunk.index, chunk.names)


@FAMILIES
def test_a_stream_is_finalized_as_the_reference_says(family: str) -> None:
    said = exchange(f"{family}-finalize")

    assert_spelled(wire.finalize(family, said["response"]["data_id"]), said)
    answers.check_finalized(answer(said), said["response"]["data_id"])


def test_a_stream_is_looked_up_as_the_reference_says() -> None:
    said = exchange("data-entries-finalized")
    (entry,) = said["response"]

    assert_spelled(wire.look_up(entry["data_id"]), said)
    assert list(lists.read_entries([answer(said)])) == [
        answers.Entry(entry["data_id"], entry["raw_name"], entry["pipeline_status"])
    ]


def test_the_catalogue_is_searched_whatever_the_status_of_what_is_found() -> None:
    said = exchange("data-entries")

    request = wire.search("growth & 17 · (2)?")

    assert (request.method, request.body) == (said["method"], None)
    assert urlsplit(request.path).path == urlsplit(said["path"]).path.lstrip("/")
    assert parse_qs(urlsplit(request.path).query) == {"keywords": ["growth & 17 · (2)?"], "status": ["all"]}
    assert [entry.status for entry in lists.read_entries([answer(said)])] == ["stream_active"]


@FAMILIES
def test_points_are_read_back_as_the_reference_says_in_seconds(family: str) -> None:
    said = exchange(f"{family}-timeseries")
    data_id = said["path"].split("/")[2]

    due = {name: len(series["values"]) for name, series in said["response"]["properties"].items()}

    points = read_points([answer(said)], due).points

    assert_spelled(wire.read_back(family, data_id), said)
    for name, series in said["response"]["properties"].items():
        unit, times, values = points[name]
        assert unit == series["units"]
        assert [time * 1000 for time in times if time is not None] == pytest.approx(series["unix_timestamp_ms"])
        assert list(values) == series["values"]


@given(
    values=st.lists(st.none() | st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=5),
    name=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
    unit=st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
)
def test_numbers_and_names_are_sent_exactly_and_as_valid_json(
    values: list[float | None], name: str, unit: str | None
) -> None:
    times = tuple(1_760_000_000.1 + i / 3 for i in range(len(values)))
    chunk = chunk_of(7, times, [Column(name, unit, tuple(values))])
    expected = {"timestamps": list(times), "values": values} | ({} if unit is None else {"units": unit})

    multi = wire.push("metrology", DATA_ID, chunk).body or b""
    single = wire.push_channel("metrology", DATA_ID, chunk, chunk.columns[0]).body or b""

    assert orjson.loads(multi)["channels"] == {name: expected}  # orjson takes no NaN and no Infinity
    assert orjson.loads(single) == {"data_id": DATA_ID, "chunk_index": 7, "channel_name": name, **expected}


def test_a_chunk_with_nan_makes_a_valid_json_body() -> None:
    chunk = chunk_of(0, (1.0, math.inf), [Column("T", None, (math.nan, -math.inf))])

    for request in (
        wire.push("metrology", DATA_ID, chunk),
        wire.push_channel("metrology", DATA_ID, chunk, chunk.columns[0]),
    ):
        assert b"NaN" not in (request.body or b"")
        orjson.loads(request.body or b"")


# ---- answers ---------------------------------------------------------------------------------------------------------

LOGIN = b"<!DOCTYPE html><html><body>Please sign in</body></html>"
NO_ANSWERS = pytest.mark.parametrize(
    "body", [b"", LOGIN, b'{"data_id": "5c1d', b"\xff\xfe", b"null", b"NaN", b"true", b"7", b'"ok"', b"[" * 5000]
)
CHUNK = chunk_of(3, (1.0, 2.0), [Column("T", "K", (1.0, 2.0)), Column("p", None, (3.0, 4.0))], first_row=6)


def confirmation(**members: Any) -> dict[str, Any]:
    return {"data_id": DATA_ID, "channel_name": "T", "chunk_index": 3, "total_points": 8} | members


@NO_ANSWERS
def test_an_answer_that_is_not_the_apis_confirms_nothing(body: bytes) -> None:
    with pytest.raises(answers.AnswerError):
        answers.check_confirmed(body, DATA_ID, CHUNK.index, CHUNK.names)
    with pytest.raises(answers.AnswerError):
        answers.check_finalized(body, DATA_ID)
    with pytest.raises(answers.AnswerError):
        answers.read_initialized(body)
    with pytest.raises(answers.AnswerError):
        list(lists.read_entries([body]))
    with pytest.raises(answers.AnswerError):
        lists.read_items([body])
    with pytest.raises(answers.AnswerError):
        answers.read_created(body)


@pytest.mark.parametrize(
    "data_id",
    [None, 7, "", " ", "a b", "../../x", "x/finalize", "a?b", "a#b", "ü", "5c1d7e02\n", "x" * 65, [DATA_ID], {}],
)
def test_a_text_that_cannot_be_an_id_is_refused(data_id: Any) -> None:
    with pytest.raises(answers.AnswerError, match="expected an id"):
        answers.read_initialized(json.dumps({"data_id": data_id}).encode())


@pytest.mark.parametrize(
    "members",
    [
        {"data_id": SAMPLE},
        {"data_id": None},
        {"chunk_index": 2},
        {"chunk_index": "3"},
        {"chunk_index": None},
        {"channel_name": "t"},
        {"channel_name": None},
        {"channel_name": ["T"]},
        {"channel_name": {"T": 1}},
    ],
)
def test_an_answer_about_another_stream_chunk_or_channel_confirms_nothing(members: dict[str, Any]) -> None:
    for shape in (confirmation(**members), [confirmation(**members)]):
        with pytest.raises(answers.AnswerError, match="does not confirm chunk 3 of channel 'T'"):
            answers.check_confirmed(json.dumps(shape).encode(), DATA_ID, CHUNK.index, ["T"])


def test_an_answer_that_leaves_a_channel_out_does_not_confirm_it() -> None:
    body = json.dumps([confirmation(), "noise", None, confirmation(channel_name="q")]).encode()

    answers.check_confirmed(body, DATA_ID, CHUNK.index, ["T"])
    with pytest.raises(answers.AnswerError, match="channel 'p'"):
        answers.check_confirmed(body, DATA_ID, CHUNK.index, ["T", "p"])


def test_a_channel_called_none_is_not_confirmed_by_an_answer_without_a_name() -> None:
    body = json.dumps([confirmation(channel_name=None)]).encode()

    with pytest.raises(answers.AnswerError):
        answers.check_confirmed(body, DATA_ID, CHUNK.index, ["None"])


def test_the_confirmations_of_a_multi_may_come_in_any_order() -> None:
    body = json.dumps([confirmation(channel_name="p"), confirmation()]).encode()

    answers.check_confirmed(body, DATA_ID, CHUNK.index, CHUNK.names)


# ---- answers that are like earlier ones ------------------------------------------------------------------------------

ANSWERS = pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")], ids=["compact", "with blanks"])


@ANSWERS
@pytest.mark.parametrize("known", [[], [3], [3, 4], [9], [1, 10, 100]])
@given(data=st.data())
def test_an_answer_confirms_the_same_whatever_was_answered_before(
    separators: tuple[str, str], known: list[int], data: st.DataObject
) -> None:
    def confirming(index: int) -> bytes:
        said = [confirmation(channel_name=name, chunk_index=index) for name in CHUNK.names]
        return json.dumps(said, separators=separators).encode()

    usual = answers.UsualAnswers()
    for index in known:
        usual.check_confirmed(confirming(index), DATA_ID, index, CHUNK.names)
    given_index, asked = data.draw(st.integers(0, 120)), data.draw(st.integers(0, 120))
    odd = data.draw(st.sampled_from([b"", b" ", b"1", b"7"]))
    body = confirming(given_index) if odd == b"" else confirming(given_index).replace(b"3", odd)

    assert agrees(lambda: usual.check_confirmed(body, DATA_ID, asked, CHUNK.names)) == agrees(
        lambda: answers.check_confirmed(body, DATA_ID, asked, CHUNK.names)
    )


def agrees(check: Callable[[], None]) -> bool:
    """True if an answer confirms what is asked."""
    try:
        check()
    except answers.AnswerError:
        return False
    return True


@pytest.mark.parametrize(
    "said",
    [
        [confirmation(), confirmation(channel_name="p")],
        [confirmation(), confirmation(channel_name="p", chunk_index=3.0)],
        [confirmation(), confirmation(channel_name="p") | {'a"chunk_index': 3}],
        [confirmation(), confirmation(channel_name="p"), confirmation(channel_name="q", chunk_index=33)],
        [confirmation(total_points=3), confirmation(channel_name="p", total_points=3)],
    ],
)
def test_an_answer_to_one_chunk_never_confirms_another(said: list[dict[str, Any]]) -> None:
    body = json.dumps(said, separators=(",", ":")).encode()
    for answer_once in (body, body.replace(b"chunk_index", b"chunk\\u005findex", 1)):
        usual = answers.UsualAnswers()
        usual.check_confirmed(answer_once, DATA_ID, 3, CHUNK.names)
        usual.check_confirmed(answer_once, DATA_ID, 3, CHUNK.names)
        for other in (0, 2, 4, 30, 33):
            with pytest.raises(answers.AnswerError):
                usual.check_confirmed(answer_once, DATA_ID, other, CHUNK.names)
        with pytest.raises(answers.AnswerError):
            usual.check_confirmed(answer_once, SAMPLE, 3, CHUNK.names)
        with pytest.raises(answers.AnswerError):
            usual.check_confirmed(answer_once, DATA_ID, 3, ("T", "p", "r"))


def test_usual_answers_are_remembered_in_bounded_memory() -> None:
    names = tuple(f"channel {n}" for n in range(1000))
    usual = answers.UsualAnswers()
    tracemalloc.start()
    try:
        for stream in range(100):
            data_id = f"{stream:08d}"
            said = [confirmation(data_id=data_id, channel_name=name) for name in names]
            usual.check_confirmed(json.dumps(said, separators=(",", ":")).encode(), data_id, 3, names)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 2**21


@pytest.mark.parametrize("body", [{"data_id": SAMPLE}, {}, [], [{"data_id": DATA_ID}], {"processed_data_id": DATA_ID}])
def test_an_answer_about_another_stream_finalizes_nothing(body: Any) -> None:
    with pytest.raises(answers.AnswerError):
        answers.check_finalized(json.dumps(body).encode(), DATA_ID)


def test_catalogue_entries_without_a_usable_id_are_skipped() -> None:
    entries = [{"data_id": DATA_ID}, {"data_id": 7}, {"data_id": "../x"}, "noise", None, {"raw_name": "no id"}]

    assert list(lists.read_entries([json.dumps(entries).encode()])) == [answers.Entry(DATA_ID, "", "")]


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b'{"detail": "no such instrument"}', "'no such instrument'"),
        (b'{"detail": {"msg": "too long", "n": 5}}', """'{"msg":"too long","n":5}'"""),
        (b'{"error": 5}', """'{"error":5}'"""),
        (b"[1, 2]", "'[1,2]'"),
        (b"", "''"),
        (b"<html>\n</html>", r"'<html>\n</html>'"),
        (b"\xff\x1b[31mred", r"'\ufffd\x1b[31mred'"),
    ],
)
def test_a_refusals_text_is_quoted_on_one_line(body: bytes, detail: str) -> None:
    shown = answers.error_text(body)

    assert shown.replace("�", r"\ufffd") == detail
    assert "\n" not in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize("body", [b"x" * 10_000, json.dumps({"detail": "y" * 10_000}).encode()])
def test_a_long_text_of_a_refusal_is_cut(body: bytes) -> None:
    assert len(answers.error_text(body)) <= 310
